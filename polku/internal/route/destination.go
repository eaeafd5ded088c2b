// Package route carries events from the log to destinations, each at its own
// pace and from its own cursor.
package route

import (
	"context"
	"fmt"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Destination takes events in order.
type Destination interface {
	// Deliver returns nil when the destination has all events for good. A
	// *Refused error lists events that it will never take: they go to the
	// dead-letter stream, and the others count as delivered. Any other error is
	// retried with back-off for ever, with the same events.
	//
	// Deliver must not change the events and must not keep them after it
	// returned. Calls for one route follow each other; a replay may deliver
	// older events beside them from another goroutine.
	Deliver(ctx context.Context, events []*eventv1.Event) error
	// Close releases what the destination holds. No Deliver runs then.
	Close() error
}

// Refused is the error of a delivery of which some events will never be taken.
// All events that it does not list are delivered.
type Refused struct {
	Events []Refusal
}

// Refusal is one event that a destination will never take.
type Refusal struct {
	// Index is the event's place in the delivered slice.
	Index int
	// Reason says what the destination has against it, for people.
	Reason string
}

// Error says how many events were refused, and why the first.
func (r *Refused) Error() string {
	if len(r.Events) == 0 {
		return "no events refused"
	}
	return fmt.Sprintf("%d events refused, the first for: %s", len(r.Events), r.Events[0].Reason)
}
