package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/ahti/internal/ahtitest"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

// The server that the tests of this package share. The tests end ahti and not the
// machine: nothing needs to reach the disk.
var postgres = ahtitest.NewPostgres("fsync=off")

func TestMain(m *testing.M) {
	code := m.Run()
	if err := postgres.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var start = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

var workload = ahtitest.Workload{Pods: 40, Start: start, Step: time.Second, Cluster: "prod"}

func open(t testing.TB, config store.Config) *store.Store {
	t.Helper()
	config.Log = slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() }) // a test that closes it checks that
	return s
}

func each(t *testing.T, test func(t *testing.T, config store.Config)) {
	ahtitest.Stores(t, postgres, test)
}

func records(t *testing.T, events ...*ahtiv1.AhtiEvent) []*store.Record {
	t.Helper()
	all := make([]*store.Record, len(events))
	for i, e := range events {
		body, err := proto.Marshal(e)
		require.NoError(t, err)
		all[i] = &store.Record{Event: e, Body: body}
		switch e.GetSubtype() {
		case "container.oom_kill":
			all[i].Relevance = causality.Symptom
		case "network.connection_refused":
			all[i].Relevance = causality.Change
		}
	}
	return all
}

// appendAll stores events and notes the new ones, with all their facts.
func appendAll(t *testing.T, s *store.Store, events ...*ahtiv1.AhtiEvent) []*store.Record {
	t.Helper()
	all := records(t, events...)
	require.NoError(t, s.Append(t.Context(), all))
	for _, r := range all {
		if r.Sequence != 0 {
			s.Note(r, r.Event.GetEntities(), r.Event.GetRelationships())
		}
	}
	return all
}

// appendMany stores events that tell nothing new, but for the first ones.
func appendMany(t *testing.T, s *store.Store, n int) {
	t.Helper()
	appendAll(t, s, workload.Events(0, workload.Pods)...)
	rest := records(t, workload.Events(workload.Pods, n-workload.Pods)...)
	require.NoError(t, s.Append(t.Context(), rest))
	for _, r := range rest {
		s.Note(r, nil, nil)
	}
}

func ref(e *ahtiv1.Entity) *ahtiv1.EntityReference {
	return &ahtiv1.EntityReference{Type: e.GetType(), Id: e.GetId(), ClusterId: e.GetClusterId()}
}

func ids(records []*store.Record) []string {
	var all []string
	for _, r := range records {
		all = append(all, r.Event.GetId())
	}
	return all
}

func whole(limit int) store.Span {
	return store.Span{Since: start.Add(-24 * time.Hour), Until: start.Add(24 * time.Hour), Limit: limit}
}

func TestAnEventIsStoredOnce(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		a, b, c := workload.Event(1), workload.Event(2), workload.Event(3)
		got := appendAll(t, s, a, b, a)
		require.Equal(t, []int64{1, 2, 0}, []int64{got[0].Sequence, got[1].Sequence, got[2].Sequence}, "twice in one batch")
		got = appendAll(t, s, b, c)
		require.Equal(t, []int64{0, 3}, []int64{got[0].Sequence, got[1].Sequence}, "in two batches")
		require.NoError(t, s.Close())

		s = open(t, config)
		got = appendAll(t, s, c, workload.Event(4))
		require.Equal(t, []int64{0, 4}, []int64{got[0].Sequence, got[1].Sequence}, "after a restart")
		all, next, err := s.Timeline(t.Context(), "", whole(10))
		require.NoError(t, err)
		require.Nil(t, next)
		require.Equal(t, ids(records(t, workload.Events(1, 4)...)), ids(all))
		require.True(t, proto.Equal(a, all[0].Event))

		found, err := s.Event(t.Context(), b.GetId())
		require.NoError(t, err)
		require.True(t, proto.Equal(b, found))
		_, err = s.Event(t.Context(), "nobody")
		require.ErrorIs(t, err, store.ErrNotFound)
	})
}

