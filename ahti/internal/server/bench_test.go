package server_test

import (
	"context"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/ahti/internal/ahtitest"
	"github.com/yairfalse/tapio/ahti/internal/server"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// load sends events in requests of 500 over some streams, without waiting for
// the responses, and returns when all are acknowledged.
func load(b *testing.B, r *running, requests []*ahtiv1.IngestRequest, streams int) {
	b.Helper()
	var next atomic.Int64
	var all sync.WaitGroup
	for range streams {
		all.Go(func() {
			stream, err := r.Ingest(context.Background())
			if err != nil {
				b.Error(err)
				return
			}
			go func() {
				for {
					n := next.Add(1) - 1
					if n >= int64(len(requests)) || stream.Send(requests[n]) != nil {
						break
					}
				}
				_ = stream.CloseSend()
			}()
			for {
				if _, err := stream.Recv(); err != nil {
					if err != io.EOF { //nolint:errorlint // gRPC returns it as it is
						b.Error(err)
					}
					return
				}
			}
		})
	}
	all.Wait()
}

func requests(w ahtitest.Workload, n int) []*ahtiv1.IngestRequest {
	const atOnce = 500
	var all []*ahtiv1.IngestRequest
	for i := 0; i < n; i += atOnce {
		all = append(all, &ahtiv1.IngestRequest{Events: w.Events(i, min(atOnce, n-i))})
	}
	return all
}

// processorTime is what this process has used. It tells the cost of an event also
// on a machine that others use.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkIngest stores events of 2,000 pods through gRPC; the sender is in the
// same process.
func BenchmarkIngest(b *testing.B) {
	stores := map[string]func() store.Config{
		"sqlite":   func() store.Config { return store.Config{Dir: b.TempDir()} },
		"postgres": func() store.Config { return store.Config{URL: postgres.Database(b)} },
	}
	for name, config := range stores {
		b.Run(name, func(b *testing.B) {
			r := run(b, server.Config{Store: config()})
			all := requests(ahtitest.Workload{Pods: 2000, Start: time.Now().Add(-time.Hour), Step: time.Millisecond, Cluster: "prod"}, b.N)
			b.ResetTimer()
			before := processorTime(b)
			load(b, r, all, 4)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/event")
		})
	}
}

// BenchmarkTimeline reads all of 50,000 events by pages of 10,000, as who checks
// that nothing is missing does.
func BenchmarkTimeline(b *testing.B) {
	const n = 50_000
	stores := map[string]func() store.Config{
		"sqlite":   func() store.Config { return store.Config{Dir: b.TempDir()} },
		"postgres": func() store.Config { return store.Config{URL: postgres.Database(b)} },
	}
	for name, config := range stores {
		b.Run(name, func(b *testing.B) {
			r := run(b, server.Config{Store: config()})
			w := ahtitest.Workload{Pods: 2000, Start: time.Now().Add(-50 * time.Minute), Step: time.Millisecond, Cluster: "prod"}
			load(b, r, requests(w, n), 4)
			before := processorTime(b)
			for b.Loop() {
				read := 0
				for request := (&ahtiv1.TimelineRequest{PageSize: 10_000}); ; {
					page, err := r.Timeline(b.Context(), request)
					require.NoError(b, err)
					read += len(page.GetEvents())
					if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
						break
					}
				}
				require.Equal(b, n, read)
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(n*b.N), "cpu-µs/event")
		})
	}
}

// BenchmarkMillion stores AHTI_BENCH_EVENTS events, a million if that is not
// set, and asks and restarts then.
func BenchmarkMillion(b *testing.B) {
	n := 1_000_000
	if text := os.Getenv("AHTI_BENCH_EVENTS"); text != "" {
		var err error
		n, err = strconv.Atoi(text)
		require.NoError(b, err)
	}
	config := server.Config{Store: store.Config{Dir: b.TempDir()}}
	w := ahtitest.Workload{Pods: 2000, Start: time.Now().Add(-time.Hour), Step: time.Hour / time.Duration(n), Cluster: "prod"}
	r := run(b, config)
	began, before := time.Now(), processorTime(b)
	for i := 0; i < n; i += 50_000 {
		var all []*ahtiv1.IngestRequest
		for j := i; j < min(n, i+50_000); j += 500 {
			all = append(all, &ahtiv1.IngestRequest{Events: w.Events(j, 500)})
		}
		load(b, r, all, 4)
	}
	b.Logf("%d events in %s, processor time %s, making the events included", n, time.Since(began).Round(time.Second), (processorTime(b) - before).Round(time.Second))
	pod := w.Event(7).GetEntities()[0]
	b.Run("why", func(b *testing.B) {
		for b.Loop() {
			answer, err := r.Why(b.Context(), &ahtiv1.WhyRequest{Entity: pod.GetNamespace() + "/" + pod.GetName()})
			require.NoError(b, err)
			require.NotEmpty(b, answer.GetIncidents())
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/why")
	})
	b.Run("timeline", func(b *testing.B) {
		for b.Loop() {
			answer, err := r.Timeline(b.Context(), &ahtiv1.TimelineRequest{Entity: pod.GetNamespace() + "/" + pod.GetName(), PageSize: 100})
			require.NoError(b, err)
			require.NotEmpty(b, answer.GetEvents())
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/page")
	})
	b.Run("incidents", func(b *testing.B) {
		for b.Loop() {
			_, err := r.ListIncidents(b.Context(), &ahtiv1.ListIncidentsRequest{})
			require.NoError(b, err)
		}
		b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/list")
	})
	require.NoError(b, r.stop())
	b.Run("restart", func(b *testing.B) {
		for b.Loop() {
			r := run(b, config)
			require.NoError(b, r.stop())
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/restart")
	})
}
