package server

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// A page token from anywhere gives a page or an error; one of ours gives what
// went in.
func FuzzPageToken(f *testing.F) {
	f.Add(timelineToken(store.Span{Since: time.Unix(1, 0), Until: time.Unix(2, 0)}, store.Place{At: 3, Sequence: 4}))
	f.Add(incidentToken(&store.IncidentPlace{StartedAt: 1, ID: "a"}))
	f.Add("")
	f.Add("e30")
	f.Fuzz(func(t *testing.T, token string) {
		span := store.Span{Limit: 10}
		if got, err := readTimelineToken(token, span); err == nil {
			again, err := readTimelineToken(timelineToken(got, got.After), span)
			if err != nil || again != got {
				t.Fatalf("%v became %v: %v", got, again, err)
			}
		}
		if got, err := readIncidentToken(token); err == nil {
			again, err := readIncidentToken(incidentToken(got))
			if err != nil || *again != *got {
				t.Fatalf("%v became %v: %v", got, again, err)
			}
		}
	})
}

// What is accepted can be stored by either database.
func FuzzEvent(f *testing.F) {
	now := time.Date(2026, time.March, 1, 0, 0, 0, 0, time.UTC)
	seed, err := proto.Marshal(&ahtiv1.AhtiEvent{
		Id: "a", Subtype: "container.oom_kill", Timestamp: timestamppb.New(now), Cluster: "prod",
		Entities: []*ahtiv1.Entity{{Id: "x"}}, Relationships: []*ahtiv1.Relationship{{Source: &ahtiv1.EntityReference{Id: "a"}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		e, refused := decode(data, now)
		if refused != nil {
			if refused.code == "" || refused.message == "" {
				t.Fatal("refused without a reason")
			}
			return
		}
		if strings.ContainsRune(e.GetId()+e.GetSubtype()+e.GetSource()+e.GetCluster(), 0) || len(data) > maxEvent {
			t.Fatalf("%v was accepted", e)
		}
	})
}

// A request is cut into its events as protobuf would, or not at all.
func FuzzRequest(f *testing.F) {
	seed, err := proto.Marshal(&ahtiv1.IngestRequest{Events: []*ahtiv1.AhtiEvent{{Id: "a"}, {}, {Id: "b"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(append(seed, 0x12, 1, 'x')) // a field of a later version
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		var r encodedRequest
		var whole ahtiv1.IngestRequest
		if proto.Unmarshal(data, &whole) != nil {
			_ = r.read(data) // some of its events may be good
			return
		}
		if err := r.read(data); err != nil {
			t.Fatal(err)
		}
		if len(r.events) != len(whole.GetEvents()) {
			t.Fatalf("cut into %d events instead of %d", len(r.events), len(whole.GetEvents()))
		}
		for i, body := range r.events {
			e := &ahtiv1.AhtiEvent{}
			if err := proto.Unmarshal(body, e); err != nil {
				t.Fatalf("event %d: %v", i, err)
			}
			// As bytes, because not every number is equal to itself.
			if !bytes.Equal(stable(t, e), stable(t, whole.GetEvents()[i])) {
				t.Fatalf("event %d is another one", i)
			}
		}
	})
}

func stable(t *testing.T, e *ahtiv1.AhtiEvent) []byte {
	t.Helper()
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
