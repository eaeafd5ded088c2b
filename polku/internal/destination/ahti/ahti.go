// Package ahti delivers events to AHTI: transformed, acknowledged one by one,
// over ahti.v1.AhtiService.Ingest.
package ahti

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/route"
	"github.com/yairfalse/tapio/polku/internal/transform"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/endpoint"
)

// DefaultTimeout is how long AHTI has to commit a delivery.
const DefaultTimeout = 30 * time.Second

const (
	// maxRequest is the most that a request carries, bytes: half of what a gRPC
	// server takes by default, so that no AHTI refuses it for its size.
	maxRequest = 2 << 20
	// maxEvents is how many events a request carries: AHTI takes some thousands
	// at once, however small.
	maxEvents = 4096
	// requestOverhead is what a request spends on each event at most, bytes: a
	// tag and the length.
	requestOverhead = 6
	// pingEvery finds an AHTI that vanished during a delivery. A server allows
	// no more than one ping in 10 s.
	pingEvery   = 30 * time.Second
	pingTimeout = 10 * time.Second
	// longestPause is how long a broken connection waits at most before it is
	// tried again. The log keeps the events meanwhile.
	longestPause = 5 * time.Second
	// endTimeout is how long AHTI may take to end a stream after its last answer.
	endTimeout = time.Second
	// connectTimeout is how long a handshake may take.
	connectTimeout = 10 * time.Second
)

// Config says which AHTI. Endpoint, Log and Registry have no default.
type Config struct {
	// Endpoint is AHTI's address, in a form that endpoint.Parse takes.
	Endpoint string
	TLS      certs.Files
	// Timeout is how long a delivery may take; 0 is DefaultTimeout.
	Timeout time.Duration
	// Log gets a line for each call, at level debug: the route tells what fails.
	Log *slog.Logger
	// Registry takes the metrics of the calls. Destinations that share one need
	// a label each, as prometheus.WrapRegistererWith gives.
	Registry prometheus.Registerer
}

// Destination is a route.Destination. It is safe for concurrent use.
type Destination struct {
	config  Config
	conn    *grpc.ClientConn
	client  ahtiv1.AhtiServiceClient
	metrics *grpcprom.ClientMetrics
}

var _ route.Destination = (*Destination)(nil)

// New prepares the connection; the first delivery opens it. It fails when the
// endpoint is none, a file cannot be used, or the registry refuses the metrics.
func New(config Config) (*Destination, error) {
	where, err := endpoint.Parse(config.Endpoint, config.TLS)
	if err != nil {
		return nil, fmt.Errorf("find AHTI: %w", err)
	}
	metrics := grpcprom.NewClientMetrics()
	if err := config.Registry.Register(metrics); err != nil {
		return nil, fmt.Errorf("register the metrics of AHTI at %q: %w", config.Endpoint, err)
	}
	pause := backoff.DefaultConfig
	pause.MaxDelay = longestPause
	conn, err := grpc.NewClient("dns:///"+where.Address,
		grpc.WithTransportCredentials(where.Credentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pause, MinConnectTimeout: connectTimeout}),
		grpc.WithChainStreamInterceptor(
			metrics.StreamClientInterceptor(),
			logging.StreamClientInterceptor(logger(config.Log), logging.WithLogOnEvents(logging.FinishCall)),
		),
	)
	if err != nil {
		config.Registry.Unregister(metrics)
		return nil, fmt.Errorf("prepare the connection to AHTI at %q: %w", config.Endpoint, err)
	}
	config.Timeout = cmp.Or(config.Timeout, DefaultTimeout)
	return &Destination{
		config:  config,
		conn:    conn,
		client:  ahtiv1.NewAhtiServiceClient(conn),
		metrics: metrics,
	}, nil
}

func logger(log *slog.Logger) logging.Logger {
	return logging.LoggerFunc(func(ctx context.Context, _ logging.Level, message string, fields ...any) {
		log.DebugContext(ctx, message, fields...)
	})
}

// Close ends the connection.
func (d *Destination) Close() error {
	d.config.Registry.Unregister(d.metrics)
	if err := d.conn.Close(); err != nil {
		return fmt.Errorf("close the connection to AHTI at %q: %w", d.config.Endpoint, err)
	}
	return nil
}

