package event_test

import (
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

func protoName(d event.Data) protoreflect.Name { return protoreflect.Name(d) }

// refused is a valid event with a fixed id.
func refused() *eventv1.Event {
	e := event.NewFactory().New(event.KindNetworkConnectionRefused, at, "tapio")
	e.Id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	e.Metadata[event.NetworkPeerAddress] = "10.0.0.7"
	e.Metadata[event.NetworkPeerPort] = "5432"
	e.Metadata[event.ErrorType] = "ECONNREFUSED"
	e.Data = &eventv1.Event_Network{Network: &eventv1.NetworkEventData{Protocol: "tcp", DstIp: "10.0.0.7", DstPort: 5432}}
	return e
}

func network(e *eventv1.Event) *eventv1.NetworkEventData { return e.GetNetwork() }

func TestValidateTakesEveryKindWithWhatItRequires(t *testing.T) {
	f := event.NewFactory()
	for _, k := range event.Kinds() {
		t.Run(k.Type, func(t *testing.T) {
			e := complete(f, k)
			require.NoError(t, event.Validate(e))
			for _, name := range k.Required {
				value := e.Metadata[name]
				e.Metadata[name] = ""
				assert.ErrorContains(t, event.Validate(e), strconv.Quote(name)+" is missing", "empty")
				delete(e.Metadata, name)
				assert.ErrorContains(t, event.Validate(e), strconv.Quote(name)+" is missing", "absent")
				e.Metadata[name] = value
			}
			for _, other := range event.Kinds() {
				if other.Data != k.Data {
					e.Data = complete(f, other).GetData()
					assert.ErrorContains(t, event.Validate(e), "requires "+k.Data.String(), "with data %s", other.Data)
				}
			}
		})
	}
}

// complete returns an event that has exactly what its kind requires.
func complete(f *event.Factory, k event.Kind) *eventv1.Event {
	e := f.New(k.Type, at, "tapio")
	for _, name := range k.Required {
		key, _ := event.LookupKey(name)
		e.Metadata[name] = "1"
		if key.Values != nil {
			e.Metadata[name] = key.Values[0]
		}
	}
	if k.Data != event.DataNone {
		m := e.ProtoReflect()
		m.Mutable(m.Descriptor().Fields().ByName(protoName(k.Data)))
	}
	return e
}

func TestValidateRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*eventv1.Event)
		want  string
	}{
		{"no id", func(e *eventv1.Event) { e.Id = "" }, "id is empty"},
		{"long id", func(e *eventv1.Event) { e.Id = strings.Repeat("x", event.MaxIDLen+1) }, "id has 129 bytes: use at most 128"},
		{"id with a space", func(e *eventv1.Event) { e.Id = "a b" }, "id has byte 0x20 at offset 1"},
		{"id with a line end", func(e *eventv1.Event) { e.Id = "ab\n" }, "id has byte 0x0a at offset 2"},
		{"id beyond ASCII", func(e *eventv1.Event) { e.Id = "ä" }, "id has byte 0xc3 at offset 0"},
		{"no time", func(e *eventv1.Event) { e.TimestampUnixNs = 0 }, "timestamp_unix_ns is 0"},
		{"time before the epoch", func(e *eventv1.Event) { e.TimestampUnixNs = math.MinInt64 }, "timestamp_unix_ns"},
		{"time since boot", func(e *eventv1.Event) { e.TimestampUnixNs = int64(90 * 24 * time.Hour) }, "timestamp_unix_ns"},
		{"time in seconds", func(e *eventv1.Event) { e.TimestampUnixNs = at.Unix() }, "timestamp_unix_ns"},
		{"time in milliseconds", func(e *eventv1.Event) { e.TimestampUnixNs = at.UnixMilli() }, "timestamp_unix_ns"},
		{"time in microseconds", func(e *eventv1.Event) { e.TimestampUnixNs = at.UnixMicro() }, "timestamp_unix_ns"},
		{"time too far ahead", func(e *eventv1.Event) { e.TimestampUnixNs = math.MaxInt64 }, "timestamp_unix_ns"},
		{"no source", func(e *eventv1.Event) { e.Source = "" }, "source is empty"},
		{"long source", func(e *eventv1.Event) { e.Source = strings.Repeat("x", event.MaxSourceLen+1) }, "source has 129 bytes"},
		{"no severity", func(e *eventv1.Event) { e.Severity = 0 }, "severity is SEVERITY_UNSPECIFIED"},
		{"strange severity", func(e *eventv1.Event) { e.Severity = 6 }, "severity is 6"},
		{"negative severity", func(e *eventv1.Event) { e.Severity = -1 }, "severity is -1"},
		{"strange outcome", func(e *eventv1.Event) { e.Outcome = 5 }, "outcome is 5"},
		{"negative outcome", func(e *eventv1.Event) { e.Outcome = -1 }, "outcome is -1"},
		{"no kind", func(e *eventv1.Event) { e.EventType = "" }, `event_type "" is not in the registry`},
		{"unknown kind", func(e *eventv1.Event) { e.EventType = "network.refused" }, `event_type "network.refused" is not in the registry`},
		{"no metadata", func(e *eventv1.Event) { e.Metadata = nil }, `metadata "error.type" is missing: network.connection_refused requires it`},
		{"no data", func(e *eventv1.Event) { e.Data = nil }, "data carries nothing: network.connection_refused requires network"},
		{"nil data", func(e *eventv1.Event) { e.Data = &eventv1.Event_Network{} }, "data carries nothing"},
		{"other data", func(e *eventv1.Event) { e.Data = &eventv1.Event_Process{Process: &eventv1.ProcessEventData{}} }, "data carries process: network.connection_refused requires network"},
		{"data where none belongs", func(e *eventv1.Event) { e.EventType = event.KindAgentGap }, "data carries network: agent.gap requires nothing"},
		{"empty key", func(e *eventv1.Event) { e.Metadata[""] = "x" }, "metadata has an empty key"},
		{"long key", func(e *eventv1.Event) { e.Metadata[strings.Repeat("k", event.MaxKeyLen+1)] = "x" }, "has 257 bytes: use at most 256"},
		{"long value", func(e *eventv1.Event) { e.Metadata["k"] = strings.Repeat("v", event.MaxValueLen+1) }, `metadata "k" has 4097 bytes: use at most 4096`},
		{"too many keys", func(e *eventv1.Event) {
			for i := range event.MaxMetadata {
				e.Metadata[strconv.Itoa(i)] = ""
			}
		}, "metadata has 131 entries: send at most 128"},
		{"value outside of its set", func(e *eventv1.Event) { e.Metadata[event.TapioRTTPhase] = "middle" }, `metadata "tapio.rtt.phase" is "middle": use one of end, start`},
		{"value with its unit", func(e *eventv1.Event) { e.Metadata[event.TapioRTTCurrentMs] = "12ms" }, `metadata "tapio.rtt.current_ms" is "12ms": use a decimal number of milliseconds`},
		{"value with an exponent", func(e *eventv1.Event) { e.Metadata[event.TapioRTTCurrentMs] = "1e6" }, "use a decimal number"},
		{"infinite value", func(e *eventv1.Event) { e.Metadata[event.TapioRTTCurrentMs] = "+Inf" }, "use a decimal number"},
		{"empty number", func(e *eventv1.Event) { e.Metadata[event.TapioRTTCurrentMs] = "" }, "use a decimal number"},
		{"point without digits", func(e *eventv1.Event) { e.Metadata[event.TapioRTTCurrentMs] = "1." }, "use a decimal number"},
		{"too many routes", func(e *eventv1.Event) { e.RouteTo = make([]string, event.MaxRoutes+1) }, "route_to has 17 entries: send at most 16"},
		{"empty route", func(e *eventv1.Event) { e.RouteTo = []string{"a", ""} }, "route_to[1] has 0 bytes"},
		{"long route", func(e *eventv1.Event) { e.RouteTo = []string{strings.Repeat("r", event.MaxRouteLen+1)} }, "route_to[0] has 257 bytes"},
		{"too big", func(e *eventv1.Event) { e.Payload = make([]byte, event.MaxSize) }, "bytes: send at most 262144"},
		{"bad UTF-8 in source", func(e *eventv1.Event) { e.Source = "a\xff" }, `source is "a\xff", which is not UTF-8`},
		{"bad UTF-8 in a key", func(e *eventv1.Event) { e.Metadata["\xff"] = "" }, `metadata key is "\xff", which is not UTF-8`},
		{"bad UTF-8 in a value", func(e *eventv1.Event) { e.Metadata["k"] = "\xff" }, `metadata "k" is "\xff", which is not UTF-8`},
		{"bad UTF-8 in a route", func(e *eventv1.Event) { e.RouteTo = []string{"a", "\xff"} }, `route_to[1] is "\xff", which is not UTF-8`},
		{"bad UTF-8 in data", func(e *eventv1.Event) { network(e).ProcessName = "\xc3" }, `network.process_name is "\xc3", which is not UTF-8`},
		{"not a number", func(e *eventv1.Event) { network(e).LatencyMs = math.NaN() }, "network.latency_ms is NaN"},
		{"infinite number", func(e *eventv1.Event) { network(e).RttCurrentMs = math.Inf(-1) }, "network.rtt_current_ms is -Inf"},
		{"impossible time in data", func(e *eventv1.Event) {
			e.Data = &eventv1.Event_Process{Process: &eventv1.ProcessEventData{EndTime: &timestamppb.Timestamp{Nanos: -1}}}
		}, "process.end_time is 0 s and -1 ns, which is no time"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := refused()
			require.NoError(t, event.Validate(e), "the event is good before it is spoiled")
			tt.spoil(e)
			err := event.Validate(e)
			require.ErrorContains(t, err, tt.want)
			for range 5 {
				require.EqualError(t, event.Validate(e), err.Error(), "the same event gets the same answer")
			}
		})
	}
}

