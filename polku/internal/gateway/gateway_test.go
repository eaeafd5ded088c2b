package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	goproto "google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/gateway"
	"github.com/yairfalse/tapio/polku/internal/journal"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/rpc"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

// maxMessage is small, so that what is too large is quickly made.
const maxMessage = 2 << 20

// house is a gateway on a log of its own, behind a real server.
type house struct {
	journal *journal.Journal
	client  polkuv1.GatewayClient
	conn    *grpc.ClientConn
	close   func()
}

// open opens a house whose log is in dir.
func open(t testing.TB, dir string, edit ...func(*journal.Config, *gateway.Config)) *house {
	t.Helper()
	registry := prometheus.NewRegistry()
	jc := journal.Config{Dir: dir, MaxBytes: 256 << 20, Retention: time.Hour, Registry: registry, Log: slog.New(slog.DiscardHandler)}
	gc := gateway.Config{Registry: registry, Log: jc.Log}
	for _, e := range edit {
		e(&jc, &gc)
	}
	j, err := journal.Open(t.Context(), jc)
	require.NoError(t, err)
	gc.Journal = j
	g, err := gateway.New(t.Context(), gc)
	require.NoError(t, err)
	s, err := rpc.NewServer(rpc.Config{
		Name: "gateway", Address: "127.0.0.1:0", Flag: "listen", MaxMessage: maxMessage, Window: 64 << 10,
		StopTimeout: patience, Registry: registry, Log: jc.Log,
		Options: []grpc.ServerOption{grpc.ForceServerCodecV2(gateway.NewCodec())},
	})
	require.NoError(t, err)
	polkuv1.RegisterGatewayServer(s, g)
	require.NoError(t, s.Listen(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	h := &house{journal: j}
	h.conn, err = grpc.NewClient(s.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	h.client = polkuv1.NewGatewayClient(h.conn)
	h.close = sync.OnceFunc(func() {
		g.Stop()
		cancel()
		assert.NoError(t, <-served)
		assert.NoError(t, h.conn.Close())
		assert.NoError(t, j.Close())
	})
	t.Cleanup(h.close)
	return h
}

// stored reads the log from its beginning to its end.
func (h *house) stored(t testing.TB) []*eventv1.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []*eventv1.Event
	require.NoError(t, h.journal.Recent(ctx, 1<<40, func(entry journal.Entry) error {
		events, err := entry.Events()
		all = append(all, events...)
		return err
	}))
	return all
}

func idsOf(events []*eventv1.Event) []string {
	ids := make([]string, 0, len(events))
	for _, e := range events {
		ids = append(ids, e.GetId())
	}
	return ids
}

// good returns valid events with ids of a prefix.
func good(prefix string, n int) []*eventv1.Event {
	events := make([]*eventv1.Event, n)
	for i := range events {
		events[i] = &eventv1.Event{
			Id: fmt.Sprintf("%s-%d", prefix, i), TimestampUnixNs: time.Now().UnixNano(),
			EventType: "acme.rocket.launched", Metadata: map[string]string{"n": fmt.Sprint(i)},
		}
	}
	return events
}

func batchOf(events ...*eventv1.Event) *polkuv1.IngestBatch {
	return &polkuv1.IngestBatch{Source: "acme", Cluster: "prod", Payload: &polkuv1.IngestBatch_Events{
		Events: &polkuv1.EventPayload{Events: events},
	}}
}

func rawBatch(format, data string) *polkuv1.IngestBatch {
	return &polkuv1.IngestBatch{Source: "acme", Payload: &polkuv1.IngestBatch_Raw{
		Raw: &polkuv1.RawPayload{Format: format, Data: []byte(data)},
	}}
}

// exchange sends batches over one stream and returns all acks together.
func (h *house) exchange(t testing.TB, batches ...any) *polkuv1.Ack {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := h.client.StreamEvents(ctx, grpc.ForceCodecV2(rawCodec{encoding.GetCodecV2(proto.Name)}))
	require.NoError(t, err)
	for _, b := range batches {
		require.NoError(t, stream.SendMsg(b))
	}
	require.NoError(t, stream.CloseSend())
	all := &polkuv1.Ack{}
	for {
		ack, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		require.NotZero(t, len(ack.GetEventIds())+len(ack.GetErrors()), "an ack says something")
		all.EventIds = append(all.EventIds, ack.GetEventIds()...)
		all.Errors = append(all.Errors, ack.GetErrors()...)
		if ack.GetMiddlewareStats() != nil {
			all.MiddlewareStats = ack.GetMiddlewareStats()
			all.BufferCapacity = ack.GetBufferCapacity()
		}
	}
}

// raw is sent as it is.
type raw []byte

type rawCodec struct{ encoding.CodecV2 }

func (c rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(raw); ok {
		return mem.BufferSlice{mem.SliceBuffer(r)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// fine sends one more good event over a new stream.
func (h *house) fine(t testing.TB, id string) {
	t.Helper()
	ack := h.exchange(t, batchOf(good(id, 1)...))
	require.Equal(t, []string{id + "-0"}, ack.GetEventIds())
}

func TestAnAckNamesWhatIsInTheLog(t *testing.T) {
	h := open(t, t.TempDir())
	first, second := good("a", 10), good("b", 3)
	second[1].Source = "own"
	second[1].Metadata[event.K8sClusterName] = "other"
	ack := h.exchange(t, batchOf(first...), batchOf(second...))
	require.Equal(t, append(idsOf(first), idsOf(second)...), ack.GetEventIds())
	require.Empty(t, ack.GetErrors())
	require.EqualValues(t, 13, ack.GetMiddlewareStats().GetTotalReceived())
	require.EqualValues(t, 13, ack.GetMiddlewareStats().GetTotalForwarded())
	require.Positive(t, ack.GetBufferCapacity())

	events := h.stored(t)
	require.Equal(t, ack.GetEventIds(), idsOf(events), "in the order in which they came")
	require.Equal(t, "acme", events[0].GetSource())
	require.Equal(t, "prod", events[0].GetMetadata()[event.K8sClusterName])
	require.Equal(t, "0", events[0].GetMetadata()["n"])
	require.Equal(t, "own", events[11].GetSource())
	require.Equal(t, "other", events[11].GetMetadata()[event.K8sClusterName])
}

func TestABadEventSpoilsNoOther(t *testing.T) {
	h := open(t, t.TempDir())
	tests := []struct {
		name  string
		spoil func(*eventv1.Event)
		code  string
		named bool // the refusal names the event
	}{
		{"1970", func(e *eventv1.Event) { e.TimestampUnixNs = 1 }, "invalid", true},
		{"2100", func(e *eventv1.Event) {
			e.TimestampUnixNs = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
		}, "invalid", true},
		{"in two days", func(e *eventv1.Event) { e.TimestampUnixNs = time.Now().Add(48 * time.Hour).UnixNano() }, "invalid", true},
		{"a source of two lines", func(e *eventv1.Event) { e.Source = "a\nb" }, "invalid", true},
		{"a kind with an escape", func(e *eventv1.Event) { e.EventType = "a.\x1b[0m" }, "invalid", true},
		{"a C1 control", func(e *eventv1.Event) { e.EventType = "a.\u0085" }, "invalid", true},
		{"a long namespace", func(e *eventv1.Event) { e.Metadata[event.K8sNamespaceName] = strings.Repeat("x", 257) }, "invalid", true},
		{"a cluster of two lines", func(e *eventv1.Event) { e.Metadata[event.K8sClusterName] = "a\nb" }, "invalid", true},
		{"no kind", func(e *eventv1.Event) { e.EventType = "" }, "invalid", true},
		{"no id", func(e *eventv1.Event) { e.Id = "" }, "invalid", false},
		{"id of 1 MB", func(e *eventv1.Event) { e.Id = strings.Repeat("x", 1<<20) }, "too_large", false},
		{"id of 64 KB", func(e *eventv1.Event) { e.Id = strings.Repeat("x", 64<<10) }, "invalid", false},
		{"too large", func(e *eventv1.Event) { e.Payload = make([]byte, event.MaxSize) }, "too_large", true},
		{"long value", func(e *eventv1.Event) { e.Metadata["k"] = strings.Repeat("x", event.MaxValueLen+1) }, "invalid", true},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			events := good(fmt.Sprintf("t%d", i), 3)
			tt.spoil(events[1])
			ack := h.exchange(t, batchOf(events...))
			require.Equal(t, []string{events[0].GetId(), events[2].GetId()}, ack.GetEventIds())
			require.Len(t, ack.GetErrors(), 1)
			refused := ack.GetErrors()[0]
			require.Equal(t, tt.code, refused.GetCode())
			require.NotEmpty(t, refused.GetMessage())
			require.Less(t, len(refused.GetMessage()), 500)
			if tt.named {
				require.Equal(t, events[1].GetId(), refused.GetEventId())
			} else {
				require.Empty(t, refused.GetEventId())
			}
		})
	}
	require.Len(t, h.stored(t), 2*len(tests))
}

func TestABadBatchSpoilsNoOther(t *testing.T) {
	h := open(t, t.TempDir())
	marshal := func(m goproto.Message) raw {
		wire, err := goproto.Marshal(m)
		require.NoError(t, err)
		return wire
	}
	junk := marshal(batchOf(good("junk", 2)...))
	tooMany := make([]*eventv1.Event, 16_385)
	noSource := batchOf(good("nosource", 2)...)
	noSource.Source = ""
	tests := []struct {
		name  string
		batch any
		code  string
		text  string
		ids   []string
	}{
		{"junk", raw("\xff\xff\xff\xff"), "invalid", "no polku.v1.IngestBatch", []string{""}},
		{"cut", junk[:len(junk)-5], "invalid", "no polku.v1.IngestBatch", []string{""}},
		{"no UTF-8", raw(bytes.ReplaceAll(junk, []byte("junk-1"), []byte("\xff\xfe\xfd\xfc\xfb\xfa"))), "invalid", "not UTF-8", []string{""}},
		{"two payloads", append(bytes.Clone(junk), junk...), "invalid", "two payloads", []string{""}},
		{"no payload", &polkuv1.IngestBatch{Source: "acme"}, "invalid", "no payload", []string{""}},
		{"too many events", batchOf(tooMany...), "too_large", "more than 16384 events", []string{""}},
		{"long source", &polkuv1.IngestBatch{Source: strings.Repeat("x", 129), Payload: batchOf(good("s", 1)...).GetPayload()}, "invalid", "source has 129 bytes", []string{"s-0"}},
		{"long cluster", &polkuv1.IngestBatch{Cluster: strings.Repeat("x", 257), Payload: batchOf(good("c", 2)...).GetPayload()}, "invalid", "cluster is", []string{"c-0", "c-1"}},
		{"a source of two lines", &polkuv1.IngestBatch{Source: "a\nb", Payload: batchOf(good("l", 1)...).GetPayload()}, "invalid", "no control characters", []string{"l-0"}},
		{"a source that is no UTF-8", raw(bytes.Replace(junk, []byte("acme"), []byte("acm\xff"), 1)), "invalid", "not UTF-8", []string{"junk-0", "junk-1"}},
		{"a bad source and a bad event", &polkuv1.IngestBatch{Source: "a\nb", Payload: batchOf(append(good("n", 1), &eventv1.Event{Id: "1970"})...).GetPayload()}, "invalid", "no control characters", []string{"n-0", "1970"}},
		{"a bad source of JSON", &polkuv1.IngestBatch{Source: "a\nb", Payload: rawBatch("json", `{"id":"j"}`).GetPayload()}, "invalid", "no control characters", []string{"j"}},
		{"no source anywhere", noSource, "invalid", "source is empty", []string{"nosource-0", "nosource-1"}},
		{"unknown format", rawBatch("xml", "<event/>"), "unknown_format", `"xml" is unknown: use json or protobuf`, []string{""}},
		{"no JSON", rawBatch("json", "{"), "invalid", "not JSON", []string{""}},
		{"JSON of something else", rawBatch("json", `{"id":"named","color":"red"}`), "invalid", "timestamp_unix_ns", []string{"named"}},
		{"junk as protobuf", rawBatch("protobuf", "\xff\xff"), "invalid", "no polku.v1.IngestBatch", []string{""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id := strings.ReplaceAll(tt.name, " ", "")
			if b, isBytes := tt.batch.([]byte); isBytes {
				tt.batch = raw(b)
			}
			ack := h.exchange(t, tt.batch, batchOf(good(id, 1)...))
			require.Contains(t, ack.GetEventIds(), id+"-0", "the stream goes on")
			require.Len(t, ack.GetErrors(), len(tt.ids))
			for i, e := range ack.GetErrors() {
				require.Equal(t, tt.code, e.GetCode())
				require.Contains(t, e.GetMessage(), tt.text)
				require.Equal(t, tt.ids[i], e.GetEventId())
			}
		})
	}
}

// An ack is for what every route can read: decoders refuse a field number that is
// too great, though its encoding is sound.
func TestWhatNoRouteCanReadIsRefused(t *testing.T) {
	h := open(t, t.TempDir())
	tooGreat := protowire.AppendVarint(protowire.AppendVarint(nil, (uint64(protowire.MaxValidNumber)+1)<<3), 1)
	// batch encodes events, with something behind the last of them, behind all of
	// them, and behind the batch.
	batch := func(events []*eventv1.Event, inEvent, inPayload, inBatch []byte) raw {
		var payload []byte
		for i, e := range events {
			wire, err := goproto.Marshal(e)
			require.NoError(t, err)
			if i == len(events)-1 {
				wire = append(wire, inEvent...)
			}
			payload = protowire.AppendBytes(protowire.AppendTag(payload, 1, protowire.BytesType), wire)
		}
		b := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "acme")
		b = protowire.AppendBytes(protowire.AppendTag(b, 4, protowire.BytesType), append(payload, inPayload...))
		return append(b, inBatch...)
	}
	ack := h.exchange(t, batch(good("a", 3), tooGreat, nil, nil))
	require.Equal(t, []string{"a-0", "a-1"}, ack.GetEventIds())
	require.Len(t, ack.GetErrors(), 1)
	for _, b := range []raw{batch(good("b", 3), nil, tooGreat, nil), batch(good("c", 3), nil, nil, tooGreat)} {
		ack = h.exchange(t, b)
		require.Empty(t, ack.GetEventIds())
		require.NotEmpty(t, ack.GetErrors())
	}
	require.Equal(t, []string{"a-0", "a-1"}, idsOf(h.stored(t)))
}

func TestABatchWithoutEventsIsNotAnswered(t *testing.T) {
	h := open(t, t.TempDir())
	ack := h.exchange(t, batchOf(), rawBatch("json", " \n"), rawBatch("json", "[]"), batchOf(good("after", 1)...))
	require.Equal(t, []string{"after-0"}, ack.GetEventIds())
	require.Empty(t, ack.GetErrors())
}

func TestATooLargeMessageEndsItsStreamOnly(t *testing.T) {
	h := open(t, t.TempDir())
	stream, err := h.client.StreamEvents(t.Context())
	require.NoError(t, err)
	large := good("large", 1)
	large[0].Payload = make([]byte, maxMessage)
	require.NoError(t, stream.Send(batchOf(large...)))
	_, err = stream.Recv()
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	h.fine(t, "after")
}

func TestALargeBatchIsStoredInPartsAndAckedAsOne(t *testing.T) {
	h := open(t, t.TempDir())
	events := good("part", 12)
	for _, e := range events {
		e.Payload = bytes.Repeat([]byte{7}, 120<<10)
	}
	ack := h.exchange(t, batchOf(events...))
	require.Equal(t, idsOf(events), ack.GetEventIds())
	require.Equal(t, idsOf(events), idsOf(h.stored(t)))
	state, err := h.journal.State(t.Context())
	require.NoError(t, err)
	require.Greater(t, state.Messages, uint64(1))
}

func TestManyRefusalsFitTheMessagesOfAnyClient(t *testing.T) {
	h := open(t, t.TempDir())
	events := good(strings.Repeat("x", 100), 8000)
	for _, e := range events {
		e.EventType = ""
	}
	ack := h.exchange(t, batchOf(events...))
	require.Len(t, ack.GetErrors(), 8000)
}

func TestFormats(t *testing.T) {
	h := open(t, t.TempDir())
	one, err := event.AppendJSON(nil, good("json", 1)[0])
	require.NoError(t, err)
	line := func(id string) string { return strings.ReplaceAll(string(one), "json-0", id) }
	payload, err := goproto.Marshal(&polkuv1.EventPayload{Events: good("pb", 2)})
	require.NoError(t, err)
	tests := []struct {
		name, format, data string
		want               []string
	}{
		{"one object", "json", line("o"), []string{"o"}},
		{"lines", "json", line("l1") + "\n" + line("l2") + "\n\n", []string{"l1", "l2"}},
		{"list", "json", " [" + line("a1") + ",\n" + line("a2") + "] ", []string{"a1", "a2"}},
		{"a newer protocol", "json", strings.Replace(line("n"), "{", `{"new_field":{"a":1},`, 1), []string{"n"}},
		{"protobuf", "protobuf", string(payload), []string{"pb-0", "pb-1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ack := h.exchange(t, rawBatch(tt.format, tt.data))
			require.Empty(t, ack.GetErrors())
			require.Equal(t, tt.want, ack.GetEventIds())
		})
	}
	require.Len(t, h.stored(t), 8)
}

func TestSendEvent(t *testing.T) {
	h := open(t, t.TempDir())
	single := good("single", 1)[0]
	ack, err := h.client.SendEvent(t.Context(), &polkuv1.IngestEvent{
		Source: "acme", Cluster: "prod", Payload: &polkuv1.IngestEvent_Event{Event: single},
	})
	require.NoError(t, err)
	require.Equal(t, []string{"single-0"}, ack.GetEventIds())

	encoded, err := goproto.Marshal(good("raw", 1)[0])
	require.NoError(t, err)
	ack, err = h.client.SendEvent(t.Context(), &polkuv1.IngestEvent{
		Source: "acme", Format: "protobuf", Payload: &polkuv1.IngestEvent_Raw{Raw: encoded},
	})
	require.NoError(t, err)
	require.Equal(t, []string{"raw-0"}, ack.GetEventIds())
	require.Equal(t, []string{"single-0", "raw-0"}, idsOf(h.stored(t)))

	for _, in := range []*polkuv1.IngestEvent{{Source: "a\nb"}, {Source: strings.Repeat("x", 129)}, {Source: "acme", Cluster: "a\nb"}} {
		in.Payload = &polkuv1.IngestEvent_Event{Event: single}
		ack, err = h.client.SendEvent(t.Context(), in)
		require.NoError(t, err)
		require.Empty(t, ack.GetEventIds())
		require.Len(t, ack.GetErrors(), 1)
		require.Equal(t, single.GetId(), ack.GetErrors()[0].GetEventId())
	}
	for name, in := range map[string]*polkuv1.IngestEvent{
		"invalid":        {Payload: &polkuv1.IngestEvent_Event{Event: single}},
		"unknown_format": {Source: "acme", Format: "xml", Payload: &polkuv1.IngestEvent_Raw{}},
	} {
		ack, err = h.client.SendEvent(t.Context(), in)
		require.NoError(t, err)
		require.Empty(t, ack.GetEventIds())
		require.Equal(t, name, ack.GetErrors()[0].GetCode())
	}
}

func TestWhatIsSentAgainIsAckedAndStoredOnce(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	events := good("again", 6)
	h.exchange(t, batchOf(events[:3]...), batchOf(events[3:]...))
	same := h.exchange(t, batchOf(events[:3]...))
	require.Equal(t, idsOf(events[:3]), same.GetEventIds())
	require.EqualValues(t, 3, same.GetMiddlewareStats().GetDedupCount())
	other := h.exchange(t, batchOf(append(good("new", 1), events[2], events[5])...))
	require.Equal(t, []string{"new-0", "again-2", "again-5"}, other.GetEventIds())
	require.EqualValues(t, 5, other.GetMiddlewareStats().GetDedupCount())
	require.Len(t, h.stored(t), 7)
	h.close()

	// A new process knows what the old one stored, in whatever composition.
	h = open(t, dir)
	ack := h.exchange(t, batchOf(events[1], events[4]))
	require.Equal(t, []string{"again-1", "again-4"}, ack.GetEventIds())
	require.EqualValues(t, 2, ack.GetMiddlewareStats().GetDedupCount())
	require.Len(t, h.stored(t), 7)
}

func TestTwoStreamsWithTheSameEventsAreBothAcked(t *testing.T) {
	h := open(t, t.TempDir())
	events := good("race", 200)
	var wg sync.WaitGroup
	for _, size := range []int{1, 7, 20, 20} {
		wg.Go(func() {
			var batches []any
			for at := range slices.Chunk(events, size) {
				batches = append(batches, batchOf(at...))
			}
			ack := h.exchange(t, batches...)
			assert.Equal(t, idsOf(events), ack.GetEventIds())
		})
	}
	wg.Wait()
	require.ElementsMatch(t, idsOf(events), idsOf(h.stored(t)), "each is stored once")
}

func TestAnEventThatIsTwiceInABatchIsStoredOnce(t *testing.T) {
	h := open(t, t.TempDir())
	events := good("twice", 2)
	ack := h.exchange(t, batchOf(events[0], events[1], events[0]))
	require.Equal(t, []string{"twice-0", "twice-1", "twice-0"}, ack.GetEventIds())
	require.EqualValues(t, 1, ack.GetMiddlewareStats().GetDedupCount())
	require.Equal(t, []string{"twice-0", "twice-1"}, idsOf(h.stored(t)))
}

// external starts a NATS server with JetStream on loopback.
func external(t *testing.T) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(patience))
	return s
}

