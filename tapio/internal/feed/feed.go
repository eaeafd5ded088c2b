// Package feed carries what the kernel programs send to the observers that
// understand it, one record after the other on one goroutine, and keeps the
// books: whatever a program has seen ends as kept, suppressed or lost.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yairfalse/tapio/bpf"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// ErrForeign is the error of a handler whose record is of another node on the
// same kernel.
var ErrForeign = errors.New("of another node")

// Handler turns a record into an event. A nil event without an error means
// that it is none of the user's business (out of scope). weight is how many of
// its signal the record accounts for. The record is valid during the call.
type Handler func(record []byte) (e *eventv1.Event, weight uint64, err error)

// Subscriber is the part of an observer that the feed calls, always on the
// goroutine of Run.
type Subscriber struct {
	Handlers map[bpf.Signal]Handler
	// Idle is called about once a second. It may be nil.
	Idle func()
	// Fault is called when a handler panicked; the record is lost and counted.
	Fault func(error)
}

// Feed is the stream of records of one node.
type Feed struct {
	shared *bpf.Shared
	reader *bpf.Reader
	clock  *bpf.Clock
	emit   func(*eventv1.Event) error
	log    *slog.Logger

	mu   sync.Mutex
	subs map[*Subscriber]struct{}
	// The hot path reads it without a lock; Subscribe replaces it.
	table atomic.Pointer[table]

	books [bpf.SignalCount]books
}

type table struct {
	handlers [bpf.SignalCount]struct {
		handle Handler
		sub    *Subscriber
	}
	subs []*Subscriber
}

// books is what happened to records after the kernel had kept them, and to
// events that the agent made itself.
type books struct {
	made        atomic.Uint64 // by the agent, seen and kept
	scope       atomic.Uint64 // suppressed
	foreign     atomic.Uint64 // suppressed
	undecodable atomic.Uint64 // lost
	unsent      atomic.Uint64 // lost: emit did not take it
	unclaimed   atomic.Uint64 // lost: the observer was just restarting
}

// Open opens the stream of the shared maps. emit takes the finished events and
// must not wait; an error means that it did not take one.
func Open(shared *bpf.Shared, log *slog.Logger, emit func(*eventv1.Event) error) (*Feed, error) {
	reader, err := shared.NewReader()
	if err != nil {
		return nil, err
	}
	f := &Feed{shared: shared, reader: reader, clock: bpf.NewClock(), emit: emit, log: log, subs: map[*Subscriber]struct{}{}}
	f.table.Store(&table{})
	return f, nil
}

// Shared returns the maps that programs are attached with.
func (f *Feed) Shared() *bpf.Shared { return f.shared }

// Time turns a record's time into the time of day. Only handlers may call it.
func (f *Feed) Time(ns uint64) time.Time { return f.clock.Time(ns) }

// Subscribe routes the subscriber's signals to it until the returned function
// is called.
func (f *Feed) Subscribe(s *Subscriber) (cancel func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[s] = struct{}{}
	f.route()
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, s)
		f.route()
	}
}

// route rebuilds the table; the caller holds the lock.
func (f *Feed) route() {
	t := &table{}
	for s := range f.subs {
		t.subs = append(t.subs, s)
		for signal, h := range s.Handlers {
			t.handlers[signal].handle = h
			t.handlers[signal].sub = s
		}
	}
	f.table.Store(t)
}

// Run reads until ctx is done.
func (f *Feed) Run(ctx context.Context) error {
	return f.reader.Run(ctx, f.record, f.idle)
}

// Drain handles what is still in the ring. Run must have returned.
func (f *Feed) Drain() error { return f.reader.Drain(f.record) }

// Close frees the reader.
func (f *Feed) Close() error { return f.reader.Close() }

// Emit sends an event that an observer concluded from several records or from
// their absence; it counts as one more seen.
func (f *Feed) Emit(s bpf.Signal, e *eventv1.Event) {
	f.books[s].made.Add(1)
	f.send(s, e, 1)
}

