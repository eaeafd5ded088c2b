// Package brain keeps the engine: it restores it after a restart, stores what it
// finds and learns, and lets it and the store forget.
package brain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

const (
	// refreshEvery is how old the stored incidents may be while events come in.
	refreshEvery = 2 * time.Second
	// idleEvery is how often they are looked at when none do: incidents end by
	// the clock.
	idleEvery = 15 * time.Second
	// restFor is how many times as long as a refresh took ingest goes on without
	// the next one: in a storm of symptoms the engine has much to explain.
	restFor = 5
	// learnEvery is how often the engine learns and forgets.
	learnEvery = 3 * time.Minute
	// retainEvery is how often old data are deleted.
	retainEvery = 10 * time.Minute
	// shareAtOnce is what part of the events goes at a time when there are too
	// many bytes.
	shareAtOnce = 0.02
	// slack is how much longer than its window the engine remembers: what began
	// within the window may go back behind it.
	slack = time.Hour
)

// lessons is the name of the state that holds them.
const lessons = "lessons"

// Config says what to keep.
type Config struct {
	Store  *store.Store
	Engine *causality.Engine
	// Applied counts the events that the engine has seen.
	Applied func() uint64
	// Retention is how long events are kept; 0 is for ever.
	Retention time.Duration
	// MaxBytes is how large the store may get; 0 is without limit.
	MaxBytes int64
	Log      *slog.Logger
}

// Brain keeps an engine.
type Brain struct {
	config Config

	mu     sync.Mutex        // of a refresh
	hashes map[string]uint64 // of incidents as they are stored
	seen   uint64            // what Applied said at the last refresh
	at     time.Time         // of the last refresh
	took   time.Duration     // the last refresh
	open   int
	// unstored counts incidents that cannot be encoded.
	unstored int

	failing  sync.Mutex
	failures map[string]int // by task
}

// The tasks of the housekeeping.
const (
	taskIncidents = "incidents"
	taskLessons   = "lessons"
	taskRetention = "retention"
)

// New returns a Brain.
func New(config Config) *Brain {
	return &Brain{
		config: config, hashes: map[string]uint64{},
		failures: map[string]int{taskIncidents: 0, taskLessons: 0, taskRetention: 0},
	}
}

// Restore gives an engine that is empty what is stored: lessons, facts, the
// events that matter, and everything from behind the last checkpoint.
func Restore(ctx context.Context, s *store.Store, engine *causality.Engine, now time.Time) error {
	taught, err := s.State(ctx, lessons)
	if err != nil {
		return err
	}
	if taught != nil {
		var l causality.Lessons
		if err := l.UnmarshalBinary(taught); err != nil {
			return fmt.Errorf("decode the lessons: %w", err)
		}
		engine.Teach(l)
	}
	if err := observe(ctx, s, engine); err != nil {
		return err
	}
	through, err := s.Applied(ctx)
	if err != nil {
		return err
	}
	if through > 0 {
		if err := applyRelevant(ctx, s, engine, now.Add(-slack), store.Need{Through: through}); err != nil {
			return err
		}
	}
	err = s.After(ctx, through, func(r *store.Record) error {
		delta := engine.Apply(r.Event)
		s.Note(r, delta.Entities, delta.Relationships)
		return nil
	})
	if err != nil {
		return err
	}
	engine.Forget(now.Add(-engine.Window() - slack)) // facts of what ended long ago
	return s.Checkpoint(ctx)
}

func observe(ctx context.Context, s *store.Store, engine *causality.Engine) error {
	return s.Facts(ctx, func(f store.Fact) {
		if f.Entity != nil {
			engine.Observe(time.Unix(0, f.At), []*ahtiv1.Entity{f.Entity}, nil)
		} else {
			engine.Observe(time.Unix(0, f.At), nil, []*ahtiv1.Relationship{f.Relationship})
		}
	})
}

