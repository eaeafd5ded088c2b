package polku

import (
	"slices"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// batch is one message that was or will be sent.
type batch struct {
	wire   encoded
	events []*eventv1.Event // in it; nil where one is settled
	left   int              // events that are not settled
	// earlier has, for events whose id was in flight already, where.
	earlier map[int]place
	// answered is when a part of it was settled last or, before that, when a
	// later batch was for the first time; zero while the gateway may just be busy.
	answered time.Time
}

func newBatch(wire encoded, events []*eventv1.Event) *batch {
	return &batch{wire: wire, events: events, left: len(events)}
}

// whole reports whether nothing of it was settled.
func (b *batch) whole() bool { return b.left == len(b.events) }

// open returns the events that are not settled.
func (b *batch) open() []*eventv1.Event {
	open := make([]*eventv1.Event, 0, b.left)
	for _, e := range b.events {
		if e != nil {
			open = append(open, e)
		}
	}
	return open
}

// place is one event of a batch.
type place struct {
	batch *batch
	index int
}

// window is what was sent and is not settled.
type window struct {
	batches []*batch // in the order in which they were first sent
	places  map[string]place
	events  int // not settled
}

func newWindow() window { return window{places: map[string]place{}} }

func (w *window) add(b *batch) {
	w.batches = append(w.batches, b)
	w.events += b.left
	for i, e := range b.events {
		if p, twice := w.places[e.GetId()]; twice {
			if b.earlier == nil {
				b.earlier = map[int]place{}
			}
			b.earlier[i] = p
		}
		w.places[e.GetId()] = place{b, i}
	}
}

// settle forgets the event of an id and returns it; nil if it is not in flight.
// Copies of an event share its fate.
func (w *window) settle(id string, now time.Time) (e *eventv1.Event, copies int) {
	p, found := w.places[id]
	if !found {
		return nil, 0
	}
	delete(w.places, id)
	e = p.batch.events[p.index]
	w.answered(p.batch, now)
	for found {
		copies++
		b := p.batch
		b.events[p.index] = nil
		w.events--
		if b.left--; b.left == 0 {
			i := slices.Index(w.batches, b)
			w.batches = slices.Delete(w.batches, i, i+1)
		}
		p, found = b.earlier[p.index]
	}
	return e, copies
}

// answered notes that the gateway told of an event of b, and so passed over
// what is left of the batches before.
func (w *window) answered(b *batch, now time.Time) {
	b.answered = now
	for _, earlier := range w.batches {
		if earlier == b {
			return
		}
		if earlier.answered.IsZero() {
			earlier.answered = now
		}
	}
}

// overdue reports whether events were passed over before a time and are still
// not settled.
func (w *window) overdue(before time.Time) bool {
	return slices.ContainsFunc(w.batches, func(b *batch) bool {
		return !b.answered.IsZero() && b.answered.Before(before)
	})
}

// renew prepares to send again all that is not settled. A batch that is as it
// was stays so unless it is larger than limit bytes; pack makes new ones of the
// others.
func (w *window) renew(limit int, pack func([]*eventv1.Event) []*batch) {
	old := w.batches
	*w = newWindow()
	for _, b := range old {
		again := []*batch{newBatch(b.wire, b.events)}
		if !b.whole() || len(b.wire) > limit {
			again = pack(b.open())
		}
		for _, b := range again {
			w.add(b)
		}
	}
}

// largest returns the largest batch of which nothing was settled, or nil.
func (w *window) largest() *batch {
	var largest *batch
	for _, b := range w.batches {
		if b.whole() && (largest == nil || len(b.wire) > len(largest.wire)) {
			largest = b
		}
	}
	return largest
}
