package gateway_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/protobuf/encoding/protowire"
	goproto "google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/gateway"
	"github.com/yairfalse/tapio/polku/internal/journal"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

// heapMiB is what the gateway and its clients in this process use.
func heapMiB() int {
	var m runtime.MemStats
	for range 3 { // pools keep what they have through two
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc >> 20)
}

// large returns events that make a batch of 0.94 MiB.
func large(prefix string) []*eventv1.Event {
	events := good(prefix, 4)
	for _, e := range events {
		e.Payload = make([]byte, 240<<10)
	}
	return events
}

// measured adds a registry for the metrics of a house.
func measured(registry *prometheus.Registry) func(*journal.Config, *gateway.Config) {
	return func(j *journal.Config, g *gateway.Config) { j.Registry, g.Registry = registry, registry }
}

func TestIdleStreamsHoldNoBatch(t *testing.T) {
	h := open(t, t.TempDir())
	before := heapMiB()
	for i := range 60 {
		stream, err := h.client.StreamEvents(t.Context())
		require.NoError(t, err)
		require.NoError(t, stream.Send(batchOf(large(fmt.Sprint("s", i))...)))
		_, err = stream.Recv()
		require.NoError(t, err)
		runtime.GC() // else a later stream may overwrite what an earlier one holds
		runtime.GC()
	}
	require.Less(t, heapMiB()-before, 20)
}

// Whatever it is that batches wait for, what they take is bounded.
func TestWhatWaitsIsBounded(t *testing.T) {
	const sources = 70
	rateLimit := func(_ *journal.Config, g *gateway.Config) { g.RateLimit = 0.01 }
	fullLog := func(j *journal.Config, _ *gateway.Config) { j.MaxBytes = 1 << 20 }
	encode := func(events []*eventv1.Event) raw {
		wire, err := goproto.Marshal(batchOf(events...))
		require.NoError(t, err)
		return wire
	}
	own := func(i int) raw { return encode(large(fmt.Sprint("s", i))) }
	same := func(int) raw { return encode(large("same")) }
	tiny := func(i int) raw {
		var payload []byte
		for k := range 16_000 {
			e := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), fmt.Sprintf("%x.%x", i, k))
			e = protowire.AppendVarint(protowire.AppendTag(e, 2, protowire.VarintType), uint64(time.Now().UnixNano()))
			e = protowire.AppendString(protowire.AppendTag(e, 4, protowire.BytesType), "x")
			payload = protowire.AppendBytes(protowire.AppendTag(payload, 1, protowire.BytesType), e)
		}
		b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "acme")
		return protowire.AppendBytes(protowire.AppendTag(b, 4, protowire.BytesType), payload)
	}
	for _, tt := range []struct {
		name  string
		edit  func(*journal.Config, *gateway.Config)
		batch func(i int) raw
		holds string
	}{
		{"until a source may send more", rateLimit, own, "polku_gateway_delayed_bytes"},
		{"until the same events are stored", rateLimit, same, "polku_gateway_delayed_bytes"},
		{"until there is room for large events", fullLog, own, "polku_gateway_waiting_bytes"},
		{"until there is room for tiny events", fullLog, tiny, "polku_gateway_waiting_bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			h := open(t, t.TempDir(), measured(registry), tt.edit)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			streams := make([]grpc.BidiStreamingClient[polkuv1.IngestBatch, polkuv1.Ack], sources)
			batches := make([]raw, sources)
			for i := range streams { // before one waits, which keeps the others from being read
				var err error
				streams[i], err = h.client.StreamEvents(ctx, grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2(proto.Name)}))
				require.NoError(t, err)
				_, err = streams[i].Header()
				require.NoError(t, err)
				batches[i] = tt.batch(i)
			}
			before := heapMiB()
			var running sync.WaitGroup
			for i, stream := range streams {
				running.Go(func() {
					_ = stream.SendMsg(batches[i]) // the other end says how it went
					_, _ = stream.Recv()
				})
			}
			require.Eventually(t, func() bool {
				return metric(t, registry, tt.holds) > 15<<20 && metric(t, registry, "polku_gateway_streams_ended_total") > 0
			}, patience, 20*time.Millisecond)
			// What is held is at most 24 MiB, and 8 MiB more on the way into the log.
			more := 0 // MiB
			require.Eventually(t, func() bool {
				more = heapMiB() - before
				return more < 64
			}, patience/4, 500*time.Millisecond)
			t.Logf("heap grew by %d MiB; %v streams ended", more, metric(t, registry, "polku_gateway_streams_ended_total"))
			runtime.KeepAlive(batches)
			cancel()
			running.Wait()
		})
	}
}

// Sources that do not read their answers hold nothing of what the others need when
// they have to wait, and little of anything else.
func TestUnreadAcksHoldNoBatch(t *testing.T) {
	const sources, larges = 12, 6
	registry := prometheus.NewRegistry()
	h := open(t, t.TempDir(), measured(registry))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	long := strings.Repeat("x", 100)
	batches := make([][]raw, sources)
	for i := range batches {
		add := func(events []*eventv1.Event) {
			wire, err := goproto.Marshal(batchOf(events...))
			require.NoError(t, err)
			batches[i] = append(batches[i], wire)
		}
		for b := range 4 { // their answers are more than the window of the source
			add(good(fmt.Sprint(long, i, "-", b), 500))
		}
		for b := range larges {
			add(large(fmt.Sprint("large", i, "-", b)))
		}
	}
	before := heapMiB()
	var running sync.WaitGroup
	for i := range batches {
		conn, err := grpc.NewClient(h.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close()) }()
		stream, err := polkuv1.NewGatewayClient(conn).StreamEvents(ctx, grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2(proto.Name)}))
		require.NoError(t, err)
		running.Go(func() {
			for _, b := range batches[i] {
				if stream.SendMsg(b) != nil {
					return
				}
			}
		})
	}
	stored := 0.0
	require.Eventually(t, func() bool { // no more gets in
		last := stored
		stored = metric(t, registry, "polku_gateway_events_stored_total")
		return stored > sources*500 && stored == last && metric(t, registry, "polku_gateway_in_flight_events") == 0
	}, patience, 500*time.Millisecond)
	require.Positive(t, metric(t, registry, "polku_gateway_unread_bytes"))
	require.Zero(t, metric(t, registry, "polku_gateway_waiting_bytes"))
	require.Zero(t, metric(t, registry, "polku_gateway_streams_ended_total"))
	more := heapMiB() - before
	t.Logf("heap grew by %d MiB; %v events stored", more, stored)
	require.Less(t, more, 40)
	runtime.KeepAlive(batches)
	cancel()
	running.Wait()
	require.Eventually(t, func() bool { return metric(t, registry, "polku_gateway_unread_bytes") == 0 }, patience, 10*time.Millisecond)
}
