package queue

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Reason is why an event was lost, as it stands in metrics.
type Reason string

// The reasons of the queue itself. Its user may have others.
const (
	Full     Reason = "queue_full" // the sink did not take events fast enough
	TooLarge Reason = "too_large"  // larger than the whole queue or than the sink ever takes
)

// Loss counts the events of one severity that were lost for one reason.
type Loss struct {
	Reason   Reason
	Severity eventv1.Severity
	Events   uint64
}

// SeverityName is the severity in lower case, such as "error".
func (l Loss) SeverityName() string {
	return strings.ToLower(strings.TrimPrefix(l.Severity.String(), "SEVERITY_"))
}

// Gap tells of the losses between two moments.
type Gap struct {
	Events uint64
	// Began and Ended are the times of the oldest and the newest lost event.
	Began, Ended time.Time
}

// Event returns the event that tells of the gap, at the time of its end.
func (g Gap) Event(events *event.Factory, source string) *eventv1.Event {
	e := events.New(event.KindAgentGap, g.Ended, source)
	e.Metadata[event.TapioGapEvents] = strconv.FormatUint(g.Events, 10)
	e.Metadata[event.TapioGapBegan] = g.Began.UTC().Format(time.RFC3339Nano)
	e.Metadata[event.TapioReason] = "events that could not be delivered: " + e.Metadata[event.TapioGapEvents]
	return e
}

// books are the losses so far.
type books struct {
	lost map[Loss]uint64 // by reason and severity; Events is zero in the key
	gap  Gap             // not told yet
}

// untold is the number of events that it takes to tell of all losses.
func (b *books) untold() int {
	if b.gap.Events == 0 {
		return 0
	}
	return 1
}

// Times that an event may have, as event.Validate has them.
const (
	firstYear = 2020
	lastYear  = 2099
)

func (b *books) lose(e *eventv1.Event, reason Reason) {
	if b.lost == nil {
		b.lost = map[Loss]uint64{}
	}
	b.lost[Loss{Reason: reason, Severity: eventv1.Severity(severity(e))}]++
	if e.GetEventType() == event.KindAgentGap {
		return // or a receiver that refuses it is told of that for ever
	}
	at := time.Unix(0, e.GetTimestampUnixNs())
	if y := at.UTC().Year(); y < firstYear || y > lastYear { // no time: that of the loss is the nearest
		at = time.Now()
	}
	if b.gap.Events == 0 || at.Before(b.gap.Began) {
		b.gap.Began = at
	}
	if b.gap.Events == 0 || at.After(b.gap.Ended) {
		b.gap.Ended = at
	}
	b.gap.Events++
}

// lose books a loss, which somebody has to tell. The caller holds the lock.
func (q *Queue) lose(e *eventv1.Event, reason Reason) {
	q.books.lose(e, reason)
	q.wake()
}

// Lose counts an event that could not be queued or delivered for a reason of
// the user's. A lost event that was to tell of losses is counted and not told.
func (q *Queue) Lose(e *eventv1.Event, reason Reason) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lose(e, reason)
}

// Losses returns all losses since the queue was made, in a fixed order.
func (q *Queue) Losses() []Loss {
	q.mu.Lock()
	defer q.mu.Unlock()
	losses := make([]Loss, 0, len(q.books.lost))
	for l, n := range q.books.lost {
		l.Events = n
		losses = append(losses, l)
	}
	slices.SortFunc(losses, func(a, b Loss) int {
		return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Severity, b.Severity))
	})
	return losses
}

// Lost is the number of events that were lost since the queue was made.
func (q *Queue) Lost() uint64 {
	n := uint64(0)
	for _, l := range q.Losses() {
		n += l.Events
	}
	return n
}

// TakeGap returns the losses since the last call, if there were any. Whoever
// calls it has to tell of them, and then counts as having taken one more event.
func (q *Queue) TakeGap() (Gap, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	g := q.books.gap
	q.books.gap = Gap{}
	if g.Events == 0 {
		return g, false
	}
	q.taken++
	return g, true
}
