package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	collogpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
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
	return l.await(t, l.connect(t))
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

// collector takes what it gets.
type collector struct {
	collogpb.UnimplementedLogsServiceServer
	address string

	mu     sync.Mutex
	events map[string]bool // ids
}

func startCollector(t *testing.T) *collector {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &collector{address: listener.Addr().String(), events: map[string]bool{}}
	server := grpc.NewServer()
	collogpb.RegisterLogsServiceServer(server, c)
	go func() { _ = server.Serve(listener) }() // until Stop
	t.Cleanup(server.Stop)
	return c
}

// Export implements the protocol.
func (c *collector) Export(_ context.Context, r *collogpb.ExportLogsServiceRequest) (*collogpb.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceLogs() {
		for _, scope := range resource.GetScopeLogs() {
			for _, record := range scope.GetLogRecords() {
				for _, a := range record.GetAttributes() {
					if a.GetKey() == "tapio.event.id" {
						c.events[a.GetValue().GetStringValue()] = true
					}
				}
			}
		}
	}
	return &collogpb.ExportLogsServiceResponse{}, nil
}

// has reports whether all the events have come.
func (c *collector) has(events []*eventv1.Event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !slices.ContainsFunc(events, func(e *eventv1.Event) bool { return !c.events[e.GetId()] })
}

// flood makes as many connections that are refused, each of which is told: a
// control group may have perGroup at once.
func (l *lab) flood(t *testing.T, groups, perGroup int) match {
	t.Helper()
	h := l.start(t, "refused-burst", helperOptions{})
	for i := range groups {
		dir := l.makeCgroup(l.cgroup, "flood-"+strconv.Itoa(i))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(h.pid()), 0))
		h.tell(strconv.Itoa(perGroup))
		require.Equal(t, "done", h.hear())
	}
	require.NoError(t, h.in.Close())
	h.wait()
	return is(event.KindNetworkConnectionRefused, pid(h))
}

// connect makes a connection that is refused.
func (l *lab) connect(t *testing.T) match {
	t.Helper()
	h := l.start(t, "refused", helperOptions{})
	h.tell("127.0.0.1:1")
	h.hear()
	return is(event.KindNetworkConnectionRefused, pid(h))
}

// TestStdoutIsNobodyElsesTrouble: what standard output does not take, or not
// now, the others get all the same.
func TestStdoutIsNobodyElsesTrouble(t *testing.T) {
	t.Run("closed", testStdoutClosed)
	t.Run("blocked", testStdoutBlocked)
	t.Run("blocked for good", testStdoutBlockedForGood)
}

func testStdoutClosed(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	g := startGateway(t)
	l := startLab(t, func(c *Config) {
		c.Polku = polku.Config{Endpoint: g.address}
		c.Stdout = w
	})
	g.await(t, l.connect(t))
	require.Eventually(t, func() bool { return l.metric(t, "tapio_stdout_failures_total", nil) > 0 }, patience, time.Millisecond)
	require.Zero(t, l.metric(t, "tapio_signal_lost_total", nil), "somebody has it")
	l.stop()
	require.NoError(t, <-l.done)
	require.NoError(t, w.Close())
	require.Zero(t, l.sentTo(t, "stdout")[0])
	require.Positive(t, l.sentTo(t, "stdout")[1], "not delivered, and told")
}

// testStdoutBlocked: a pipe that nobody reads, and then somebody.
func testStdoutBlocked(t *testing.T) {
	const groups, perGroup = 80, 50 // more than standard output's queue holds
	r, w, err := os.Pipe()
	require.NoError(t, err)
	g, c := startGateway(t), startCollector(t)
	l := startLab(t, func(config *Config) {
		config.Polku = polku.Config{Endpoint: g.address}
		config.OTLP = otlp.Config{Endpoint: "http://" + c.address}
		config.Stdout = w
	})
	wanted := l.flood(t, groups, perGroup)
	var all, flood []*eventv1.Event // that came to the gateway
	take := func(b *polkuv1.IngestBatch) {
		for _, e := range b.GetEvents().GetEvents() {
			all = append(all, e)
			if wanted(e) {
				flood = append(flood, e)
			}
		}
	}
	timeout := time.After(patience)
	for len(flood) < groups*perGroup {
		select {
		case b := <-g.batches:
			take(b)
		case <-timeout:
			t.Fatalf("only %d of %d events came to the gateway", len(flood), groups*perGroup)
		}
	}
	require.Eventually(t, func() bool { return c.has(flood) }, patience, time.Millisecond)
	require.Positive(t, l.metric(t, "tapio_stdout_lost_total", map[string]string{"reason": "queue_full"}))
	require.Zero(t, l.metric(t, "tapio_signal_lost_total", nil), "others have them")

	ended := make(chan struct{})
	go func() {
		l.read(r)
		close(ended)
	}()
	l.await(t, l.connect(t))
	l.stop()
	require.NoError(t, <-l.done)
	require.NoError(t, w.Close())
	<-ended
	g.server.Stop()
	close(g.batches)
	for b := range g.batches {
		take(b)
	}

	// What the gateway has and standard output has not is what the gap tells.
	lost := 0
	for _, e := range l.all(is(event.KindAgentGap, nil)) {
		n, err := strconv.Atoi(e.GetMetadata()[event.TapioGapEvents])
		require.NoError(t, err)
		lost += n
	}
	require.Positive(t, lost)
	written := l.all(func(e *eventv1.Event) bool { return e.GetEventType() != event.KindAgentGap })
	require.Len(t, all, len(written)+lost)
	position := map[string]int{}
	for i, e := range flood {
		position[e.GetId()] = i
	}
	require.True(t, slices.IsSortedFunc(l.all(wanted), func(a, b *eventv1.Event) int {
		return cmp.Compare(position[a.GetId()], position[b.GetId()])
	}))
	gaps := len(l.all(is(event.KindAgentGap, nil)))
	require.Equal(t, [3]int{len(written) + gaps, 0, lost}, l.sentTo(t, "stdout"))
	for _, name := range []string{"polku", "otlp"} {
		require.Equal(t, [3]int{len(all), 0, 0}, l.sentTo(t, name))
	}
}

// unread is a standard output that blocks whoever writes.
type unread struct{}

// Write implements io.Writer.
func (unread) Write([]byte) (int, error) { select {} }

func testStdoutBlockedForGood(t *testing.T) {
	g := startGateway(t)
	l := startLab(t, func(c *Config) {
		c.Polku = polku.Config{Endpoint: g.address}
		c.Stdout = unread{}
	})
	g.await(t, l.connect(t))
	l.stop()
	require.ErrorContains(t, <-l.done, "nobody reads the output")
	n := l.sentTo(t, "polku")
	require.Positive(t, n[0])
	require.Equal(t, [3]int{0, n[0], 0}, l.sentTo(t, "stdout"), "and the accounting")
}
