package route

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	delivered   *prometheus.CounterVec
	retries     *prometheus.CounterVec
	skipped     *prometheus.CounterVec
	undecodable *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
}

// routeMetrics are those of one route.
type routeMetrics struct {
	delivered, retries, skipped, undecodable prometheus.Counter
	seconds                                  prometheus.Observer
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"route"})
	}
	m := &metrics{
		delivered:   counter("polku_route_events_delivered_total", "Events that a destination took, replays included."),
		retries:     counter("polku_route_retries_total", "Deliveries that failed and were repeated."),
		skipped:     counter("polku_route_events_skipped_total", "Events that name other routes in route_to."),
		undecodable: counter("polku_route_undecodable_messages_total", "Messages of the log that could not be decoded and were passed over."),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "polku_route_delivery_seconds", Help: "Duration of one delivery, failed or not.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8), // 1 ms to 16 s
		}, []string{"route"}),
	}
	for _, c := range []prometheus.Collector{m.delivered, m.retries, m.skipped, m.undecodable, m.seconds} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the routes: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) of(route string) *routeMetrics {
	return &routeMetrics{
		delivered: m.delivered.WithLabelValues(route), retries: m.retries.WithLabelValues(route),
		skipped: m.skipped.WithLabelValues(route), undecodable: m.undecodable.WithLabelValues(route),
		seconds: m.seconds.WithLabelValues(route),
	}
}

// lag is how far the routes are behind, computed when somebody asks.
type lag struct{ runner *Runner }

var (
	lagMessages = prometheus.NewDesc("polku_route_lag_messages", "Messages of the log that a route has not delivered yet.", []string{"route"}, nil)
	lagSeconds  = prometheus.NewDesc("polku_route_lag_seconds", "Age of the oldest message that is in delivery; 0 when none is.", []string{"route"}, nil)
)

// Describe implements prometheus.Collector.
func (l *lag) Describe(descs chan<- *prometheus.Desc) {
	descs <- lagMessages
	descs <- lagSeconds
}

// Collect implements prometheus.Collector.
func (l *lag) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // less than any scrape
	defer cancel()
	state, err := l.runner.journal.State(ctx)
	for _, s := range l.runner.Status() {
		if err == nil {
			to <- prometheus.MustNewConstMetric(lagMessages, prometheus.GaugeValue, float64(Lag(state.FirstSequence, state.LastSequence, s.Cursor)), s.Name)
		}
		seconds := 0.0
		if !s.OldestPending.IsZero() {
			seconds = time.Since(s.OldestPending).Seconds()
		}
		to <- prometheus.MustNewConstMetric(lagSeconds, prometheus.GaugeValue, seconds, s.Name)
	}
}

// Lag is how many messages of a log from first to last a cursor has before it.
func Lag(first, last, cursor uint64) uint64 {
	if next := max(cursor+1, first); next <= last {
		return last - next + 1
	}
	return 0
}
