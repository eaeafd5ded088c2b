// Package queue holds events between those who see them and a sink that may be
// slow or away, within fixed bounds of number and memory.
package queue

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Limits are the bounds of a queue. Both must be positive.
type Limits struct {
	Events int // number of events
	Bytes  int // memory of the events, as Size has it
}

// Batch says how much to take at once.
type Batch struct {
	Events int           // at most, number of events
	Bytes  int           // at most, as Size has it; a larger event comes alone
	Linger time.Duration // how long to wait for more than one event
}

// ErrTooLarge is the error of an event that is larger than the whole queue.
var ErrTooLarge = errors.New("event is larger than the queue")

// Queue is a bounded queue of events, first in, first out. When it is full the
// oldest of the least severe events go, because what is worst is what somebody
// will look for. It is safe for concurrent use by any number of senders and one
// taker. Events belong to the queue once they are in: nobody may change them.
type Queue struct {
	limits Limits
	ready  chan struct{} // a token when there is what the taker wants

	mu    sync.Mutex
	nodes []node // grows to the most that were queued at once
	free  int32  // first unused node, linked by newer
	head  int32  // oldest of all
	tail  int32
	n     int
	bytes int
	taken int // and not done
	by    [severities]class
	want  Batch         // what the taker waits for; zero when it does not wait
	room  chan struct{} // closed when there is room again; nil if nobody waits
	empty chan struct{} // closed when nothing is pending; nil if nobody waits
	books books
}

const severities = int(eventv1.Severity_SEVERITY_CRITICAL) + 1

// node is one event in two lists: all in order, and those of its severity. Only
// the oldest of a severity is ever taken out, so that list needs one direction.
type node struct {
	event        *eventv1.Event
	size         int
	older, newer int32 // of all
	next         int32 // newer one of the same severity
}

// class is what is queued of one severity.
type class struct {
	head, tail int32
	n          int
	bytes      int
}

// none is the index of no node.
const none = int32(-1)

// New returns an empty queue.
func New(limits Limits) *Queue {
	q := &Queue{limits: limits, ready: make(chan struct{}, 1), free: none, head: none, tail: none}
	for s := range q.by {
		q.by[s] = class{head: none, tail: none}
	}
	return q
}

// Offer queues an event and never waits. When there is no room the oldest of
// the least severe events are lost instead; an event that is less severe than
// all that would have to go is itself the loss. It reports whether e is queued.
func (q *Queue) Offer(e *eventv1.Event) bool {
	size := Size(e)
	s := severity(e)
	q.mu.Lock()
	defer q.mu.Unlock()
	if size > q.limits.Bytes {
		q.lose(e, TooLarge)
		return false
	}
	if !q.fits(size) && !q.shed(s, size) {
		q.lose(e, Full)
		return false
	}
	q.append(e, size, s)
	return true
}

