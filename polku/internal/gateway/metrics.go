package gateway

import (
	"fmt"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// register shows the counters.
func (g *Gateway) register(registry prometheus.Registerer) error {
	c := &g.counters
	counter := func(name, help string, labels prometheus.Labels, v *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels},
			func() float64 { return float64(v.Load()) })
	}
	gauge := func(name, help string, v *atomic.Int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(v.Load()) })
	}
	refused := func(code string, v *atomic.Int64) prometheus.Collector {
		return counter("polku_gateway_events_refused_total", "Events that were refused, by code; 1 for a batch that cannot be read.",
			prometheus.Labels{"code": code}, v)
	}
	ended := func(reason string, v *atomic.Int64) prometheus.Collector {
		return counter("polku_gateway_streams_ended_total", "Streams that the gateway ended: full, when too many sources waited for room or sent more than they may; unread, when acknowledgments were not read.",
			prometheus.Labels{"reason": reason}, v)
	}
	for _, collector := range []prometheus.Collector{
		counter("polku_gateway_events_received_total", "Events that arrived.", nil, &c.received),
		counter("polku_gateway_events_stored_total", "Events that reached the log.", nil, &c.stored),
		counter("polku_gateway_events_duplicate_total", "Events that were acknowledged because the log had them already.", nil, &c.duplicates),
		refused(codeInvalid, &c.invalid),
		refused(codeTooLarge, &c.tooLarge),
		refused(codeUnknownFormat, &c.unknown),
		counter("polku_gateway_events_delayed_total", "Events that had to wait because their source sends more than --rate-limit.", nil, &c.rateLimited),
		ended("full", &c.shed),
		ended("unread", &c.slow),
		gauge("polku_gateway_streams", "Streams that are open.", &c.streams),
		gauge("polku_gateway_in_flight_events", "Events on their way into the log.", &c.flying),
		gauge("polku_gateway_waiting_bytes", "Memory of batches that wait for room on the way into the log.", &g.waiting.held),
		gauge("polku_gateway_delayed_bytes", "Memory of batches that wait because their source sends more than --rate-limit, or what is on its way already.", &g.delayed.held),
		gauge("polku_gateway_unread_bytes", "Acknowledgments that sources have not read yet.", &g.unread),
	} {
		if err := registry.Register(collector); err != nil {
			return fmt.Errorf("register the metrics of the gateway: %w", err)
		}
	}
	return nil
}