// A timeline is the same whether its index is in memory, in the database, or in
// both; whatever order events come in; page by page or at once.
func TestTimelinePages(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		const n = 350
		for i := n - 1; i >= 0; i -= 7 { // backwards, in steps
			appendAll(t, s, workload.Events(i-6, 7)...)
			if i == 174 {
				require.NoError(t, s.Checkpoint(t.Context()))
			}
		}
		// Events of one moment.
		for i := range 5 {
			e := workload.Event(100)
			e.Id = fmt.Sprintf("same-moment-%d", i)
			appendAll(t, s, e)
		}
		other := workload
		other.Cluster = "test"
		e := other.Event(0)
		e.Id = "other-cluster"
		appendAll(t, s, e)

		node := workload.Event(0).GetEntities()[2] // all pods are on this one
		lists := map[string]func(store.Span) ([]*store.Record, *store.Place, error){
			"all": func(span store.Span) ([]*store.Record, *store.Place, error) {
				return s.Timeline(t.Context(), "prod", span)
			},
			"entity": func(span store.Span) ([]*store.Record, *store.Place, error) {
				return s.EntityTimeline(t.Context(), []*ahtiv1.EntityReference{ref(node), ref(workload.Event(0).GetEntities()[0])}, span)
			},
		}
		for round := range 2 {
			for name, list := range lists {
				at, next, err := list(whole(10_000))
				require.NoError(t, err)
				require.Nil(t, next)
				require.Len(t, at, n+5, "%s, round %d", name, round)
				for i := range at[1:] {
					require.LessOrEqual(t, at[i].At().At, at[i+1].At().At)
				}
				for _, size := range []int{3, 177, n + 5} {
					var paged []string
					span := whole(size)
					for {
						page, next, err := list(span)
						require.NoError(t, err)
						require.LessOrEqual(t, len(page), size)
						paged = append(paged, ids(page)...)
						if next == nil {
							break
						}
						span.After = *next
					}
					require.Equal(t, ids(at), paged, "%s by %d", name, size)
				}
				one, next, err := list(store.Span{Since: start, Until: start.Add(time.Hour), Limit: n, Bytes: 1})
				require.NoError(t, err)
				require.Equal(t, ids(at[:1]), ids(one), "of one at least")
				require.Equal(t, at[0].At(), *next)
				for _, size := range []int{5000, 50_000} {
					var paged []string
					span := whole(n + 5)
					span.Bytes = size
					for {
						page, next, err := list(span)
						require.NoError(t, err)
						bytes := 0
						for _, r := range page {
							bytes += len(r.Body)
						}
						require.LessOrEqual(t, bytes, size)
						paged = append(paged, ids(page)...)
						if next == nil {
							break
						}
						require.Greater(t, bytes+2000, size, "as many as there is room for")
						span.After = *next
					}
					require.Equal(t, ids(at), paged, "%s by %d bytes", name, size)
				}
				part, _, err := list(store.Span{Since: start.Add(10 * time.Second), Until: start.Add(20 * time.Second), Limit: 100})
				require.NoError(t, err)
				require.Equal(t, ids(records(t, workload.Events(10, 10)...)), ids(part), "since counts, until does not")
			}
			require.NoError(t, s.Checkpoint(t.Context()))
		}
	})
}

// What was noted and not stored by a checkpoint is found again behind it.
func TestFactsFollowTheLog(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		appendAll(t, s, workload.Event(0))
		require.NoError(t, s.Checkpoint(t.Context()))
		require.NoError(t, s.Checkpoint(t.Context()), "nothing to do")
		appendAll(t, s, workload.Event(1), workload.Event(2))
		require.NoError(t, s.Close()) // without a checkpoint

		s = open(t, config)
		through, err := s.Applied(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 1, through)
		var behind []*store.Record
		require.NoError(t, s.After(t.Context(), through, func(r *store.Record) error {
			behind = append(behind, r)
			s.Note(r, r.Event.GetEntities(), r.Event.GetRelationships())
			return nil
		}))
		require.Equal(t, []string{workload.Event(1).GetId(), workload.Event(2).GetId()}, ids(behind))
		require.NoError(t, s.Checkpoint(t.Context()))
		var entities, relationships int
		require.NoError(t, s.Facts(t.Context(), func(f store.Fact) {
			if f.Entity != nil {
				entities++
			} else {
				relationships++
			}
		}))
		require.Equal(t, 3*4, entities)
		require.Equal(t, 3*3, relationships)
	})
}

