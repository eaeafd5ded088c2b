package agent

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yairfalse/tapio/tapio/internal/feed"
)

// metrics reads the agent's books when it is scraped.
type metrics struct {
	agent *agent

	mu     sync.Mutex
	events map[string]uint64 // sent, by type

	seen, kept, suppressed, lost, eventsSent *prometheus.Desc
	mapBytes, missed, up, restarts           *prometheus.Desc
	ownerMisses, ownerEntries                *prometheus.Desc
}

func newMetrics(a *agent) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tapio_"+name, help, labels, nil)
	}
	return &metrics{
		agent:        a,
		events:       map[string]uint64{},
		seen:         desc("signal_seen_total", "Decisions that the kernel programs made: kept + suppressed + lost.", "signal", "reason"),
		kept:         desc("signal_kept_total", "Decisions that became events.", "signal", "reason"),
		suppressed:   desc("signal_suppressed_total", "Decisions held back on purpose: not an anomaly, over the rate limit, out of the user's scope, of another node on the same kernel.", "signal", "reason", "why"),
		lost:         desc("signal_lost_total", "Decisions that should have become events and did not.", "signal", "reason", "why"),
		eventsSent:   desc("events_total", "Events that were handed to the outputs.", "event_type"),
		mapBytes:     desc("kernel_map_bytes", "Memory of the kernel maps.", "observer"),
		missed:       desc("kernel_runs_missed_total", "Program runs that the kernel skipped because a program interrupted itself; they are in no other counter.", "observer"),
		up:           desc("observer_up", "Whether an observer observes.", "observer"),
		restarts:     desc("observer_restarts_total", "How often an observer failed and was started again.", "observer"),
		ownerMisses:  desc("owner_unknown_total", "Lookups of a control group that nobody knew."),
		ownerEntries: desc("owner_cgroups", "Control groups known, those removed within the last minute included."),
	}
}

// sent counts an event.
func (m *metrics) sent(eventType string) {
	m.mu.Lock()
	m.events[eventType]++
	m.mu.Unlock()
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	lines, err := m.agent.feed.Accounting()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(m.seen, err)
	}
	for _, l := range lines {
		m.collectLine(counter, l)
	}
	m.mu.Lock()
	for eventType, n := range m.events {
		counter(m.eventsSent, n, eventType)
	}
	m.mu.Unlock()

	gauge(m.mapBytes, float64(m.agent.shared.Bytes()), "shared")
	m.agent.mu.Lock()
	for name, bytes := range m.agent.mapBytes {
		gauge(m.mapBytes, float64(bytes), name)
	}
	m.agent.mu.Unlock()
	for name, missed := range m.agent.node.Missed() {
		counter(m.missed, missed, name)
	}
	for _, s := range m.agent.supervisor.Status() {
		up := 0.0
		if s.Ready {
			up = 1
		}
		gauge(m.up, up, s.Name)
		counter(m.restarts, s.Restarts, s.Name)
	}
	owners := m.agent.node.Owners.Stats()
	counter(m.ownerMisses, owners.Misses)
	gauge(m.ownerEntries, float64(owners.Entries))
}

func (m *metrics) collectLine(counter func(*prometheus.Desc, uint64, ...string), l feed.Line) {
	signal, reason := l.Signal.Name(), l.Signal.Reason()
	counter(m.seen, l.Seen, signal, reason)
	counter(m.kept, l.Kept, signal, reason)
	counter(m.suppressed, l.Normal, signal, reason, "normal")
	counter(m.suppressed, l.Limited, signal, reason, "rate_limit")
	counter(m.suppressed, l.Scope, signal, reason, "scope")
	counter(m.suppressed, l.Foreign, signal, reason, "foreign")
	counter(m.lost, l.RingFull, signal, reason, "ring_full")
	counter(m.lost, l.Undecodable, signal, reason, "undecodable")
	counter(m.lost, l.Unsent, signal, reason, "unsent")
	counter(m.lost, l.Unclaimed, signal, reason, "unclaimed")
}
