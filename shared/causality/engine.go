// Package causality tells what caused what. It takes events with the things
// they are about, keeps a graph of these things, and explains symptoms by the
// changes and faults that are near in graph and time.
//
// The engine is pure: it does no I/O and has no clock of its own. The same
// events give the same answer in whatever order they arrive. It serves two
// callers: a stream of events that goes on for ever (Apply, and from time to
// time Learn and Forget), and one snapshot, whose objects and Kubernetes Events
// the caller turns into events (Apply for each, then Incidents).
// Package causality is a stand-in until the engine is merged.
package causality

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

const (
	// skew is how far clocks of two sources may be apart: a cause may seem to
	// come that much after its symptom. NTP keeps nodes within milliseconds,
	// but the API's Events carry whole seconds.
	skew = 2 * time.Second
	// quiet is how long a symptom may pause and still be the same one: the
	// kubelet waits up to 5 minutes before it starts a crashing container
	// again.
	quiet = 10 * time.Minute
	// memory is how long a tie that ended still counts.
	memory = 30 * time.Minute
	// calm is how long after its last symptom an incident is over.
	calm = 5 * time.Minute
	// defaultWindow is how far back the engine reasons when it is not told.
	defaultWindow = 6 * time.Hour
)

// Options says how an engine reasons.
type Options struct {
	// Modes is the table of failure modes; nil takes the built-in one.
	Modes *Modes
	// Window is how far back from the newest event changes and symptoms are
	// kept; 0 takes 6 hours. Forget enforces it.
	Window time.Duration
}

// Engine holds the graph, and what happened to its entities. It is safe for
// concurrent use.
type Engine struct {
	modes  *Modes
	window time.Duration
	steps  []step

	mu      sync.Mutex
	graph   *graph
	lessons Lessons
	epoch   uint64 // counts changes of the lessons
	runs    int
	changes int
	// suffering holds the vertices that have runs.
	suffering map[*vertex]bool
}

// New returns an empty engine. It fails only when the built-in table is not
// readable, which a test rules out.
func New(o Options) (*Engine, error) {
	if o.Modes == nil {
		modes, err := ReadModes(defaultModes)
		if err != nil {
			return nil, err
		}
		o.Modes = modes
	}
	return &Engine{
		modes: o.Modes, window: cmp.Or(o.Window, defaultWindow), steps: steps(),
		graph: newGraph(), lessons: newLessons(), suffering: map[*vertex]bool{},
	}, nil
}

// Window is how far back the engine reasons.
func (e *Engine) Window() time.Duration { return e.window }

// Delta holds what was not known before.
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

// Apply takes one event in. The caller hands over each id once; the order does
// not matter. The delta holds those facts of the event that were new.
func (e *Engine) Apply(ev *ahtiv1.AhtiEvent) Delta {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := ev.GetTimestamp().AsTime().UnixNano()
	delta := e.observe(at, ev.GetCluster(), ev.GetEntities(), ev.GetRelationships())
	if len(ev.GetEntities()) == 0 {
		return delta
	}
	subject := e.vertexOf(ev, ev.GetEntities()[0])
	if c := e.modes.changeOf(ev); c != nil {
		c.stamp, c.vertex = stampOf(ev), subject
		c.learned = c.at <= e.lessons.Through
		i, _ := slices.BinarySearchFunc(subject.changes, c, func(a, b *change) int { return a.compare(b.stamp) })
		subject.changes = slices.Insert(subject.changes, i, c)
		e.changes++
		e.graph.touch(subject)
	}
	symptom, container := e.modes.classify(ev)
	if symptom == nil {
		return delta
	}
	before := len(subject.runs)
	r, changed := addTo(subject, symptom.Name, aboutOf(ev, container), e.peerOf(ev), newSighted(ev, container), ev.GetSeverity())
	r.learned = r.learned || r.first.at <= e.lessons.Through
	e.runs += len(subject.runs) - before
	e.suffering[subject] = true
	if changed {
		e.graph.touch(subject)
	}
	return delta
}

