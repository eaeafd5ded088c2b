// Package stdout writes events as lines of JSON, for people who try a gateway
// and for those who read it with another program.
package stdout

import (
	"context"
	"fmt"
	"io"

	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Destination is a route.Destination. It is safe for concurrent use.
type Destination struct {
	w    io.Writer
	free chan struct{} // holds one token while nobody writes
	buf  []byte        // of who has the token
}

var _ route.Destination = (*Destination)(nil)

// New writes to w, which stays open.
func New(w io.Writer) *Destination {
	d := &Destination{w: w, free: make(chan struct{}, 1)}
	d.free <- struct{}{}
	return d
}

// Deliver writes each event as one object of protojson on a line, with the names
// of the proto fields. An event that JSON cannot hold is refused. The lines of
// one delivery are one write; after one that failed the events come again. A
// reader that has stopped reading holds a write up: Deliver then ends with ctx,
// and the next waits for that write.
func (d *Destination) Deliver(ctx context.Context, events []*eventv1.Event) error {
	select {
	case <-d.free:
	case <-ctx.Done():
		return fmt.Errorf("write %d events: %w", len(events), ctx.Err())
	}
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
	written := make(chan error, 1)
	go func() {
		_, err := d.w.Write(d.buf)
		d.free <- struct{}{}
		written <- err
	}()
	select {
	case err := <-written:
		if err != nil {
			return fmt.Errorf("write %d events: %w", len(events), err)
		}
	case <-ctx.Done():
		return fmt.Errorf("write %d events: %w", len(events), ctx.Err())
	}
	if len(refused) > 0 {
		return &route.Refused{Events: refused}
	}
	return nil
}

// Close does nothing: the writer belongs to who made it.
func (d *Destination) Close() error { return nil }
