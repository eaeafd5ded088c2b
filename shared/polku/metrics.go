package polku

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"
)

// counts is what happened since the client was made.
type counts struct {
	sent, acked, unknown, connects uint64

	refused, retried map[string]uint64 // by code
}

// refuse counts a refusal. The codes are another's words: only so many are told
// apart.
func (c *counts) refuse(code string) {
	const most = 50
	if _, known := c.refused[code]; !known && len(c.refused) >= most {
		code = "other"
	}
	c.refused[code]++
}

type descs struct {
	queueEvents, queueBytes, inFlight, connected *prometheus.Desc
	sent, acked, unknown, refused, retried, lost *prometheus.Desc
	reconnects                                   *prometheus.Desc
}

func newDescs() descs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("polku_client_"+name, help, labels, nil)
	}
	return descs{
		queueEvents: desc("queue_events", "Events that wait to be sent."),
		queueBytes:  desc("queue_bytes", "Memory of the events that wait to be sent."),
		inFlight:    desc("in_flight_events", "Events that were sent and are neither acked nor refused."),
		connected:   desc("connected", "Whether there is a stream to the gateway."),
		sent:        desc("sent_total", "Events that were written to a stream, repetitions included."),
		acked:       desc("acked_total", "Events that are in the gateway's log."),
		unknown:     desc("acks_unknown_total", "Ids in acks that are not in flight: acked twice, or never sent."),
		refused:     desc("refused_total", "Events that the gateway refused for good.", "code"),
		retried:     desc("retried_total", "Events that the gateway asked to send again later.", "code"),
		lost:        desc("lost_total", "Events that were dropped or refused for good.", "reason", "severity"),
		reconnects:  desc("reconnects_total", "Streams that were opened after the first."),
	}
}

// Describe implements prometheus.Collector.
func (c *Client) Describe(ch chan<- *prometheus.Desc) {
	c.grpcMetrics.Describe(ch)
	d := c.descs
	for _, desc := range []*prometheus.Desc{
		d.queueEvents, d.queueBytes, d.inFlight, d.connected, d.sent, d.acked, d.unknown, d.refused, d.retried, d.lost, d.reconnects,
	} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *Client) Collect(ch chan<- prometheus.Metric) {
	c.grpcMetrics.Collect(ch)
	c.mu.Lock()
	counts := c.counts
	counts.refused, counts.retried = maps.Clone(counts.refused), maps.Clone(counts.retried)
	inFlight, down := c.window.events, c.down
	c.mu.Unlock()
	q := c.queue.Stats()

	gauge := func(d *prometheus.Desc, v int) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(c.descs.queueEvents, q.Events)
	gauge(c.descs.queueBytes, q.Bytes)
	gauge(c.descs.inFlight, inFlight)
	connected := 0
	if down == nil {
		connected = 1
	}
	gauge(c.descs.connected, connected)
	counter(c.descs.sent, counts.sent)
	counter(c.descs.acked, counts.acked)
	counter(c.descs.unknown, counts.unknown)
	counter(c.descs.reconnects, max(counts.connects, 1)-1)
	for code, n := range counts.refused {
		counter(c.descs.refused, n, code)
	}
	for code, n := range counts.retried {
		counter(c.descs.retried, n, code)
	}
	for _, l := range c.queue.Losses() {
		counter(c.descs.lost, l.Events, string(l.Reason), l.SeverityName())
	}
}