// Deliver sends the events and waits until AHTI has committed them. Those that
// cannot be transformed are refused, as are those that AHTI refuses. Any other
// error leaves open which of the events AHTI has: it recognizes them when they
// come again.
func (d *Destination) Deliver(ctx context.Context, events []*eventv1.Event) error {
	requests, refused := batch(events)
	if len(requests) > 0 {
		more, err := d.send(ctx, requests)
		if err != nil {
			return fmt.Errorf("deliver %d events to AHTI at %q: %w", len(events), d.config.Endpoint, err)
		}
		refused = append(refused, more...)
	}
	if len(refused) == 0 {
		return nil
	}
	slices.SortFunc(refused, func(a, b route.Refusal) int { return cmp.Compare(a.Index, b.Index) })
	return &route.Refused{Events: refused}
}

// request is a part of a delivery.
type request struct {
	message *ahtiv1.IngestRequest
	// indexes has the place of each event in the delivery.
	indexes []int
	size    int
}

// batch transforms events and cuts them into requests.
func batch(events []*eventv1.Event) (requests []*request, refused []route.Refusal) {
	var last *request
	for i, e := range events {
		out, err := transform.Event(e)
		if err != nil {
			refused = append(refused, route.Refusal{Index: i, Reason: err.Error()})
			continue
		}
		size := proto.Size(out) + requestOverhead
		if size > maxRequest {
			refused = append(refused, route.Refusal{Index: i, Reason: fmt.Sprintf(
				"event %q has %d bytes with its entities: at most %d can be sent", out.GetId(), size, maxRequest)})
			continue
		}
		if last == nil || last.size+size > maxRequest || len(last.indexes) == maxEvents {
			last = &request{message: &ahtiv1.IngestRequest{}}
			requests = append(requests, last)
		}
		last.message.Events = append(last.message.Events, out)
		last.indexes = append(last.indexes, i)
		last.size += size
	}
	return requests, refused
}

// send sends the requests over a stream of their own. A stream costs one frame,
// and what happens to it happens to one delivery only.
func (d *Destination) send(ctx context.Context, requests []*request) ([]route.Refusal, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	stream, err := d.client.Ingest(ctx)
	if err != nil {
		return nil, err
	}
	var refused []route.Refusal
	for _, r := range requests {
		// Each request waits for the response to the one before: with more under
		// way, both sides might wait for the other to read.
		if err := stream.Send(r.message); err != nil && !errors.Is(err, io.EOF) { // EOF: Recv knows why
			return nil, err
		}
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it ended the stream before it answered")
		}
		if err != nil {
			return nil, err
		}
		more, err := r.judge(response)
		if err != nil {
			return nil, err
		}
		refused = append(refused, more...)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	// Everything is committed: how the stream ends changes nothing, but whoever
	// counts calls should see that this one succeeded.
	defer time.AfterFunc(endTimeout, cancel).Stop()
	_, _ = stream.Recv()
	return refused, nil
}

// judge returns which events of the request AHTI refused. It fails when the
// response leaves one open.
func (r *request) judge(response *ahtiv1.IngestResponse) ([]route.Refusal, error) {
	stored := make(map[string]bool, len(response.GetEventIds()))
	for _, id := range response.GetEventIds() {
		stored[id] = true
	}
	reasons := make(map[string]*ahtiv1.IngestError, len(response.GetErrors()))
	for _, e := range response.GetErrors() {
		reasons[e.GetEventId()] = e
	}
	var refused []route.Refusal
	open := 0
	for i, e := range r.message.GetEvents() {
		reason := reasons[e.GetId()]
		switch {
		case stored[e.GetId()]:
		case reason != nil:
			refused = append(refused, route.Refusal{Index: r.indexes[i], Reason: reason.GetCode() + ": " + reason.GetMessage()})
		default:
			open++
		}
	}
	if open > 0 {
		return nil, fmt.Errorf("it neither stored nor refused %d of %d events", open, len(r.message.GetEvents()))
	}
	return refused, nil
}
