// Demo starts the agent, the gateway and AHTI on this machine, lets a server run
// out of memory, and shows what AHTI makes of it. It exits with 0 only if AHTI
// names the server's OOM kill as the cause of what its client suffers.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// patience is how long the demo waits for its incident in all.
const patience = 90 * time.Second

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "serve":
			exit(serve(os.Stdin, os.Stdout))
		case "call":
			exit(call(os.Stdin, os.Stdout))
		}
	}
	binaries := flag.String("binaries", "bin", "folder of tapio, polku and ahti")
	keep := flag.Bool("keep", false, "keep the folder with data and logs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, patience)
	err := run(ctx, *binaries, *keep)
	cancel()
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run is the demo from the first process to the last.
func run(ctx context.Context, binaries string, keep bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("loading BPF programs and making control groups needs root: run it with sudo")
	}
	folder, err := os.MkdirTemp("", "tapio-demo-")
	if err != nil {
		return fmt.Errorf("make a folder for data and logs: %w", err)
	}
	defer func() {
		if keep || err != nil {
			fmt.Printf("\ndata and logs are in %s\n", folder)
			return
		}
		err = os.RemoveAll(folder)
	}()
	chain, err := newChain(binaries, folder)
	if err != nil {
		return err
	}
	defer chain.stop()
	fmt.Println("starting ahti, polku and tapio on this machine ...")
	if err := chain.start(ctx); err != nil {
		return err
	}
	groups, err := makeGroups(fmt.Sprintf("tapio-demo-%d", os.Getpid()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, groups.remove()) }()

	judge, err := newJudge(chain.ahti, groups.path(serverGroup))
	if err != nil {
		return err
	}
	defer judge.close()
	for attempt := 1; ; attempt++ {
		began := time.Now()
		fault, err := breakServer(ctx, groups)
		if err != nil {
			return err
		}
		id, err := judge.wait(ctx, began)
		fault.stop()
		if err == nil {
			fmt.Printf("\nexplained %.1f s after the kill:\n\n", time.Since(fault.at).Seconds())
			return chain.tell(ctx, id)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no incident names the OOM kill within %s: %w", patience, err)
		}
		// A part that was killed at the wrong moment takes what it has seen
		// with it.
		fmt.Printf("attempt %d: %v; once more\n", attempt, err)
	}
}