func (f *Feed) send(s bpf.Signal, e *eventv1.Event, weight uint64) {
	if err := f.emit(e); err != nil {
		f.books[s].unsent.Add(weight)
		f.log.Debug("event lost", "event_type", e.GetEventType(), "error", err)
	}
}

func (f *Feed) record(record []byte) {
	head, err := bpf.View[bpf.Head](record)
	if err != nil || head.Signal >= uint32(bpf.SignalCount) {
		// Not one of ours: nothing that has been counted is missing.
		f.log.Warn("kernel record of an unknown kind", "bytes", len(record), "error", err)
		return
	}
	s := bpf.Signal(head.Signal)
	to := &f.table.Load().handlers[s]
	if to.handle == nil {
		f.books[s].unclaimed.Add(1)
		return
	}
	e, weight, err := f.call(to.handle, to.sub, record)
	switch {
	case errors.Is(err, ErrForeign):
		f.books[s].foreign.Add(weight)
	case err != nil:
		f.books[s].undecodable.Add(max(weight, 1))
		f.log.Warn("kernel record not understood", "signal", s.String(), "error", err)
	case e == nil && s == bpf.Cgroup:
	case e == nil:
		f.books[s].scope.Add(weight)
	default:
		f.send(s, e, weight)
	}
}

// call keeps a panic of one handler from taking the others down.
func (f *Feed) call(h Handler, sub *Subscriber, record []byte) (e *eventv1.Event, weight uint64, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("handler panicked: %v", r)
			if sub.Fault != nil {
				sub.Fault(err)
			}
		}
	}()
	return h(record)
}

func (f *Feed) idle() {
	f.clock.Sync()
	for _, s := range f.table.Load().subs {
		if s.Idle != nil {
			s.Idle()
		}
	}
}

// Line is the accounting of one signal: Seen = Kept + suppressed + lost.
type Line struct {
	Signal bpf.Signal
	Seen   uint64
	Kept   uint64 // became events

	Normal  uint64 // suppressed: not an anomaly
	Limited uint64 // suppressed: the cgroup had its share
	Scope   uint64 // suppressed: the user asked not to see it
	Foreign uint64 // suppressed: it happened on another node of the same kernel

	RingFull    uint64 // lost: the agent did not read fast enough
	Undecodable uint64 // lost: the record made no sense
	Unsent      uint64 // lost: emit did not take the event
	Unclaimed   uint64 // lost: the observer was just restarting
}

// Suppressed returns what was held back on purpose.
func (l Line) Suppressed() uint64 { return l.Normal + l.Limited + l.Scope + l.Foreign }

// Lost returns what should have been an event and is not.
func (l Line) Lost() uint64 { return l.RingFull + l.Undecodable + l.Unsent + l.Unclaimed }

// Accounting returns the books of all signals. What is still in the ring
// counts as kept.
func (f *Feed) Accounting() ([]Line, error) {
	lines := make([]Line, bpf.SignalCount)
	// Against the way that a record takes: what is read here as scope or lost is
	// then surely in what is read later as kept, and that never falls below zero.
	for i := range lines {
		b, l := &f.books[i], &lines[i]
		l.Signal = bpf.Signal(i)
		l.Scope = b.scope.Load()
		l.Foreign = b.foreign.Load()
		l.Undecodable = b.undecodable.Load()
		l.Unsent = b.unsent.Load()
		l.Unclaimed = b.unclaimed.Load()
		l.Seen = b.made.Load()
	}
	counters, err := f.shared.Counters()
	if err != nil {
		return nil, err
	}
	for i, c := range counters {
		l := &lines[i]
		l.Kept = c.Kept + l.Seen - l.Scope - l.Foreign - l.Undecodable - l.Unsent - l.Unclaimed
		l.Seen += c.Seen
		l.Normal, l.Limited, l.RingFull = c.Normal, c.Limited, c.Lost
	}
	return lines, nil
}
