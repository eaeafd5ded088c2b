// Package otlp sends events to an OpenTelemetry collector.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/shared/queue"
)

const (
	// What waits while the collector is away.
	queueEvents = 20_000
	queueBytes  = 16 << 20

	// One request. A gRPC server takes 4 MiB if nobody told it otherwise.
	batchEvents = 256
	batchBytes  = 512 << 10
	linger      = 200 * time.Millisecond // collectors are no alarm bells

	// Waits before the next try are drawn from zero to a limit that doubles.
	shortest = 200 * time.Millisecond
	longest  = 15 * time.Second

	// closeWithin is for an export that is still under way.
	closeWithin = 100 * time.Millisecond
)

// Rejected is why an event was lost that the collector will never take.
const Rejected queue.Reason = "rejected"

// Sink queues events and exports them one batch after the other.
type Sink struct {
	exporter *otlp.Exporter
	source   string
	identity map[string]string // of the sink's own events
	log      *slog.Logger
	events   *event.Factory
	queue    *queue.Queue
	descs    descs

	mu       sync.Mutex
	down     error // why the last export failed
	accepted uint64
	rejected uint64
	failures uint64 // exports that will be tried again
}

var errStarting = errors.New("nothing exported yet")

// Open prepares a sink. source and identity are those of its own events, which
// tell of losses.
func Open(ctx context.Context, config otlp.Config, source string, identity map[string]string, log *slog.Logger) (*Sink, error) {
	exporter, err := otlp.Open(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Sink{
		exporter: exporter, source: source, identity: identity, log: log.With("collector", config.Endpoint),
		events: event.NewFactory(), queue: queue.New(queue.Limits{Events: queueEvents, Bytes: queueBytes}),
		descs: newDescs(), down: errStarting,
	}, nil
}

// Send queues the event and never waits. What does not fit is counted as lost.
func (s *Sink) Send(e *eventv1.Event) { s.queue.Offer(e) }

// Run exports until ctx is done.
func (s *Sink) Run(ctx context.Context) error {
	for {
		events, err := s.queue.Take(ctx, queue.Batch{Events: batchEvents, Bytes: batchBytes, Linger: linger})
		if err != nil {
			break
		}
		if gap, lost := s.queue.TakeGap(); lost {
			e := gap.Event(s.events, s.source)
			maps.Copy(e.GetMetadata(), s.identity)
			events = slices.Insert(events, 0, e)
			s.log.Warn("events were lost", "events", gap.Events, "since", gap.Began)
		}
		if !s.deliver(ctx, events) {
			break
		}
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	return s.exporter.Close(closing)
}

// deliver exports a batch until the collector has it or refuses it for good. It
// reports whether to go on.
func (s *Sink) deliver(ctx context.Context, events []*eventv1.Event) bool {
	for failures := 0; ; failures++ {
		err := s.exporter.Export(ctx, events)
		var rejected *otlp.Rejected
		if err == nil || errors.As(err, &rejected) {
			s.settle(events, rejected)
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.fail(err)
		select {
		case <-time.After(rand.N(min(longest, shortest<<min(failures, 16)))):
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Sink) settle(events []*eventv1.Event, rejected *otlp.Rejected) {
	accepted := len(events)
	if rejected != nil {
		s.log.Error("events not exported by OTLP", "error", rejected)
		accepted -= min(max(int(rejected.Events), 0), len(events))
	}
	// The collector does not say which: the last ones stand for them.
	for _, e := range events[accepted:] {
		s.queue.Lose(e, Rejected)
	}
	s.mu.Lock()
	s.down = nil
	s.rejected += uint64(len(events) - accepted)
	s.accepted += uint64(accepted)
	s.mu.Unlock()
	s.queue.Done(len(events))
}

// fail notes an export that will be tried again; the log does not repeat it.
func (s *Sink) fail(err error) {
	s.mu.Lock()
	news := s.down == nil || s.down.Error() != err.Error()
	s.down = err
	s.failures++
	s.mu.Unlock()
	if news {
		s.log.Warn("cannot export by OTLP now", "error", err, "pending", s.queue.Stats().Pending())
	}
}

// Flush waits until the collector has everything, or until ctx is done.
func (s *Sink) Flush(ctx context.Context) error {
	if err := s.queue.Flush(ctx); err != nil {
		return errors.Join(fmt.Errorf("export events by OTLP: %d are left: %w", s.queue.Stats().Pending(), err), s.Ready())
	}
	return nil
}

// Ready says why the collector does not take events, or nil. Without an event
// to export nobody knows.
func (s *Sink) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(s.down, errStarting) {
		return nil
	}
	return s.down
}

// Totals tells what became of the events so far.
func (s *Sink) Totals() (delivered uint64, waiting int, lost uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted, s.queue.Stats().Pending(), s.queue.Lost()
}

type descs struct {
	queueEvents, queueBytes, inFlight  *prometheus.Desc
	accepted, rejected, failures, lost *prometheus.Desc
}

func newDescs() descs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tapio_otlp_"+name, help, labels, nil)
	}
	return descs{
		queueEvents: desc("queue_events", "Events that wait to be exported."),
		queueBytes:  desc("queue_bytes", "Memory of the events that wait to be exported."),
		inFlight:    desc("in_flight_events", "Events of the export that is under way or will be tried again."),
		accepted:    desc("accepted_total", "Events that the collector accepted."),
		rejected:    desc("rejected_total", "Events that the collector rejected for good."),
		failures:    desc("failures_total", "Exports that failed and were tried again."),
		lost:        desc("lost_total", "Events that were dropped or rejected for good.", "reason", "severity"),
	}
}

// Describe implements prometheus.Collector.
func (s *Sink) Describe(ch chan<- *prometheus.Desc) {
	d := s.descs
	for _, desc := range []*prometheus.Desc{d.queueEvents, d.queueBytes, d.inFlight, d.accepted, d.rejected, d.failures, d.lost} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (s *Sink) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	accepted, rejected, failures := s.accepted, s.rejected, s.failures
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
	counter(s.descs.accepted, accepted)
	counter(s.descs.rejected, rejected)
	counter(s.descs.failures, failures)
	for _, l := range s.queue.Losses() {
		counter(s.descs.lost, l.Events, string(l.Reason), l.SeverityName())
	}
}
