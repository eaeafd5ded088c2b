package event_test

import (
	"bytes"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// encode marshals even what protobuf refuses to: text that is not UTF-8 is put
// in place of a mark of the same length.
func encode(t testing.TB, e *eventv1.Event) []byte {
	t.Helper()
	wire, err := proto.Marshal(e)
	require.NoError(t, err)
	return bytes.ReplaceAll(wire, []byte("~bad~"), []byte("a\xff\xfe\xfdb"))
}

func TestCheckEnvelopeTakesWhatForeignSourcesSend(t *testing.T) {
	for _, k := range event.Kinds() {
		e := complete(event.NewFactory(), k)
		envelope, err := event.CheckEnvelope(encode(t, e))
		require.NoError(t, err, k.Type)
		require.Equal(t, e.GetId(), string(envelope.ID))
		require.Equal(t, e.GetSource(), string(envelope.Source))
	}
	tests := []struct {
		name string
		edit func(*eventv1.Event)
	}{
		{"unknown kind", func(e *eventv1.Event) { e.EventType = "acme.rocket.launched" }},
		{"no severity", func(e *eventv1.Event) { e.Severity = 0 }},
		{"no metadata and no data", func(e *eventv1.Event) { e.Metadata, e.Data = nil, nil }},
		{"metadata in another unit", func(e *eventv1.Event) { e.Metadata[event.TapioRTTCurrentMs] = "12ms" }},
		{"source left to the batch", func(e *eventv1.Event) { e.Source = "" }},
		{"binary payload", func(e *eventv1.Event) { e.Payload = []byte{0xff, 0} }},
		{"not a number", func(e *eventv1.Event) { network(e).LatencyMs = math.NaN() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := refused()
			tt.edit(e)
			envelope, err := event.CheckEnvelope(encode(t, e))
			require.NoError(t, err)
			require.Equal(t, e.GetId(), string(envelope.ID))
			require.Equal(t, e.GetSource(), string(envelope.Source))
		})
	}
}

func TestCheckEnvelopeRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*eventv1.Event)
		want  string
	}{
		{"no id", func(e *eventv1.Event) { e.Id = "" }, "id is empty"},
		{"long id", func(e *eventv1.Event) { e.Id = strings.Repeat("x", 1<<17) }, "id has 131072 bytes: use at most 128"},
		{"id with a space", func(e *eventv1.Event) { e.Id = "a b" }, "id has byte 0x20 at offset 1"},
		{"1970", func(e *eventv1.Event) { e.TimestampUnixNs = 1 }, "timestamp_unix_ns"},
		{"no time", func(e *eventv1.Event) { e.TimestampUnixNs = 0 }, "timestamp_unix_ns is 0"},
		{"2100", func(e *eventv1.Event) {
			e.TimestampUnixNs = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
		}, "timestamp_unix_ns"},
		{"long source", func(e *eventv1.Event) { e.Source = strings.Repeat("x", event.MaxSourceLen+1) }, "source has 129 bytes"},
		{"no kind", func(e *eventv1.Event) { e.EventType = "" }, "event_type is empty"},
		{"long kind", func(e *eventv1.Event) { e.EventType = strings.Repeat("x", event.MaxTypeLen+1) }, "event_type has 257 bytes"},
		{"empty key", func(e *eventv1.Event) { e.Metadata[""] = "x" }, "metadata has an empty key"},
		{"long key", func(e *eventv1.Event) { e.Metadata[strings.Repeat("k", event.MaxKeyLen+1)] = "x" }, "has 257 bytes: use at most 256"},
		{"long value", func(e *eventv1.Event) { e.Metadata["k"] = strings.Repeat("v", event.MaxValueLen+1) }, `metadata "k" has 4097 bytes: use at most 4096`},
		{"too many keys", func(e *eventv1.Event) {
			for i := range event.MaxMetadata {
				e.Metadata[strconv.Itoa(i)] = ""
			}
		}, "metadata has more than 128 entries"},
		{"too many routes", func(e *eventv1.Event) {
			for range event.MaxRoutes + 1 {
				e.RouteTo = append(e.RouteTo, "r")
			}
		}, "route_to has more than 16 entries"},
		{"empty route", func(e *eventv1.Event) { e.RouteTo = []string{"a", ""} }, "route_to has an entry of 0 bytes"},
		{"too big", func(e *eventv1.Event) { e.Payload = make([]byte, event.MaxSize) }, "bytes: send at most 262144"},
		{"bad UTF-8 in source", func(e *eventv1.Event) { e.Source = "~bad~" }, `source is "a\xff\xfe\xfdb", which is not UTF-8`},
		{"bad UTF-8 in the kind", func(e *eventv1.Event) { e.EventType = "~bad~" }, "event_type"},
		{"bad UTF-8 in a key", func(e *eventv1.Event) { e.Metadata["~bad~"] = "" }, "which is not UTF-8"},
		{"bad UTF-8 in a value", func(e *eventv1.Event) { e.Metadata["k"] = "~bad~" }, "which is not UTF-8"},
		{"bad UTF-8 in a route", func(e *eventv1.Event) { e.RouteTo = []string{"a", "~bad~"} }, "route_to"},
		{"bad UTF-8 in data", func(e *eventv1.Event) { network(e).ProcessName = "~bad~" }, "network: process_name is"},
		{"impossible time in data", func(e *eventv1.Event) {
			e.Data = &eventv1.Event_Process{Process: &eventv1.ProcessEventData{EndTime: &timestamppb.Timestamp{Nanos: -1}}}
		}, "process: end_time is 0 s and -1 ns, which is no time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := refused()
			tt.spoil(e)
			_, err := event.CheckEnvelope(encode(t, e))
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestCheckEnvelopeNamesABadEventIfItCan(t *testing.T) {
	e := refused()
	e.EventType = ""
	envelope, err := event.CheckEnvelope(encode(t, e))
	require.Error(t, err)
	require.Equal(t, e.GetId(), string(envelope.ID))

	e.Payload = make([]byte, event.MaxSize)
	envelope, err = event.CheckEnvelope(encode(t, e))
	require.Error(t, err)
	require.Equal(t, e.GetId(), string(envelope.ID), "too large to be walked")

	e.Id, e.Payload = "a b", nil
	envelope, err = event.CheckEnvelope(encode(t, e))
	require.Error(t, err)
	require.Empty(t, envelope.ID, "such an id is no name")
}

func TestCheckEnvelopeRefusesWhatIsNoProtobuf(t *testing.T) {
	whole := encode(t, refused())
	for n := range whole {
		_, err := event.CheckEnvelope(whole[:n])
		if proto.Unmarshal(whole[:n], new(eventv1.Event)) != nil {
			require.ErrorContains(t, err, "not in protobuf encoding", "cut at %d", n)
		}
	}
	broken := protowire.AppendTag(bytes.Clone(whole), 20, protowire.BytesType)
	broken = protowire.AppendBytes(broken, []byte{0x0a, 0x7f})
	_, err := event.CheckEnvelope(broken)
	require.ErrorContains(t, err, "network: event is not in protobuf encoding")
}

// tooGreat is a field with the least number that no field can have. Decoders
// refuse it, though its encoding is sound.
func tooGreat() []byte {
	return protowire.AppendVarint(protowire.AppendVarint(nil, (uint64(protowire.MaxValidNumber)+1)<<3), 1)
}

// tooGreatNumbers are events with such a field at each depth.
func tooGreatNumbers(t testing.TB) map[string][]byte {
	whole := encode(t, refused())
	nested := func(number protowire.Number) []byte {
		return protowire.AppendBytes(protowire.AppendTag(bytes.Clone(whole), number, protowire.BytesType), tooGreat())
	}
	entry := append([]byte("\n\x01k"), tooGreat()...)
	start := protowire.AppendBytes(protowire.AppendTag(nil, 9, protowire.BytesType), tooGreat()) // start_time
	return map[string][]byte{
		"event":     append(bytes.Clone(whole), tooGreat()...),
		"metadata":  protowire.AppendBytes(protowire.AppendTag(bytes.Clone(whole), 5, protowire.BytesType), entry),
		"network":   nested(20),
		"timestamp": protowire.AppendBytes(protowire.AppendTag(bytes.Clone(whole), 24, protowire.BytesType), start),
	}
}

func TestCheckEnvelopeRefusesNumbersThatNoFieldHas(t *testing.T) {
	for name, wire := range tooGreatNumbers(t) {
		require.Error(t, proto.Unmarshal(wire, new(eventv1.Event)), name)
		_, err := event.CheckEnvelope(wire)
		require.ErrorContains(t, err, "not in protobuf encoding", name)
	}
	last := protowire.AppendTag(encode(t, refused()), protowire.MaxValidNumber, protowire.VarintType)
	_, err := event.CheckEnvelope(append(last, 1))
	require.NoError(t, err, "a field of a newer protocol")
}

func TestCheckEnvelopeAllocatesNothingForAGoodEvent(t *testing.T) {
	e := refused()
	e.Id = strings.Repeat("i", event.MaxIDLen)
	wire := encode(t, e)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := event.CheckEnvelope(wire); err != nil {
			t.Fatal(err)
		}
	}))
}

