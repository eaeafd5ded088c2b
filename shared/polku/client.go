// Package polku is the client of the gateway: it delivers events at least once
// and in order, holds back what the gateway cannot take yet, and tells of what
// it had to drop.
package polku

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/endpoint"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/queue"
)

// What a Config has when it says nothing.
const (
	// DefaultQueueEvents and DefaultQueueBytes bound what waits while the
	// gateway is away: minutes of a node that has a bad day.
	DefaultQueueEvents = 20_000
	DefaultQueueBytes  = 16 << 20
	// DefaultBatchEvents and DefaultBatchBytes bound one message. A gRPC server
	// takes 4 MiB if nobody told it otherwise.
	DefaultBatchEvents = 256
	DefaultBatchBytes  = 512 << 10
	// DefaultLinger is how long a batch waits to be filled.
	DefaultLinger = 50 * time.Millisecond
	// DefaultWindow is the number of batches that may wait for their ack: at
	// 150,000 events a second, of an ack that takes 14 ms.
	DefaultWindow = 8
)

const (
	// Ack errors with these codes mean "try again"; all others are final.
	codeRateLimited = "rate_limited"
	codeUnavailable = "unavailable"

	// Waits before the next try are drawn from zero to a limit that doubles
	// from shortest to longest, so that a thousand agents do not come back
	// at the same moment.
	shortest = 200 * time.Millisecond
	longest  = 15 * time.Second

	// A gateway that is busy may withhold acks for as long as it likes, so only
	// pings tell that it is dead. gRPC servers that find them too many say so.
	keepaliveTime    = 30 * time.Second
	keepaliveTimeout = 20 * time.Second

	// overdue is how long a gateway may leave out events while it acks others
	// that were sent with or after them.
	overdue = 30 * time.Second

	// refusedWithin is how long a gateway may take to refuse a stream.
	refusedWithin = 5 * time.Second
)

// Reasons to lose an event besides those of the queue.
const (
	NoID    queue.Reason = "no_id"   // it could never be acked
	Invalid queue.Reason = "invalid" // it cannot be encoded: text that is not UTF-8
	Refused queue.Reason = "refused" // the gateway will never take it
)

// Config says where the gateway is and what is sent to it.
type Config struct {
	// Endpoint is the gateway's address, in a form that endpoint.Parse takes.
	Endpoint string
	TLS      certs.Files
	// Source and Cluster stand in every batch. Source is also that of the
	// client's own events.
	Source  string
	Cluster string
	// Identity is the metadata of the client's own events, such as the name of
	// the host.
	Identity map[string]string

	// Zero values in these have the defaults above.
	Queue  queue.Limits
	Batch  queue.Batch
	Window int // batches that are sent and not acked

	// Acked is called with events that are in the gateway's log, and Refused
	// with one that never will be, each event once. Acks are not read until
	// they return. Both may be nil. They also get the client's own events of
	// kind agent.gap.
	Acked   func([]*eventv1.Event)
	Refused func(*eventv1.Event, *polkuv1.AckError)

	Log *slog.Logger
}

// Client delivers events to a gateway. Offer or Send may be called from any
// goroutine, before Run as well. Nobody may change an event that was handed in.
type Client struct {
	config      Config
	endpoint    endpoint.Endpoint
	log         *slog.Logger
	events      *event.Factory
	queue       *queue.Queue
	grpcMetrics *grpcprom.ClientMetrics
	descs       descs
	longest     time.Duration // the longest back-off
	overdue     time.Duration // how long a gateway may leave out events
	// refusedWithin is how long a stream must last to count as accepted.
	refusedWithin time.Duration
	largest       int           // bytes of a batch of several events; only Run uses it
	room          chan struct{} // a token when a batch was settled

	mu        sync.Mutex
	window    window
	hold      time.Time // the gateway asked to send nothing until then
	holds     int       // in a row
	down      error     // why there is no stream; nil while there is one
	keepalive time.Duration
	counts    counts
}

// errStarting is why there is no stream before the first try.
var errStarting = errors.New("not connected yet")

// New prepares a client. It connects to nobody; the error is about the
// configuration.
func New(config Config) (*Client, error) {
	e, err := endpoint.Parse(config.Endpoint, config.TLS)
	if err != nil {
		return nil, err
	}
	// The gateway would refuse every event of such a source.
	if err := event.ValidateSource(config.Source); err != nil {
		return nil, fmt.Errorf("send to the gateway: %w", err)
	}
	if err := event.ValidateName(config.Cluster); err != nil {
		return nil, fmt.Errorf("send to the gateway: the name of the cluster %w", err)
	}
	orDefault(&config.Queue.Events, DefaultQueueEvents)
	orDefault(&config.Queue.Bytes, DefaultQueueBytes)
	orDefault(&config.Batch.Events, DefaultBatchEvents)
	orDefault(&config.Batch.Bytes, DefaultBatchBytes)
	orDefault(&config.Batch.Linger, DefaultLinger)
	orDefault(&config.Window, DefaultWindow)
	return &Client{
		config: config, endpoint: e, log: config.Log.With("gateway", config.Endpoint),
		events: event.NewFactory(), queue: queue.New(config.Queue),
		grpcMetrics: grpcprom.NewClientMetrics(), descs: newDescs(),
		longest: longest, overdue: overdue, refusedWithin: refusedWithin, largest: math.MaxInt, room: make(chan struct{}, 1),
		window: newWindow(), down: errStarting, keepalive: keepaliveTime,
		counts: counts{refused: map[string]uint64{}, retried: map[string]uint64{}},
	}, nil
}