func TestRelevantEvents(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		appendAll(t, s, workload.Events(0, 100)...)
		count := func(need store.Need) (got int) {
			require.NoError(t, s.Relevant(t.Context(), need, func(*store.Record) error {
				got++
				return nil
			}))
			return got
		}
		require.Equal(t, 2, count(store.Need{Relevance: causality.Symptom}), "one of fifty")
		require.Equal(t, 20, count(store.Need{Relevance: causality.Change}), "one of five")
		require.Equal(t, 8, count(store.Need{Relevance: causality.Change, Since: start.Add(50 * time.Second), Through: 90}))
		require.Equal(t, 1, count(store.Need{Relevance: causality.Symptom, Until: start.Add(57 * time.Second)}))
	})
}

func TestState(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		got, err := s.State(t.Context(), "lessons")
		require.NoError(t, err)
		require.Nil(t, got)
		for _, value := range []string{"a", "b\x00c"} {
			require.NoError(t, s.SetState(t.Context(), "lessons", []byte(value)))
			got, err = s.State(t.Context(), "lessons")
			require.NoError(t, err)
			require.Equal(t, value, string(got))
		}
	})
}

func incident(id string, minute int, state ahtiv1.IncidentState) *ahtiv1.Incident {
	at := timestamppb.New(start.Add(time.Duration(minute) * time.Minute))
	return &ahtiv1.Incident{Id: id, Cluster: "prod", State: state, StartedAt: at, LastSeenAt: at, Summary: id}
}

func TestIncidents(t *testing.T) {
	const isOpen, isOver = ahtiv1.IncidentState_INCIDENT_STATE_OPEN, ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		list := func(f store.IncidentFilter) (all []string) {
			require.NoError(t, s.Incidents(t.Context(), f, func(i *ahtiv1.Incident) bool {
				all = append(all, i.GetId())
				return true
			}))
			return all
		}
		require.NoError(t, s.SaveIncidents(t.Context(), []*ahtiv1.Incident{
			incident("a", 1, isOpen), incident("c", 2, isOpen), incident("b", 2, isOver), incident("d", 3, isOpen),
		}, nil))
		require.Equal(t, []string{"d", "b", "c", "a"}, list(store.IncidentFilter{}), "the newest first, then by id")
		require.Equal(t, []string{"d", "c", "a"}, list(store.IncidentFilter{State: isOpen}))
		require.Equal(t, []string{"d"}, list(store.IncidentFilter{SeenSince: start.Add(3 * time.Minute)}))
		require.Equal(t, []string{"a"}, list(store.IncidentFilter{BeganBefore: start.Add(2 * time.Minute)}))
		require.Empty(t, list(store.IncidentFilter{Cluster: "test"}))
		after := store.IncidentPlace{StartedAt: start.Add(2 * time.Minute).UnixNano(), ID: "b"}
		require.Equal(t, []string{"c", "a"}, list(store.IncidentFilter{After: &after}))

		require.NoError(t, s.SaveIncidents(t.Context(), []*ahtiv1.Incident{incident("a", 5, isOver)}, []string{"c"}))
		require.Equal(t, []string{"a", "d", "b"}, list(store.IncidentFilter{}))
		got, err := s.Incident(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, isOver, got.GetState())
		_, err = s.Incident(t.Context(), "c")
		require.ErrorIs(t, err, store.ErrNotFound)
	})
}

// What is open is looked for every two seconds, among all that ever was.
func BenchmarkOpenIncidents(b *testing.B) {
	const resolved = 20_000
	s := open(b, store.Config{Dir: b.TempDir()})
	all := []*ahtiv1.Incident{incident("open", 0, ahtiv1.IncidentState_INCIDENT_STATE_OPEN)}
	for i := range resolved {
		all = append(all, incident(fmt.Sprintf("resolved-%d", i), i, ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED))
		all[i+1].Summary = strings.Repeat("x", 3000)
	}
	require.NoError(b, s.SaveIncidents(b.Context(), all, nil))
	for b.Loop() {
		found := 0
		require.NoError(b, s.Incidents(b.Context(), store.IncidentFilter{State: ahtiv1.IncidentState_INCIDENT_STATE_OPEN}, func(*ahtiv1.Incident) bool {
			found++
			return true
		}))
		require.Equal(b, 1, found)
	}
	b.ReportMetric(resolved, "resolved")
}

