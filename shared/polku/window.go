package polku

import (
	"slices"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// batch is one message that was or will be sent. A batch is repeated as it was,
// even after some of its events were acked: the gateway may know it by all of
// its ids together.
type batch struct {
	wire   encoded
	events []*eventv1.Event // in it
	left   int              // events that are not settled
	// earlier has, for events whose id was in flight already, where.
	earlier map[int]place
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
func (w *window) settle(id string) (e *eventv1.Event, copies int) {
	p, found := w.places[id]
	if !found {
		return nil, 0
	}
	delete(w.places, id)
	e = p.batch.events[p.index]
	for found {
		copies++
		b := p.batch
		w.events--
		if b.left--; b.left == 0 {
			i := slices.Index(w.batches, b)
			w.batches = slices.Delete(w.batches, i, i+1)
		}
		p, found = b.earlier[p.index]
	}
	return e, copies
}
