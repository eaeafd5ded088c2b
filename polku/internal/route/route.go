package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/yairfalse/tapio/polku/internal/journal"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

const (
	// maxEvents is about how many events one delivery has: enough to make its
	// round trip cheap, few enough to be sent again without pain.
	maxEvents = 1000
	// fetchAhead is how many decoded entries of the log wait for delivery.
	fetchAhead = 2
	// saveEvery is how often a cursor is written. A crash repeats what was
	// delivered since.
	saveEvery = 200 * time.Millisecond
	// saveTimeout bounds the write of the cursor when the route stops.
	saveTimeout = 2 * time.Second
	// firstRetry and lastRetry are the pauses after a failed delivery: each is
	// twice the one before, up to the last.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 15 * time.Second
)

// route is one destination and how far it is.
type route struct {
	name        string
	destination Destination
	journal     *journal.Journal
	log         *slog.Logger
	metrics     *routeMetrics

	mu      sync.Mutex
	started bool           // the cursor was read
	passed  journal.Cursor // last entry that is delivered
	pending time.Time      // when the oldest entry that is in delivery was stored
	failure error          // of the last try; nil after a success
	failed  time.Time
}

// batch is what one delivery and its cursor are about.
type batch struct {
	events []*eventv1.Event
	last   journal.Cursor // of the last entry
	oldest time.Time
}

// run delivers until ctx ends.
func (r *route) run(ctx context.Context) {
	life := r.journal.Life()
	cursor, err := r.start(ctx)
	if err != nil {
		return
	}
	for ctx.Err() == nil {
		r.follow(ctx, life, cursor)
		// What was delivered may be of a log that lost its end while others filled
		// it, so nothing but the beginning of the next one is certain.
		life, cursor = r.journal.Life(), journal.Cursor{}
	}
}

// follow delivers from the cursor on, until ctx or the life of the log ends.
func (r *route) follow(ctx, life context.Context, cursor journal.Cursor) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(life, stop)()
	r.mu.Lock()
	r.started, r.passed = true, cursor
	r.mu.Unlock()
	var background sync.WaitGroup
	defer background.Wait()
	// What was delivered when ctx ended is saved as well.
	saving, stopSaving := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSaving()
	background.Go(func() { r.save(saving) })

	entries := make(chan fetched, fetchAhead)
	background.Go(func() {
		defer close(entries)
		r.fetch(ctx, r.journal.ReadFrom(cursor.Sequence+1), entries)
	})
	for b := range collect(entries) {
		if err := r.deliver(ctx, b); err != nil {
			break
		}
		r.mu.Lock()
		r.passed, r.pending = b.last, time.Time{}
		r.mu.Unlock()
	}
	for range entries { // let fetch end
		continue
	}
}

// start reads the cursor, for as long as it takes.
func (r *route) start(ctx context.Context) (journal.Cursor, error) {
	for {
		cursor, err := r.journal.Cursor(ctx, r.name)
		if err == nil {
			return cursor, nil
		}
		r.note(err)
		if err := pause(ctx, firstRetry); err != nil {
			return journal.Cursor{}, err
		}
	}
}

// save writes the cursor, again when it has moved, and once more when ctx ends.
func (r *route) save(ctx context.Context) {
	saved := journal.Cursor{Sequence: math.MaxUint64} // none that there is
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		r.mu.Lock()
		cursor := r.passed
		r.mu.Unlock()
		if cursor == saved {
			continue
		}
		writing, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTimeout)
		if err := r.journal.SetCursor(writing, r.name, cursor); err != nil {
			r.log.Warn("a restart now would repeat deliveries", "route", r.name, "error", err)
		} else {
			saved = cursor
		}
		cancel()
	}
}

// fetched is a decoded entry.
type fetched struct {
	events []*eventv1.Event
	entry  journal.Entry
}