func orDefault[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// Offer queues an event and never waits. What does not fit is lost, the least
// severe first; that is counted, and told in an event of kind agent.gap before
// the events that follow. It reports whether e was queued.
func (c *Client) Offer(e *eventv1.Event) bool {
	return c.check(e) == nil && c.queue.Offer(e)
}

// Send queues an event and waits for room until ctx is done: the gateway's
// back-pressure reaches the caller, and nothing is lost. One client serves
// either Offer or Send, not both. The error means that e was not queued.
func (c *Client) Send(ctx context.Context, e *eventv1.Event) error {
	if err := c.check(e); err != nil {
		return fmt.Errorf("queue event for the gateway: %w", err)
	}
	return c.queue.Put(ctx, e)
}

// check books an event that no gateway would take as lost.
func (c *Client) check(e *eventv1.Event) error {
	if e.GetId() == "" {
		c.queue.Lose(e, NoID)
		return errors.New("it has no id")
	}
	if size := event.WireSize(e); size > event.MaxSize {
		c.queue.Lose(e, queue.TooLarge)
		return fmt.Errorf("event %s has %d bytes: send at most %d", e.GetId(), size, event.MaxSize)
	}
	return nil
}

// Flush waits until every event was acked or refused and every loss is told, or
// until ctx is done. Its error says how many were left and why.
func (c *Client) Flush(ctx context.Context) error {
	if err := c.queue.Flush(ctx); err != nil {
		return errors.Join(fmt.Errorf("deliver events to gateway %s: %d are left: %w", c.config.Endpoint, c.Pending(), err), c.Ready())
	}
	return nil
}

// Pending is the number of events that are neither acked nor refused nor lost,
// with the one that has to tell of losses.
func (c *Client) Pending() int { return c.queue.Stats().Pending() }

// Acked is the number of events that are in the gateway's log.
func (c *Client) Acked() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts.acked
}

// Lost is the number of events that were dropped or that the gateway refused for
// good.
func (c *Client) Lost() uint64 { return c.queue.Lost() }

// Ready says why the gateway cannot be reached, or nil.
func (c *Client) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

// Run delivers until ctx is done, and then returns nil; call Flush before to
// lose nothing. Broken connections are made anew for ever.
func (c *Client) Run(ctx context.Context) error {
	for failures := 0; ; failures++ {
		opened := time.Now()
		progress, err := c.connect(ctx)
		if ctx.Err() != nil {
			c.disconnected(ctx.Err())
			break
		}
		if progress || time.Since(opened) > c.longest {
			failures = 0
		}
		wait := backoff(failures, c.longest)
		level := slog.LevelDebug
		if c.disconnected(err) { // not the same again and again
			level = slog.LevelWarn
		}
		c.log.Log(ctx, level, "no stream to the gateway", "error", err, "next_try_in", wait, "pending", c.Pending())
		if !sleep(ctx, wait) {
			break
		}
	}
	return nil
}

// disconnected reports whether the reason is a new one.
func (c *Client) disconnected(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news := c.down == nil || c.down.Error() != err.Error()
	c.down = err
	return news
}

func backoff(failures int, longest time.Duration) time.Duration {
	const enough = 16 // doublings; many more would overflow
	return rand.N(min(longest, shortest<<min(failures, enough)))
}

// sleep reports whether it slept to the end.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// shuffle spreads many agents over the addresses of one name.
const shuffle = `{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}`

// dial makes a connection that fails once and for all, so that this package
// alone decides when to try again, and a new one looks the name up anew.
func (c *Client) dial() (*grpc.ClientConn, error) {
	c.mu.Lock()
	keepaliveTime := c.keepalive
	c.mu.Unlock()
	logger := logging.LoggerFunc(func(ctx context.Context, _ logging.Level, message string, fields ...any) {
		c.log.Log(ctx, slog.LevelDebug, message, fields...)
	})
	return grpc.NewClient("dns:///"+c.endpoint.Address,
		grpc.WithTransportCredentials(c.endpoint.Credentials()),
		grpc.WithDefaultServiceConfig(shuffle),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec())),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithChainStreamInterceptor(
			c.grpcMetrics.StreamClientInterceptor(),
			logging.StreamClientInterceptor(logger, logging.WithLogOnEvents(logging.FinishCall),
				logging.WithLevels(func(codes.Code) logging.Level { return logging.LevelDebug })),
		))
}