// applyRelevant gives an engine the symptoms and changes that it needs to answer
// about what was seen from a time on. It decodes on all processors what one reads;
// the engine does not care for the order.
func applyRelevant(ctx context.Context, s *store.Store, engine *causality.Engine, from time.Time, need store.Need) error {
	const many = 256 // handed over at a time
	work := make(chan [][]byte, 2*runtime.GOMAXPROCS(0))
	failed := make(chan error, runtime.GOMAXPROCS(0))
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			var err error
			for bodies := range work {
				for _, body := range bodies {
					e := &ahtiv1.AhtiEvent{}
					if err == nil {
						err = proto.Unmarshal(body, e)
					}
					if err == nil {
						engine.Apply(e)
					}
				}
			}
			failed <- err
		})
	}
	var bodies [][]byte
	take := func(r *store.Record) error {
		if bodies = append(bodies, r.Body); len(bodies) == many {
			work <- bodies
			bodies = nil
		}
		return nil
	}
	symptoms, changes := need, need
	symptoms.Relevance, symptoms.Since = causality.Symptom, from.Add(-engine.Window())
	changes.Relevance, changes.Since = causality.Change, from.Add(-engine.ChangeWindow())
	err := s.Relevant(ctx, symptoms, take)
	if err == nil {
		err = s.Relevant(ctx, changes, take)
	}
	work <- bodies
	close(work)
	workers.Wait()
	close(failed)
	for e := range failed {
		if e != nil {
			err = cmp.Or(err, fmt.Errorf("decode an event: %w", e))
		}
	}
	return err
}

// Past returns an engine that knows what happened from a time to another, and
// what may have caused it, for questions about what the running one has forgotten.
func (b *Brain) Past(ctx context.Context, from, to time.Time) (*causality.Engine, error) {
	engine, err := b.Known(ctx)
	if err != nil {
		return nil, err
	}
	engine.Teach(b.config.Engine.Lessons())
	return engine, applyRelevant(ctx, b.config.Store, engine, from, store.Need{Until: to.Add(slack)})
}

// Known returns an engine that knows the things that the store has facts of, those
// that ended included, and nothing of what happened to them.
func (b *Brain) Known(ctx context.Context) (*causality.Engine, error) {
	engine := b.config.Engine.Empty()
	return engine, observe(ctx, b.config.Store, engine)
}

// Remembers says whether the running engine knows everything from a time on.
func (b *Brain) Remembers(from, now time.Time) bool {
	return !from.Before(now.Add(-b.config.Engine.Window()))
}

// Run does the housekeeping until ctx is done. It ends with store.ErrReplaced when
// another ahti writes.
func (b *Brain) Run(ctx context.Context) error {
	refresh, learn, retain := time.NewTicker(refreshEvery), time.NewTicker(learnEvery), time.NewTicker(retainEvery)
	defer refresh.Stop()
	defer learn.Stop()
	defer retain.Stop()
	var retention sync.WaitGroup
	defer retention.Wait()
	retaining := make(chan struct{}, 1)
	for {
		var err error
		select {
		case now := <-refresh.C:
			err = b.failed(ctx, taskIncidents, b.refresh(ctx, now))
		case now := <-learn.C:
			err = b.failed(ctx, taskLessons, b.learn(ctx, now))
		case now := <-retain.C:
			// Beside the rest: a large store is deleted for minutes.
			select {
			case retaining <- struct{}{}:
				retention.Go(func() {
					_ = b.failed(ctx, taskRetention, b.Retain(ctx, now)) // the other tasks find out who writes
					<-retaining
				})
			default:
			}
		case <-ctx.Done():
			end := context.WithoutCancel(ctx)
			if err := b.learn(end, time.Now()); err != nil {
				return err
			}
			return b.Refresh(end, time.Now())
		}
		if errors.Is(err, store.ErrReplaced) {
			return err
		}
	}
}

// failed counts and logs the failure of a task, if it is one, and returns it.
func (b *Brain) failed(ctx context.Context, task string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	b.config.Log.Warn("housekeeping failed; it will be tried again", "task", task, "error", err)
	b.failing.Lock()
	defer b.failing.Unlock()
	b.failures[task]++
	return err
}

// Failures counts the failures of each task of the housekeeping since the start.
func (b *Brain) Failures() map[string]int {
	b.failing.Lock()
	defer b.failing.Unlock()
	return maps.Clone(b.failures)
}

