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
	"time"

	"google.golang.org/grpc"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

type stream = grpc.BidiStreamingClient[polkuv1.IngestBatch, polkuv1.Ack]

// connect opens a stream and uses it until it breaks, which is the error, or
// until ctx is done. It tells whether anything was acked.
func (c *Client) connect(ctx context.Context) (acked bool, err error) {
	conn, err := c.dial()
	if err != nil {
		return false, fmt.Errorf("prepare the connection: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		_ = conn.Close() // it was only used by the stream, which has ended
	}()
	s, err := polkuv1.NewGatewayClient(conn).StreamEvents(ctx)
	if err != nil {
		return false, fmt.Errorf("open a stream: %w", err)
	}
	c.connected()
	received := make(chan error, 1)
	go func() {
		received <- c.receive(s, &acked)
		cancel() // or the sender waits for events on a dead stream
	}()
	sendErr := c.send(ctx, s)
	ended := errors.Is(sendErr, io.EOF) || ctx.Err() != nil
	if !ended {
		cancel() // or the receiver waits for acks of what cannot be sent
	}
	if err = <-received; !ended {
		err = sendErr
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the gateway ended the stream")
	}
	if strings.Contains(err.Error(), "too_many_pings") { // the gRPC way to obey that
		c.mu.Lock()
		c.keepalive *= 2
		c.mu.Unlock()
	}
	return acked, fmt.Errorf("stream broken: %w", err)
}

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
	unacked := slices.Clone(c.window.batches)
	c.mu.Unlock()
	for _, b := range unacked {
		if err := c.write(ctx, s, b); err != nil {
			return err
		}
	}
	for {
		if err := c.awaitWindow(ctx); err != nil {
			return err
		}
		events, err := c.queue.Take(ctx, c.config.Batch)
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

// register makes a batch of what was taken from the queue. It is remembered
// before it is sent: from here on only an ack makes it go away.
func (c *Client) register(events []*eventv1.Event) *batch {
	if gap, lost := c.queue.TakeGap(); lost {
		e := gap.Event(c.events, c.config.Source)
		maps.Copy(e.GetMetadata(), c.config.Identity)
		events = slices.Insert(events, 0, e)
		c.log.Warn("events were lost", "events", gap.Events, "since", gap.Began)
	}
	wire, events := encode(c.config.Source, c.config.Cluster, events, func(e *eventv1.Event, err error) {
		c.queue.Lose(e, Invalid)
		c.queue.Done(1)
		c.log.Error("event dropped", "event_type", e.GetEventType(), "error", err)
	})
	b := &batch{left: len(events), events: events, wire: wire}
	if b.left == 0 {
		return b
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.window.add(b)
	return b
}

// write sends a batch once the gateway wants it.
func (c *Client) write(ctx context.Context, s stream, b *batch) error {
	c.mu.Lock()
	wait, settled := time.Until(c.hold), b.left == 0
	c.mu.Unlock()
	if settled {
		return nil
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
	return nil
}

func (c *Client) receive(s stream, acked *bool) error {
	for {
		ack, err := s.Recv()
		if err != nil {
			return err
		}
		if len(ack.GetEventIds()) > 0 {
			*acked = true
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
	c.mu.Lock()
	batches := len(c.window.batches)
	for _, id := range ack.GetEventIds() {
		e, copies := c.window.settle(id)
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
		e, copies := c.window.settle(why.GetEventId())
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
