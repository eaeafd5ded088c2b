package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// pace says when batches are due.
type pace struct {
	began time.Time
	every time.Duration // between two batches of one sender; 0 for as fast as answers come
	until time.Time
}

// next waits for the time of a sender's nth batch. The delay of an answer counts
// from when its batch was due, whether or not it could be sent then.
func (p pace) next(ctx context.Context, n int) (due time.Time, more bool) {
	due = time.Now()
	if p.every > 0 {
		due = p.began.Add(p.every * time.Duration(n))
		wait := time.NewTimer(time.Until(due))
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
	}
	return due, due.Before(p.until) && ctx.Err() == nil
}

// tally is what came of a load.
type tally struct {
	ids      *ids
	batch    int          // events
	accepted atomic.Int64 // events
	refused  atomic.Int64 // events; they are sent again

	mu     sync.Mutex
	delays []delay
}

type delay struct {
	due  time.Time
	took time.Duration
}

func (t *tally) answered(due time.Time) {
	d := delay{due, time.Since(due)}
	t.mu.Lock()
	t.delays = append(t.delays, d)
	t.mu.Unlock()
}

// since returns the delays of the batches that were due at a time or later, the
// shortest first.
func (t *tally) since(began time.Time) []time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	var took []time.Duration
	for _, d := range t.delays {
		if !d.due.Before(began) {
			took = append(took, d.took)
		}
	}
	slices.Sort(took)
	return took
}

// stream sends to the gateway over one stream.
type stream struct {
	tally   *tally
	pace    pace
	batches []batch // as many as may be in flight
	free    chan int

	mu     sync.Mutex
	flying map[uint64]*flight // by the number of the batch
}

// flight is a batch that is not acknowledged yet.
type flight struct {
	slot  int
	due   time.Time
	acked []bool
	left  int
}

func newStream(t *tally, p pace, batches []batch) *stream {
	s := &stream{tally: t, pace: p, batches: batches, free: make(chan int, len(batches)), flying: map[uint64]*flight{}}
	for i := range batches {
		s.free <- i
	}
	return s
}

var ingestStream = &grpc.StreamDesc{StreamName: "StreamEvents", ServerStreams: true, ClientStreams: true}

// run returns when every batch is acknowledged, or with an error.
func (s *stream) run(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, err := conn.NewStream(ctx, ingestStream, "/polku.v1.Gateway/StreamEvents")
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- s.send(ctx, client) }()
	if err := s.receive(client); err != nil {
		return err
	}
	if err := <-sent; err != nil {
		return err
	}
	if len(s.flying) > 0 {
		return fmt.Errorf("the stream ended with %d batches that are not acknowledged", len(s.flying))
	}
	return nil
}

func (s *stream) send(ctx context.Context, client grpc.ClientStream) error {
	for n := 0; ; n++ {
		due, more := s.pace.next(ctx, n)
		if !more {
			return client.CloseSend()
		}
		var slot int
		select {
		case slot = <-s.free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if s.pace.every == 0 {
			due = time.Now()
		}
		number := s.tally.ids.batches.Add(1)
		b := &s.batches[slot]
		b.number(number * uint64(s.tally.batch))
		s.mu.Lock()
		s.flying[number] = &flight{slot: slot, due: due, acked: make([]bool, s.tally.batch), left: s.tally.batch}
		s.mu.Unlock()
		if err := client.SendMsg(b.wire); err != nil {
			return err
		}
	}
}

func (s *stream) receive(client grpc.ClientStream) error {
	const ackEventIDs, ackErrors = 1, 2
	var ack message
	for {
		err := client.RecvMsg(&ack)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		err = eachField(ack, ackErrors, func(refusal []byte) error {
			return fmt.Errorf("the gateway refuses an event: %q", refusal)
		})
		if err != nil {
			return err
		}
		s.mu.Lock()
		err = eachField(ack, ackEventIDs, s.acked)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// acked counts one event, once. The caller holds mu.
func (s *stream) acked(id []byte) error {
	n, err := s.tally.ids.number(id)
	if err != nil {
		return err
	}
	number, event := n/uint64(s.tally.batch), n%uint64(s.tally.batch)
	f, found := s.flying[number]
	if !found || f.acked[event] {
		return fmt.Errorf("event %s is acknowledged twice", id)
	}
	f.acked[event] = true
	f.left--
	s.tally.accepted.Add(1)
	if f.left == 0 {
		delete(s.flying, number)
		s.tally.answered(f.due)
		s.free <- f.slot
	}
	return nil
}

// again is the pause before a batch that was refused is sent again.
const again = 5 * time.Millisecond

// export sends to the collector, one request after the other.
func export(ctx context.Context, conn *grpc.ClientConn, t *tally, p pace, b batch) error {
	for n := 0; ; n++ {
		due, more := p.next(ctx, n)
		if !more {
			return ctx.Err()
		}
		b.number(t.ids.batches.Add(1) * uint64(t.batch))
		for {
			var answer message
			err := conn.Invoke(ctx, logsExport, b.wire, &answer)
			if err == nil {
				err = partial(answer)
			}
			if err == nil {
				break
			}
			switch status.Code(err) {
			case codes.Unavailable, codes.ResourceExhausted:
			default:
				return err
			}
			t.refused.Add(int64(t.batch))
			select {
			case <-time.After(again):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		t.accepted.Add(int64(t.batch))
		t.answered(due)
	}
}

// partial is an error when an answer says that not all was taken.
func partial(answer message) error {
	const partialSuccess = 1
	return eachField(answer, partialSuccess, func(p []byte) error {
		if len(p) > 0 {
			return status.Errorf(codes.ResourceExhausted, "the collector took a part only: %q", p)
		}
		return nil
	})
}
