package event_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// wireEvents have every field of an event in some way.
func wireEvents() []*eventv1.Event {
	events := []*eventv1.Event{
		{},
		{Id: "1", Metadata: map[string]string{"": "", "k": strings.Repeat("v", 300)}},
		{TimestampUnixNs: -1, Severity: -1, Outcome: 99, RouteTo: []string{"", "a"}, Payload: []byte{0xff}},
		{Id: strings.Repeat("i", 200), TimestampUnixNs: 1 << 60, Source: "tapio", EventType: "a.b", Severity: 5, Outcome: 1},
	}
	for _, d := range []*eventv1.Event{
		{Data: &eventv1.Event_Network{Network: &eventv1.NetworkEventData{Protocol: "tcp", LatencyMs: 1.5}}},
		{Data: &eventv1.Event_Network{}},
		{Data: &eventv1.Event_Kernel{Kernel: &eventv1.KernelEventData{SyscallRetval: -1}}},
		{Data: &eventv1.Event_Container{Container: &eventv1.ContainerEventData{Image: strings.Repeat("i", 200)}}},
		{Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{Changes: []*eventv1.FieldChange{{Path: "p"}}}}},
		{Data: &eventv1.Event_Process{Process: &eventv1.ProcessEventData{}}},
		{Data: &eventv1.Event_Resource{Resource: &eventv1.ResourceEventData{NodeName: "n"}}},
	} {
		d.Id = "with data"
		events = append(events, d)
	}
	return events
}

func requireSameWire(t *testing.T, e *eventv1.Event) {
	wire, err := event.AppendWire([]byte("prefix"), e)
	require.NoError(t, err)
	wire, found := bytes.CutPrefix(wire, []byte("prefix"))
	require.True(t, found)
	require.Len(t, wire, event.WireSize(e))
	require.Equal(t, proto.Size(e), event.WireSize(e))
	got, want := &eventv1.Event{}, &eventv1.Event{}
	require.NoError(t, proto.Unmarshal(wire, got))
	marshaled, err := proto.Marshal(e)
	require.NoError(t, err)
	require.NoError(t, proto.Unmarshal(marshaled, want))
	require.True(t, proto.Equal(want, got), "%v\n%v", want, got)
}

func TestAppendWireIsWhatMarshalDoes(t *testing.T) {
	for _, e := range wireEvents() {
		requireSameWire(t, e)
	}
	require.Zero(t, event.WireSize(nil))
}

func TestAppendWireRefusesWhatMarshalDoes(t *testing.T) {
	bad := "\xff"
	for _, e := range []*eventv1.Event{
		{Id: bad},
		{Source: bad},
		{EventType: bad},
		{RouteTo: []string{bad}},
		{Metadata: map[string]string{bad: ""}},
		{Metadata: map[string]string{"": bad}},
		{Data: &eventv1.Event_Network{Network: &eventv1.NetworkEventData{Protocol: bad}}},
	} {
		dst, err := event.AppendWire([]byte("prefix"), e)
		require.ErrorContains(t, err, "UTF-8")
		require.Equal(t, "prefix", string(dst))
		_, err = proto.Marshal(e)
		require.Error(t, err)
	}
}

func FuzzAppendWire(f *testing.F) {
	for _, e := range wireEvents() {
		wire, err := proto.Marshal(e)
		require.NoError(f, err)
		f.Add(wire)
	}
	f.Add([]byte("\xfa\x07\x01x")) // a field of a later version
	f.Fuzz(func(t *testing.T, wire []byte) {
		e := &eventv1.Event{}
		if proto.Unmarshal(wire, e) == nil {
			requireSameWire(t, e)
		}
	})
}

func BenchmarkAppendWire(b *testing.B) {
	e := refused()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = event.AppendWire(buf[:0], e); err != nil {
			b.Fatal(err)
		}
	}
}
