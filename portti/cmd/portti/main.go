// Portti sends every change of the Kubernetes API to the gateway.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/yairfalse/tapio/portti/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