func (e *Engine) vertexOf(ev *ahtiv1.AhtiEvent, en *ahtiv1.Entity) *vertex {
	return e.graph.vertex(key{en.GetType(), cmp.Or(en.GetClusterId(), ev.GetCluster()), en.GetId()})
}

// peerOf returns the other end of the connection that an event is about; nil
// when it is about none.
func (e *Engine) peerOf(ev *ahtiv1.AhtiEvent) *vertex {
	if !strings.HasPrefix(ev.GetSubtype(), "network.") {
		return nil
	}
	for _, r := range ev.GetRelationships() {
		if r.GetType() == connects {
			t := r.GetTarget()
			return e.graph.vertex(key{t.GetType(), cmp.Or(t.GetClusterId(), ev.GetCluster()), t.GetId()})
		}
	}
	return nil
}

// Observe takes in facts that were persisted before.
func (e *Engine) Observe(at time.Time, entities []*ahtiv1.Entity, relationships []*ahtiv1.Relationship) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.observe(at.UnixNano(), "", entities, relationships)
}

func (e *Engine) observe(at int64, cluster string, entities []*ahtiv1.Entity, relationships []*ahtiv1.Relationship) Delta {
	var delta Delta
	for _, en := range entities {
		if en.GetClusterId() == "" && cluster != "" {
			// A fact must be understood without the event that told it.
			en = proto.CloneOf(en)
			en.ClusterId = cluster
		}
		if _, changed := e.graph.entity(at, cluster, en); changed {
			delta.Entities = append(delta.Entities, en)
		}
	}
	for _, r := range relationships {
		if r.GetSource() == nil || r.GetTarget() == nil {
			continue
		}
		if e.graph.relationship(at, cluster, r) {
			r = complete(r, at, cluster)
			delta.Relationships = append(delta.Relationships, r)
		}
	}
	return delta
}

// complete makes a tie that is understood without the event that told it.
func complete(r *ahtiv1.Relationship, at int64, cluster string) *ahtiv1.Relationship {
	if r.GetSource().GetClusterId() != "" && r.GetTarget().GetClusterId() != "" && r.GetCreatedAt() != nil {
		return r
	}
	r = proto.CloneOf(r)
	r.Source.ClusterId = cmp.Or(r.GetSource().GetClusterId(), cluster)
	r.Target.ClusterId = cmp.Or(r.GetTarget().GetClusterId(), cluster)
	if r.GetCreatedAt() == nil && r.GetState() != ahtiv1.EntityState_ENTITY_STATE_DELETED {
		r.CreatedAt = timestamp(at)
	}
	return r
}

// Relevant says whether an event is a symptom or a change: an engine that
// starts anew needs it again. The facts of all others are restored by Observe.
func (e *Engine) Relevant(ev *ahtiv1.AhtiEvent) bool {
	if e.modes.changeOf(ev) != nil {
		return true
	}
	symptom, _ := e.modes.classify(ev)
	return symptom != nil
}

// Forget drops changes and symptoms that ended before a time, and entities that
// were deleted before it.
func (e *Engine) Forget(before time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	limit := before.UnixNano()
	e.runs, e.changes = 0, 0
	for _, v := range e.graph.byIndex {
		if v == nil {
			continue
		}
		v.changes = slices.DeleteFunc(v.changes, func(c *change) bool { return c.at < limit })
		v.runs = slices.DeleteFunc(v.runs, func(r *run) bool { return r.last.at < limit })
		e.runs += len(v.runs)
		if len(v.runs) == 0 {
			delete(e.suffering, v)
		}
		e.changes += len(v.changes)
	}
	e.graph.forget(limit)
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
	return Size{Entities: len(e.graph.vertices), Relationships: len(e.graph.ties), Symptoms: e.runs, Changes: e.changes}
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
