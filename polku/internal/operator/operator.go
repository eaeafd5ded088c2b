// Package operator answers the commands of polku: what the log holds, how the
// routes stand, what comes in, and deliveries again.
package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/polku/internal/journal"
	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	operatorv1 "github.com/yairfalse/tapio/proto/polku/operator/v1"
)

const (
	// deadLetters is how many dead letters are listed unless the caller says.
	deadLetters = 100
	// reportEvery is how often a replay tells its progress.
	reportEvery = 500 * time.Millisecond
)

// Operator implements polku.operator.v1.OperatorService.
type Operator struct {
	operatorv1.UnimplementedOperatorServiceServer

	Journal *journal.Journal
	Routes  *route.Runner
	Version string
	Started time.Time
	// Streams tells how many streams of sources are open.
	Streams func() int64
	// Stopping ends the calls that would go on for ever.
	Stopping <-chan struct{}
}

// Status tells how the log and the routes stand.
func (o *Operator) Status(ctx context.Context, _ *operatorv1.StatusRequest) (*operatorv1.StatusResponse, error) {
	state, err := o.Journal.State(ctx)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	log := &operatorv1.LogStatus{
		Messages: state.Messages, Bytes: state.Bytes, MaxBytes: uint64(state.MaxBytes),
		FirstSequence: state.FirstSequence, LastSequence: state.LastSequence,
		FirstTime: timestamp(state.FirstTime), LastTime: timestamp(state.LastTime),
		DeadLetters: state.DeadLetters,
	}
	if state.DiskFree >= 0 {
		free := uint64(state.DiskFree)
		log.DiskFreeBytes = &free
	}
	if state.Blocked != nil {
		log.Blocked = state.Blocked.Error()
	}
	response := &operatorv1.StatusResponse{
		Version: o.Version, StartedAt: timestamp(o.Started), Log: log, Streams: o.Streams(),
	}
	for _, s := range o.Routes.Status() {
		r := &operatorv1.RouteStatus{
			Name: s.Name, Cursor: s.Cursor,
			LagMessages:     route.Lag(state.FirstSequence, state.LastSequence, s.Cursor),
			OldestPendingAt: timestamp(s.OldestPending), FailedAt: timestamp(s.FailedAt),
		}
		if s.Failure != nil {
			r.Error = strings.ToValidUTF8(s.Failure.Error(), "\uFFFD")
		}
		response.Routes = append(response.Routes, r)
	}
	return response, nil
}

// timestamp leaves a zero time out.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// until returns a context that ends when the program stops as well.
func (o *Operator) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-o.Stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// failure is what a caller is told when a call ended early.
func (o *Operator) failure(err error) error {
	select {
	case <-o.Stopping:
		return status.Error(codes.Unavailable, "polku stops")
	default:
	}
	if errors.Is(err, route.ErrNoRoute) {
		return status.Error(codes.NotFound, err.Error())
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	if s := status.FromContextError(err); s.Code() != codes.Unknown {
		return s.Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}

// Tail sends events as they reach the log.
func (o *Operator) Tail(request *operatorv1.TailRequest, stream operatorv1.OperatorService_TailServer) error {
	ctx, cancel := o.until(stream.Context())
	defer cancel()
	reader, err := o.Journal.ReadNew(ctx)
	if err != nil {
		return o.failure(err)
	}
	defer reader.Close()
	// The caller knows by the header that nothing is missed from now on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		entry, err := reader.Next(ctx)
		if err != nil {
			return o.failure(err)
		}
		events, err := entry.Events()
		if err != nil {
			return status.Error(codes.DataLoss, err.Error())
		}
		for _, e := range events {
			if !wanted(request, e) {
				continue
			}
			if err := stream.Send(&operatorv1.TailResponse{Event: e}); err != nil {
				return err
			}
		}
	}
}

func wanted(request *operatorv1.TailRequest, e *eventv1.Event) bool {
	kinds, sources := request.GetKinds(), request.GetSources()
	return e.GetSeverity() >= request.GetMinSeverity() &&
		(len(sources) == 0 || slices.Contains(sources, e.GetSource())) &&
		(len(kinds) == 0 || slices.ContainsFunc(kinds, func(k string) bool {
			return k == e.GetEventType() || strings.HasSuffix(k, ".") && strings.HasPrefix(e.GetEventType(), k)
		}))
}

// Replay delivers a span of the log again.
func (o *Operator) Replay(request *operatorv1.ReplayRequest, stream operatorv1.OperatorService_ReplayServer) error {
	from, to := request.GetFrom().AsTime(), time.Now()
	if request.GetTo() != nil {
		to = request.GetTo().AsTime()
	}
	if request.GetFrom() == nil || !from.Before(to) {
		return status.Error(codes.InvalidArgument, "from must be set, and before to")
	}
	ctx, cancel := o.until(stream.Context())
	defer cancel()
	var last route.Progress
	var told time.Time
	err := o.Routes.Replay(ctx, request.GetRoute(), from, to, func(p route.Progress) error {
		last = p
		if time.Since(told) < reportEvery {
			return nil
		}
		told = time.Now()
		return stream.Send(progress(p))
	})
	if err != nil {
		return o.failure(err)
	}
	return stream.Send(progress(last))
}

func progress(p route.Progress) *operatorv1.ReplayResponse {
	response := &operatorv1.ReplayResponse{Events: int64(p.Events), Through: timestamp(p.Through)}
	if p.Failure != nil {
		response.Error = strings.ToValidUTF8(p.Failure.Error(), "\uFFFD")
	}
	return response
}

// ListDeadLetters sends the newest dead letters.
func (o *Operator) ListDeadLetters(request *operatorv1.ListDeadLettersRequest, stream operatorv1.OperatorService_ListDeadLettersServer) error {
	limit := int(request.GetLimit())
	if limit < 0 {
		return status.Error(codes.InvalidArgument, fmt.Sprintf("limit is %d: use 1 or more", limit))
	}
	if limit == 0 {
		limit = deadLetters
	}
	err := o.Journal.DeadLetters(stream.Context(), request.GetRoute(), limit, func(d journal.DeadLetter) error {
		return stream.Send(&operatorv1.ListDeadLettersResponse{
			Route: d.Route, Reason: d.Reason, RefusedAt: timestamp(d.Time), Event: d.Event,
		})
	})
	if err != nil {
		return o.failure(err)
	}
	return nil
}