// fetch reads and decodes entries ahead of the delivery.
func (r *route) fetch(ctx context.Context, reader *journal.Reader, to chan<- fetched) {
	defer reader.Close()
	for {
		entry, err := reader.Next(ctx)
		if err != nil {
			return
		}
		select {
		case to <- r.decode(entry):
		case <-ctx.Done():
			return
		}
	}
}

// decode returns the events of an entry that are for this route.
func (r *route) decode(entry journal.Entry) fetched {
	events, err := entry.Events()
	if err != nil {
		// The gateway lets nothing in that cannot be decoded: the disk changed it.
		r.metrics.undecodable.Inc()
		r.log.Error("pass over what cannot be read", "route", r.name, "error", err)
	}
	all := len(events)
	events = slices.DeleteFunc(events, func(e *eventv1.Event) bool {
		return len(e.GetRouteTo()) > 0 && !slices.Contains(e.GetRouteTo(), r.name)
	})
	r.metrics.skipped.Add(float64(all - len(events)))
	entry.Body = nil
	return fetched{events, entry}
}

// collect puts entries together that are there anyway, up to maxEvents or one
// entry more.
func collect(entries <-chan fetched) func(yield func(batch) bool) {
	return func(yield func(batch) bool) {
		for f := range entries {
			b := batch{events: f.events, last: f.entry.Cursor(), oldest: f.entry.Time}
			for more := true; more && len(b.events) < maxEvents; {
				select {
				case next, open := <-entries:
					if !open {
						more = false
						break
					}
					b.events = append(b.events, next.events...)
					b.last = next.entry.Cursor()
				default:
					more = false
				}
			}
			if !yield(b) {
				return
			}
		}
	}
}

// deliver delivers a batch, for as long as it takes. It fails only when ctx
// ends.
func (r *route) deliver(ctx context.Context, b batch) error {
	r.mu.Lock()
	r.pending = b.oldest
	r.mu.Unlock()
	for part := range slices.Chunk(b.events, maxEvents) {
		if err := r.part(ctx, part, r.note); err != nil {
			return err
		}
	}
	return nil
}

// part delivers some events and buries those that are refused. note is told of
// each try.
func (r *route) part(ctx context.Context, events []*eventv1.Event, note func(error)) error {
	wait := firstRetry
	for {
		began := time.Now()
		err := r.destination.Deliver(ctx, events)
		r.metrics.seconds.Observe(time.Since(began).Seconds())
		var refused *Refused
		if errors.As(err, &refused) {
			r.metrics.delivered.Add(float64(len(events) - len(refused.Events)))
			note(nil)
			return r.bury(ctx, events, refused, note)
		}
		if err == nil {
			r.metrics.delivered.Add(float64(len(events)))
			note(nil)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.metrics.retries.Inc()
		note(err)
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, lastRetry)
	}
}

// bury puts the refused events among the dead letters.
func (r *route) bury(ctx context.Context, events []*eventv1.Event, refused *Refused, note func(error)) error {
	for _, refusal := range refused.Events {
		if refusal.Index < 0 || refusal.Index >= len(events) {
			r.log.Error("a destination refused an event that it was not sent", "route", r.name, "index", refusal.Index)
			continue
		}
		for {
			err := r.journal.Bury(ctx, r.name, refusal.Reason, events[refusal.Index])
			if err == nil {
				break
			}
			note(err)
			if err := pause(ctx, time.Second); err != nil {
				return err
			}
		}
	}
	return nil
}

// note remembers how the last try went and logs when that changes.
func (r *route) note(err error) {
	r.mu.Lock()
	before := r.failure
	r.failure = err
	if err != nil {
		r.failed = time.Now()
	}
	r.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		r.log.Warn("cannot deliver, trying again", "route", r.name, "error", err)
	case err == nil && before != nil:
		r.log.Info("delivering again", "route", r.name)
	}
}

// pause waits a random time around d, so that several gateways do not come back
// at once.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d/2 + rand.N(d))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stopped while waiting: %w", ctx.Err())
	}
}
