package journal

import (
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	seconds     prometheus.Histogram
	failures    prometheus.Counter
	restarts    prometheus.Counter
	renewals    prometheus.Counter
	bytes       prometheus.Gauge
	maxBytes    prometheus.Gauge
	first, last prometheus.Gauge
	diskFree    prometheus.Gauge
	blocked     *prometheus.GaugeVec
	trimmed     prometheus.Counter
	deadLetters *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "polku_log_append_seconds", Help: "Time from sending a message to the log until it is on disk.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15), // 0.5 ms to 8 s
		}),
		failures: counter("polku_log_append_failures_total", "Messages that could not be stored; their events are not acknowledged."),
		restarts: counter("polku_log_restarts_total", "Times that the embedded log was started again after a failure."),
		renewals: counter("polku_log_renewals_total", "Times that the log was found created anew or without its end."),
		bytes:    gauge("polku_log_bytes", "Size of the log."),
		maxBytes: gauge("polku_log_max_bytes", "Size at which the log is full."),
		first:    gauge("polku_log_first_sequence", "Sequence of the oldest message in the log."),
		last:     gauge("polku_log_last_sequence", "Sequence of the newest message in the log."),
		diskFree: gauge("polku_log_disk_free_bytes", "Free space on the disk of the embedded log; -1 for an external one."),
		blocked: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "polku_log_blocked", Help: "1 while the log takes nothing, by reason.",
		}, []string{"reason"}),
		trimmed: counter("polku_log_trimmed_messages_total", "Messages that were removed because every route had passed them."),
		deadLetters: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "polku_dead_letters_total", Help: "Events that a destination refused for good.",
		}, []string{"route"}),
	}
	for _, c := range []prometheus.Collector{
		m.seconds, m.failures, m.restarts, m.renewals, m.bytes, m.maxBytes, m.first, m.last, m.diskFree, m.blocked, m.trimmed, m.deadLetters,
	} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the log: %w", err)
		}
	}
	m.setBlocked(nil)
	return m, nil
}

func (m *metrics) setBlocked(reason error) {
	for name, c := range map[string]error{"log_full": ErrLogFull, "disk_full": ErrDiskFull, "unavailable": ErrUnavailable} {
		value := 0.0
		if reason != nil && cause(reason) == c { //nolint:errorlint // cause returns one of the three itself
			value = 1
		}
		m.blocked.WithLabelValues(name).Set(value)
	}
}

func (m *metrics) state(s jetstream.StreamState, diskFree int64) {
	m.bytes.Set(float64(s.Bytes))
	m.first.Set(float64(s.FirstSeq))
	m.last.Set(float64(s.LastSeq))
	m.diskFree.Set(float64(diskFree))
}
