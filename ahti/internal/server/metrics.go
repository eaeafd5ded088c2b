package server

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yairfalse/tapio/ahti/internal/brain"
	"github.com/yairfalse/tapio/ahti/internal/store"
	"github.com/yairfalse/tapio/shared/causality"
)

// metrics are read when they are scraped, but for counters.
type metrics struct {
	store  *store.Store
	engine *causality.Engine
	brain  *brain.Brain

	refused                        *prometheus.CounterVec
	entities, relationships        *prometheus.Desc
	symptoms, changes, open, bytes *prometheus.Desc
	unstored, housekeeping         *prometheus.Desc
}

func newMetrics(s *store.Store, engine *causality.Engine, b *brain.Brain, registry prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) *prometheus.Desc { return prometheus.NewDesc("ahti_"+name, help, nil, nil) }
	m := &metrics{
		store: s, engine: engine, brain: b,
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ahti_events_refused_total", Help: "Events that were refused and will never be stored, by the code that the sender got.",
		}, []string{"code"}),
		entities:      gauge("graph_entities", "Things that the engine knows."),
		relationships: gauge("graph_relationships", "Ties between them."),
		symptoms:      gauge("graph_symptoms", "Runs of symptoms that the engine remembers."),
		changes:       gauge("graph_changes", "Changes that the engine remembers."),
		open:          gauge("incidents_open", "Incidents that go on."),
		unstored:      gauge("incidents_unstored_total", "Incidents that cannot be stored because of what they say."),
		housekeeping: prometheus.NewDesc("ahti_housekeeping_failed_total",
			"Runs of a task of the housekeeping that failed and will be tried again.", []string{"task"}, nil),
		bytes: gauge("store_bytes", "Bytes that the stored data take. Not told for PostgreSQL."),
	}
	for _, code := range []string{codeInvalid, codeTooLarge} {
		m.refused.WithLabelValues(code)
	}
	for _, c := range []prometheus.Collector{m, m.refused} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// scrapeTimeout is how long a scrape may wait for the store.
const scrapeTimeout = 5 * time.Second

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v)
	}
	size := m.engine.Size()
	gauge(m.entities, float64(size.Entities))
	gauge(m.relationships, float64(size.Relationships))
	gauge(m.symptoms, float64(size.Symptoms))
	gauge(m.changes, float64(size.Changes))
	gauge(m.open, float64(m.brain.Open()))
	ch <- prometheus.MustNewConstMetric(m.unstored, prometheus.CounterValue, float64(m.brain.Unstored()))
	for task, failures := range m.brain.Failures() {
		ch <- prometheus.MustNewConstMetric(m.housekeeping, prometheus.CounterValue, float64(failures), task)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	switch bytes, err := m.store.Size(ctx); {
	case err != nil:
		ch <- prometheus.NewInvalidMetric(m.bytes, err)
	case bytes > 0:
		gauge(m.bytes, float64(bytes))
	}
}
