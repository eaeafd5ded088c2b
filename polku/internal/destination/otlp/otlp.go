// Package otlp delivers events to any OpenTelemetry collector, as log records
// over OTLP/gRPC.
package otlp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/otlp"
)

// DefaultTimeout is how long the collector has for one request.
const DefaultTimeout = 30 * time.Second

// maxRequest is how many bytes of events one export carries. As log records they
// are about as many again, and a collector takes 4 MiB if nobody told it
// otherwise.
const maxRequest = 1 << 20

// Config says which collector.
type Config struct {
	// Collector is where it is.
	Collector otlp.Config
	// Timeout is how long one request may take; 0 is DefaultTimeout.
	Timeout time.Duration
}

// Destination is a route.Destination. It is safe for concurrent use.
type Destination struct {
	config   Config
	exporter *otlp.Exporter
}

var _ route.Destination = (*Destination)(nil)

// New prepares the exporter; the first delivery connects. The error is about the
// configuration.
func New(ctx context.Context, config Config) (*Destination, error) {
	exporter, err := otlp.Open(ctx, config.Collector)
	if err != nil {
		return nil, err
	}
	config.Timeout = cmp.Or(config.Timeout, DefaultTimeout)
	return &Destination{config: config, exporter: exporter}, nil
}

// Close ends the connection.
func (d *Destination) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), d.config.Timeout)
	defer cancel()
	if err := d.exporter.Close(ctx); err != nil {
		return fmt.Errorf("close the connection to the collector at %q: %w", d.config.Collector.Endpoint, err)
	}
	return nil
}

// Deliver exports the events, in several requests when one would be too large. A
// collector says how many it rejected and not which: it gets the halves again,
// down to the ones. So it may get the others more than once, as it may after any
// error; the id of an event is an attribute of its record.
func (d *Destination) Deliver(ctx context.Context, events []*eventv1.Event) error {
	var refused []route.Refusal
	for from := 0; from < len(events); {
		n := fits(events[from:])
		more, err := d.export(ctx, from, events[from:from+n])
		if err != nil {
			return fmt.Errorf("deliver to the collector at %q: %w", d.config.Collector.Endpoint, err)
		}
		refused = append(refused, more...)
		from += n
	}
	if len(refused) > 0 {
		return &route.Refused{Events: refused}
	}
	return nil
}

// fits returns how many of the events go into one request, at least one.
func fits(events []*eventv1.Event) int {
	size := 0
	for i, e := range events {
		size += proto.Size(e)
		if size > maxRequest && i > 0 {
			return i
		}
	}
	return len(events)
}

// export sends events, the first of which has that place in the delivery.
func (d *Destination) export(ctx context.Context, first int, events []*eventv1.Event) ([]route.Refusal, error) {
	limited, cancel := context.WithTimeout(ctx, d.config.Timeout)
	err := d.exporter.Export(limited, events)
	cancel()
	var rejected *otlp.Rejected
	if !errors.As(err, &rejected) {
		return nil, err
	}
	if len(events) == 1 {
		return []route.Refusal{{Index: first, Reason: rejected.Error()}}, nil
	}
	half := len(events) / 2
	refused, err := d.export(ctx, first, events[:half])
	if err != nil {
		return nil, err
	}
	more, err := d.export(ctx, first+half, events[half:])
	return append(refused, more...), err
}
