package cli_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/yairfalse/tapio/polku/internal/cli"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

// asPolku in the environment makes the test binary be polku.
const asPolku = "TEST_AS_POLKU"

func TestMain(m *testing.M) {
	if os.Getenv(asPolku) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		code := cli.Run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// process is polku as a process of its own.
type process struct {
	cmd      *exec.Cmd
	gateway  string // addresses
	operator string
	http     string
	ready    chan struct{} // closed when it takes events
	ended    chan error

	mu  sync.Mutex
	log strings.Builder
}

// run starts polku and waits until it takes events. The process is killed when
// the test ends.
func run(t testing.TB, args ...string) *process {
	t.Helper()
	return runIn(t, nil, os.Stderr, args...)
}

// runIn is run with a command line that goes before the program's, and with a
// file for its standard output.
func runIn(t testing.TB, wrap []string, stdout *os.File, args ...string) *process {
	t.Helper()
	p := start(t, wrap, stdout, args...)
	p.awaitReady(t)
	return p
}

// start is runIn without the wait.
func start(t testing.TB, wrap []string, stdout *os.File, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	args = append([]string{
		"--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log-format", "json",
	}, args...)
	line := append(append(wrap, self), args...)
	p := &process{cmd: exec.Command(line[0], line[1:]...), ready: make(chan struct{}), ended: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), asPolku+"=1")
	p.cmd.Stdout = stdout
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			var record struct{ Msg, Address, Operator, HTTP string }
			if json.Unmarshal(lines.Bytes(), &record) == nil && record.Msg == "taking events" {
				p.gateway, p.operator, p.http = record.Address, record.Operator, record.HTTP
				close(p.ready)
			}
		}
		p.ended <- p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		if t.Failed() {
			t.Logf("polku said:\n%s", p.said())
		}
	})
	return p
}

// awaitReady waits until the process takes events.
func (p *process) awaitReady(t testing.TB) {
	t.Helper()
	select {
	case <-p.ready:
	case err := <-p.ended:
		t.Fatalf("polku ended at once: %v\n%s", err, p.said())
	case <-time.After(patience):
		t.Fatalf("polku does not start:\n%s", p.said())
	}
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// kill ends the process as a crash does.
func (p *process) kill(t testing.TB) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Kill())
	require.Error(t, <-p.ended, "it was killed")
}

// stop ends the process as Kubernetes does.
func (p *process) stop(t testing.TB) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-p.ended:
		require.NoError(t, err, p.said())
	case <-time.After(patience):
		t.Fatalf("polku does not stop:\n%s", p.said())
	}
}

// command runs a command of polku against the process.
func (p *process) command(t testing.TB, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	status = cli.Run(t.Context(), append(args, "--operator", p.operator), nil, &out, &errs)
	return status, out.String(), errs.String()
}

// client connects to the gateway.
func (p *process) client(t testing.TB, options ...grpc.DialOption) polkuv1.GatewayClient {
	t.Helper()
	conn, err := grpc.NewClient(p.gateway, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // the gateway may be gone
	return polkuv1.NewGatewayClient(conn)
}

// memory is what a process has in memory, bytes, and the most it had.
func (p *process) memory(t testing.TB) (now, most float64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kib); n == 1 {
			now = kib * 1024
		}
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			most = kib * 1024
		}
	}
	return now, most
}