// refresh updates the stored incidents when something may have changed.
func (b *Brain) refresh(ctx context.Context, now time.Time) error {
	b.mu.Lock()
	due := b.config.Applied() != b.seen && now.Sub(b.at) >= restFor*b.took || now.Sub(b.at) >= idleEvery
	b.mu.Unlock()
	if !due {
		return nil
	}
	return b.Refresh(ctx, now)
}

// Refresh stores the incidents as the engine sees them.
func (b *Brain) Refresh(ctx context.Context, now time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	began := time.Now()
	seen := b.config.Applied()
	current := b.config.Engine.Incidents(now)

	hashes := make(map[string]uint64, len(current))
	inside := told{} // symptoms of some incident
	var changed []*ahtiv1.Incident
	open := 0
	for _, i := range current {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(i)
		if err != nil {
			// One that cannot be stored must not keep the others out.
			if _, known := b.hashes[i.GetId()]; !known {
				b.unstored++
				b.config.Log.Error("an incident cannot be stored; please report this", "incident", i.GetId(), "error", err)
			}
			hashes[i.GetId()] = 0
			continue
		}
		hashes[i.GetId()] = xxhash.Sum64(body)
		if b.hashes[i.GetId()] != hashes[i.GetId()] {
			changed = append(changed, i)
		}
		if i.GetState() == ahtiv1.IncidentState_INCIDENT_STATE_OPEN {
			open++
		}
		for _, s := range i.GetSymptoms() {
			inside.add(s)
		}
	}
	// What is stored and the engine tells no longer.
	var gone []*ahtiv1.Incident
	if b.at.IsZero() {
		// What an ahti before this one stored, and may be part of others now.
		lately := store.IncidentFilter{SeenSince: now.Add(-b.config.Engine.Window() - slack)}
		if err := b.config.Store.Incidents(ctx, lately, func(i *ahtiv1.Incident) bool {
			b.hashes[i.GetId()] = 0
			return true
		}); err != nil {
			return err
		}
	}
	filter := store.IncidentFilter{State: ahtiv1.IncidentState_INCIDENT_STATE_OPEN}
	if err := b.config.Store.Incidents(ctx, filter, func(i *ahtiv1.Incident) bool {
		if _, told := hashes[i.GetId()]; !told {
			gone = append(gone, i)
		}
		return true
	}); err != nil {
		return err
	}
	for id := range b.hashes {
		if _, told := hashes[id]; told {
			continue
		}
		// Those that are not open were not found above.
		if i, err := b.config.Store.Incident(ctx, id); err == nil && i.GetState() == ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED {
			gone = append(gone, i)
		}
	}
	var removed []string
	for _, i := range gone {
		// It is part of another incident now, or the engine has taken it back: a
		// failure turned out to be an end that was ordered. Else it is too old for
		// the engine, and over.
		untrue := slices.ContainsFunc(i.GetSymptoms(), inside.has)
		if !untrue {
			var err error
			if untrue, err = b.knew(ctx, i, now); err != nil {
				return err
			}
		}
		if untrue {
			removed = append(removed, i.GetId())
		} else if i.GetState() != ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED {
			i.State = ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED
			changed = append(changed, i)
		}
	}
	if err := b.config.Store.SaveIncidents(ctx, changed, removed); err != nil {
		return err
	}
	b.hashes, b.seen, b.at, b.open = hashes, seen, now, open
	b.took = time.Since(began)
	return nil
}

// knew says whether the engine has everything that an incident was made of, so that
// it would tell it if it were one still.
func (b *Brain) knew(ctx context.Context, i *ahtiv1.Incident, now time.Time) (bool, error) {
	for _, s := range i.GetSymptoms() {
		if s.GetFirstAt().AsTime().Before(now.Add(-b.config.Engine.Window())) {
			return false, nil
		}
	}
	if b.hashes[i.GetId()] != 0 {
		return true, nil // it told it itself
	}
	// An ahti before this one stored it. Some of its events may be deleted by now,
	// or be no symptoms by the table that this one reasons by.
	for _, s := range i.GetSymptoms() {
		for _, id := range s.GetEventIds() {
			e, err := b.config.Store.Event(ctx, id)
			if errors.Is(err, store.ErrNotFound) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			if b.config.Engine.Relevance(e) == causality.Irrelevant {
				return false, nil
			}
		}
	}
	return len(i.GetSymptoms()) > 0, nil
}

