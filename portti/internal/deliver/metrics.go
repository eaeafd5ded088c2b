package deliver

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	refused *prometheus.CounterVec
	saves   *prometheus.CounterVec
	open    *prometheus.Desc
	acked   *prometheus.Desc
}

func newMetrics() *metrics {
	return &metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portti_changes_refused_total", Help: "Changes that are lost because no gateway takes them.",
		}, []string{"kind", "reason"}),
		saves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portti_state_saves_total", Help: "Writes of the state to disk, by outcome; what failed is written by the next.",
		}, []string{"outcome"}),
		open:  prometheus.NewDesc("portti_changes_open", "Changes that were sent and are not in the gateway's log yet.", []string{"kind"}, nil),
		acked: prometheus.NewDesc("portti_acked_resource_version", "Resource version up to which all is in the gateway's log.", []string{"kind"}, nil),
	}
}

func (m *metrics) saved(err error) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.saves.WithLabelValues(outcome).Inc()
}

// Describe implements prometheus.Collector.
func (b *Book) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(b, ch) }

// Collect implements prometheus.Collector.
func (b *Book) Collect(ch chan<- prometheus.Metric) {
	b.metrics.refused.Collect(ch)
	b.metrics.saves.Collect(ch)
	b.mu.Lock()
	defer b.mu.Unlock()
	for kind, l := range b.kinds {
		ch <- prometheus.MustNewConstMetric(b.metrics.open, prometheus.GaugeValue, float64(len(l.open)), kind)
		if at, err := strconv.ParseUint(l.acked, 10, 64); err == nil {
			ch <- prometheus.MustNewConstMetric(b.metrics.acked, prometheus.GaugeValue, float64(at), kind)
		}
	}
}
