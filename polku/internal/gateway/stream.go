package gateway

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

const (
	// maxParcels is how many batches of one stream may be on their way.
	maxParcels = 64
	// maxAnswers is how many bytes of answers one stream may leave unread before
	// no more is read of it.
	maxAnswers = 256 << 10
	// leastShare is the least that an answer counts, so that maxAnswers are for
	// maxParcels at most.
	leastShare = maxAnswers / maxParcels
	// maxUnread is how many bytes of answers may be unread over all streams before
	// only those are read that have none.
	maxUnread = 32 << 20
	// ackPatience is how long a source may leave its acknowledgments unread
	// before its stream is ended: they take memory.
	ackPatience = time.Minute
)

// session is one stream. One goroutine receives, one waits for the log, one
// answers: a source that does not read its answers keeps none of what all
// sources share.
type session struct {
	gateway *Gateway
	stream  polkuv1.Gateway_StreamEventsServer
	// Both channels are in the order of the batches and never full, because
	// each parcel in them has its share of answers.
	parcels chan *parcel // on their way; closed by receive
	settled chan *parcel // in the log or failed; closed by settle
	unread  backlog
}

// backlog is the answers of one stream that its source has not read: for what is
// on its way into the log, too. One goroutine waits and adds, one removes.
type backlog struct {
	own  atomic.Int64  // bytes
	all  *atomic.Int64 // bytes, over all streams
	less chan struct{} // holds something after own became less
}

// wait returns when the answer to one more batch, of whatever size, may be added.
// It waits before there is a batch, so that one who waits holds none.
func (b *backlog) wait(ctx context.Context) error {
	for {
		own := b.own.Load()
		if own == 0 || own <= maxAnswers-leastShare && b.all.Load() <= maxUnread {
			return nil
		}
		select {
		case <-b.less:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (b *backlog) add(p *parcel) {
	b.own.Add(p.share())
	b.all.Add(p.share())
}

func (b *backlog) remove(p *parcel) {
	b.own.Add(-p.share())
	b.all.Add(-p.share())
	select {
	case b.less <- struct{}{}:
	default:
	}
}

// share is what a parcel takes of a backlog.
func (p *parcel) share() int64 { return int64(max(p.answer.size, leastShare)) }

// StreamEvents takes batches until the source ends the stream, and acknowledges
// them in their order. A batch that cannot be stored ends the stream: the source
// sends again what was not acknowledged.
func (g *Gateway) StreamEvents(stream polkuv1.Gateway_StreamEventsServer) error {
	g.counters.streams.Add(1)
	defer g.counters.streams.Add(-1)
	// The source is to know that it was accepted before it has something to send.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s := &session{
		gateway: g,
		stream:  stream,
		parcels: make(chan *parcel, maxParcels),
		settled: make(chan *parcel, maxParcels),
		unread:  backlog{all: &g.unread, less: make(chan struct{}, 1)},
	}
	received := make(chan error, 1)
	taking, stopTaking := context.WithCancel(ctx)
	defer stopTaking()
	go func() { received <- s.receive(taking) }()
	go s.settle()
	sent := make(chan error, 1)
	quit := make(chan struct{})
	go func() {
		sent <- s.send(quit, func() { cancel(errUnread) })
		for p := range s.settled { // nobody is there to read these
			s.unread.remove(p)
		}
	}()

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
		if err := s.unread.wait(ctx); err != nil {
			return err
		}
		// Behind those who hold a batch already and wait: what is not read takes
		// no memory here, and its source no more credit.
		if err := s.gateway.gate.Acquire(ctx, 1); err != nil {
			return status.FromContextError(err).Err()
		}
		s.gateway.gate.Release(1)
		var f frame
		if err := s.stream.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := s.take(ctx, f); err != nil {
			return err
		}
	}
}

// take sends one batch on its way.
func (s *session) take(ctx context.Context, f frame) error {
	p := s.gateway.read(f)
	if p == nil {
		return nil
	}
	// First: send sees it, or this sees that the stream is to end.
	s.unread.add(p)
	err := status.FromContextError(ctx.Err()).Err()
	if err != nil {
		p.done()
	} else {
		err = s.gateway.store(ctx, p)
	}
	if err != nil {
		s.unread.remove(p)
		return err
	}
	s.parcels <- p
	return nil
}

// settle waits for the log. What is on its way ends there, or does not, also
// when the stream has gone.
func (s *session) settle() {
	defer close(s.settled)
	for p := range s.parcels {
		p.failure = s.gateway.settle(p)
		s.settled <- p
	}
}

// send answers for the parcels in their order, until there are no more, or until
// quit and none is on its way. unread is called when the source does not read.
func (s *session) send(quit <-chan struct{}, unread func()) error {
	patience := time.AfterFunc(ackPatience, unread)
	patience.Stop()
	for {
		var p *parcel
		var more bool
		select {
		case p, more = <-s.settled:
		case <-quit:
			if s.unread.own.Load() == 0 {
				return nil // nobody waits for an answer
			}
			p, more = <-s.settled
		}
		if !more {
			return nil
		}
		err := p.failure
		if err == nil {
			err = s.reply(p, patience)
		}
		s.unread.remove(p)
		if err != nil {
			return err
		}
	}
}

func (s *session) reply(p *parcel, patience *time.Timer) error {
	state := s.gateway.state()
	for i, ack := range p.answer.acks {
		if i == len(p.answer.acks)-1 {
			var err error
			if ack, err = ack.with(state); err != nil {
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
