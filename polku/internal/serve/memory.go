package serve

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	// memoryLimit makes the garbage collector work harder near it, so that 300
	// sources and a full log take no more (BenchmarkFullLog in internal/cli).
	memoryLimit = 110 << 20
	// memoryGoroutines is how many goroutines that is for, about 500 sources.
	memoryGoroutines = 4000
	// goroutineMemory is added for each one more. Who is connected costs about
	// seven when it streams, three when it does not, and one until it has said
	// what it speaks, each with 6 to 11 KiB of stack and heap; the rest is for
	// what a stream may have sent before it is read. A limit below what lives
	// would have the collector run all the time.
	goroutineMemory = 16 << 10
	// memoryStep is how many goroutines change the limit, which stops the world.
	memoryStep = 1000
	// memoryEvery is how often they are counted.
	memoryEvery = 250 * time.Millisecond
)

// limitMemory limits what the process takes by how much there is to do, until ctx
// ends. Who sets GOMEMLIMIT knows better.
func limitMemory(ctx context.Context) {
	if _, set := os.LookupEnv("GOMEMLIMIT"); set {
		return
	}
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	for limit := int64(0); ; {
		if next := limitFor(runtime.NumGoroutine()); next != limit {
			limit = next
			debug.SetMemoryLimit(limit)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// limitFor is the limit with a number of goroutines, bytes.
func limitFor(goroutines int) int64 {
	more := max(goroutines-memoryGoroutines+memoryStep-1, 0) / memoryStep * memoryStep
	return memoryLimit + int64(more)*goroutineMemory
}
