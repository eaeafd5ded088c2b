package scraper

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/shared/event"
)

// metrics are the scraper's own and those that it derives. What is derived is of
// the scheduler that leads, and absent when none does.
type metrics struct {
	mu      sync.Mutex
	targets map[string]*scraped
	order   []string
	events  map[string]uint64
	invalid uint64
	active  map[string]bool
	page    *exposition.Page
	last    *interval.Interval

	up, leader, age, scrapes, eventsTotal, eventsInvalid, condition *prometheus.Desc
	pending, unschedulable                                          *prometheus.Desc
	pod, attempt, point                                             *prometheus.Desc
	attempts, incoming, preemptions, victims                        *prometheus.Desc
}

// scraped is what is known of the scrapes of one scheduler.
type scraped struct {
	err     error
	leads   bool
	at      time.Time         // of the last that succeeded
	results map[string]uint64 // by class; "ok"
}

func newMetrics() *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tapio_scheduler_"+name, help, labels, nil)
	}
	m := &metrics{
		targets:       map[string]*scraped{},
		events:        map[string]uint64{},
		up:            desc("up", "Whether the last scrape of a scheduler succeeded.", "scheduler"),
		leader:        desc("leader", "Whether a scheduler leads; absent when its last scrape failed.", "scheduler"),
		age:           desc("last_scrape_age_seconds", "Time since the last scrape of a scheduler that succeeded; absent before.", "scheduler"),
		scrapes:       desc("scrapes_total", "Scrapes by how they ended: ok, or the class of what failed.", "scheduler", "result"),
		eventsTotal:   desc("events_total", "Events that were told.", "event_type"),
		eventsInvalid: desc("events_dropped_total", "Events that were not sent.", "reason"),
		condition:     desc("condition", "Whether a condition holds that is told by events of a kind.", "event_type"),
		pending:       desc("pending_pods", "Pods that wait in a queue.", "queue"),
		unschedulable: desc("unschedulable_pods", "Pods that a plugin refuses to place on any node.", "plugin"),
		pod:           desc("pod_scheduling_seconds", "Quantiles, over the last interval, of the time from the queue to the node.", "quantile"),
		attempt:       desc("attempt_seconds", "Quantiles, over the last interval, of the time of an attempt to schedule a pod.", "quantile"),
		point:         desc("extension_point_seconds", "Quantiles, over the last interval, of the time in an extension point.", "extension_point", "quantile"),
		attempts:      desc("attempts_per_second", "Rate of attempts over the last interval.", "result"),
		incoming:      desc("incoming_pods_per_second", "Rate of pods that came into a queue over the last interval.", "queue"),
		preemptions:   desc("preemption_attempts_per_second", "Rate of preemption attempts over the last interval."),
		victims:       desc("preemption_victims_per_second", "Rate of pods evicted for others over the last interval."),
	}
	for _, k := range event.Kinds() {
		if len(k.Type) > len("scheduler.") && k.Type[:len("scheduler.")] == "scheduler." {
			m.events[k.Type] = 0
		}
	}
	return m
}

func (m *metrics) scraped(s *scheduler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := s.target.Name()
	t := m.targets[name]
	if t == nil {
		t = &scraped{results: map[string]uint64{"ok": 0}}
		m.targets[name] = t
		m.order = append(m.order, name)
	}
	t.err = s.err
	if s.err != nil {
		t.results[string(s.class)]++
		return
	}
	t.results["ok"]++
	t.leads, t.at = s.led, s.last.At
}

// observed takes what is derived from: nil without a leader.
func (m *metrics) observed(leader *scheduler, active map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.active, m.page, m.last = active, nil, nil
	if leader != nil {
		m.page, m.last = leader.last.Page, leader.interval
	}
}

func (m *metrics) told(kind string) {
	m.mu.Lock()
	m.events[kind]++
	m.mu.Unlock()
}

func (m *metrics) dropped() {
	m.mu.Lock()
	m.invalid++
	m.mu.Unlock()
}

var errNotScraped = errors.New("not scraped yet")

// ready says which schedulers cannot be read.
func (m *metrics) ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.order) == 0 {
		return errNotScraped
	}
	var errs []error
	for _, name := range m.order {
		errs = append(errs, m.targets[name].err)
	}
	return errors.Join(errs...)
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, t := range m.targets {
		gauge(m.up, one(t.err == nil), name)
		if t.err == nil {
			gauge(m.leader, one(t.leads), name)
		}
		if !t.at.IsZero() {
			gauge(m.age, time.Since(t.at).Seconds(), name)
		}
		for result, n := range t.results {
			counter(m.scrapes, n, name, result)
		}
	}
	for kind, n := range m.events {
		counter(m.eventsTotal, n, kind)
	}
	counter(m.eventsInvalid, m.invalid, "invalid")
	for kind, on := range m.active {
		gauge(m.condition, one(on), kind)
	}
	m.derive(gauge)
}

// derive gives what the last scrape and the last interval tell.
func (m *metrics) derive(gauge func(*prometheus.Desc, float64, ...string)) {
	if m.page == nil {
		return
	}
	by := func(d *prometheus.Desc, values map[string]float64, per float64) {
		for label, v := range values {
			gauge(d, v/per, label)
		}
	}
	by(m.pending, m.page.SumBy(exposition.PendingPods, "queue"), 1)
	by(m.unschedulable, m.page.SumBy(exposition.UnschedulablePods, "plugin"), 1)
	if m.last == nil || m.last.Length <= 0 {
		return
	}
	seconds := m.last.Length.Seconds()
	quantiles := func(d *prometheus.Desc, h interval.Histogram, labels ...string) {
		for _, q := range Quantiles() {
			if v := h.Quantile(q); !math.IsNaN(v) {
				gauge(d, v, append(slices.Clone(labels), strconv.FormatFloat(q, 'g', -1, 64))...)
			}
		}
	}
	quantiles(m.pod, m.last.Histogram(exposition.PodScheduling, nil))
	quantiles(m.attempt, m.last.Histogram(exposition.AttemptDuration, nil))
	for _, point := range m.last.Values(exposition.ExtensionPoint+"_bucket", "extension_point", nil) {
		quantiles(m.point, m.last.Histogram(exposition.ExtensionPoint, interval.Match{"extension_point": point}), point)
	}
	by(m.attempts, m.last.IncreaseBy(exposition.ScheduleAttempts, "result"), seconds)
	by(m.incoming, m.last.IncreaseBy(exposition.IncomingPods, "queue"), seconds)
	gauge(m.preemptions, m.last.Increase(exposition.PreemptionAttempts, nil)/seconds)
	gauge(m.victims, m.last.Increase(exposition.PreemptionVictims+"_sum", nil)/seconds)
}

// Quantiles are those that are shown.
func Quantiles() []float64 { return []float64{0.5, 0.9, 0.99} }

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