func TestRetentionByAge(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		appendMany(t, s, 3000)
		// A pod that is deleted early, and one that is deleted late.
		for i, at := range []int{100, 2500} {
			e := workload.Event(at)
			e.Id, e.Relationships = fmt.Sprintf("deleted-%d", i), nil
			e.Entities = e.Entities[:1]
			e.Entities[0].Id = fmt.Sprintf("short-lived-%d", i)
			container := proto.CloneOf(workload.Event(at).GetEntities()[1])
			container.Id = fmt.Sprintf("its-container-%d", i)
			born := proto.CloneOf(e)
			born.Id += "-born"
			born.Entities = append(born.Entities, container)
			born.Relationships = []*ahtiv1.Relationship{{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, Source: ref(e.GetEntities()[0]), Target: ref(container)}}
			e.Entities[0].State = ahtiv1.EntityState_ENTITY_STATE_DELETED
			appendAll(t, s, born, e)
		}
		require.NoError(t, s.Checkpoint(t.Context()))
		require.NoError(t, s.SaveIncidents(t.Context(), []*ahtiv1.Incident{
			incident("old", 1, ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED), incident("new", 50, ahtiv1.IncidentState_INCIDENT_STATE_OPEN),
		}, nil))

		before := start.Add(2100 * time.Second)
		n, err := s.DeleteBefore(t.Context(), before)
		require.NoError(t, err)
		require.EqualValues(t, 2102, n)
		all, _, err := s.Timeline(t.Context(), "", whole(10_000))
		require.NoError(t, err)
		require.Len(t, all, 902)
		require.Equal(t, before.UnixNano(), all[0].At().At)
		node := []*ahtiv1.EntityReference{ref(workload.Event(0).GetEntities()[2])}
		all, _, err = s.EntityTimeline(t.Context(), node, whole(10_000))
		require.NoError(t, err)
		require.Len(t, all, 900)
		// The index names some that are gone.
		var paged []string
		for span := whole(70); ; {
			page, next, err := s.EntityTimeline(t.Context(), node, span)
			require.NoError(t, err)
			if paged = append(paged, ids(page)...); next == nil {
				break
			}
			span.After = *next
		}
		require.Len(t, paged, 900)

		names := map[string]int{}
		ties := map[string]int{}
		require.NoError(t, s.Facts(t.Context(), func(f store.Fact) {
			names[f.Entity.GetId()]++
			ties[f.Relationship.GetTarget().GetId()]++
		}))
		require.Zero(t, names["short-lived-0"]+names["its-container-0"]+ties["its-container-0"], "what was deleted before then is forgotten")
		require.Equal(t, 2, names["short-lived-1"], "what was deleted later is not")
		require.Equal(t, 1, names["its-container-1"])
		require.Equal(t, 1, ties["its-container-1"])
		pod := workload.Event(0).GetEntities()[0]
		require.Greater(t, names[pod.GetId()], 0, "what exists is not forgotten, however old the news of it")

		var left []string
		require.NoError(t, s.Incidents(t.Context(), store.IncidentFilter{}, func(i *ahtiv1.Incident) bool {
			left = append(left, i.GetId())
			return true
		}))
		require.Equal(t, []string{"new"}, left)
	})
}

