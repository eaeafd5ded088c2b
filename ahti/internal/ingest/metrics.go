package ingest

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	ingested, duplicates, failures, checkpoints prometheus.Counter
	commits                                     prometheus.Histogram
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "ahti_" + name, Help: help})
	}
	m := &metrics{
		ingested:    counter("events_ingested_total", "Events that were stored."),
		duplicates:  counter("events_duplicate_total", "Events that were stored already when they came."),
		failures:    counter("commits_failed_total", "Transactions of events that failed; their senders were told to try again."),
		checkpoints: counter("checkpoints_failed_total", "Transactions of the index and of facts that failed; the next one makes up for them."),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ahti_commit_duration_seconds", Help: "Time from the start of a transaction of events to the moment when it is durable.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14), // 1 ms to 8 s
		}),
	}
	for _, c := range []prometheus.Collector{m.ingested, m.duplicates, m.failures, m.checkpoints, m.commits} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the store: %w", err)
		}
	}
	return m, nil
}
