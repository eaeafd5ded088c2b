package brain_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/ahti/internal/ahtitest"
	"github.com/yairfalse/tapio/ahti/internal/brain"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
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

func each(t *testing.T, test func(t *testing.T, config store.Config)) {
	ahtitest.Stores(t, postgres, test)
}

// fixture is a brain with what it keeps.
type fixture struct {
	*brain.Brain
	store  *store.Store
	engine *causality.Engine
}

// start opens a store and restores the engine from it.
func start(t *testing.T, config store.Config, now time.Time) *fixture {
	t.Helper()
	config.Log = slog.New(slog.DiscardHandler)
	s, err := store.Open(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() }) // a test that closes it checks that
	engine, err := causality.New(causality.Options{})
	require.NoError(t, err)
	require.NoError(t, brain.Restore(t.Context(), s, engine, now))
	b := brain.New(brain.Config{
		Store: s, Engine: engine, Applied: func() uint64 { return 0 }, Retention: 7 * 24 * time.Hour, Log: config.Log,
	})
	return &fixture{b, s, engine}
}

// add stores events and lets the engine see them.
func (f *fixture) add(t *testing.T, events ...*ahtiv1.AhtiEvent) {
	t.Helper()
	for _, e := range events {
		body, err := proto.Marshal(e)
		require.NoError(t, err)
		r := &store.Record{Event: e, Body: body, Relevance: f.engine.Relevance(e)}
		require.NoError(t, f.store.Append(t.Context(), []*store.Record{r}))
		delta := f.engine.Apply(e)
		f.store.Note(r, delta.Entities, delta.Relationships)
	}
}

func (f *fixture) incidents(t *testing.T) (all []*ahtiv1.Incident) {
	t.Helper()
	require.NoError(t, f.store.Incidents(context.Background(), store.IncidentFilter{}, func(i *ahtiv1.Incident) bool {
		all = append(all, i)
		return true
	}))
	return all
}

// killed is an OOM kill of a pod.
func killed(id, pod string, at time.Time) *ahtiv1.AhtiEvent {
	return &ahtiv1.AhtiEvent{
		Id: id, Timestamp: timestamppb.New(at), Subtype: "container.oom_kill", Source: "tapio", Severity: 5, Cluster: "prod",
		Entities: []*ahtiv1.Entity{{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: pod, Name: pod, Namespace: "shop"}},
	}
}

// One incident that cannot be encoded keeps no other out of the store.
func TestAnIncidentThatCannotBeStored(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		now := time.Now()
		f := start(t, config, now)
		f.add(t, killed("good", "api", now.Add(-time.Hour)))
		bad := killed("bad", "db", now)
		bad.Entities[0].Attributes = map[string]string{"odd": "\xff"} // which no server lets in
		f.engine.Apply(bad)
		for range 2 {
			require.NoError(t, f.Refresh(t.Context(), now))
			found := f.incidents(t)
			require.Len(t, found, 1)
			require.Equal(t, "api", found[0].GetRoot().GetId())
			require.Equal(t, 1, f.Unstored())
		}
	})
}

// A change explains for longer than a symptom counts: a restart must not forget it,
// nor the past.
func TestChangesAreRemembered(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		now := time.Now()
		for _, asked := range []time.Duration{0, 24 * time.Hour} { // ago
			f := start(t, config, now)
			changed := now.Add(-asked - f.engine.ChangeWindow() + time.Hour)
			update := killed(fmt.Sprint("update", asked), "api", changed)
			update.Subtype, update.Severity = "k8s.pod.updated", 2
			update.Data = &ahtiv1.AhtiEvent_K8S{K8S: &eventv1.K8SEventData{ResourceType: "pod", Changes: []*eventv1.FieldChange{
				{Path: "spec.containers[app].resources.limits.memory", Old: "1Gi", New: "64Mi"},
			}}}
			require.Equal(t, causality.Change, f.engine.Relevance(update))
			f.add(t, update, killed(fmt.Sprint("kill", asked), "api", now.Add(-asked)))
			require.NoError(t, f.store.Checkpoint(t.Context()))
			require.NoError(t, f.store.Close())
			f = start(t, config, now)
			engine := f.engine
			if asked > 0 {
				var err error
				engine, err = f.Past(t.Context(), now.Add(-asked-time.Minute), now.Add(-asked))
				require.NoError(t, err)
			}
			require.Positive(t, engine.Size().Changes)
			require.Positive(t, engine.Size().Symptoms)
			require.NoError(t, f.store.Close())
		}
	})
}