// Put queues an event, and waits for room until ctx is done. Its error is that
// of ctx or ErrTooLarge. What is put must not share a queue with what is
// offered: an offer may push it out.
func (q *Queue) Put(ctx context.Context, e *eventv1.Event) error {
	size := Size(e)
	for {
		q.mu.Lock()
		if size > q.limits.Bytes {
			q.lose(e, TooLarge)
			q.mu.Unlock()
			return fmt.Errorf("queue event %s: %w: %d of %d bytes", e.GetId(), ErrTooLarge, size, q.limits.Bytes)
		}
		if q.fits(size) {
			q.append(e, size, severity(e))
			q.mu.Unlock()
			return nil
		}
		if q.room == nil {
			q.room = make(chan struct{})
		}
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Take hands out the oldest events. Whoever takes them says when they are Done,
// or gives them back with Return. It waits for the first one until ctx is done,
// and then for b.Linger at most until the batch is full. It returns at least
// one event, or the error of ctx and leaves the queue as it is. If losses are to
// be told, which TakeGap does, it may return none.
func (q *Queue) Take(ctx context.Context, b Batch) ([]*eventv1.Event, error) {
	if err := q.wait(ctx, Batch{Events: 1, Bytes: math.MaxInt}, nil); err != nil {
		return nil, err
	}
	if b.Linger > 0 && b.Events > 1 {
		linger := time.NewTimer(b.Linger)
		defer linger.Stop()
		if err := q.wait(ctx, b, linger.C); err != nil {
			return nil, err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	events := make([]*eventv1.Event, 0, min(q.n, b.Events))
	for bytes := 0; q.head != none && len(events) < b.Events; {
		bytes += q.nodes[q.head].size
		if bytes > b.Bytes && len(events) > 0 {
			break
		}
		// The oldest of all is the oldest of its severity.
		events = append(events, q.remove(severity(q.nodes[q.head].event)))
	}
	q.taken += len(events)
	return events, nil
}

// wait returns when there is what is wanted, or after the timeout.
func (q *Queue) wait(ctx context.Context, want Batch, timeout <-chan time.Time) error {
	defer func() {
		q.mu.Lock()
		q.want = Batch{}
		q.mu.Unlock()
	}()
	for {
		q.mu.Lock()
		enough := q.has(want)
		q.want = want
		q.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-q.ready:
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
			return nil
		}
	}
}

// has reports whether there is what is wanted. Losses that are not told count as
// the event that will tell of them. The caller holds the lock.
func (q *Queue) has(want Batch) bool {
	return q.n+q.books.untold() >= want.Events || q.bytes >= want.Bytes
}

// wake wakes the taker once there is what it wants: one wake-up a batch, not one
// an event. The caller holds the lock.
func (q *Queue) wake() {
	if q.want.Events == 0 || !q.has(q.want) {
		return
	}
	q.want = Batch{}
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// Return puts events that Take gave back to where they were, the first first.
// They may exceed the limits, until the next offer.
func (q *Queue) Return(events []*eventv1.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken -= len(events)
	for _, e := range slices.Backward(events) {
		q.prepend(e, Size(e), severity(e))
	}
}

// Done tells that n of the events that were taken are delivered, or will never
// be.
func (q *Queue) Done(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken -= n
	q.checkEmpty()
}

// Flush waits until nothing is pending and all losses are told, or until ctx is done, which is the
// error.
func (q *Queue) Flush(ctx context.Context) error {
	q.mu.Lock()
	if q.empty == nil {
		q.empty = make(chan struct{})
	}
	empty := q.empty
	q.checkEmpty()
	q.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checkEmpty wakes those who wait in Flush. The caller holds the lock.
func (q *Queue) checkEmpty() {
	if q.empty != nil && q.n+q.taken+q.books.untold() == 0 {
		close(q.empty)
		q.empty = nil
	}
}

// Stats is what a queue holds.
type Stats struct {
	Events int // that wait
	Bytes  int // their memory, as Size has it
	Taken  int // events that were taken and are neither done nor returned
	Untold int // events that have to be made to tell of losses: 1 or 0
}

// Pending is the number of events whose fate is open.
func (s Stats) Pending() int { return s.Events + s.Taken + s.Untold }

// Stats returns all figures of one moment.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Stats{Events: q.n, Bytes: q.bytes, Taken: q.taken, Untold: q.books.untold()}
}

func (q *Queue) fits(size int) bool {
	return q.n < q.limits.Events && q.bytes+size <= q.limits.Bytes
}

// shed makes room for size bytes of an event of severity s at the cost of those
// that are not more severe. It loses none if that cannot be enough.
func (q *Queue) shed(s, size int) bool {
	n, bytes := q.n, q.bytes
	for _, c := range q.by[:s+1] {
		n -= c.n
		bytes -= c.bytes
	}
	if n >= q.limits.Events || bytes+size > q.limits.Bytes {
		return false
	}
	for least := 0; !q.fits(size); {
		if q.by[least].n == 0 {
			least++
			continue
		}
		q.lose(q.remove(least), Full)
	}
	return true
}

func (q *Queue) append(e *eventv1.Event, size, s int) {
	i := q.allocate(node{event: e, size: size, older: q.tail, newer: none, next: none})
	if q.tail == none {
		q.head = i
	} else {
		q.nodes[q.tail].newer = i
	}
	q.tail = i
	c := &q.by[s]
	if c.tail == none {
		c.head = i
	} else {
		q.nodes[c.tail].next = i
	}
	c.tail = i
	q.added(c, size)
}

func (q *Queue) prepend(e *eventv1.Event, size, s int) {
	c := &q.by[s]
	i := q.allocate(node{event: e, size: size, older: none, newer: q.head, next: c.head})
	if q.head == none {
		q.tail = i
	} else {
		q.nodes[q.head].older = i
	}
	q.head = i
	if c.tail == none {
		c.tail = i
	}
	c.head = i
	q.added(c, size)
}

func (q *Queue) allocate(n node) int32 {
	if q.free == none {
		q.nodes = append(q.nodes, n)
		return int32(len(q.nodes) - 1)
	}
	i := q.free
	q.free = q.nodes[i].newer
	q.nodes[i] = n
	return i
}

func (q *Queue) added(c *class, size int) {
	c.n++
	c.bytes += size
	q.n++
	q.bytes += size
	q.wake()
}

// remove takes the oldest event of a severity out.
func (q *Queue) remove(s int) *eventv1.Event {
	c := &q.by[s]
	i := c.head
	n := q.nodes[i]
	if c.head = n.next; c.head == none {
		c.tail = none
	}
	if n.older == none {
		q.head = n.newer
	} else {
		q.nodes[n.older].newer = n.newer
	}
	if n.newer == none {
		q.tail = n.older
	} else {
		q.nodes[n.newer].older = n.older
	}
	q.nodes[i] = node{newer: q.free}
	q.free = i
	c.n--
	c.bytes -= n.size
	q.n--
	q.bytes -= n.size
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
	return n.event
}

// severity is the class of an event. A severity of a later protocol counts as
// the worst that is known here.
func severity(e *eventv1.Event) int {
	return min(max(int(e.GetSeverity()), 0), severities-1)
}
