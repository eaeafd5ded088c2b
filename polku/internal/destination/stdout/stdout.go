// Package stdout writes events as lines of JSON, for people who try a gateway
// and for those who read it with another program.
package stdout

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Destination is a route.Destination. It is safe for concurrent use.
type Destination struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

var _ route.Destination = (*Destination)(nil)

// New writes to w, which stays open.
func New(w io.Writer) *Destination { return &Destination{w: w} }

// Deliver writes each event as one object of protojson on a line, with the names
// of the proto fields. An event that JSON cannot hold is refused. The lines of
// one delivery are one write; after one that failed the events come again.
func (d *Destination) Deliver(_ context.Context, events []*eventv1.Event) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var refused []route.Refusal
	d.buf = d.buf[:0]
	for i, e := range events {
		var err error
		if d.buf, err = event.AppendJSON(d.buf, e); err != nil {
			refused = append(refused, route.Refusal{Index: i, Reason: err.Error()})
			continue
		}
		d.buf = append(d.buf, '\n')
	}
	if _, err := d.w.Write(d.buf); err != nil {
		return fmt.Errorf("write %d events: %w", len(events), err)
	}
	if len(refused) > 0 {
		return &route.Refused{Events: refused}
	}
	return nil
}

// Close does nothing: the writer belongs to who made it.
func (d *Destination) Close() error { return nil }