// A cluster may refuse one message and take the next. That must not change the
// order of a source: here a message is too large for a while.
func TestAnExternalLogTakesOneBatchOfAStreamAfterTheOther(t *testing.T) {
	s := external(t)
	h := open(t, "", func(j *journal.Config, _ *gateway.Config) { j.URL = s.ClientURL() })
	conn, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	events, err := js.Stream(t.Context(), "POLKU_EVENTS")
	require.NoError(t, err)
	config := events.CachedInfo().Config
	config.MaxMsgSize = 10 << 10
	_, err = js.UpdateStream(t.Context(), config)
	require.NoError(t, err)

	large, small := good("large", 1), good("small", 20)
	large[0].Payload = make([]byte, 20<<10)
	stream, err := h.client.StreamEvents(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(batchOf(large...)))
	for _, e := range small {
		if stream.Send(batchOf(e)) != nil {
			break // it has ended
		}
	}
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
	h.fine(t, "later") // which waits until the log has recovered
	require.Equal(t, []string{"later-0"}, idsOf(h.stored(t)), "nothing overtakes what failed")
}

// Batches of one event are many messages: they wait for each other, and none of
// them looks like a log that fails.
func TestManySmallBatchesAtOnce(t *testing.T) {
	registry := prometheus.NewRegistry()
	h := open(t, t.TempDir(), func(j *journal.Config, g *gateway.Config) { j.Registry, g.Registry = registry, registry })
	const streams, each = 80, 64 // more than the client of NATS takes at once
	var running sync.WaitGroup
	for i := range streams {
		running.Go(func() {
			var batches []any
			for _, e := range good(fmt.Sprint("s", i), each) {
				batches = append(batches, batchOf(e))
			}
			assert.Len(t, h.exchange(t, batches...).GetEventIds(), each)
		})
	}
	running.Wait()
	require.Len(t, idsOf(h.stored(t)), streams*each)
	require.Zero(t, metric(t, registry, "polku_log_append_failures_total"))
	require.Zero(t, metric(t, registry, "polku_log_restarts_total"))
}

