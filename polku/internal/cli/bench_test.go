package cli_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	goproto "google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// typical is an event as the agent makes it.
func typical(f *event.Factory, i int) *eventv1.Event {
	e := f.New(event.KindNetworkConnectionRefused, time.Now(), "tapio")
	e.Metadata[event.NetworkPeerAddress] = fmt.Sprintf("10.0.%d.%d", i/256%256, i%256)
	e.Metadata[event.NetworkPeerPort] = "5432"
	e.Metadata[event.ErrorType] = "ECONNREFUSED"
	e.Metadata[event.K8sNamespaceName] = "shop"
	e.Metadata[event.K8sPodName] = "checkout-7d4b9c6f5-x2x7k"
	e.Metadata[event.K8sNodeName] = "node-17"
	e.Metadata[event.ProcessPID] = "4711"
	e.Metadata[event.ProcessExecutableName] = "checkout"
	e.Metadata[event.HostName] = "node-17"
	e.Data = &eventv1.Event_Network{Network: &eventv1.NetworkEventData{
		Protocol: "tcp", SrcIp: "10.0.0.9", DstIp: "10.0.0.7", SrcPort: 40312, DstPort: 5432, Direction: "outbound", TcpState: "SYN_SENT",
	}}
	return e
}

// wire is a message that is encoded already.
type wire []byte

// wireCodec sends wire as it is, so that the load costs little.
type wireCodec struct{ encoding.CodecV2 }

func (c wireCodec) Marshal(v any) (mem.BufferSlice, error) {
	if w, ok := v.(wire); ok {
		return mem.BufferSlice{mem.SliceBuffer(w)}, nil
	}
	return c.CodecV2.Marshal(v)
}

const batchSize = 256

// load makes batches ahead of the time.
func load(tb testing.TB, batches int) []wire {
	tb.Helper()
	f := event.NewFactory()
	made := make([]wire, batches)
	for b := range made {
		payload := &polkuv1.EventPayload{}
		for i := range batchSize {
			payload.Events = append(payload.Events, typical(f, b*batchSize+i))
		}
		encoded, err := goproto.Marshal(&polkuv1.IngestBatch{
			Source: "tapio", Cluster: "prod", Payload: &polkuv1.IngestBatch_Events{Events: payload},
		})
		require.NoError(tb, err)
		made[b] = encoded
	}
	return made
}

// BenchmarkIngest measures a gateway in a process of its own: events that are on
// disk and acknowledged.
func BenchmarkIngest(b *testing.B) {
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			p := run(b, "--data-dir", b.TempDir())
			batches := load(b, max(b.N, streams))
			b.SetBytes(int64(len(batches[0])))
			b.ResetTimer()
			send(b, p, batches, streams, 0)
			b.StopTimer()
			b.ReportMetric(float64(len(batches)*batchSize)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(len(batches[0]))/batchSize, "B/event")
			_, most := p.memory(b)
			b.ReportMetric(most/(1<<20), "peak-MiB")
			p.stop(b)
		})
	}
}

// BenchmarkAckLatency measures how long acks take at 75,000 events a second.
func BenchmarkAckLatency(b *testing.B) {
	const streams, rate = 8, 75_000
	p := run(b, "--data-dir", b.TempDir())
	batches := load(b, max(b.N, streams))
	b.ResetTimer()
	took := send(b, p, batches, streams, time.Second*batchSize*streams/rate)
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(len(batches)*batchSize)/b.Elapsed().Seconds(), "events/s")
	_, most := p.memory(b)
	b.ReportMetric(most/(1<<20), "peak-MiB")
	p.stop(b)
}

// send sends batches over several streams, one every so often on each, and
// returns how long each took to be acknowledged.
func send(tb testing.TB, p *process, batches []wire, streams int, every time.Duration) []time.Duration {
	tb.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	began := time.Now()
	for s := range streams {
		client := p.client(tb, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(wireCodec{encoding.GetCodecV2(proto.Name)})))
		mine := batches[s*len(batches)/streams : (s+1)*len(batches)/streams]
		wg.Go(func() {
			took, err := sendOne(tb.Context(), client, mine, began.Add(every*time.Duration(s)/time.Duration(streams)), every)
			if err != nil {
				tb.Error(err)
			}
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
		})
	}
	wg.Wait()
	return all
}

func sendOne(ctx context.Context, client polkuv1.GatewayClient, batches []wire, began time.Time, every time.Duration) ([]time.Duration, error) {
	stream, err := client.StreamEvents(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	sent := make([]time.Time, len(batches))
	sending := make(chan error, 1)
	go func() {
		for i, b := range batches {
			due := time.Now()
			if every > 0 { // by the plan, so that a slow answer counts
				due = began.Add(every * time.Duration(i))
				time.Sleep(time.Until(due))
			}
			mu.Lock()
			sent[i] = due
			mu.Unlock()
			if err := stream.SendMsg(b); err != nil {
				sending <- err
				return
			}
		}
		sending <- stream.CloseSend()
	}()
	took := make([]time.Duration, 0, len(batches))
	acked := 0
	for acked < len(batches)*batchSize {
		ack, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if len(ack.GetErrors()) > 0 {
			return nil, fmt.Errorf("refused: %v", ack.GetErrors()[0])
		}
		acked += len(ack.GetEventIds())
		mu.Lock()
		for len(took) < acked/batchSize {
			took = append(took, time.Since(sent[len(took)]))
		}
		mu.Unlock()
	}
	return took, <-sending
}

// BenchmarkFullLog measures the memory of a gateway whose only route is down and
// whose log is full, while 300 sources push.
func BenchmarkFullLog(b *testing.B) {
	const sources = 300
	p := run(b, "--data-dir", b.TempDir(), "--log-max-bytes", "64MiB", "--ahti", "127.0.0.1:1")
	batches := load(b, 64)
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	for range sources {
		client := p.client(b, grpc.WithDefaultCallOptions(grpc.ForceCodecV2(wireCodec{encoding.GetCodecV2(proto.Name)})))
		wg.Go(func() {
			for ctx.Err() == nil { // a stream that ends is opened again
				_, _ = sendOne(ctx, client, batches, time.Time{}, 0) // it ends with ctx
			}
		})
	}
	for b.Loop() {
		time.Sleep(time.Second)
	}
	now, most := p.memory(b)
	b.ReportMetric(now/(1<<20), "MiB")
	b.ReportMetric(most/(1<<20), "peak-MiB")
	cancel()
	wg.Wait()
	p.stop(b)
}