// What is known of a thing does not depend on the order in which it was told, nor
// on what was deleted since.
func TestRetentionKeepsWhatIsKnown(t *testing.T) {
	const gone = ahtiv1.EntityState_ENTITY_STATE_DELETED
	tell := func(second int, pod string, state ahtiv1.EntityState, labels map[string]string) *ahtiv1.AhtiEvent {
		e := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: pod, State: state, Labels: labels}
		node := &ahtiv1.EntityReference{Type: ahtiv1.EntityType_ENTITY_TYPE_NODE, Id: "node"}
		return &ahtiv1.AhtiEvent{
			Id: fmt.Sprintf("%s-%d", pod, second), Subtype: "k8s.pod.updated", Cluster: "prod",
			Timestamp: timestamppb.New(start.Add(time.Duration(second) * time.Second)), Entities: []*ahtiv1.Entity{e},
			Relationships: []*ahtiv1.Relationship{{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_SCHEDULED_ON, Source: ref(e), Target: node, State: state}},
		}
	}
	since := tell(20, "alive", 0, map[string]string{"app": "y", "extra": "z"})
	since.Relationships[0].CreatedAt = timestamppb.New(start.Add(3 * time.Second))
	first := tell(0, "alive", 0, map[string]string{"app": "x", "first": "1"})
	first.Relationships[0].CreatedAt = timestamppb.New(start.Add(4*time.Second + 5))
	late := tell(20, "told-late", gone, nil) // it ended before it was last seen
	late.Entities[0].DeletedAt = timestamppb.New(start.Add(5 * time.Second))
	late.Relationships[0].DeletedAt = late.Entities[0].DeletedAt
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		appendAll(t, s,
			tell(10, "dead", gone, nil), tell(0, "dead", 0, map[string]string{"app": "x"}),
			since, tell(10, "alive", gone, nil), first,
			tell(0, "named", ahtiv1.EntityState_ENTITY_STATE_ACTIVE, nil), tell(10, "named", 0, map[string]string{"app": "x"}),
			late, tell(10, "told-late", 0, nil))
		require.NoError(t, s.Checkpoint(t.Context()))
		for range 2 {
			_, err := s.DeleteBefore(t.Context(), start.Add(time.Hour))
			require.NoError(t, err)
			entities, ties := map[string]*ahtiv1.Entity{}, map[string]*ahtiv1.Relationship{}
			require.NoError(t, s.Facts(t.Context(), func(f store.Fact) {
				if f.Entity != nil {
					require.NotContains(t, entities, f.Entity.GetId(), "versions are merged")
					entities[f.Entity.GetId()] = f.Entity
				} else {
					ties[f.Relationship.GetSource().GetId()] = f.Relationship
				}
			}))
			require.NotContains(t, entities, "dead")
			require.NotContains(t, ties, "dead")
			require.Equal(t, map[string]string{"app": "y", "extra": "z", "first": "1"}, entities["alive"].GetLabels())
			require.NotEqual(t, gone, entities["alive"].GetState())
			require.Equal(t, start.Add(3*time.Second), ties["alive"].GetCreatedAt().AsTime(), "the earliest")
			require.Equal(t, ahtiv1.EntityState_ENTITY_STATE_ACTIVE, entities["named"].GetState(), "to be named ends nothing")
			require.Contains(t, entities, "told-late")
			require.NotEqual(t, gone, entities["told-late"].GetState())
		}
	})
}

