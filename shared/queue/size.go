package queue

import (
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Size is about how much memory an event takes, bytes. It is never less than
// its size on the wire.
func Size(e *eventv1.Event) int {
	// Beside what is on the wire: the message with its measurements and its
	// place in the queue; two string headers and a share of the free slots an
	// entry of the metadata.
	const message, entry = 400, 40
	return event.WireSize(e) + message + entry*len(e.GetMetadata())
}