// What an ahti before this one stored is part of another incident now, or was taken
// back, or stays because the engine cannot know it any more.
func TestIncidentsOfBeforeTheRestart(t *testing.T) {
	const isOpen, isOver = ahtiv1.IncidentState_INCIDENT_STATE_OPEN, ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED
	each(t, func(t *testing.T, config store.Config) {
		now := time.Now()
		f := start(t, config, now)
		told := killed("kill", "api", now.Add(-time.Hour))
		// By the table of an ahti before, this was a symptom.
		other := killed("other", "db", now.Add(-time.Hour))
		other.Subtype, other.Severity = "app.odd", 3
		f.add(t, told, other)
		require.NoError(t, f.Refresh(t.Context(), now))
		stored := f.incidents(t)
		require.Len(t, stored, 1)
		require.Equal(t, isOver, stored[0].GetState())
		like := func(id, pod, event string, spoil ...func(*ahtiv1.Incident)) *ahtiv1.Incident {
			i := proto.CloneOf(stored[0])
			i.Id, i.State, i.Symptoms[0].Entity.Id, i.Symptoms[0].EventIds = id, isOpen, pod, []string{event}
			for _, s := range spoil {
				s(i)
			}
			return i
		}
		require.NoError(t, f.store.SaveIncidents(t.Context(), []*ahtiv1.Incident{
			like("part", "api", "kill"),
			like("taken back", "db", "kill"),
			like("taken back when over", "db", "kill", func(i *ahtiv1.Incident) { i.State = isOver }),
			like("events deleted", "db", "deleted"),
			like("table changed", "db", "other"),
			like("began too early", "db", "kill", func(i *ahtiv1.Incident) {
				i.Symptoms[0].FirstAt = timestamppb.New(now.Add(-f.engine.Window() - time.Minute))
			}),
		}, nil))
		require.NoError(t, f.store.Close())

		f = start(t, config, now)
		for range 2 {
			require.NoError(t, f.Refresh(t.Context(), now))
			var ids []string
			for _, i := range f.incidents(t) {
				ids = append(ids, i.GetId())
				require.Equal(t, isOver, i.GetState(), i.GetId())
			}
			require.ElementsMatch(t, []string{stored[0].GetId(), "events deleted", "table changed", "began too early"}, ids)
		}
	})
}

// A container that ends as its pod was told to is no incident, and leaves none
// behind, whether the end of the pod is told before a restart or after it.
func TestAnOrderedEndLeavesNoIncident(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		now := time.Now()
		f := start(t, config, now)
		for _, restart := range []bool{false, true} {
			pod := fmt.Sprint("api-", restart)
			end := killed("end-"+pod, pod, now.Add(-3*time.Second))
			end.Subtype, end.Severity, end.Labels = "container.exit_error", 4, map[string]string{"process.exit.code": "143"}
			f.add(t, end)
			require.NoError(t, f.Refresh(t.Context(), now.Add(-2*time.Second)))
			require.Len(t, f.incidents(t), 1, "it looks like a failure")
			if restart {
				require.NoError(t, f.store.Checkpoint(t.Context()))
				require.NoError(t, f.store.Close())
				f = start(t, config, now)
			}
			gone := killed("gone-"+pod, pod, now.Add(-time.Second))
			gone.Subtype, gone.Severity = "k8s.pod.deleted", 2
			gone.Entities[0].State = ahtiv1.EntityState_ENTITY_STATE_DELETED
			f.add(t, gone)
			require.NoError(t, f.Refresh(t.Context(), now))
			require.Empty(t, f.incidents(t))
		}
	})
}

