// Package causality tells what caused what. It takes events with the things
// they are about, keeps a graph of these things, and explains symptoms by the
// changes and faults that are near in graph and time.
//
// The engine is pure: it does no I/O and has no clock of its own. The same
// events give the same answer in whatever order they arrive. It serves two
// callers: a stream of events that goes on for ever (Apply, and from time to
// time Learn and Forget), and one snapshot, whose objects and Kubernetes Events
// the caller turns into events (Apply for each, then Incidents).
package causality

import (
	"cmp"
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
	// calm is how long after its last symptom an incident is over: one that may
	// still be the same is not.
	calm = quiet
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
	// question counts what the engine was asked: an explanation is checked once
	// for each.
	question uint64
	runs     int
	changes  int
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

// Empty returns another engine that reasons by the same table and window, and
// knows nothing.
func (e *Engine) Empty() *Engine {
	return &Engine{
		modes: e.modes, window: e.window, steps: e.steps,
		graph: newGraph(), lessons: newLessons(), suffering: map[*vertex]bool{},
	}
}

// Window is how far back the engine looks for symptoms.
func (e *Engine) Window() time.Duration { return e.window }

// ChangeWindow is how far back the engine looks for changes: they may show their
// effect much later, and are few.
func (e *Engine) ChangeWindow() time.Duration { return max(e.window, e.modes.longest) }

// Delta holds what was not known before.
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
	for _, name := range e.modes.endedBy(ev) {
		subject.end(name, at)
		e.graph.touch(subject)
	}
	shown := e.modes.classify(ev)
	if shown.row == nil {
		return delta
	}
	before := len(subject.runs)
	seen := newSighted(ev, shown)
	r, changed := addTo(subject, seen.about(), seen, shown, ev)
	changed = r.meet(e.peerOf(ev), seen.stamp) || changed
	r.learned = r.learned || r.first.at <= e.lessons.Through
	e.runs += len(subject.runs) - before
	e.suffering[subject] = true
	// What goes on after its pod is gone was no part of going.
	if pod := e.podOf(subject); changed || pod != nil && pod.deleted() {
		e.graph.touch(subject)
	}
	return delta
}

func (e *Engine) vertexOf(ev *ahtiv1.AhtiEvent, en *ahtiv1.Entity) *vertex {
	return e.graph.vertex(key{en.GetType(), cmp.Or(en.GetClusterId(), ev.GetCluster()), en.GetId()})
}

// end notes that a symptom was told to be over.
func (v *vertex) end(name string, at int64) {
	if v.over == nil {
		v.over = map[string][]int64{}
	}
	i, _ := slices.BinarySearch(v.over[name], at)
	v.over[name] = slices.Insert(v.over[name], i, at)
}

// peerOf returns what the subject of an event connects to, or waits for in vain;
// nil when it is not the side that does.
func (e *Engine) peerOf(ev *ahtiv1.AhtiEvent) *vertex {
	var kind ahtiv1.RelationshipType
	switch {
	case strings.HasPrefix(ev.GetSubtype(), "network."):
		kind = connects
	case strings.HasPrefix(ev.GetSubtype(), "k8s.event."):
		kind = depends
	default:
		return nil
	}
	for _, r := range ev.GetRelationships() {
		if r.GetType() == kind && r.GetSource().GetId() == ev.GetEntities()[0].GetId() {
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

// Relevance says whether an engine that starts anew needs an event again.
type Relevance int8

// The relevances.
const (
	// Irrelevant events only tell facts, which Observe restores.
	Irrelevant Relevance = iota
	// Symptom is needed for as long as Window, as is the end of one.
	Symptom
	// Change is needed for as long as ChangeWindow.
	Change
)

// Relevance says what an event is to the engine.
func (e *Engine) Relevance(ev *ahtiv1.AhtiEvent) Relevance {
	if e.modes.changeOf(ev) != nil {
		return Change
	}
	if e.modes.classify(ev).row != nil || len(e.modes.endedBy(ev)) > 0 {
		return Symptom
	}
	return Irrelevant
}

// Forget drops symptoms that ended before a time, changes that are older by the
// difference of ChangeWindow and Window, and entities that were deleted before
// it. What a symptom that goes on is explained by stays.
func (e *Engine) Forget(before time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	limit := before.UnixNano()
	oldest := before.Add(e.window - e.ChangeWindow()).UnixNano()
	keep := e.explaining(limit)
	e.runs, e.changes = 0, 0
	for _, v := range e.graph.byIndex {
		if v == nil {
			continue
		}
		v.changes = slices.DeleteFunc(v.changes, func(c *change) bool { return c.at < oldest && !keep.changes[c] })
		v.runs = slices.DeleteFunc(v.runs, func(r *run) bool { return r.last.at < limit && !keep.runs[r] })
		e.runs += len(v.runs)
		v.forgetEnds(limit)
		if len(v.runs) == 0 {
			delete(e.suffering, v)
		}
		e.changes += len(v.changes)
	}
	e.graph.forget(limit, keep.vertices)
}

// forgetEnds drops what ended before a time.
func (v *vertex) forgetEnds(limit int64) {
	for name, at := range v.over {
		if i, _ := slices.BinarySearch(at, limit); i == len(at) {
			delete(v.over, name)
		} else {
			v.over[name] = at[i:]
		}
	}
}

// kept is what must not be forgotten.
type kept struct {
	changes  map[*change]bool
	runs     map[*run]bool
	vertices map[*vertex]bool
}

// explaining collects what the believed causes of runs rest on that have not
// ended before a time.
func (e *Engine) explaining(limit int64) kept {
	e.question++
	keep := kept{map[*change]bool{}, map[*run]bool{}, map[*vertex]bool{}}
	for v := range e.suffering {
		for _, r := range v.runs {
			if r.last.at < limit {
				continue
			}
			for range maxSteps {
				c := e.believed(r)
				if c == nil {
					break
				}
				for _, on := range c.path {
					keep.vertices[on] = true
				}
				if c.change != nil {
					keep.changes[c.change] = true
					break
				}
				keep.runs[c.run] = true
				r = c.run
			}
		}
	}
	return keep
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
}
