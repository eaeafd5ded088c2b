package polku

import (
	"context"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/queue"
)

// idsOnly decodes of a batch nothing but the ids, so that a benchmark of the
// client measures the client.
type idsOnly struct{ encoding.CodecV2 }

// Unmarshal implements encoding.CodecV2.
func (c idsOnly) Unmarshal(data mem.BufferSlice, v any) error {
	batch, ok := v.(*polkuv1.IngestBatch)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	payload := &polkuv1.EventPayload{}
	batch.Payload = &polkuv1.IngestBatch_Events{Events: payload}
	fields(data.Materialize(), fieldEvents, func(wire []byte) {
		fields(wire, fieldEvent, func(wire []byte) {
			fields(wire, 1, func(id []byte) { payload.Events = append(payload.Events, &eventv1.Event{Id: string(id)}) })
		})
	})
	return nil
}

// fields calls f with each value of a field that has a length.
func fields(wire []byte, number protowire.Number, f func([]byte)) {
	for len(wire) > 0 {
		n, kind, tag := protowire.ConsumeTag(wire)
		size := protowire.ConsumeFieldValue(n, kind, wire[tag:])
		if n == number {
			value, _ := protowire.ConsumeBytes(wire[tag:])
			f(value)
		}
		wire = wire[tag+size:]
	}
}

// trivial acks as cheaply as it can.
type trivial struct {
	polkuv1.UnimplementedGatewayServer
}

func (trivial) StreamEvents(s grpc.BidiStreamingServer[polkuv1.IngestBatch, polkuv1.Ack]) error {
	for {
		b, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client went away
		}
		if err := s.Send(&polkuv1.Ack{EventIds: idsOf(b)}); err != nil {
			return err
		}
	}
}

// BenchmarkDelivery is the whole way of an event through the client, with a
// server that does next to nothing in the same process.
func BenchmarkDelivery(b *testing.B) {
	server := grpc.NewServer(grpc.ForceServerCodecV2(idsOnly{encoding.GetCodecV2(proto.Name)}))
	polkuv1.RegisterGatewayServer(server, trivial{})
	listener := listen(b, "127.0.0.1:0")
	go func() { _ = server.Serve(listener) }() // until Stop
	defer server.Stop()
	c, err := New(Config{Endpoint: listener.Addr().String(), Source: "tapio", Log: slog.New(slog.DiscardHandler), Queue: queue.Limits{Events: 2000}})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		assert.NoError(b, c.Run(ctx))
	}()
	// More than can be in the queue and in flight, so that no id is there twice.
	events := make([]*eventv1.Event, 8192)
	for n := range events {
		events[n] = typical(n)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	for n := range b.N {
		if err := c.Send(ctx, events[n%len(events)]); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/event")
	cancel()
	<-done
}

// cpuTime is what this process has used.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
