package watch

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/yairfalse/tapio/portti/internal/change"
)

// Metrics count what the watchers do.
type Metrics struct {
	changes, gaps, recovered, untold    *prometheus.CounterVec
	lists, restarts, refused, uncertain *prometheus.CounterVec
	objects, up, last                   *prometheus.GaugeVec
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "portti_" + name, Help: help}, labels)
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "portti_" + name, Help: help}, []string{"kind"})
		r.MustRegister(g)
		return g
	}
	return &Metrics{
		changes:   counter("changes_total", "Changes that were handed to delivery.", "kind", "action"),
		gaps:      counter("changes_gap_total", "Changes that were found by comparing lists: what was in between is not known.", "kind"),
		recovered: counter("changes_recovered_total", "Changes that no watch told and the history of etcd did.", "kind"),
		untold:    counter("changes_untold_total", "Changes that tell nothing, such as the end of a Kubernetes Event by its age.", "kind", "action"),
		lists:     counter("lists_total", "Lists of all objects of a kind, by why.", "kind", "reason"),
		restarts:  counter("watch_restarts_total", "Ends of watches, and tries to begin one that failed.", "kind", "reason"),
		refused:   counter("objects_refused_total", "Objects that cannot be told.", "kind", "reason"),
		uncertain: counter("gaps_total", "Times within which objects may have come and gone without anybody knowing.", "kind"),
		objects:   gauge("objects", "Objects whose last version is held."),
		up:        gauge("kind_up", "Whether a kind is followed."),
		last:      gauge("last_change_timestamp_seconds", "When the last change of a kind was seen."),
	}
}

func (m *Metrics) sent(kind, action string, o change.Origin) {
	m.changes.WithLabelValues(kind, action).Inc()
	m.last.WithLabelValues(kind).Set(float64(o.SeenAt.UnixMilli()) / 1000)
	if o.Gap {
		m.gaps.WithLabelValues(kind).Inc()
	}
}