func TestValidateTakesTheLimitsThemselves(t *testing.T) {
	tests := []struct {
		name string
		edit func(*eventv1.Event)
	}{
		{"id", func(e *eventv1.Event) { e.Id = strings.Repeat("~", event.MaxIDLen) }},
		{"source", func(e *eventv1.Event) { e.Source = strings.Repeat("x", event.MaxSourceLen) }},
		{"earliest time", func(e *eventv1.Event) {
			e.TimestampUnixNs = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
		}},
		{"latest time", func(e *eventv1.Event) {
			e.TimestampUnixNs = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano() - 1
		}},
		{"key", func(e *eventv1.Event) { e.Metadata[strings.Repeat("k", event.MaxKeyLen)] = "" }},
		{"value", func(e *eventv1.Event) { e.Metadata["k"] = strings.Repeat("v", event.MaxValueLen) }},
		{"number", func(e *eventv1.Event) { e.Metadata[event.TapioRTTCurrentMs] = "0.125" }},
		{"routes", func(e *eventv1.Event) {
			for range event.MaxRoutes {
				e.RouteTo = append(e.RouteTo, strings.Repeat("r", event.MaxRouteLen))
			}
		}},
		{"another severity than the kind's", func(e *eventv1.Event) { e.Severity = eventv1.Severity_SEVERITY_DEBUG }},
		{"text beyond ASCII", func(e *eventv1.Event) { network(e).ProcessName = "häät" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := refused()
			tt.edit(e)
			require.NoError(t, event.Validate(e))
		})
	}
}

