package agent

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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
	batches chan *polkuv1.IngestBatch
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
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gateway{batches: make(chan *polkuv1.IngestBatch, 1000)}
	server := grpc.NewServer()
	polkuv1.RegisterGatewayServer(server, g)
	go func() { _ = server.Serve(listener) }() // until Stop
	t.Cleanup(server.Stop)

	l := startLab(t, func(c *Config) {
		c.Polku = polku.Config{Endpoint: listener.Addr().String()}
		c.Node, c.Cluster = "node-1", "prod"
	})
	want := l.refuse(t)
	require.Equal(t, "node-1", want.GetMetadata()[event.K8sNodeName])
	require.Equal(t, "prod", want.GetMetadata()[event.K8sClusterName])
	var got *eventv1.Event
	timeout := time.After(patience)
	for got == nil {
		select {
		case b := <-g.batches:
			require.Equal(t, "tapio", b.GetSource())
			require.Equal(t, "prod", b.GetCluster())
			for _, e := range b.GetEvents().GetEvents() {
				if e.GetId() == want.GetId() {
					got = e
				}
			}
		case <-timeout:
			t.Fatal("the event did not come")
		}
	}
	require.Equal(t, want.GetMetadata(), got.GetMetadata())
	require.Eventually(t, func() bool { return l.metric(t, "polku_client_acked_total", nil) > 0 }, patience, time.Millisecond)
	require.EqualValues(t, 1, l.metric(t, "polku_client_connected", nil))

	// What happens last is delivered before the end.
	last := l.refuse(t)
	l.stop()
	require.NoError(t, <-l.done)
	server.Stop()
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

// collector is a running OpenTelemetry Collector.
type collector struct {
	endpoint string

	mu     sync.Mutex
	output bytes.Buffer
}

func (c *collector) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.output.Write(p)
}

func (c *collector) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.output.String()
}

// startCollector runs the stock collector, as `make` builds it, until the test
// ends.
func startCollector(t *testing.T) *collector {
	binary, err := filepath.Abs("../../../bin/tools/otelcol")
	require.NoError(t, err)
	require.FileExists(t, binary, "make bin/tools/otelcol")
	c := &collector{endpoint: freePort(t)}
	config := filepath.Join(t.TempDir(), "otelcol.yaml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
receivers: {otlp: {protocols: {grpc: {endpoint: %q}}}}
exporters: {debug: {verbosity: detailed}}
service:
  telemetry: {metrics: {level: none}}
  pipelines:
    logs: {receivers: [otlp], exporters: [debug]}
    metrics: {receivers: [otlp], exporters: [debug]}
`, c.endpoint), 0o600))
	cmd := exec.Command(binary, "--config", config)
	cmd.Stdout, cmd.Stderr = c, c
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		assert.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		assert.NoError(t, cmd.Wait(), c.String())
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", c.endpoint)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	}, patience, 20*time.Millisecond, "the collector does not listen: %v", c)
	return c
}

func TestEventsReachACollector(t *testing.T) {
	c := startCollector(t)
	l := startLab(t, func(config *Config) {
		config.OTLP = otlp.Config{Endpoint: "http://" + c.endpoint}
		config.Node, config.Cluster = "node-1", "prod"
	})
	want := l.refuse(t)
	id := "-> tapio.event.id: Str(" + want.GetId() + ")"
	require.Eventually(t, func() bool { return strings.Contains(c.String(), id) }, patience, 20*time.Millisecond)

	var record string // the one with our id
	for _, r := range strings.Split(c.String(), "LogRecord #") {
		if strings.Contains(r, id) {
			record = r
		}
	}
	host, err := os.Hostname()
	require.NoError(t, err)
	m := want.GetMetadata()
	for _, line := range []string{
		"EventName: network.connection_refused",
		"SeverityText: ERROR", "SeverityNumber: Error(17)",
		"Body: Str(connection refused: " + m[event.ProcessExecutableName] + "[" + m[event.ProcessPID] + "] → 127.0.0.1:1 ECONNREFUSED",
		"-> network.peer.address: Str(127.0.0.1)", "-> network.peer.port: Int(1)",
		"-> error.type: Str(ECONNREFUSED)", "-> process.pid: Int(" + m[event.ProcessPID] + ")",
		"Timestamp: " + time.Unix(0, want.GetTimestampUnixNs()).UTC().String(),
	} {
		require.Contains(t, record, line)
	}
	for _, line := range []string{
		"-> service.name: Str(tapio)", "-> host.name: Str(" + host + ")",
		"-> k8s.node.name: Str(node-1)", "-> k8s.cluster.name: Str(prod)",
	} {
		require.Contains(t, c.String(), line)
	}
	require.Eventually(t, func() bool { return l.metric(t, "tapio_otlp_accepted_total", nil) > 0 }, patience, time.Millisecond)

	// The agent's own metrics come at the end at the latest.
	l.stop()
	require.NoError(t, <-l.done)
	require.Eventually(t, func() bool { return strings.Contains(c.String(), "Name: tapio_signal_seen_total") }, patience, 20*time.Millisecond)
	require.Contains(t, c.String(), "Name: tapio_otlp_accepted_total")
	n := l.sentTo(t, "otlp")
	require.Positive(t, n[0])
	require.Equal(t, [2]int{0, 0}, [2]int(n[1:]))
}
