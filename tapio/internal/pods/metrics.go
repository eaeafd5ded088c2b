package pods

import "github.com/prometheus/client_golang/prometheus"

// cause says why something is not known.
type cause string

const (
	causeNone      cause = ""
	causePod       cause = "pod_not_listed"
	causeContainer cause = "container_not_listed"
	causeOwner     cause = "owner_not_told" // the pod is right, but who made its Job is missing
	causeAPI       cause = "not_watching"
	causePending   cause = "pending"
	causeCrowded   cause = "crowded"
	causeStopping  cause = "stopping"
)

// counts are those of events.
type counts struct {
	attributed   uint64
	unknown      map[cause]uint64
	unknownPeers map[cause]uint64
	held         uint64
	lost         uint64
}

func newCounts() counts {
	return counts{unknown: map[cause]uint64{}, unknownPeers: map[cause]uint64{}}
}

// Describe implements prometheus.Collector.
func (c *Context) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *Context) Collect(ch chan<- prometheus.Metric) {
	metric := func(kind prometheus.ValueType, name, help string, value float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("tapio_pods_"+name, help, names, nil), kind, value, values...)
	}
	alive, gone, _ := c.table.sizes()
	const known = "Pods of the node that are known: those that exist, and those deleted a short while ago."
	metric(prometheus.GaugeValue, "known", known, float64(alive), "state", "alive")
	metric(prometheus.GaugeValue, "known", known, float64(gone), "state", "deleted")
	up := 1.0
	if c.Ready() != nil {
		up = 0
	}
	metric(prometheus.GaugeValue, "watch_up", "Whether the API server tells of the node's pods.", up)

	c.resolver.mu.Lock()
	metric(prometheus.CounterValue, "api_requests_total", "Requests to the API server beside the watch.", float64(c.resolver.requests))
	for outcome, n := range c.resolver.counts {
		metric(prometheus.CounterValue, "api_questions_total", "What was asked of the API server beside the watch, by how that ended.", float64(n), "outcome", string(outcome))
	}
	c.resolver.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	metric(prometheus.CounterValue, "events_attributed_total", "Events of pods that got all their names.", float64(c.counts.attributed))
	for why, n := range c.counts.unknown {
		metric(prometheus.CounterValue, "events_incomplete_total", "Events of pods that were sent without some of their names, by reason.", float64(n), "reason", string(why))
	}
	for why, n := range c.counts.unknownPeers {
		metric(prometheus.CounterValue, "peers_unknown_total", "Events that were sent without the name of the other side, by reason.", float64(n), "reason", string(why))
	}
	metric(prometheus.CounterValue, "events_held_total", "Events that waited for the API server to tell whose they are.", float64(c.counts.held))
	metric(prometheus.CounterValue, "events_lost_total", "Events that could not be sent after that.", float64(c.counts.lost))
	metric(prometheus.GaugeValue, "events_waiting", "Events that wait now.", float64(c.waiting))
}
