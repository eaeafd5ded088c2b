package gateway

import (
	"context"
	"errors"
	"io"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

const (
	// maxParcels is how many batches of one stream may be on their way.
	maxParcels = 64
	// maxAnswers is how many bytes of answers one stream may leave unread.
	maxAnswers = 256 << 10
	// ackPatience is how long a source may leave its acknowledgments unread
	// before its stream is ended: they take memory.
	ackPatience = time.Minute
)

// session is one stream. One goroutine receives, one sends.
type session struct {
	gateway *Gateway
	stream  polkuv1.Gateway_StreamEventsServer
	parcels chan *parcel // in the order of their batches; closed by receive
	answers *semaphore.Weighted
	items   []item // memory for the next batch
}

// StreamEvents takes batches until the source ends the stream, and acknowledges
// them in their order. A batch that cannot be stored ends the stream: the source
// sends again what was not acknowledged.
func (g *Gateway) StreamEvents(stream polkuv1.Gateway_StreamEventsServer) error {
	g.counters.streams.Add(1)
	defer g.counters.streams.Add(-1)
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s := &session{
		gateway: g,
		stream:  stream,
		parcels: make(chan *parcel, maxParcels),
		answers: semaphore.NewWeighted(maxAnswers),
	}
	received := make(chan error, 1)
	taking, stopTaking := context.WithCancel(ctx)
	defer stopTaking()
	go func() { received <- s.receive(taking) }()
	sent := make(chan error, 1)
	quit := make(chan struct{})
	go func() { sent <- s.send(quit, func() { cancel(errUnread) }) }()

	stopping := g.stopping
	for {
		select {
		case err := <-sent:
			if err != nil {
				return err
			}
			if stopping == nil {
				return errStopping // the receiver waits for what nobody wants now
			}
			return <-received
		case <-stopping:
			stopping = nil
			stopTaking()
			close(quit)
		case <-ctx.Done():
			if cause := context.Cause(ctx); errors.Is(cause, errUnread) {
				g.counters.slow.Add(1)
				return cause
			}
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

var (
	errStopping = status.Error(codes.Unavailable, "the gateway stops: connect again and send what was not acknowledged")
	errUnread   = status.Error(codes.Aborted, "acknowledgments were not read for "+ackPatience.String()+": connect again and send what was not acknowledged")
)

// receive takes batches as long as the source sends and there is room.
func (s *session) receive(ctx context.Context) error {
	defer close(s.parcels)
	for {
		var f frame
		if err := s.stream.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		p, err := s.take(ctx, f)
		if err != nil {
			return err
		}
		if p == nil {
			continue
		}
		if err := s.answers.Acquire(ctx, s.weight(p)); err != nil {
			go s.gateway.abandonStored(p)
			return status.FromContextError(err).Err()
		}
		select {
		case s.parcels <- p:
		case <-ctx.Done():
			go s.gateway.abandonStored(p)
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (s *session) take(ctx context.Context, f frame) (*parcel, error) {
	if ctx.Err() != nil {
		f.Free()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	b, refused := readBatch(f.ReadOnlyData(), s.items)
	s.items = b.items[:0]
	return s.gateway.take(ctx, b, refused, f.Len(), f.Free)
}

func (s *session) weight(p *parcel) int64 { return min(int64(p.answer.size), maxAnswers) }

// abandonStored settles a parcel that nobody answers for any more.
func (g *Gateway) abandonStored(p *parcel) { _ = g.settle(p) } // the stream is gone

// send answers for the parcels in their order, until there are no more, or until
// quit and none is left. unread is called when the source does not read.
func (s *session) send(quit <-chan struct{}, unread func()) (failed error) {
	// What is left when the stream has failed still ends in the log, or does not.
	defer func() {
		if failed != nil {
			go s.drain()
		}
	}()
	patience := time.AfterFunc(ackPatience, unread)
	patience.Stop()
	for {
		var p *parcel
		var more bool
		select {
		case p, more = <-s.parcels:
		default:
			select {
			case p, more = <-s.parcels:
			case <-quit:
				go s.drain()
				return nil
			}
		}
		if !more {
			return nil
		}
		if err := s.gateway.settle(p); err != nil {
			return err
		}
		if err := s.reply(p, patience); err != nil {
			return err
		}
		s.answers.Release(s.weight(p))
	}
}

func (s *session) reply(p *parcel, patience *time.Timer) error {
	state := s.gateway.state()
	for i, ack := range p.answer.acks {
		if i == len(p.answer.acks)-1 {
			var err error
			if ack, err = ack.finish(state); err != nil {
				return err
			}
		}
		patience.Reset(ackPatience)
		err := s.stream.SendMsg(ack)
		patience.Stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// drain settles what nobody will be told of. It ends when receive has.
func (s *session) drain() {
	for p := range s.parcels {
		s.gateway.abandonStored(p)
	}
}