func TestValidateNamesEverythingThatIsWrong(t *testing.T) {
	err := event.Validate(&eventv1.Event{})
	for _, field := range []string{"id", "timestamp_unix_ns", "source", "severity", "event_type"} {
		assert.ErrorContains(t, err, field)
	}
	require.ErrorContains(t, event.Validate(nil), "event is nil")
}

// Whatever arrives as protobuf gets an answer, and what is accepted can be
// printed, so that no sink meets an event it cannot write.
func FuzzValidate(f *testing.F) {
	for _, k := range event.Kinds() {
		seed, err := proto.Marshal(complete(event.NewFactory(), k))
		require.NoError(f, err)
		f.Add(seed)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var e eventv1.Event
		if proto.Unmarshal(wire, &e) != nil {
			return
		}
		first := event.Validate(&e)
		if second := event.Validate(&e); (first == nil) != (second == nil) || first != nil && first.Error() != second.Error() {
			t.Fatalf("two answers for one event: %v, then %v", first, second)
		}
		if first != nil {
			return
		}
		line, err := event.AppendJSON(nil, &e)
		if err != nil {
			t.Fatalf("a valid event cannot be printed: %v", err)
		}
		if strings.ContainsRune(string(line), '\n') {
			t.Fatalf("more than one line: %q", line)
		}
	})
}

func BenchmarkValidate(b *testing.B) {
	e := refused()
	b.ReportAllocs()
	for b.Loop() {
		if err := event.Validate(e); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendJSON(b *testing.B) {
	e := refused()
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if line, err = event.AppendJSON(line[:0], e); err != nil {
			b.Fatal(err)
		}
	}
}
