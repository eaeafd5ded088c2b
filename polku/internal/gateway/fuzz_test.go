package gateway

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// FuzzReadBatch: whatever arrives is refused, or is made of events that go into
// the log in a form that every route can read, in their order.
func FuzzReadBatch(f *testing.F) {
	e := &eventv1.Event{Id: "1", TimestampUnixNs: 1_772_600_767_891_234_567, EventType: "a.b", Source: "s"}
	encoded, err := proto.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	payload, err := proto.Marshal(&polkuv1.EventPayload{Events: []*eventv1.Event{e, e}})
	if err != nil {
		f.Fatal(err)
	}
	line, err := event.AppendJSON(nil, e)
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range []*polkuv1.IngestBatch{
		{Payload: &polkuv1.IngestBatch_Events{Events: &polkuv1.EventPayload{Events: []*eventv1.Event{e}}}},
		{Source: "s", Cluster: "c", Payload: &polkuv1.IngestBatch_Raw{Raw: &polkuv1.RawPayload{Format: formatProtobuf, Data: payload}}},
		{Payload: &polkuv1.IngestBatch_Raw{Raw: &polkuv1.RawPayload{Format: formatProtobuf, Data: encoded}}},
		{Payload: &polkuv1.IngestBatch_Raw{Raw: &polkuv1.RawPayload{Format: formatJSON, Data: line}}},
		{Payload: &polkuv1.IngestBatch_Raw{Raw: &polkuv1.RawPayload{Format: formatJSON, Data: append(append([]byte("["), line...), ']')}}},
		{Payload: &polkuv1.IngestBatch_Raw{Raw: &polkuv1.RawPayload{Format: formatJSON, Data: []byte(`[{"id":1}] x`)}}},
	} {
		wire, err := proto.Marshal(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire, uint16(100))
	}
	good, err := proto.Marshal(&polkuv1.IngestBatch{Payload: &polkuv1.IngestBatch_Events{Events: &polkuv1.EventPayload{Events: []*eventv1.Event{e}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte("\n\x01\xff\n\x01s"), good...), uint16(1000)) // a source, and one before it that is no text
	// A number that no field can have: in the batch, and in its payload.
	tooGreat := protowire.AppendVarint(protowire.AppendVarint(nil, (uint64(protowire.MaxValidNumber)+1)<<3), 1)
	f.Add(append(bytes.Clone(good), tooGreat...), uint16(1000))
	f.Add(protowire.AppendBytes(protowire.AppendTag([]byte("\n\x01s"), batchEvents, protowire.BytesType), append(payload, tooGreat...)), uint16(1000))
	f.Fuzz(func(t *testing.T, wire []byte, size uint16) {
		b, refused := readBatch(wire, nil)
		if refused != nil {
			if refused.code == "" || refused.message == "" {
				t.Fatalf("refused without a reason: %+v", refused)
			}
			return
		}
		var events [][]byte
		var ids []string
		for _, i := range b.items {
			if i.err != nil {
				continue
			}
			if envelope, err := event.CheckEnvelope(i.wire); err == nil {
				events = append(events, i.wire)
				ids = append(ids, string(envelope.ID))
			}
		}
		if len(events) == 0 {
			return
		}
		err := b.bodies(events, int(size), func(body []byte, n int) error {
			var stored polkuv1.IngestBatch
			if err := proto.Unmarshal(body, &stored); err != nil {
				t.Fatalf("a route cannot read what was stored: %v", err)
			}
			if got := len(stored.GetEvents().GetEvents()); got != n {
				t.Fatalf("%d events in place of %d", got, n)
			}
			if stored.GetSource() != string(b.source) || stored.GetCluster() != string(b.cluster) {
				t.Fatalf("source or cluster changed")
			}
			for _, e := range stored.GetEvents().GetEvents() {
				if e.GetId() != ids[0] {
					t.Fatalf("%q in place of %q", e.GetId(), ids[0])
				}
				ids = ids[1:]
			}
			return nil
		})
		if err != nil || len(ids) > 0 {
			t.Fatalf("%d events were not stored (%v)", len(ids), err)
		}
	})
}
