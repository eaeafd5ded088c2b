package polku

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/queue"
)

type stream = grpc.BidiStreamingClient[polkuv1.IngestBatch, polkuv1.Ack]

// errOverdue ends a stream whose gateway told of later events, and not of these.
var errOverdue = errors.New("the gateway left out some of the events it acked others of; they are sent again")

// connect opens a stream and uses it until it breaks, which is the error, or
// until ctx is done. It tells whether that was of any use.
func (c *Client) connect(ctx context.Context) (progress bool, err error) {
	conn, err := c.dial()
	if err != nil {
		return false, fmt.Errorf("prepare the connection: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		cancel(nil)
		_ = conn.Close() // it was only used by the stream, which has ended
	}()
	s, err := polkuv1.NewGatewayClient(conn).StreamEvents(ctx)
	if err != nil {
		return false, fmt.Errorf("open a stream: %w", err)
	}
	received := make(chan error, 1)
	go func() {
		received <- c.receive(s, &progress)
		cancel(nil) // or the sender waits for events on a dead stream
	}()
	go c.watch(ctx, cancel)
	sendErr := c.send(ctx, s)
	ended := errors.Is(sendErr, io.EOF) || ctx.Err() != nil
	if !ended {
		cancel(nil) // or the receiver waits for acks of what cannot be sent
	}
	if err = <-received; !ended {
		err = sendErr
	}
	switch {
	case errors.Is(context.Cause(ctx), errOverdue):
		err = errOverdue
	case errors.Is(err, io.EOF):
		err = errors.New("the gateway ended the stream")
	case tooLarge(err):
		progress = c.shrink() || progress
	case strings.Contains(err.Error(), "too_many_pings"): // the gRPC way to obey that
		c.mu.Lock()
		c.keepalive *= 2
		c.mu.Unlock()
	}
	return progress, fmt.Errorf("stream broken: %w", err)
}

// watch ends a stream on which the gateway has left out events for long. One
// that acks nothing at all is busy, and may be so for as long as it likes.
func (c *Client) watch(ctx context.Context, end context.CancelCauseFunc) {
	for sleep(ctx, c.overdue/4) {
		c.mu.Lock()
		overdue := c.window.overdue(time.Now().Add(-c.overdue))
		c.mu.Unlock()
		if overdue {
			end(errOverdue)
		}
	}
}

// tooLarge reports whether the gateway takes no messages of the size of one that
// was sent. The words are those of the gRPC libraries: the code alone has other
// meanings.
func tooLarge(err error) bool {
	message := status.Convert(err).Message()
	return status.Code(err) == codes.ResourceExhausted &&
		(strings.Contains(message, "larger than max") || strings.Contains(message, "exceeds maximum size"))
}

// shrink makes batches smaller after the gateway found one too large. It did not
// say which, but the largest surely is. An event that is too large alone is lost.
// It reports whether there was one.
func (c *Client) shrink() bool {
	c.mu.Lock()
	b := c.window.largest()
	if b == nil || len(b.events) > 1 {
		if b != nil {
			c.largest = len(b.wire) / 2
		}
		c.mu.Unlock()
		return b != nil
	}
	e, copies := c.window.settle(b.events[0].GetId(), time.Now())
	c.queue.Lose(e, queue.TooLarge)
	c.queue.Done(copies)
	c.mu.Unlock()
	if c.config.Refused != nil {
		c.config.Refused(e, &polkuv1.AckError{EventId: e.GetId(), Code: string(queue.TooLarge), Message: "the gateway's limit of a message is below its size"})
	}
	c.log.Error("event dropped", "event_type", e.GetEventType(), "event_id", e.GetId(), "bytes", event.WireSize(e),
		"error", "the gateway's limit of a message is below the size of the event: raise it")
	return true
}

// connected notes that the gateway took the stream. A server that refuses it, for
// its certificate or for want of the service, lets it be opened first.
func (c *Client) connected() {
	c.mu.Lock()
	c.down = nil
	c.counts.connects++
	batches := len(c.window.batches)
	c.mu.Unlock()
	c.log.Info("connected to the gateway", "batches_to_resend", batches)
}

// send first repeats what an earlier stream had sent and nobody acked.
func (c *Client) send(ctx context.Context, s stream) error {
	c.mu.Lock()
	c.window.renew(c.largest, c.pack)
	unacked := slices.Clone(c.window.batches)
	c.mu.Unlock()
	if err := c.write(ctx, s, unacked); err != nil {
		return err
	}
	for {
		if err := c.awaitWindow(ctx); err != nil {
			return err
		}
		want := c.config.Batch
		want.Bytes = min(want.Bytes, c.largest)
		events, err := c.queue.Take(ctx, want)
		if err != nil {
			return err
		}
		if err := c.write(ctx, s, c.register(events)); err != nil {
			return err
		}
	}
}

// awaitWindow waits until one more batch may be in flight.
func (c *Client) awaitWindow(ctx context.Context) error {
	for {
		c.mu.Lock()
		full := len(c.window.batches) >= c.config.Window
		c.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-c.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// register makes batches, mostly one, of what was taken from the queue. They are
// remembered before they are sent: from here on only an ack makes them go away.
func (c *Client) register(events []*eventv1.Event) []*batch {
	if gap, lost := c.queue.TakeGap(); lost {
		e := gap.Event(c.events, c.config.Source)
		maps.Copy(e.GetMetadata(), c.config.Identity)
		events = slices.Insert(events, 0, e)
		c.log.Warn("events were lost", "events", gap.Events, "since", gap.Began)
	}
	batches := c.pack(events)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range batches {
		c.window.add(b)
	}
	return batches
}

// pack makes batches that are no larger than the gateway takes, as far as it is
// known, or have one event.
func (c *Client) pack(events []*eventv1.Event) []*batch {
	wire, events := encode(c.config.Source, c.config.Cluster, events, func(e *eventv1.Event, err error) {
		c.queue.Lose(e, Invalid)
		c.queue.Done(1)
		if c.config.Refused != nil {
			c.config.Refused(e, &polkuv1.AckError{EventId: e.GetId(), Code: string(Invalid), Message: err.Error()})
		}
		c.log.Error("event dropped", "event_type", e.GetEventType(), "error", err)
	})
	switch n := len(events); {
	case n == 0:
		return nil
	case n == 1 || len(wire) <= c.largest:
		return []*batch{newBatch(wire, events)}
	default:
		return append(c.pack(events[:n/2:n/2]), c.pack(events[n/2:])...)
	}
}

// write sends batches once the gateway wants them.
func (c *Client) write(ctx context.Context, s stream, batches []*batch) error {
	for _, b := range batches {
		c.mu.Lock()
		wait, settled := time.Until(c.hold), b.left == 0
		c.mu.Unlock()
		if settled {
			continue
		}
		if wait > 0 && !sleep(ctx, wait) {
			return ctx.Err()
		}
		if err := s.SendMsg(b.wire); err != nil {
			return err
		}
		c.mu.Lock()
		c.counts.sent += uint64(len(b.events))
		c.mu.Unlock()
	}
	return nil
}

func (c *Client) receive(s stream, progress *bool) error {
	// Headers come when the gateway has accepted the stream, or with the first
	// ack. A refusal has none, and its reason is what Recv returns. It comes at
	// once, so that a stream which lasts was accepted by one that says nothing.
	connected := sync.OnceFunc(c.connected)
	lasts := time.AfterFunc(c.refusedWithin, connected)
	defer func() {
		if !lasts.Stop() {
			connected() // waits until it is told, or it would be told after the end
		}
	}()
	if header, err := s.Header(); err == nil && header != nil {
		connected()
	}
	for {
		ack, err := s.Recv()
		if err != nil {
			return err
		}
		if len(ack.GetEventIds()) > 0 {
			*progress = true
		}
		c.settle(ack)
	}
}

// refusal is an event with the gateway's reason to refuse it.
type refusal struct {
	event *eventv1.Event
	why   *polkuv1.AckError
}

// settle forgets what an ack says is safe or was refused for good.
func (c *Client) settle(ack *polkuv1.Ack) {
	var done, again []*eventv1.Event
	var refused []refusal
	settled := 0 // copies of one event included
	now := time.Now()
	c.mu.Lock()
	batches := len(c.window.batches)
	for _, id := range ack.GetEventIds() {
		e, copies := c.window.settle(id, now)
		settled += copies
		if e == nil {
			c.counts.unknown++
			continue
		}
		c.counts.acked++
		if c.config.Acked != nil {
			done = append(done, e)
		}
	}
	for _, why := range ack.GetErrors() {
		e, copies := c.window.settle(why.GetEventId(), now)
		settled += copies
		code := why.GetCode()
		switch {
		case e == nil && why.GetEventId() != "":
			c.counts.unknown++
		case e != nil && (code == codeRateLimited || code == codeUnavailable):
			c.counts.retried[code]++
			again = append(again, e)
		default: // one without an id is about no event that was sent from here
			c.counts.refuse(code)
			refused = append(refused, refusal{e, why})
			if e != nil {
				c.queue.Lose(e, Refused)
			}
		}
	}
	if len(again) > 0 {
		// The order of what is still in flight cannot be kept, that of the queue
		// can.
		c.queue.Return(again)
		c.slowDown()
	} else if len(ack.GetEventIds()) > 0 {
		c.holds = 0
	}
	if len(c.window.batches) < batches {
		select {
		case c.room <- struct{}{}:
		default:
		}
	}
	c.queue.Done(settled - len(again))
	c.mu.Unlock()

	if len(done) > 0 {
		c.config.Acked(done)
	}
	c.tell(refused)
}

// slowDown holds everything back for a while that grows with each refusal after
// the last while. The caller holds the lock.
func (c *Client) slowDown() {
	now := time.Now()
	if now.Before(c.hold) {
		return // one ack of many that were on their way
	}
	c.hold = now.Add(backoff(c.holds, c.longest))
	c.holds++
}

// tell reports refusals; the log gets one line an ack.
func (c *Client) tell(refused []refusal) {
	if len(refused) == 0 {
		return
	}
	first := refused[0]
	c.log.LogAttrs(context.Background(), slog.LevelError, "the gateway refused events for good",
		slog.Int("events", len(refused)), slog.String("event_id", first.why.GetEventId()),
		slog.String("event_type", first.event.GetEventType()), slog.String("code", first.why.GetCode()),
		slog.String("message", first.why.GetMessage()))
	for _, r := range refused {
		if c.config.Refused != nil && r.event != nil {
			c.config.Refused(r.event, r.why)
		}
	}
}