// metric is the value of a counter or a gauge without labels.
func metric(t testing.TB, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue() + f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	require.Fail(t, "no metric "+name)
	return 0
}

func TestRateLimit(t *testing.T) {
	h := open(t, t.TempDir(), func(_ *journal.Config, g *gateway.Config) { g.RateLimit = 100 })
	fast := good("fast", 250)
	var batches []any
	for at := range slices.Chunk(fast, 50) {
		batches = append(batches, batchOf(at...), batchOf(at...)) // what is sent again counts once
	}
	ack := h.exchange(t, batches...)
	require.Empty(t, ack.GetErrors())
	require.Equal(t, idsOf(fast), idsOf(h.stored(t)), "the order is kept")
	require.LessOrEqual(t, ack.GetMiddlewareStats().GetRateLimitedCount(), int64(150), "a second's worth goes at once")
}

func TestEachSourceHasALimitOfItsOwn(t *testing.T) {
	h := open(t, t.TempDir(), func(_ *journal.Config, g *gateway.Config) { g.RateLimit = 0.001 })
	events := good("mixed", 3)
	for i, e := range events {
		e.Source = fmt.Sprint("source", i)
	}
	b := batchOf(events...)
	b.Source = ""
	require.Equal(t, idsOf(events), h.exchange(t, b).GetEventIds())

	// The next of one of them cannot be taken in time, which the call is told.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := h.client.SendEvent(ctx, &polkuv1.IngestEvent{
		Source: "source1", Payload: &polkuv1.IngestEvent_Event{Event: good("late", 1)[0]},
	})
	require.Equal(t, codes.ResourceExhausted, status.Code(err), "%v", err)
	require.EqualValues(t, 1, h.exchange(t, batchOf(good("first", 1)...)).GetMiddlewareStats().GetRateLimitedCount())
}

