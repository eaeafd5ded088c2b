package polku

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// gateway is a server written from the contract alone.
type gateway struct {
	polkuv1.UnimplementedGatewayServer
	t       *testing.T
	address string
	options []grpc.ServerOption
	server  *grpc.Server

	mu      sync.Mutex
	batches []*polkuv1.IngestBatch // received
	streams int
	silent  bool // send no headers before the first ack
	// answer is called for each batch, one at a time, with a function that
	// sends acks. An error breaks the stream.
	answer func(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error
}

// ackAll is what a healthy gateway does.
func ackAll(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error {
	send(&polkuv1.Ack{EventIds: idsOf(b)})
	return nil
}

var errBreak = status.Error(codes.Unavailable, "broken by the test")

func idsOf(b *polkuv1.IngestBatch) []string {
	ids := make([]string, len(b.GetEvents().GetEvents()))
	for i, e := range b.GetEvents().GetEvents() {
		ids[i] = e.GetId()
	}
	return ids
}

// newGateway takes an address; start makes it answer there.
func newGateway(t *testing.T, options ...grpc.ServerOption) *gateway {
	l := listen(t, "127.0.0.1:0")
	require.NoError(t, l.Close())
	return &gateway{t: t, address: l.Addr().String(), options: options, answer: ackAll}
}

func (g *gateway) start() *gateway {
	var l net.Listener
	// While nobody listens there, a client that dials may get the port for its own.
	require.Eventually(g.t, func() bool {
		var err error
		l, err = net.Listen("tcp", g.address)
		return err == nil
	}, 30*time.Second, time.Millisecond)
	server := grpc.NewServer(g.options...)
	polkuv1.RegisterGatewayServer(server, g)
	g.server = server
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := server.Serve(l); !errors.Is(err, grpc.ErrServerStopped) { // before it began
			assert.NoError(g.t, err)
		}
	}()
	g.t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return g
}

// StreamEvents implements the contract.
func (g *gateway) StreamEvents(s grpc.BidiStreamingServer[polkuv1.IngestBatch, polkuv1.Ack]) error {
	g.mu.Lock()
	g.streams++
	silent := g.silent
	g.mu.Unlock()
	if !silent {
		if err := s.SendHeader(nil); err != nil {
			return err
		}
	}
	var sending sync.Mutex
	send := func(a *polkuv1.Ack) {
		sending.Lock()
		defer sending.Unlock()
		_ = s.Send(a) // the stream may be gone
	}
	for {
		b, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client went away
		}
		g.mu.Lock()
		g.batches = append(g.batches, b)
		answer := g.answer
		g.mu.Unlock()
		if err := answer(b, send); err != nil {
			return err
		}
	}
}

func (g *gateway) setAnswer(answer func(*polkuv1.IngestBatch, func(*polkuv1.Ack)) error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = answer
}

// got returns the ids of each batch so far, separated by spaces.
func (g *gateway) got() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := make([]string, len(g.batches))
	for i, b := range g.batches {
		list[i] = strings.Join(idsOf(b), " ")
	}
	return list
}

// events returns all events so far, each once, in the order of arrival.
func (g *gateway) events() []*eventv1.Event {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []*eventv1.Event
	seen := map[string]bool{}
	for _, b := range g.batches {
		for _, e := range b.GetEvents().GetEvents() {
			if !seen[e.GetId()] {
				seen[e.GetId()] = true
				list = append(list, e)
			}
		}
	}
	return list
}

func (g *gateway) connections() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.streams
}

// logged collects a client's log.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// lab is a running client.
type lab struct {
	*Client
	t    *testing.T
	log  *logged
	stop func()
}

// startClient runs a client that comes back fast, until the test ends or stop
// is called.
func startClient(t *testing.T, address string, change func(*Config), tune ...func(*Client)) *lab {
	l := &lab{t: t, log: &logged{}}
	config := Config{
		Endpoint: address, Source: "tapio", Cluster: "test",
		Log: slog.New(slog.NewTextHandler(l.log, nil)),
	}
	config.Batch.Linger = time.Millisecond
	if change != nil {
		change(&config)
	}
	var err error
	l.Client, err = New(config)
	require.NoError(t, err)
	l.longest = 20 * time.Millisecond
	for _, tune := range tune {
		tune(l.Client)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		assert.NoError(t, l.Run(ctx))
	}()
	l.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(l.stop)
	return l
}

// eventually waits for something to become true.
func (l *lab) eventually(what func() bool, message string) {
	l.t.Helper()
	require.Eventually(l.t, what, patience, time.Millisecond, message)
}

func (l *lab) flush() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	require.NoError(l.t, l.Flush(ctx))
	require.Zero(l.t, l.Pending())
}

// metric reads one metric of the client; labels are as in `code="x"`.
func (l *lab) metric(name, labels string) float64 {
	l.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(l.t, registry.Register(l))
	families, err := registry.Gather()
	require.NoError(l.t, err)
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "polku_client_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			var got []string
			for _, p := range m.GetLabel() {
				got = append(got, fmt.Sprintf("%s=%q", p.GetName(), p.GetValue()))
			}
			if labels == "" || strings.Join(got, ",") == labels {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func (l *lab) lintMetrics() {
	problems, err := testutil.CollectAndLint(l.Client)
	require.NoError(l.t, err)
	require.Empty(l.t, problems)
}

// number makes event n, with a sortable id.
func number(n int) *eventv1.Event {
	return &eventv1.Event{
		Id: fmt.Sprintf("e%07d", n), TimestampUnixNs: time.Date(2026, 3, 4, 5, 6, 7, n, time.UTC).UnixNano(),
		Source: "tapio", EventType: event.KindAgentSignalUnavailable, Severity: eventv1.Severity_SEVERITY_WARNING,
		Metadata: map[string]string{event.TapioSignal: "test", event.TapioReason: "a test"},
	}
}

func numbers(from, to int) string {
	var list []string
	for n := from; n <= to; n++ {
		list = append(list, number(n).GetId())
	}
	return strings.Join(list, " ")
}

func listen(t testing.TB, address string) net.Listener {
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	return l
}