// Things that are only named do not fill the store for ever. What the engine knows,
// an event that is kept names, or has an end of its own stays.
func TestForgottenThingsAreDeleted(t *testing.T) {
	const endpoints = 2500 // more than are looked at at a time
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		node := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_NODE, Id: "node", ClusterId: "prod"}
		name := func(second, from, to int) *ahtiv1.AhtiEvent {
			e := &ahtiv1.AhtiEvent{
				Id: fmt.Sprintf("%d-%d", second, from), Subtype: "network.connection_refused", Cluster: "prod",
				Timestamp: timestamppb.New(start.Add(time.Duration(second) * time.Second)), Entities: []*ahtiv1.Entity{node},
			}
			for n := from; n < to; n++ {
				x := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT, Id: fmt.Sprintf("10.0.%d.%d:80", n>>8, n&255), ClusterId: "prod"}
				e.Entities = append(e.Entities, x)
				e.Relationships = append(e.Relationships, &ahtiv1.Relationship{
					Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_CONNECTS_TO, Source: ref(node), Target: ref(x),
				})
			}
			return e
		}
		for n := 0; n < endpoints; n += 500 {
			appendAll(t, s, name(n/500, n, n+500))
		}
		ended := name(20, 0, 0)
		ended.Id, ended.Entities = "ended", []*ahtiv1.Entity{{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: "ended", State: ahtiv1.EntityState_ENTITY_STATE_DELETED}}
		ended.Entities[0].DeletedAt = timestamppb.New(start.Add(40 * time.Second))
		appendAll(t, s, ended)
		require.NoError(t, s.Checkpoint(t.Context()))
		// Named again: at once what is stored, and what is not stored yet.
		heard := records(t, name(100, 0, 1), name(101, 1, 2))
		require.NoError(t, s.Append(t.Context(), heard))
		s.Note(heard[0], nil, nil)
		require.NoError(t, s.Checkpoint(t.Context()))
		s.Note(heard[1], nil, nil)

		before := start.Add(time.Minute)
		_, err := s.DeleteBefore(t.Context(), start.Add(30*time.Second))
		require.NoError(t, err)
		known := func(e *ahtiv1.Entity) bool { return e.GetId() == "10.0.0.2:80" || e.GetId() == "node" }
		for _, want := range []int{endpoints - 3, 0} {
			n, err := s.DeleteForgotten(t.Context(), before, known)
			require.NoError(t, err)
			require.Equal(t, want, n)
		}
		var left, ties []string
		require.NoError(t, s.Facts(t.Context(), func(f store.Fact) {
			if f.Entity != nil {
				left = append(left, f.Entity.GetId())
			} else {
				ties = append(ties, f.Relationship.GetTarget().GetId())
			}
		}))
		slices.Sort(left)
		require.Equal(t, []string{"10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80", "ended", "node"}, slices.Compact(left))
		require.ElementsMatch(t, []string{"10.0.0.0:80", "10.0.0.1:80", "10.0.0.2:80"}, ties)
	})
}

func TestRetentionBySize(t *testing.T) {
	s := open(t, store.Config{Dir: t.TempDir()})
	appendMany(t, s, 5000)
	require.NoError(t, s.Checkpoint(t.Context()))
	before, err := s.Size(t.Context())
	require.NoError(t, err)
	n, err := s.DeleteShare(t.Context(), 0.5)
	require.NoError(t, err)
	require.InDelta(t, 2500, n, 2)
	after, err := s.Size(t.Context())
	require.NoError(t, err)
	require.Less(t, after, before*2/3)
	all, _, err := s.Timeline(t.Context(), "", whole(1))
	require.NoError(t, err)
	require.Equal(t, workload.Event(int(n)).GetId(), all[0].Event.GetId(), "the oldest went")
}

// One event of long ago, which came late, does not keep facts for ever.
func TestRetentionBySizeWithOldNews(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		end := workload.Event(0)
		end.Id, end.Entities = "end", []*ahtiv1.Entity{{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: "ended", State: ahtiv1.EntityState_ENTITY_STATE_DELETED}}
		appendAll(t, s, end)
		appendMany(t, s, 3000)
		old := workload.Event(3000)
		old.Timestamp, old.Entities, old.Relationships = timestamppb.New(start.Add(-365*24*time.Hour)), nil, nil
		appendAll(t, s, old)
		require.NoError(t, s.Checkpoint(t.Context()))
		n, err := s.DeleteShare(t.Context(), 0.1)
		require.NoError(t, err)
		require.InDelta(t, 300, n, 5)
		require.NoError(t, s.Facts(t.Context(), func(f store.Fact) { require.NotEqual(t, "ended", f.Entity.GetId()) }))
	})
}

// Every thing that an event names has it in its timeline.
func TestAnEventOfManyThings(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		s := open(t, config)
		e := workload.Event(0)
		for i := range 1000 {
			e.Entities = append(e.Entities, &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: fmt.Sprintf("pod-%d", i), ClusterId: "prod"})
		}
		appendAll(t, s, e)
		require.NoError(t, s.Checkpoint(t.Context()))
		found, _, err := s.EntityTimeline(t.Context(), []*ahtiv1.EntityReference{ref(e.GetEntities()[len(e.GetEntities())-1])}, whole(10))
		require.NoError(t, err)
		require.Equal(t, []string{e.GetId()}, ids(found))
	})
}