// told holds symptoms by what stays the same of them while they go on. Their first
// events may be forgotten, and others become the last.
type told map[suffering][]*ahtiv1.Symptom

type suffering struct {
	kind        string
	entity      ahtiv1.EntityType
	cluster, id string
}

func sufferingOf(s *ahtiv1.Symptom) suffering {
	e := s.GetEntity()
	return suffering{s.GetKind(), e.GetType(), e.GetClusterId(), e.GetId()}
}

func (t told) add(s *ahtiv1.Symptom) { t[sufferingOf(s)] = append(t[sufferingOf(s)], s) }

// has says whether a symptom, or what it was earlier or later, is among them.
func (t told) has(s *ahtiv1.Symptom) bool {
	return slices.ContainsFunc(t[sufferingOf(s)], func(o *ahtiv1.Symptom) bool {
		met := !s.GetLastAt().AsTime().Before(o.GetFirstAt().AsTime()) && !o.GetLastAt().AsTime().Before(s.GetFirstAt().AsTime())
		return met && s.GetText() == o.GetText() ||
			slices.ContainsFunc(s.GetEventIds(), func(id string) bool { return slices.Contains(o.GetEventIds(), id) })
	})
}

// Fresh refreshes the stored incidents unless that was done lately.
func (b *Brain) Fresh(ctx context.Context, now time.Time) error {
	b.mu.Lock()
	stale := b.config.Applied() != b.seen && now.Sub(b.at) >= max(refreshEvery/2, restFor*b.took) || b.at.IsZero()
	b.mu.Unlock()
	if !stale {
		return nil
	}
	return b.Refresh(ctx, now)
}

// Open is how many incidents were open at the last refresh.
func (b *Brain) Open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open
}

// Unstored counts incidents that could not be stored since the start.
func (b *Brain) Unstored() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unstored
}

func (b *Brain) learn(ctx context.Context, now time.Time) error {
	learned := b.config.Engine.Learn(now)
	b.config.Engine.Forget(now.Add(-b.config.Engine.Window() - slack))
	if !learned {
		return nil
	}
	body, err := b.config.Engine.Lessons().MarshalBinary()
	if err != nil {
		return fmt.Errorf("encode the lessons: %w", err)
	}
	return b.config.Store.SetState(ctx, lessons, body)
}

// Retain deletes what is too old, and the oldest while there is too much.
func (b *Brain) Retain(ctx context.Context, now time.Time) error {
	var deleted int64
	if b.config.Retention > 0 {
		n, err := b.config.Store.DeleteBefore(ctx, now.Add(-b.config.Retention))
		if deleted += n; err != nil {
			return err
		}
	}
	for b.config.MaxBytes > 0 {
		size, err := b.config.Store.Size(ctx)
		if err != nil {
			return err
		}
		if size <= b.config.MaxBytes {
			break
		}
		n, err := b.config.Store.DeleteShare(ctx, shareAtOnce)
		if deleted += n; err != nil {
			return err
		}
		if n == 0 {
			b.config.Log.Warn("the store is larger than --max-bytes without any event; raise it", "bytes", size)
			break
		}
	}
	if deleted > 0 {
		b.config.Log.Info("old events deleted", "events", deleted)
	}
	if b.config.Retention == 0 && b.config.MaxBytes == 0 {
		return nil
	}
	// Only what the engine has forgotten: of what it knows, it would not tell again
	// what is deleted here.
	unheard := now.Add(-max(b.config.Retention, b.config.Engine.Window()+slack))
	forgotten, err := b.config.Store.DeleteForgotten(ctx, unheard, func(e *ahtiv1.Entity) bool {
		ref := &ahtiv1.EntityReference{Type: e.GetType(), Id: e.GetId(), ClusterId: e.GetClusterId()}
		known, _, _ := b.config.Engine.Topology([]*ahtiv1.EntityReference{ref}, now, 0, 1)
		return len(known) > 0
	})
	if forgotten > 0 {
		b.config.Log.Info("what nobody tells of any more is forgotten", "things", forgotten)
	}
	return err
}
