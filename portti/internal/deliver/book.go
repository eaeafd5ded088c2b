// Package deliver hands changes to the gateway and keeps book of which of them are
// safe there, so that the state on disk is never ahead of the gateway.
package deliver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/state"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// saveEvery is how often what is safe goes to the disk. What was not written when
// the process is killed is sent again, and dropped by the gateway.
const saveEvery = 500 * time.Millisecond

// Sender takes events. It blocks while it has no room, and tells later, by
// Book.Acked or Book.Refused, what became of them.
type Sender interface {
	Send(context.Context, *eventv1.Event) error
}

// Step is what becomes known of a kind when an event is safe.
type Step struct {
	UID     string          // object that changed; empty for none
	Version *change.Version // its new version; nil when it is gone
	// ResourceVersion is up to where the kind is known then; empty for no news.
	ResourceVersion string
}

// Book is what was sent and is not acked, by kind. It is safe for concurrent use.
type Book struct {
	log     *slog.Logger
	metrics *metrics

	mu    sync.Mutex
	kinds map[string]*line
	open  map[string][]*entry // by id of the event; two when it was sent twice
}

// line is what is known of one kind: what is safe and not yet on disk, and what is
// open, in the order in which it happened.
type line struct {
	name            string
	open            []*entry
	objects         map[string]*change.Version // safe and not on disk; nil when gone
	resourceVersion string                     // safe and not on disk
	acked           string                     // safe
}

type entry struct {
	line *line
	step Step
	done bool
}

// NewBook returns an empty book.
func NewBook(log *slog.Logger) *Book {
	return &Book{log: log, metrics: newMetrics(), kinds: map[string]*line{}, open: map[string][]*entry{}}
}

// Send sends the event that tells of a step. It blocks while the sender does. An
// event that no gateway would take is counted and logged, and counts as done, so
// that it does not hold up all that follow. The error is that of ctx.
func (b *Book) Send(ctx context.Context, to Sender, kind string, e *eventv1.Event, s Step) error {
	err := event.Validate(e)
	if err == nil {
		// Before it is sent, because the ack may be faster than this goroutine.
		b.mu.Lock()
		entry := b.add(kind, s)
		b.open[e.GetId()] = append(b.open[e.GetId()], entry)
		b.mu.Unlock()
		if err = to.Send(ctx, e); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("send a change of kind %s: %w", kind, err)
		}
		b.settle([]*eventv1.Event{e})
	} else {
		b.Done(kind, s)
	}
	b.metrics.refused.WithLabelValues(kind, "invalid").Inc()
	b.log.Error("a change cannot be sent", "kind", kind, "event_type", e.GetEventType(), "event_id", e.GetId(), "error", err)
	return nil
}

// Done notes a step of which nothing is sent. It takes its place behind those that
// are open.
func (b *Book) Done(kind string, s Step) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.add(kind, s)
	e.done = true
	e.line.advance()
}

func (b *Book) add(kind string, s Step) *entry {
	e := &entry{line: b.line(kind), step: s}
	e.line.open = append(e.line.open, e)
	return e
}

func (b *Book) line(kind string) *line {
	l := b.kinds[kind]
	if l == nil {
		l = &line{name: kind, objects: map[string]*change.Version{}}
		b.kinds[kind] = l
	}
	return l
}

// Acked notes events that are safe.
func (b *Book) Acked(events []*eventv1.Event) { b.settle(events) }

// Refused notes an event that the gateway will never take. Nothing can be done
// about it, so it counts as done.
func (b *Book) Refused(e *eventv1.Event, why *polkuv1.AckError) {
	kind := b.settle([]*eventv1.Event{e})
	if kind == "" {
		return // an event of the client's own
	}
	b.metrics.refused.WithLabelValues(kind, "gateway").Inc()
	b.log.Error("the gateway refused a change", "kind", kind, "event_type", e.GetEventType(), "event_id", e.GetId(), "code", why.GetCode(), "message", why.GetMessage())
}

// settle returns the kind of the last event; empty when it is not in the book.
func (b *Book) settle(events []*eventv1.Event) (kind string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range events {
		entries := b.open[e.GetId()] // none for an event of the client's own
		delete(b.open, e.GetId())
		for _, entry := range entries {
			entry.done = true
			entry.line.advance()
			kind = entry.line.name
		}
	}
	return kind
}

// advance takes what is done off the front. What is behind something open waits:
// the resource version of a kind says that all before it is safe.
func (l *line) advance() {
	n := 0
	for ; n < len(l.open) && l.open[n].done; n++ {
		s := l.open[n].step
		if s.UID != "" {
			l.objects[s.UID] = s.Version
		}
		if s.ResourceVersion != "" {
			l.resourceVersion, l.acked = s.ResourceVersion, s.ResourceVersion
		}
		l.open[n] = nil
	}
	if l.open = l.open[n:]; len(l.open) == 0 {
		l.open = nil // not the memory of the most that there was
	}
}

// Open is the number of changes that are not safe yet.
func (b *Book) Open() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, l := range b.kinds {
		n += len(l.open)
	}
	return n
}

// Save writes what is safe and not on disk. If the disk does not take it, it stays
// to be written.
func (b *Book) Save(to *state.Store) error {
	b.mu.Lock()
	taken := map[string]line{}
	for kind, l := range b.kinds {
		if l.resourceVersion == "" && len(l.objects) == 0 {
			continue
		}
		taken[kind] = line{objects: l.objects, resourceVersion: l.resourceVersion}
		l.objects, l.resourceVersion = map[string]*change.Version{}, ""
	}
	b.mu.Unlock()
	if len(taken) == 0 {
		return nil
	}
	changes := make(map[string]state.Changes, len(taken))
	for kind, l := range taken {
		c, err := encode(l)
		if err != nil {
			return err // its own encoding: never
		}
		changes[kind] = c
	}
	err := to.Save(changes)
	if err == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for kind, old := range taken {
		l := b.kinds[kind]
		for uid, version := range old.objects {
			if _, newer := l.objects[uid]; !newer {
				l.objects[uid] = version
			}
		}
		if l.resourceVersion == "" {
			l.resourceVersion = old.resourceVersion
		}
	}
	return err
}

func encode(l line) (state.Changes, error) {
	c := state.Changes{ResourceVersion: l.resourceVersion, Objects: make(map[string][]byte, len(l.objects))}
	for uid, version := range l.objects {
		if version == nil {
			c.Objects[uid] = nil
			continue
		}
		data, err := version.MarshalBinary()
		if err != nil {
			return c, fmt.Errorf("encode a version: %w", err)
		}
		c.Objects[uid] = data
	}
	return c, nil
}

// Keep saves from time to time until ctx is done, and then once more. told gets the
// outcome of each time.
func (b *Book) Keep(ctx context.Context, to *state.Store, told func(error)) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		err := b.Save(to)
		b.metrics.saved(err)
		told(err)
	}
}
