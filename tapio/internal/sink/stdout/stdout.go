// Package stdout writes events to standard output, which may be a pipe or a
// terminal that nobody reads for a while.
package stdout

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/queue"
)

const (
	// What waits while nobody reads. It is less than for a receiver on the
	// network: who reads here is on this machine, and seldom away for long.
	queueEvents = 5_000
	queueBytes  = 4 << 20

	// What is taken at once. It can no longer make room for what is worse.
	batchEvents = 64
	batchBytes  = 64 << 10 // as much as a pipe holds

	// Waits after a write that failed double from the one to the other.
	shortest = 50 * time.Millisecond
	longest  = time.Second

	// readWithin is how long a write may take before it is told: no reader is
	// that slow.
	readWithin = time.Second

	// closeWithin is for a write that is still under way.
	closeWithin = 50 * time.Millisecond
)

// Unwritable is why an event was lost that has no form as a line.
const Unwritable queue.Reason = "unwritable"

// ErrUnread is the error when events are left because a write does not end.
var ErrUnread = errors.New("nobody reads the output")

// Format appends an event to dst as one line without its end.
type Format func(dst []byte, e *eventv1.Event) ([]byte, error)

// JSON is protojson with the names of the proto fields.
func JSON(dst []byte, e *eventv1.Event) ([]byte, error) { return event.AppendJSON(dst, e) }

// Text is for people.
func Text(style humanoutput.Style) Format {
	return func(dst []byte, e *eventv1.Event) ([]byte, error) { return append(dst, style.Line(e)...), nil }
}

// Sink queues events and writes one after the other as soon as it can, each as
// a line with a single write, so that a reader of a pipe never sees half of one.
type Sink struct {
	w        io.Writer
	format   Format
	buf      []byte // of the goroutine that writes
	source   string
	identity map[string]string // of the sink's own events
	log      *slog.Logger
	events   *event.Factory
	queue    *queue.Queue
	descs    descs

	mu       sync.Mutex
	began    time.Time // of the write that is under way; zero without one
	down     error     // why the last write failed
	written  uint64
	failures uint64 // writes that will be tried again
}

// New prepares a sink that writes to w. source and identity are those of its own
// events, which tell of losses.
func New(w io.Writer, format Format, source string, identity map[string]string, log *slog.Logger) *Sink {
	return &Sink{
		w: w, format: format, source: source, identity: identity, log: log,
		events: event.NewFactory(), queue: queue.New(queue.Limits{Events: queueEvents, Bytes: queueBytes}),
		descs: newDescs(),
	}
}

// Send queues the event and never waits. What does not fit is counted as lost.
func (s *Sink) Send(e *eventv1.Event) { s.queue.Offer(e) }

// Run writes until ctx is done. Nothing can interrupt a write that nobody reads:
// it is then left behind, and ends with the process.
func (s *Sink) Run(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.run(ctx)
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(closeWithin):
	}
	return nil
}

func (s *Sink) run(ctx context.Context) {
	for {
		events, err := s.queue.Take(ctx, queue.Batch{Events: batchEvents, Bytes: batchBytes})
		if err != nil {
			return
		}
		if gap, lost := s.queue.TakeGap(); lost {
			e := gap.Event(s.events, s.source)
			maps.Copy(e.GetMetadata(), s.identity)
			events = slices.Insert(events, 0, e)
			s.log.Warn("events were lost", "events", gap.Events, "since", gap.Began)
		}
		for _, e := range events {
			if ctx.Err() != nil || !s.deliver(ctx, e) {
				return
			}
		}
	}
}

// deliver writes an event, if need be until that succeeds. It reports whether to
// go on.
func (s *Sink) deliver(ctx context.Context, e *eventv1.Event) bool {
	line, err := s.format(s.buf[:0], e)
	if err != nil {
		s.log.Error("an event cannot be written", "event_type", e.GetEventType(), "error", err)
		s.queue.Lose(e, Unwritable)
		s.queue.Done(1)
		return true
	}
	s.buf = append(line, '\n')
	for rest, wait := s.buf, shortest; ; wait = min(2*wait, longest) {
		n, err := s.write(rest)
		if err == nil {
			s.queue.Done(1)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.fail(err)
		rest = rest[n:] // what is there needs its end, not another beginning
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Sink) write(line []byte) (n int, err error) {
	s.mu.Lock()
	s.began = time.Now()
	s.mu.Unlock()
	n, err = s.w.Write(line)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = time.Time{}
	if err == nil {
		s.down = nil
		s.written++
	}
	return n, err
}

// fail notes a write that will be tried again; the log does not repeat it.
func (s *Sink) fail(err error) {
	s.mu.Lock()
	news := s.down == nil || s.down.Error() != err.Error()
	s.down = err
	s.failures++
	s.mu.Unlock()
	if news {
		s.log.Warn("cannot write to standard output now", "error", err, "pending", s.queue.Stats().Pending())
	}
}

// Flush waits until everything is written, or until ctx is done. Its error says
// how many were left and why: it is ErrUnread if a write does not end.
func (s *Sink) Flush(ctx context.Context) error {
	err := s.queue.Flush(ctx)
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.began.IsZero() {
		err = ErrUnread
	} else if s.down != nil {
		err = s.down
	}
	return fmt.Errorf("write events to standard output: %d are left: %w", s.queue.Stats().Pending(), err)
}

// Ready says why nothing is written, or nil.
func (s *Sink) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waited := time.Since(s.began); !s.began.IsZero() && waited > readWithin {
		return fmt.Errorf("%w since %s", ErrUnread, waited.Round(time.Second))
	}
	return s.down
}

// Totals tells what became of the events so far.
func (s *Sink) Totals() (delivered uint64, waiting int, lost uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.written, s.queue.Stats().Pending(), s.queue.Lost()
}

type descs struct {
	queueEvents, queueBytes, inFlight *prometheus.Desc
	written, failures, lost           *prometheus.Desc
}

func newDescs() descs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tapio_stdout_"+name, help, labels, nil)
	}
	return descs{
		queueEvents: desc("queue_events", "Events that wait to be written."),
		queueBytes:  desc("queue_bytes", "Memory of the events that wait to be written."),
		inFlight:    desc("in_flight_events", "Events of the write that is under way or will be tried again, and of those right after it."),
		written:     desc("written_total", "Events that were written."),
		failures:    desc("failures_total", "Writes that failed and were tried again."),
		lost:        desc("lost_total", "Events that were dropped.", "reason", "severity"),
	}
}

// Describe implements prometheus.Collector.
func (s *Sink) Describe(ch chan<- *prometheus.Desc) {
	d := s.descs
	for _, desc := range []*prometheus.Desc{d.queueEvents, d.queueBytes, d.inFlight, d.written, d.failures, d.lost} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (s *Sink) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	written, failures := s.written, s.failures
	s.mu.Unlock()
	q := s.queue.Stats()
	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(s.descs.queueEvents, q.Events)
	gauge(s.descs.queueBytes, q.Bytes)
	gauge(s.descs.inFlight, q.Taken)
	counter(s.descs.written, written)
	counter(s.descs.failures, failures)
	for _, l := range s.queue.Losses() {
		counter(s.descs.lost, l.Events, string(l.Reason), l.SeverityName())
	}
}
