package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/shared/polku"
)

// gateway acks what it gets.
type gateway struct {
	polkuv1.UnimplementedGatewayServer
	address string
	server  *grpc.Server
	batches chan *polkuv1.IngestBatch
}

func startGateway(t *testing.T) *gateway {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gateway{address: listener.Addr().String(), server: grpc.NewServer(), batches: make(chan *polkuv1.IngestBatch, 1000)}
	polkuv1.RegisterGatewayServer(g.server, g)
	go func() { _ = g.server.Serve(listener) }() // until Stop
	t.Cleanup(g.server.Stop)
	return g
}

// await returns the first event that comes and matches.
func (g *gateway) await(t *testing.T, m match) *eventv1.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case b := <-g.batches:
			require.Equal(t, "tapio", b.GetSource())
			for _, e := range b.GetEvents().GetEvents() {
				if m(e) {
					return e
				}
			}
		case <-timeout:
			t.Fatal("the event did not come")
		}
	}
}

// StreamEvents implements the contract.
func (g *gateway) StreamEvents(s grpc.BidiStreamingServer[polkuv1.IngestBatch, polkuv1.Ack]) error {
	for {
		b, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // the agent went away
		}
		ack := &polkuv1.Ack{}
		for _, e := range b.GetEvents().GetEvents() {
			ack.EventIds = append(ack.EventIds, e.GetId())
		}
		g.batches <- b
		if err := s.Send(ack); err != nil {
			return err
		}
	}
}

// refuse makes a connection that is refused and returns the event of it.
func (l *lab) refuse(t *testing.T) *eventv1.Event {
	t.Helper()
	h := l.start(t, "refused", helperOptions{})
	h.tell("127.0.0.1:1")
	h.hear()
	return l.await(t, is(event.KindNetworkConnectionRefused, pid(h)))
}

// sentTo reads one line of the summary: delivered, not delivered, lost.
func (l *lab) sentTo(t *testing.T, name string) [3]int {
	t.Helper()
	lines := bufio.NewScanner(bytes.NewReader(l.summary.Bytes()))
	for lines.Scan() {
		var got string
		var n [3]int
		if _, err := fmt.Sscan(lines.Text(), &got, &n[0], &n[1], &n[2]); err == nil && got == name {
			return n
		}
	}
	t.Fatalf("no line for %s in the summary:\n%s", name, l.summary.String())
	return [3]int{}
}

func TestEventsReachAGateway(t *testing.T) {
	g := startGateway(t)
	l := startLab(t, func(c *Config) {
		c.Polku = polku.Config{Endpoint: g.address}
		c.Node, c.Cluster = "node-1", "prod"
	})
	want := l.refuse(t)
	require.Equal(t, "node-1", want.GetMetadata()[event.K8sNodeName])
	require.Equal(t, "prod", want.GetMetadata()[event.K8sClusterName])
	got := g.await(t, func(e *eventv1.Event) bool { return e.GetId() == want.GetId() })
	require.Equal(t, want.GetMetadata(), got.GetMetadata())
	require.Eventually(t, func() bool { return l.metric(t, "polku_client_acked_total", nil) > 0 }, patience, time.Millisecond)
	require.EqualValues(t, 1, l.metric(t, "polku_client_connected", nil))

	// What happens last is delivered before the end.
	last := l.refuse(t)
	l.stop()
	require.NoError(t, <-l.done)
	g.server.Stop()
	close(g.batches)
	arrived := false
	for b := range g.batches {
		for _, e := range b.GetEvents().GetEvents() {
			arrived = arrived || e.GetId() == last.GetId()
		}
	}
	require.True(t, arrived)
	n := l.sentTo(t, "polku")
	require.GreaterOrEqual(t, n[0], 2)
	require.Equal(t, [2]int{0, 0}, [2]int(n[1:]))
}

func TestNobodyThereToDeliverTo(t *testing.T) {
	l := startLab(t, func(c *Config) {
		c.Polku = polku.Config{Endpoint: "http://127.0.0.1:1"}
		c.OTLP = otlp.Config{Endpoint: "http://127.0.0.1:1"}
	})
	l.refuse(t)
	require.Eventually(t, func() bool {
		resp, err := http.Get("http://" + l.listen + "/readyz")
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }() // only read
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return regexp.MustCompile(`(?s)\[\+\] observers.*\[-\] polku: .*connection refused.*\[-\] otlp: .*connection refused`).Match(body)
	}, patience, 10*time.Millisecond)
	l.stop()
	require.NoError(t, <-l.done, "in time")
	for _, name := range []string{"polku", "otlp"} {
		n := l.sentTo(t, name)
		require.Zero(t, n[0])
		require.Positive(t, n[1], "not delivered, and told")
	}
}

// writer is a standard output.
type writer func() error

// Write implements io.Writer.
func (w writer) Write(p []byte) (int, error) { return len(p), w() }

// TestStdoutIsNobodyElsesTrouble: what standard output does not take, or not
// now, the gateway gets all the same.
func TestStdoutIsNobodyElsesTrouble(t *testing.T) {
	connect := func(t *testing.T, l *lab) match {
		h := l.start(t, "refused", helperOptions{})
		h.tell("127.0.0.1:1")
		h.hear()
		return is(event.KindNetworkConnectionRefused, pid(h))
	}
	t.Run("closed", func(t *testing.T) {
		g := startGateway(t)
		l := startLab(t, func(c *Config) {
			c.Polku = polku.Config{Endpoint: g.address}
			c.Stdout = writer(func() error { return syscall.EPIPE })
		})
		e := g.await(t, connect(t, l))
		require.Eventually(t, func() bool {
			return l.metric(t, "tapio_events_total", map[string]string{"event_type": e.GetEventType()}) > 0
		}, patience, time.Millisecond)
		require.Positive(t, l.metric(t, "tapio_sink_failed_events_total", map[string]string{"sink": "stdout"}))
		require.Zero(t, l.metric(t, "tapio_signal_lost_total", nil), "somebody has it")
		l.stop()
		require.NoError(t, <-l.done)
	})
	t.Run("blocked", func(t *testing.T) {
		g := startGateway(t)
		l := startLab(t, func(c *Config) {
			c.Polku = polku.Config{Endpoint: g.address}
			c.Stdout = writer(func() error { select {} })
		})
		g.await(t, connect(t, l))
		l.stop()
		require.ErrorContains(t, <-l.done, "nobody reads the output")
		require.Positive(t, l.sentTo(t, "polku")[0], "and the accounting")
	})
}