// A server that goes away during a commit: nothing that was stored is lost to
// the engine, and the next commit works.
func TestPostgresRestarts(t *testing.T) {
	own := ahtitest.NewPostgres("fsync=off")
	t.Cleanup(func() { require.NoError(t, own.Stop()) })
	s := open(t, store.Config{URL: own.Database(t)})
	appendAll(t, s, workload.Event(0))
	require.NoError(t, own.Crash())
	require.NoError(t, own.Start())

	require.Eventually(t, func() bool {
		_, err := s.Missed(context.Background())
		return err == nil && s.Append(context.Background(), records(t, workload.Event(1))) == nil
	}, 30*time.Second, 50*time.Millisecond)
	all, _, err := s.Timeline(t.Context(), "", whole(10))
	require.NoError(t, err)
	require.Len(t, all, 2)
}

// Of two that have one database open, as while one is replaced by a newer, only
// the later one writes. A lock keeps the second one out of SQLite.
func TestTheLaterOneWrites(t *testing.T) {
	config := store.Config{URL: postgres.Database(t)}
	earlier := open(t, config)
	appendAll(t, earlier, workload.Event(0))
	later := open(t, config)
	require.ErrorIs(t, earlier.Append(t.Context(), records(t, workload.Event(1))), store.ErrReplaced)
	require.ErrorIs(t, earlier.Checkpoint(t.Context()), store.ErrReplaced)
	require.ErrorIs(t, earlier.SetState(t.Context(), "lessons", nil), store.ErrReplaced)
	require.EqualValues(t, 2, appendAll(t, later, workload.Event(2))[0].Sequence)
	require.NoError(t, later.Checkpoint(t.Context()))
	found, err := earlier.Event(t.Context(), workload.Event(2).GetId())
	require.NoError(t, err, "it may still answer")
	require.Equal(t, workload.Event(2).GetId(), found.GetId())
}

// said passes on what was logged.
type said chan string

func (s said) Write(p []byte) (int, error) {
	select {
	case s <- string(p):
	default:
	}
	return len(p), nil
}

// A database server that starts after ahti is awaited until ahti is to stop.
func TestAServerThatIsAwayIsAwaited(t *testing.T) {
	own := ahtitest.NewPostgres("fsync=off")
	t.Cleanup(func() { require.NoError(t, own.Stop()) })
	config := store.Config{URL: own.Database(t)}
	require.NoError(t, own.Crash())
	attempt := func(ctx context.Context) <-chan error {
		log := make(said, 1)
		config.Log = slog.New(slog.NewTextHandler(log, nil))
		opened := make(chan error, 1)
		go func() {
			s, err := store.Open(ctx, config)
			if err == nil {
				err = s.Close()
			}
			opened <- err
		}()
		select {
		case line := <-log:
			require.Contains(t, line, "waiting for PostgreSQL")
		case err := <-opened:
			require.Fail(t, "did not wait", "%v", err)
		}
		return opened
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := attempt(ctx)
	cancel()
	require.ErrorIs(t, <-stopped, context.Canceled)

	opened := attempt(t.Context())
	require.NoError(t, own.Start())
	require.NoError(t, <-opened)
}

func TestOpenFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	used := t.TempDir()
	open(t, store.Config{Dir: used})
	damaged := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(damaged, "ahti.db"), []byte("this is not a database, whatever its name says"), 0o600))
	missing := strings.Replace(postgres.Database(t), "/test", "/missing", 1)
	tests := []struct {
		name   string
		config store.Config
		want   string
	}{
		{"a file for a directory", store.Config{Dir: file}, "set --data-dir"},
		{"in use", store.Config{Dir: used}, "another ahti uses this data directory"},
		{"damaged", store.Config{Dir: damaged}, "restore a backup"},
		{"no such database", store.Config{URL: missing}, "does not exist"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.config.Log = slog.New(slog.DiscardHandler)
			_, err := store.Open(t.Context(), test.config)
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), "secret")
		})
	}
}

// Names of directories that mean something in a URL.
func TestOddDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a?b#c%20 d")
	s := open(t, store.Config{Dir: dir})
	appendAll(t, s, workload.Event(0))
	require.FileExists(t, filepath.Join(dir, "ahti.db"))
}
