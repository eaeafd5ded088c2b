package otlp_test

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collogpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logpb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/otlp"
	otlpsink "github.com/yairfalse/tapio/tapio/internal/sink/otlp"
)

const host = "node-7"

// logs is a server of OTLP that does not always take what it gets.
type logs struct {
	collogpb.UnimplementedLogsServiceServer
	address string

	mu      sync.Mutex
	answers []error // of the next requests, then nil
	partial *collogpb.ExportLogsPartialSuccess
	records []*logpb.LogRecord // accepted
}

// Export implements the protocol.
func (l *logs) Export(_ context.Context, r *collogpb.ExportLogsServiceRequest) (*collogpb.ExportLogsServiceResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.answers) > 0 {
		err := l.answers[0]
		l.answers = l.answers[1:]
		if err != nil {
			return nil, err
		}
	}
	for _, resource := range r.GetResourceLogs() {
		for _, scope := range resource.GetScopeLogs() {
			l.records = append(l.records, scope.GetLogRecords()...)
		}
	}
	partial := l.partial
	l.partial = nil
	return &collogpb.ExportLogsServiceResponse{PartialSuccess: partial}, nil
}

func startLogs(t *testing.T, address string) *logs {
	listener, err := net.Listen("tcp", address)
	require.NoError(t, err)
	l := &logs{address: listener.Addr().String()}
	server := grpc.NewServer()
	collogpb.RegisterLogsServiceServer(server, l)
	go func() { _ = server.Serve(listener) }() // until Stop
	t.Cleanup(server.Stop)
	return l
}

func open(t *testing.T, address string) *otlpsink.Sink {
	s, err := otlpsink.Open(t.Context(), otlp.Config{Endpoint: address}, "tapio", map[string]string{event.HostName: host}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	return s
}

func run(t *testing.T, s *otlpsink.Sink) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		assert.NoError(t, s.Run(ctx))
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func flush(t *testing.T, s *otlpsink.Sink) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, s.Flush(ctx))
}

func number(n int) *eventv1.Event {
	e := event.NewFactory().New(event.KindAgentSignalUnavailable, time.Unix(1_700_000_000+int64(n), 0), "tapio")
	e.Metadata[event.TapioSignal], e.Metadata[event.TapioReason] = "test", strconv.Itoa(n)
	e.Metadata[event.HostName] = host // OTLP groups records by where they are from and orders only within a group
	return e
}

func TestSinkTriesAgainUnlessItIsRejected(t *testing.T) {
	l := startLogs(t, "127.0.0.1:0")
	l.answers = []error{
		status.Error(codes.Unavailable, "later"), status.Error(codes.ResourceExhausted, "later"), nil,
		status.Error(codes.InvalidArgument, "never"), nil,
	}
	s := open(t, l.address)
	require.NoError(t, s.Ready())
	run(t, s)
	s.Send(number(1))
	flush(t, s)
	require.Len(t, l.records, 1)
	s.Send(number(2)) // rejected for good
	flush(t, s)
	require.Len(t, l.records, 2)
	require.Equal(t, event.KindAgentGap, l.records[1].GetEventName(), "the rejection is told")
	l.partial = &collogpb.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "one of them"}
	s.Send(number(3))
	s.Send(number(4))
	flush(t, s)

	delivered, waiting, lost := s.Totals()
	require.EqualValues(t, 2+2, delivered, "and what tells of the others")
	require.Zero(t, waiting)
	require.EqualValues(t, 2, lost)
	require.NoError(t, s.Ready())
	problems, err := testutil.CollectAndLint(s)
	require.NoError(t, err)
	require.Empty(t, problems)
}

// A collector that does not even take what tells of its rejections is not told
// of them for ever.
func TestSinkOfACollectorThatRejectsEverything(t *testing.T) {
	l := startLogs(t, "127.0.0.1:0")
	for range 100 {
		l.answers = append(l.answers, status.Error(codes.InvalidArgument, "never"))
	}
	s := open(t, l.address)
	run(t, s)
	s.Send(number(1))
	flush(t, s)
	_, _, lost := s.Totals()
	require.EqualValues(t, 2, lost, "the event and the gap")
	require.Len(t, l.answers, 98)
}

func TestSinkWithoutACollectorKeepsWhatItCanAndTellsTheRest(t *testing.T) {
	const offered = 25_000
	s := open(t, "127.0.0.1:1") // nobody there
	run(t, s)
	for n := range offered {
		s.Send(number(n))
	}
	require.Eventually(t, func() bool { return s.Ready() != nil }, patience, time.Millisecond)
	_, waiting, lost := s.Totals()
	require.InDelta(t, offered, waiting+int(lost), 2, "besides what tells of the losses")
	require.Positive(t, lost)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	require.ErrorContains(t, s.Flush(ctx), "connection refused")

	// With a collector, from the same state.
	l := startLogs(t, "127.0.0.1:0")
	s = open(t, l.address)
	for n := range offered {
		s.Send(number(n))
	}
	run(t, s)
	flush(t, s)
	events, missing := 0, 0
	for _, r := range l.records {
		if r.GetEventName() != event.KindAgentGap {
			events++
			continue
		}
		for _, a := range r.GetAttributes() {
			if a.GetKey() == event.TapioGapEvents {
				missing += int(a.GetValue().GetIntValue())
			}
		}
	}
	require.Equal(t, event.KindAgentGap, l.records[0].GetEventName(), "before what follows")
	require.Equal(t, offered, events+missing)
}
