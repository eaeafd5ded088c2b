package agent

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/tapio/internal/observer"
	otlpsink "github.com/yairfalse/tapio/tapio/internal/sink/otlp"
	polkusink "github.com/yairfalse/tapio/tapio/internal/sink/polku"
)

// Sink is a place that events go to.
type Sink interface {
	// Send takes an event, which nobody changes from then on. Its error means
	// that the event did not get there.
	Send(*eventv1.Event) error
}

// named is a sink and the name that users know it by.
type named struct {
	Sink
	name string
}

const stdoutName = "stdout"

// stdout is a sink that may block as long as nobody reads it.
type stdout struct {
	Sink
	writing *atomic.Int32
}

// Send implements Sink.
func (s stdout) Send(e *eventv1.Event) error {
	s.writing.Add(1)
	defer s.writing.Add(-1)
	return s.Sink.Send(e)
}

// delivery is a sink that delivers later, on a goroutine of its own, so that a
// slow or absent receiver delays nobody.
type delivery interface {
	Sink
	prometheus.Collector
	Run(context.Context) error
	// Flush waits until all is delivered.
	Flush(context.Context) error
	// Ready says why nothing is delivered now.
	Ready() error
	Totals() (delivered uint64, waiting int, lost uint64)
}

// remote is a delivery and the name that users know it by.
type remote struct {
	delivery
	name string
}

// openRemotes opens what the configuration names.
func (a *agent) openRemotes(ctx context.Context) error {
	if a.config.Polku.Endpoint != "" {
		config := a.config.Polku
		config.Source, config.Identity, config.Log = observer.Source, a.identity, a.log
		config.Cluster = a.config.Cluster
		s, err := polkusink.Open(config)
		if err != nil {
			return fmt.Errorf("send events to the gateway: %w", err)
		}
		a.remotes = append(a.remotes, remote{s, "polku"})
	}
	if a.config.OTLP.Endpoint != "" {
		s, err := otlpsink.Open(ctx, a.config.OTLP, observer.Source, a.identity, a.log)
		if err != nil {
			return fmt.Errorf("send events by OTLP: %w", err)
		}
		a.remotes = append(a.remotes, remote{s, "otlp"})
	}
	for _, r := range a.remotes {
		a.sinks = append(a.sinks, named{r, r.name})
	}
	return nil
}

// identify fills the metadata that every event of this agent has.
func (a *agent) identify() {
	a.identity = map[string]string{event.HostName: a.host}
	if a.config.Node != "" {
		a.identity[event.K8sNodeName] = a.config.Node
	}
	if a.config.Cluster != "" {
		a.identity[event.K8sClusterName] = a.config.Cluster
	}
}

// deliver starts the remotes and, if there is a collector, the export of the
// agent's own metrics. The returned function delivers what is left, as far as
// that can be done by a time, and ends it all.
func (a *agent) deliver(ctx context.Context, registry *prometheus.Registry) (stop func(by time.Time), err error) {
	var metrics *otlp.Metrics
	if a.config.OTLP.Endpoint != "" {
		metrics, err = otlp.OpenMetrics(ctx, a.config.OTLP, observer.Source, maps.Clone(a.identity), registry, a.log)
		if err != nil {
			return nil, fmt.Errorf("send metrics by OTLP: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	for _, r := range a.remotes {
		running.Go(func() {
			if err := r.Run(ctx); err != nil {
				a.log.Warn("sink", "sink", r.name, "error", err)
			}
		})
	}
	return func(by time.Time) {
		flush, stopFlush := context.WithDeadline(ctx, by)
		defer stopFlush()
		var flushing sync.WaitGroup
		for _, r := range a.remotes {
			flushing.Go(func() {
				if err := r.Flush(flush); err != nil {
					a.log.Warn("not everything was delivered", "sink", r.name, "error", err)
				}
			})
		}
		if metrics != nil {
			flushing.Go(func() {
				if err := metrics.Close(flush); err != nil {
					a.log.Warn("end of the metrics", "error", err)
				}
			})
		}
		flushing.Wait()
		cancel()
		running.Wait()
	}, nil
}