// A source that never reads its acks fills its own window and nothing else.
func TestUnreadAcksHoldUpNobodyElse(t *testing.T) {
	h := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stuck := make(chan struct{})
	stream, err := h.client.StreamEvents(ctx)
	require.NoError(t, err)
	go func() {
		defer close(stuck)
		for i := range 1 << 20 {
			if stream.Send(batchOf(good(fmt.Sprintf("%s-%d", strings.Repeat("x", 100), i), 100)...)) != nil {
				return
			}
		}
	}()
	conn, err := grpc.NewClient(h.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	h.client = polkuv1.NewGatewayClient(conn)
	for i := range 20 {
		h.fine(t, fmt.Sprintf("fine%d", i))
	}
	state, err := h.journal.State(t.Context())
	require.NoError(t, err)
	require.Eventually(t, func() bool { // nothing more gets in
		before := state.Messages
		time.Sleep(300 * time.Millisecond)
		state, err = h.journal.State(t.Context())
		return err == nil && state.Messages == before
	}, patience, time.Millisecond)
	h.fine(t, "last")
	cancel()
	<-stuck
}

// What a source that does not read has in the log already takes no room of what
// all share on the way there.
func TestUnreadAcksOfLargeBatchesHoldUpNobodyElse(t *testing.T) {
	h := open(t, t.TempDir())
	conn, err := grpc.NewClient(h.conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := polkuv1.NewGatewayClient(conn).StreamEvents(ctx)
	require.NoError(t, err)
	// Two answers that fill the window of the source, then much that is small to
	// answer for: more than may be on its way.
	long := strings.Repeat("x", 100)
	require.NoError(t, stream.Send(batchOf(good(long+"a", 1000)...)))
	require.NoError(t, stream.Send(batchOf(good(long+"b", 1000)...)))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range 60 {
			large := good(fmt.Sprint("large", i), 1)
			large[0].Payload = make([]byte, 250<<10)
			if stream.Send(batchOf(large...)) != nil {
				return
			}
		}
	}()
	require.Eventually(t, func() bool {
		state, err := h.journal.State(t.Context())
		return err == nil && state.Bytes > 8<<20 // as much as may be on its way
	}, patience, 10*time.Millisecond)
	for i := range 3 { // long before the source is given up
		ctx, cancel := context.WithTimeout(t.Context(), patience/3)
		defer cancel()
		_, err := h.client.SendEvent(ctx, &polkuv1.IngestEvent{
			Source: "other", Payload: &polkuv1.IngestEvent_Event{Event: good(fmt.Sprint("other", i), 1)[0]},
		})
		require.NoError(t, err)
	}
	cancel()
	<-sent
}

func TestAStreamWithoutEventsEndsWithTheGateway(t *testing.T) {
	h := open(t, t.TempDir())
	stream, err := h.client.StreamEvents(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(batchOf(good("once", 1)...)))
	ack, err := stream.Recv()
	require.NoError(t, err)
	require.Equal(t, []string{"once-0"}, ack.GetEventIds())
	h.close()
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
}

func TestHealth(t *testing.T) {
	h := open(t, t.TempDir(), func(_ *journal.Config, g *gateway.Config) {
		g.Components = func(context.Context) map[string]*polkuv1.ComponentHealth {
			return map[string]*polkuv1.ComponentHealth{"route/ahti": {Message: "refused"}}
		}
	})
	h.fine(t, "one")
	health, err := h.client.Health(t.Context(), &polkuv1.HealthRequest{})
	require.NoError(t, err)
	require.True(t, health.GetHealthy(), "a route that hangs does not keep events out")
	require.False(t, health.GetComponents()["route/ahti"].GetHealthy())
	require.True(t, health.GetComponents()["log"].GetHealthy())
	require.EqualValues(t, 1, health.GetEventsProcessed())
}

// A full log takes nothing and says so; what it has acked is all there.
func TestAFullLogWithholdsAcks(t *testing.T) {
	h := open(t, t.TempDir(), func(j *journal.Config, _ *gateway.Config) { j.MaxBytes = 8 << 20 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := h.client.StreamEvents(ctx)
	require.NoError(t, err)
	go func() {
		for i := range 1000 {
			events := good(fmt.Sprintf("fill%d", i), 10)
			for _, e := range events {
				e.Payload = make([]byte, 10<<10)
			}
			if stream.Send(batchOf(events...)) != nil {
				return
			}
		}
	}()
	var acked []string
	acks := make(chan []string)
	go func() {
		defer close(acks)
		for {
			ack, err := stream.Recv()
			if err != nil {
				return
			}
			acks <- ack.GetEventIds()
		}
	}()
	require.Eventually(t, func() bool {
		for {
			select {
			case ids := <-acks:
				acked = append(acked, ids...)
				continue
			case <-time.After(500 * time.Millisecond):
			}
			return h.journal.Blocked() != nil
		}
	}, patience, time.Millisecond)
	require.ErrorIs(t, h.journal.Blocked(), journal.ErrLogFull)
	require.Less(t, len(acked), 1000)
	health, err := h.client.Health(t.Context(), &polkuv1.HealthRequest{})
	require.NoError(t, err)
	require.False(t, health.GetHealthy())

	// Room comes when history goes, and the stream goes on by itself.
	kept := idsOf(h.stored(t))
	require.Subset(t, kept, acked)
	require.NoError(t, h.journal.Trim(t.Context()))
	select {
	case ids, open := <-acks:
		require.True(t, open)
		require.NotEmpty(t, ids)
	case <-time.After(patience):
		t.Fatal("the stream does not go on")
	}
	cancel()
	for range acks {
		continue
	}
}

// Sources that come while others wait are not read, rather than read and sent
// away.
func TestAFullLogReadsNoMoreThanItCanHold(t *testing.T) {
	registry := prometheus.NewRegistry()
	h := open(t, t.TempDir(), func(j *journal.Config, g *gateway.Config) {
		j.MaxBytes, j.Retention, j.Registry, g.Registry = 16<<20, time.Nanosecond, registry, registry
	})
	var sources sync.WaitGroup
	send := func(from, to int) {
		for i := from; i < to; i++ {
			sources.Go(func() {
				events := good(fmt.Sprint("s", i), 2)
				for _, e := range events {
					e.Payload = make([]byte, 240<<10)
				}
				assert.Equal(t, idsOf(events), h.exchange(t, batchOf(events...)).GetEventIds())
			})
		}
	}
	send(0, 60) // the log, what is on its way, and some that wait
	require.Eventually(t, func() bool {
		return h.journal.Blocked() != nil && metric(t, registry, "polku_gateway_waiting_bytes") > 0
	}, patience, 10*time.Millisecond)
	send(60, 120) // more than may wait
	require.Eventually(t, func() bool {
		return metric(t, registry, "polku_gateway_streams") >= 80
	}, patience, 10*time.Millisecond)

	done := make(chan struct{})
	trimmed := make(chan struct{})
	go func() {
		defer close(trimmed)
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				assert.NoError(t, h.journal.Trim(t.Context()))
			}
		}
	}()
	sources.Wait()
	close(done)
	<-trimmed
}