// A container that is heard of is there, however long ago it was new: after a
// restart too.
func TestLivingContainersAreKept(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		now := time.Now()
		f := start(t, config, now)
		tell := func(id, container string, at time.Time) *ahtiv1.AhtiEvent {
			e := killed(id, container, at)
			e.Subtype, e.Severity, e.Entities[0].Type = "container.started", 2, ahtiv1.EntityType_ENTITY_TYPE_CONTAINER
			return e
		}
		f.add(t, tell("1", "old", now.Add(-60*time.Hour)), tell("2", "ended", now.Add(-60*time.Hour)))
		require.NoError(t, f.store.Checkpoint(t.Context()))
		f.add(t, tell("3", "old", now.Add(-time.Hour)))
		require.NoError(t, f.store.Checkpoint(t.Context()))
		require.NoError(t, f.store.Close())
		f = start(t, config, now)
		f.engine.Forget(now.Add(-f.engine.Window()))
		require.Len(t, f.engine.Resolve("old", "prod"), 1)
		require.Empty(t, f.engine.Resolve("ended", "prod"))
	})
}

// An incident that goes on for longer than the engine remembers is one, though its
// identity rests on what was forgotten.
func TestAnIncidentThatGoesOnAndOn(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		now := time.Now()
		f := start(t, config, now)
		const every = 5 * time.Minute // less than ends it
		for ago := 10 * time.Hour; ago > 0; ago -= every {
			f.add(t, killed(fmt.Sprint("kill-", ago), "api", now.Add(-ago)))
		}
		require.NoError(t, f.Refresh(t.Context(), now))
		require.Len(t, f.incidents(t), 1)
		require.NoError(t, f.store.Checkpoint(t.Context()))
		require.NoError(t, f.store.Close())

		f = start(t, config, now)
		f.add(t, killed("kill-now", "api", now))
		require.NoError(t, f.Refresh(t.Context(), now))
		found := f.incidents(t)
		require.Len(t, found, 1)
		require.Equal(t, ahtiv1.IncidentState_INCIDENT_STATE_OPEN, found[0].GetState())
	})
}

// What is only named for a while is forgotten, by the engine and in the store, and
// is told again when it comes back. What was told to exist stays.
func TestOnlyNamedThingsAreForgotten(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		const named = 200
		now := time.Now()
		f := start(t, config, now)
		call := func(id string, n int, at time.Time) *ahtiv1.AhtiEvent {
			e := killed(id, "api", at)
			e.Subtype, e.Severity, e.Entities[0].State = "network.connection", 2, ahtiv1.EntityState_ENTITY_STATE_ACTIVE
			endpoint := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT, Id: fmt.Sprintf("203.0.113.%d:443", n)}
			container := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, Id: fmt.Sprint("container-", n)}
			ref := func(x *ahtiv1.Entity) *ahtiv1.EntityReference {
				return &ahtiv1.EntityReference{Type: x.GetType(), Id: x.GetId()}
			}
			e.Entities = append(e.Entities, endpoint, container)
			e.Relationships = []*ahtiv1.Relationship{
				{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_CONNECTS_TO, Source: ref(e.GetEntities()[0]), Target: ref(endpoint)},
				{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, Source: ref(e.GetEntities()[0]), Target: ref(container)},
			}
			return e
		}
		facts := func() (things map[string]int, ties int) {
			things = map[string]int{}
			require.NoError(t, f.store.Facts(t.Context(), func(fact store.Fact) {
				if fact.Entity != nil {
					things[fact.Entity.GetId()]++
				} else {
					ties++
				}
			}))
			return things, ties
		}
		for n := range named {
			f.add(t, call(fmt.Sprint("call-", n), n, now.Add(-10*24*time.Hour).Add(time.Duration(n)*time.Second)))
		}
		f.add(t, call("call-again", 0, now.Add(-24*time.Hour))) // within the retention
		require.NoError(t, f.store.Checkpoint(t.Context()))
		things, ties := facts()
		require.Len(t, things, 1+2*named)
		require.Equal(t, 2*named, ties)

		require.NoError(t, f.Retain(t.Context(), now))
		things, _ = facts()
		require.Len(t, things, 1+2*named, "the engine knows them still")
		f.engine.Forget(now.Add(-f.engine.Window()))
		require.NoError(t, f.Retain(t.Context(), now))
		things, ties = facts()
		require.Len(t, things, 1+2)
		require.Contains(t, things, "api")
		require.Contains(t, things, "203.0.113.0:443")
		require.Equal(t, 2, ties)

		f.add(t, call("call-back", 1, now))
		require.NoError(t, f.store.Checkpoint(t.Context()))
		things, ties = facts()
		require.Len(t, things, 1+4)
		require.Equal(t, 4, ties)
	})
}
