package otlp_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/tapio/internal/agent"
	"github.com/yairfalse/tapio/tapio/internal/observer/network"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// collector is a running OpenTelemetry Collector.
type collector struct {
	endpoint string

	output
}

// output collects what is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// startCollector runs the stock collector, as `make` builds it, until the test
// ends.
func startCollector(t *testing.T) *collector {
	binary, err := filepath.Abs("../../../../bin/tools/otelcol")
	require.NoError(t, err)
	require.FileExists(t, binary, "make bin/tools/otelcol")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	c := &collector{endpoint: l.Addr().String()}
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

// refused makes a connection that is refused and waits for the event of it.
func refused(t *testing.T, stdout *output) *eventv1.Event {
	_, err := net.Dial("tcp", "127.0.0.1:1")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	var found *eventv1.Event
	require.Eventually(t, func() bool {
		for line := range strings.Lines(stdout.String()) {
			e := &eventv1.Event{}
			if protojson.Unmarshal([]byte(line), e) == nil &&
				e.GetEventType() == event.KindNetworkConnectionRefused && e.GetMetadata()[event.ProcessPID] == fmt.Sprint(os.Getpid()) {
				found = e
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond)
	return found
}

// TestAgentAndCollector runs the agent beside the stock collector.
func TestAgentAndCollector(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the agent loads kernel programs")
	}
	c := startCollector(t)
	var stdout, summary output
	ready := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- agent.Run(ctx, agent.Config{
			Observers: []string{network.Name}, Output: humanoutput.JSON, CgroupFS: "/sys/fs/cgroup", ProcFS: "/proc",
			Node: "node-1", Cluster: "prod",
			OTLP:   otlp.Config{Endpoint: "http://" + c.endpoint},
			Stdout: &stdout, Summary: &summary, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Ready: func() { close(ready) },
		})
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatalf("the agent ended: %v", err)
	}

	want := refused(t, &stdout)
	id := "-> tapio.event.id: Str(" + want.GetId() + ")"
	require.Eventually(t, func() bool { return strings.Contains(c.String(), id) }, patience, 20*time.Millisecond)
	var record string // the one with our id
	for _, r := range strings.Split(c.String(), "LogRecord #") {
		if strings.Contains(r, id) {
			record = r
		}
	}
	m := want.GetMetadata()
	for _, line := range []string{
		"EventName: network.connection_refused",
		"SeverityText: ERROR", "SeverityNumber: Error(17)",
		"Body: Str(connection refused: " + m[event.ProcessExecutableName] + "[" + m[event.ProcessPID] + "] → 127.0.0.1:1 ECONNREFUSED",
		"-> network.peer.address: Str(127.0.0.1)", "-> network.peer.port: Int(1)",
		"-> error.type: Str(ECONNREFUSED)", "-> process.pid: Int(" + m[event.ProcessPID] + ")",
		"Timestamp: " + time.Unix(0, want.GetTimestampUnixNs()).UTC().String(),
	} {
		assert.Contains(t, record, line)
	}
	for _, line := range []string{
		"-> service.name: Str(tapio)", "-> host.name: Str(node-1)",
		"-> k8s.node.name: Str(node-1)", "-> k8s.cluster.name: Str(prod)",
	} {
		assert.Contains(t, c.String(), line)
	}

	// The agent's own metrics come at the end at the latest.
	stop()
	require.NoError(t, <-done)
	require.Eventually(t, func() bool { return strings.Contains(c.String(), "Name: tapio_signal_seen_total") }, patience, 20*time.Millisecond)
	assert.Contains(t, c.String(), "Name: tapio_otlp_accepted_total")
	assert.Regexp(t, `otlp +[1-9][0-9]* +0 +0`, summary.String())
}
