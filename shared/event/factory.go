package event

import (
	"crypto/rand"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Factory makes events with ids that are unique without any coordination. One
// process needs one; it is safe for concurrent use.
type Factory struct {
	mu      sync.Mutex
	entropy *ulid.MonotonicEntropy
}

// NewFactory returns a Factory that draws its ids from the system's secure
// random numbers.
func NewFactory() *Factory {
	return &Factory{entropy: newEntropy()}
}

// newEntropy lets ulid choose the step between ids of one millisecond, so that
// the next id cannot be guessed from the last.
func newEntropy() *ulid.MonotonicEntropy {
	return ulid.Monotonic(rand.Reader, 0)
}

// New returns an event of a kind that happened at a time, as a source saw it.
// It has an id, the kind's severity and outcome, and empty metadata to fill.
//
// The id is a ULID of the event's own time, so ids sort as the events happened;
// those that one Factory makes for the same millisecond in a row sort as they
// were made. New checks nothing: an unknown kind or an absurd time gives an
// event that Validate refuses.
func (f *Factory) New(kind string, at time.Time, source string) *eventv1.Event {
	k, _ := Lookup(kind)
	return &eventv1.Event{
		Id:              f.id(at).String(),
		TimestampUnixNs: at.UnixNano(),
		Source:          source,
		EventType:       kind,
		Metadata:        make(map[string]string),
		Severity:        k.Severity,
		Outcome:         k.Outcome,
	}
}

// id returns a new id. A time that a ULID cannot hold counts as the epoch: the
// id stays unique, and the event's timestamp is what Validate refuses.
func (f *Factory) id(at time.Time) ulid.ULID {
	ms := uint64(max(at.UnixMilli(), 0))
	if ms > ulid.MaxTime() {
		ms = 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		id, err := ulid.New(ms, f.entropy)
		if err == nil {
			return id
		}
		// Only an overflow of the random part gets here: crypto/rand does not
		// fail. Starting anew costs the order within this one millisecond.
		f.entropy = newEntropy()
	}
}
