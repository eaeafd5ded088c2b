// Polku is the gateway: it takes events, keeps them in a durable log, and routes
// them on.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/yairfalse/tapio/polku/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
