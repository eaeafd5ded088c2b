package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/tapio/internal/observer"
	otlpsink "github.com/yairfalse/tapio/tapio/internal/sink/otlp"
	polkusink "github.com/yairfalse/tapio/tapio/internal/sink/polku"
	"github.com/yairfalse/tapio/tapio/internal/sink/stdout"
)

// delivery takes events and delivers them later, on a goroutine of its own, so
// that whoever is slow or absent at its other end delays nobody.
type delivery interface {
	prometheus.Collector
	// Send takes an event, which nobody changes from then on, and never waits.
	Send(*eventv1.Event)
	Run(context.Context) error
	// Flush waits until all is delivered.
	Flush(context.Context) error
	// Ready says why nothing is delivered now.
	Ready() error
	Totals() (delivered uint64, waiting int, lost uint64)
}

// sink is a delivery and the name that users know it by.
type sink struct {
	delivery
	name string
}

// openSinks opens what the configuration names.
func (a *agent) openSinks(ctx context.Context) error {
	if a.config.Polku.Endpoint != "" {
		config := a.config.Polku
		config.Source, config.Identity, config.Log = observer.Source, a.identity, a.log
		config.Cluster = a.config.Cluster
		s, err := polkusink.Open(config)
		if err != nil {
			return fmt.Errorf("send events to the gateway: %w", err)
		}
		a.sinks = append(a.sinks, sink{s, "polku"})
	}
	if a.config.OTLP.Endpoint != "" {
		s, err := otlpsink.Open(ctx, a.config.OTLP, observer.Source, a.identity, a.log)
		if err != nil {
			return fmt.Errorf("send events by OTLP: %w", err)
		}
		a.sinks = append(a.sinks, sink{s, "otlp"})
	}
	formats := map[humanoutput.Output]stdout.Format{humanoutput.Text: stdout.Text(a.config.Style), humanoutput.JSON: stdout.JSON}
	if format := formats[a.config.Output]; format != nil {
		s := stdout.New(a.config.Stdout, format, observer.Source, a.identity, a.log)
		a.sinks = append(a.sinks, sink{s, "stdout"})
	}
	return nil
}

// identify fills the metadata that every event of this agent has.
func (a *agent) identify() {
	a.identity = map[string]string{event.HostName: a.host}
	if a.config.Node != "" {
		// In a pod the kernel's name for the host is that of the pod.
		a.identity[event.HostName] = a.config.Node
		a.identity[event.K8sNodeName] = a.config.Node
	}
	if a.config.Cluster != "" {
		a.identity[event.K8sClusterName] = a.config.Cluster
	}
}

// deliver starts the sinks and, if there is a collector, the export of the
// agent's own metrics. The returned function delivers what is left, as far as
// that can be done by a time, and ends it all. Its error means that nobody reads
// standard output.
func (a *agent) deliver(ctx context.Context, registry *prometheus.Registry) (stop func(by time.Time) error, err error) {
	var metrics *otlp.Metrics
	if a.config.OTLP.Endpoint != "" {
		metrics, err = otlp.OpenMetrics(ctx, a.config.OTLP, observer.Source, maps.Clone(a.identity), registry, a.log)
		if err != nil {
			return nil, fmt.Errorf("send metrics by OTLP: %w", err)
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	for _, s := range a.sinks {
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				a.log.Warn("sink", "sink", s.name, "error", err)
			}
		})
	}
	return func(by time.Time) error {
		flush, stopFlush := context.WithDeadline(ctx, by)
		defer stopFlush()
		errs := make([]error, len(a.sinks))
		var flushing sync.WaitGroup
		for i, s := range a.sinks {
			flushing.Go(func() { errs[i] = s.Flush(flush) })
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
		return a.undelivered(errs)
	}, nil
}

// undelivered tells why sinks have something left: errs are those of their
// flushes. A receiver that is away is no failure of the agent, and the summary
// tells what it missed.
func (a *agent) undelivered(errs []error) error {
	var unread error
	for i, err := range errs {
		switch {
		case errors.Is(err, stdout.ErrUnread):
			unread = fmt.Errorf("stop: %w", err)
		case err != nil:
			a.log.Warn("not everything was delivered", "sink", a.sinks[i].name, "error", err)
		}
	}
	return unread
}
