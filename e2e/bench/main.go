// Bench measures the gateway beside the OpenTelemetry Collector with a queue on
// disk, one after the other on this machine: how many events a second each takes
// and answers for, how long its answers take at half of that rate, and what
// memory it needs. Servers run as processes of their own; this one makes the
// load and receives what they deliver.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// plan is what is measured.
type plan struct {
	binaries string // folder of polku
	otelcol  string // program
	dir      string // where the servers keep their data
	warmup   time.Duration
	full     time.Duration // at full load
	half     time.Duration // at half of it
	drain    time.Duration // without load, for what is left to deliver
	backlog  int64         // bytes of events before the gateway's second start
	load     shape
}

// shape is what all servers get alike.
type shape struct {
	connections int
	inFlight    int // batches on each connection
	batch       int // events
}

func main() {
	var p plan
	flag.StringVar(&p.binaries, "binaries", "bin", "folder of polku")
	flag.StringVar(&p.otelcol, "otelcol", "bin/tools/otelcol", "the collector")
	flag.StringVar(&p.dir, "dir", ".", "folder on the disk to measure")
	flag.DurationVar(&p.warmup, "warmup", 2*time.Second, "load before anything is counted")
	flag.DurationVar(&p.full, "full", 10*time.Second, "how long to measure at full load")
	flag.DurationVar(&p.half, "half", 8*time.Second, "how long to measure at half load")
	flag.DurationVar(&p.drain, "drain", 4*time.Second, "how long to watch the delivery of what is left")
	flag.Int64Var(&p.backlog, "backlog", 1<<30, "bytes of events that wait when the gateway starts to deliver")
	flag.IntVar(&p.load.connections, "connections", 8, "connections")
	flag.IntVar(&p.load.inFlight, "in-flight", 8, "batches that wait for their answers on each connection")
	flag.IntVar(&p.load.batch, "batch", 256, "events in a batch")
	flag.Parse()

	// Children end with the thread that started them, so that thread is the one
	// that lives as long as this process.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, p)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, p plan) (err error) {
	folder, err := os.MkdirTemp(p.dir, "polku-bench-")
	if err != nil {
		return fmt.Errorf("make a folder for the data: %w", err)
	}
	defer func() {
		if removed := os.RemoveAll(folder); err == nil {
			err = removed
		}
	}()
	p.dir = folder
	if err := p.describe(os.Stdout); err != nil {
		return err
	}
	printHead(os.Stdout)

	gateway, err := p.measureGateway(ctx)
	if err != nil {
		return fmt.Errorf("measure polku: %w", err)
	}
	collector := map[bool]results{}
	for _, fsync := range []bool{true, false} {
		if collector[fsync], err = p.measureCollector(ctx, fsync); err != nil {
			return fmt.Errorf("measure the collector: %w", err)
		}
	}
	judge(os.Stdout, gateway, collector)
	return nil
}
