package server

import (
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
		e := &ahtiv1.AhtiEvent{}
		if proto.Unmarshal(data, e) != nil {
			return
		}
		body, refused := encode(e, now)
		if refused != nil {
			if refused.code == "" || refused.message == "" {
				t.Fatal("refused without a reason")
			}
			return
		}
		if strings.ContainsRune(e.GetId()+e.GetSubtype()+e.GetSource()+e.GetCluster(), 0) || len(body) > maxEvent {
			t.Fatalf("%v was accepted", e)
		}
	})
}