// What the gateway stores must be readable for every route.
func FuzzCheckEnvelope(f *testing.F) {
	for _, k := range event.Kinds() {
		f.Add(encode(f, complete(event.NewFactory(), k)))
	}
	f.Add(encode(f, &eventv1.Event{Id: "~bad~", Source: "~bad~"}))
	for _, wire := range tooGreatNumbers(f) {
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		envelope, err := event.CheckEnvelope(wire)
		if err != nil {
			return
		}
		var e eventv1.Event
		if err := proto.Unmarshal(wire, &e); err != nil {
			t.Fatalf("cannot be decoded: %v", err)
		}
		assert.Equal(t, e.GetId(), string(envelope.ID))
		assert.Equal(t, e.GetSource(), string(envelope.Source))
		assert.LessOrEqual(t, len(e.GetMetadata()), event.MaxMetadata)
		if _, err := event.AppendJSON(nil, &e); err != nil {
			t.Fatalf("cannot be printed: %v", err)
		}
		if _, err := proto.Marshal(&e); err != nil {
			t.Fatalf("cannot be encoded again: %v", err)
		}
	})
}

func BenchmarkCheckEnvelope(b *testing.B) {
	wire := encode(b, refused())
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := event.CheckEnvelope(wire); err != nil {
			b.Fatal(err)
		}
	}
}
