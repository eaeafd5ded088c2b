package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/yairfalse/tapio/ahti/internal/ingest"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

const (
	// maxInFlight is how many bytes of requests all streams together may have
	// waiting for their commit.
	maxInFlight = 64 << 20
	// maxUnanswered is how many requests of one stream may wait for their
	// response: the client that reads none gets no further.
	maxUnanswered = 16
	// maxEventsAtOnce is how many events one request may have.
	maxEventsAtOnce = 20_000
)

// unanswered is a request whose response is not sent yet.
type unanswered struct {
	batch    *ingest.Batch
	response *ahtiv1.IngestResponse
	err      error // ends the stream
}

// Ingest implements ahtiv1.AhtiServiceServer. One goroutine receives and submits,
// this one answers, so that a client can send ahead of the commits.
func (s *Service) Ingest(stream grpc.BidiStreamingServer[ahtiv1.IngestRequest, ahtiv1.IngestResponse]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	queue := make(chan unanswered, maxUnanswered)
	go func() {
		defer close(queue)
		s.receive(ctx, stream, queue)
	}()
	for {
		select {
		case u, more := <-queue:
			if !more {
				return nil
			}
			if err := s.answer(stream, u); err != nil {
				return err
			}
		case <-s.config.Stop:
			return s.finish(stream, queue)
		}
	}
}

// finish answers what was submitted before the stop: what is committed should be
// acknowledged.
func (s *Service) finish(stream grpc.BidiStreamingServer[ahtiv1.IngestRequest, ahtiv1.IngestResponse], queue <-chan unanswered) error {
	for {
		select {
		case u, more := <-queue:
			if !more {
				return nil
			}
			if err := s.answer(stream, u); err != nil {
				return err
			}
		default:
			return status.Error(codes.Unavailable, "ahti is stopping; send again what was not acknowledged")
		}
	}
}

func (s *Service) receive(ctx context.Context, stream grpc.BidiStreamingServer[ahtiv1.IngestRequest, ahtiv1.IngestResponse], queue chan<- unanswered) {
	for {
		request := &encodedRequest{}
		err := stream.RecvMsg(request)
		if errors.Is(err, io.EOF) {
			return
		}
		u := unanswered{err: err}
		if err == nil {
			u = s.submit(ctx, request)
		}
		select {
		case queue <- u:
		case <-ctx.Done():
			return
		}
		if u.err != nil {
			return
		}
	}
}

// submit checks the events of a request and queues the good ones.
func (s *Service) submit(ctx context.Context, request *encodedRequest) unanswered {
	if n := len(request.events); n > maxEventsAtOnce {
		return unanswered{err: status.Errorf(codes.InvalidArgument, "the request has %d events: send at most %d at once", n, maxEventsAtOnce)}
	}
	u := unanswered{response: &ahtiv1.IngestResponse{}}
	now, bytes := time.Now(), int64(0)
	records := make([]*store.Record, 0, len(request.events))
	for _, wire := range request.events {
		e, body, refused := decode(wire, now)
		if refused != nil {
			s.metrics.refused.WithLabelValues(refused.code).Inc()
			id := e.GetId()
			u.response.Errors = append(u.response.Errors, &ahtiv1.IngestError{
				// A cut through a character could not be sent.
				EventId: strings.ToValidUTF8(id[:min(len(id), maxID)], ""), Code: refused.code, Message: refused.message,
			})
			continue
		}
		bytes += int64(len(body))
		u.response.EventIds = append(u.response.EventIds, e.GetId())
		records = append(records, &store.Record{Event: e, Body: body, Relevance: s.config.Engine.Relevance(e)})
	}
	if len(records) == 0 {
		return u
	}
	bytes = min(bytes, maxInFlight)
	if err := s.inFlight.Acquire(ctx, bytes); err != nil {
		return unanswered{err: status.FromContextError(err).Err()}
	}
	batch := &ingest.Batch{Records: records, Release: func() { s.inFlight.Release(bytes) }}
	if err := s.config.Writer.Submit(ctx, batch); err != nil {
		s.inFlight.Release(bytes)
		return unanswered{err: status.Errorf(codes.Unavailable, "%v; send again what was not acknowledged", err)}
	}
	u.batch = batch
	return u
}

// answer waits for the commit and sends the response.
func (s *Service) answer(stream grpc.BidiStreamingServer[ahtiv1.IngestRequest, ahtiv1.IngestResponse], u unanswered) error {
	if u.err != nil {
		return u.err
	}
	if u.batch != nil {
		<-u.batch.Done()
		if err := u.batch.Err(); err != nil {
			return status.Errorf(codes.Unavailable, "%v; send again what was not acknowledged", err)
		}
		u.response.Duplicates = u.batch.Duplicates
	}
	return stream.Send(u.response)
}
