// Package causality is a stand-in until the engine is merged.
package causality

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Modes is the table of failure modes.
type Modes struct{}

// Options say how an Engine reasons.
type Options struct {
	Modes  *Modes
	Window time.Duration
}

// Delta holds new facts.
type Delta struct {
	Entities      []*ahtiv1.Entity
	Relationships []*ahtiv1.Relationship
}

// Lessons are what was learned.
type Lessons struct{ Pairs map[string]int64 }

// MarshalBinary implements encoding.BinaryMarshaler.
func (l Lessons) MarshalBinary() ([]byte, error) { return json.Marshal(l.Pairs) }

// UnmarshalBinary implements encoding.BinaryUnmarshaler.
func (l *Lessons) UnmarshalBinary(data []byte) error { return json.Unmarshal(data, &l.Pairs) }

type key struct {
	kind    ahtiv1.EntityType
	cluster string
	id      string
}

// Engine correlates.
type Engine struct {
	mu       sync.Mutex
	entities map[key]*ahtiv1.Entity
	ties     map[string]*ahtiv1.Relationship
	symptoms map[key][]*ahtiv1.AhtiEvent
	window   time.Duration
}

// New returns an empty engine.
func New(o Options) (*Engine, error) {
	return &Engine{
		entities: map[key]*ahtiv1.Entity{}, ties: map[string]*ahtiv1.Relationship{},
		symptoms: map[key][]*ahtiv1.AhtiEvent{}, window: cmp.Or(o.Window, 6*time.Hour),
	}, nil
}

// Size is how much an engine holds.
type Size struct {
	Entities, Relationships, Symptoms, Changes int
}

// Size counts what the engine holds.
func (e *Engine) Size() Size {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Size{Entities: len(e.entities), Relationships: len(e.ties), Symptoms: len(e.symptoms)}
}

// Window is how far back the engine reasons.
func (e *Engine) Window() time.Duration { return e.window }

func keyOf(e *ahtiv1.Entity) key { return key{e.GetType(), e.GetClusterId(), e.GetId()} }

// Apply takes one event in.
func (e *Engine) Apply(ev *ahtiv1.AhtiEvent) Delta {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := e.observe(ev.GetEntities(), ev.GetRelationships())
	if e.Relevant(ev) && len(ev.GetEntities()) > 0 {
		k := keyOf(ev.GetEntities()[0])
		e.symptoms[k] = append(e.symptoms[k], ev)
	}
	return d
}

func (e *Engine) observe(entities []*ahtiv1.Entity, relationships []*ahtiv1.Relationship) (d Delta) {
	for _, x := range entities {
		if old := e.entities[keyOf(x)]; old == nil || old.GetState() != x.GetState() {
			e.entities[keyOf(x)] = x
			d.Entities = append(d.Entities, x)
		}
	}
	for _, r := range relationships {
		k := r.GetType().String() + r.GetSource().String() + r.GetTarget().String()
		if e.ties[k] == nil {
			e.ties[k] = r
			d.Relationships = append(d.Relationships, r)
		}
	}
	return d
}

// Observe takes facts in.
func (e *Engine) Observe(_ time.Time, entities []*ahtiv1.Entity, relationships []*ahtiv1.Relationship) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.observe(entities, relationships)
}

// Relevant says whether an event matters.
func (e *Engine) Relevant(ev *ahtiv1.AhtiEvent) bool {
	return ev.GetSeverity() >= eventv1.Severity_SEVERITY_WARNING || strings.HasPrefix(ev.GetSubtype(), "k8s.deployment.")
}

// Incidents lists incidents.
func (e *Engine) Incidents(now time.Time) []*ahtiv1.Incident {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []*ahtiv1.Incident
	for k, events := range e.symptoms {
		slices.SortFunc(events, func(a, b *ahtiv1.AhtiEvent) int { return a.GetTimestamp().AsTime().Compare(b.GetTimestamp().AsTime()) })
		first, last := events[0], events[len(events)-1]
		s := &ahtiv1.Symptom{
			Kind: first.GetSubtype(), Entity: e.entities[k], Count: int64(len(events)), FirstAt: first.GetTimestamp(),
			LastAt: last.GetTimestamp(), Severity: first.GetSeverity(), EventIds: []string{first.GetId()}, Text: "it suffers",
		}
		state := ahtiv1.IncidentState_INCIDENT_STATE_OPEN
		if now.Sub(last.GetTimestamp().AsTime()) > 30*time.Minute {
			state = ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED
		}
		all = append(all, &ahtiv1.Incident{
			Id: "inc-" + k.cluster + "-" + k.id, Cluster: k.cluster, State: state,
			Severity: first.GetSeverity(), Summary: "Something is wrong with " + e.entities[k].GetName() + ".", Confidence: 0.5,
			StartedAt: timestamppb.New(first.GetTimestamp().AsTime()), LastSeenAt: timestamppb.New(last.GetTimestamp().AsTime()),
			Root: e.entities[k], Symptoms: []*ahtiv1.Symptom{s},
		})
	}
	slices.SortFunc(all, func(a, b *ahtiv1.Incident) int {
		return cmp.Or(b.GetStartedAt().AsTime().Compare(a.GetStartedAt().AsTime()), strings.Compare(a.GetId(), b.GetId()))
	})
	return all
}

// Why explains.
func (e *Engine) Why(entities []*ahtiv1.EntityReference, from, to, now time.Time) []*ahtiv1.Incident {
	var found []*ahtiv1.Incident
	for _, i := range e.Incidents(now) {
		for _, r := range entities {
			if i.GetRoot().GetId() == r.GetId() && !i.GetStartedAt().AsTime().After(to) && !i.GetLastSeenAt().AsTime().Before(from) {
				found = append(found, i)
			}
		}
	}
	return found
}

// Resolve finds entities.
func (e *Engine) Resolve(name, cluster string) []*ahtiv1.EntityReference {
	e.mu.Lock()
	defer e.mu.Unlock()
	var refs []*ahtiv1.EntityReference
	for k, x := range e.entities {
		if (cluster == "" || cluster == k.cluster) && (k.id == name || x.GetName() == name || x.GetNamespace()+"/"+x.GetName() == name) {
			refs = append(refs, &ahtiv1.EntityReference{Type: k.kind, Id: k.id, ClusterId: k.cluster})
		}
	}
	return refs
}

// Topology tells the surroundings.
func (e *Engine) Topology(refs []*ahtiv1.EntityReference, _ time.Time, _, limit int) (entities []*ahtiv1.Entity, relationships []*ahtiv1.Relationship, truncated bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, x := range e.entities {
		if len(refs) == 0 || slices.ContainsFunc(refs, func(r *ahtiv1.EntityReference) bool { return r.GetId() == k.id }) {
			entities = append(entities, x)
		}
	}
	for _, r := range e.ties {
		relationships = append(relationships, r)
	}
	if len(entities) > limit {
		return entities[:limit], relationships, true
	}
	return entities, relationships, false
}

// Learn learns.
func (e *Engine) Learn(time.Time) bool { return false }

// Lessons tells what was learned.
func (e *Engine) Lessons() Lessons { return Lessons{Pairs: map[string]int64{}} }

// Teach restores lessons.
func (e *Engine) Teach(Lessons) {}

// Forget drops what is old.
func (e *Engine) Forget(before time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, events := range e.symptoms {
		events = slices.DeleteFunc(events, func(ev *ahtiv1.AhtiEvent) bool { return ev.GetTimestamp().AsTime().Before(before) })
		if e.symptoms[k] = events; len(events) == 0 {
			delete(e.symptoms, k)
		}
	}
}
