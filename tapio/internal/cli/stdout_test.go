package cli_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

// gateway acks what it gets and counts connections of this process that were
// refused.
type gateway struct {
	polkuv1.UnimplementedGatewayServer
	address string

	mu      sync.Mutex
	refused int
}

func startGateway(t *testing.T) *gateway {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gateway{address: listener.Addr().String()}
	server := grpc.NewServer()
	polkuv1.RegisterGatewayServer(server, g)
	go func() { _ = server.Serve(listener) }() // until Stop
	t.Cleanup(server.Stop)
	return g
}

// StreamEvents implements the contract.
func (g *gateway) StreamEvents(s grpc.BidiStreamingServer[polkuv1.IngestBatch, polkuv1.Ack]) error {
	for {
		b, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // the agent went away
		}
		ack := &polkuv1.Ack{}
		g.mu.Lock()
		for _, e := range b.GetEvents().GetEvents() {
			ack.EventIds = append(ack.EventIds, e.GetId())
			if e.GetEventType() == event.KindNetworkConnectionRefused && e.GetMetadata()[event.ProcessPID] == strconv.Itoa(os.Getpid()) {
				g.refused++
			}
		}
		g.mu.Unlock()
		if err := s.Send(ack); err != nil {
			return err
		}
	}
}

func (g *gateway) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

// running is an agent in a process of its own.
type running struct {
	cmd *exec.Cmd
	mu  sync.Mutex
	log bytes.Buffer // standard error
}

// Write implements io.Writer.
func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *running) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// startAgent starts an agent that writes to a small pipe, of which the reader is
// returned, and waits until it observes.
func startAgent(t *testing.T, args ...string) (*running, *os.File) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the agent loads kernel programs")
	}
	r, w, err := os.Pipe()
	require.NoError(t, err)
	_, err = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
	require.NoError(t, err)
	a := &running{cmd: exec.Command("/proc/self/exe", append([]string{"--output", "json", "--listen=", "--observer", "network"}, args...)...)}
	a.cmd.Env = []string{child + "1"}
	a.cmd.Stdout, a.cmd.Stderr = w, a
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	require.NoError(t, a.cmd.Start())
	require.NoError(t, w.Close())
	t.Cleanup(func() {
		_ = a.cmd.Process.Kill() // it has ended, unless the test failed
		_ = r.Close()
	})
	require.Eventually(t, func() bool { return strings.Contains(a.String(), "msg=observing") }, patience, time.Millisecond, "%s", a)
	return a, r
}

// refuse makes connections that are refused.
func refuse(t *testing.T, n int) {
	t.Helper()
	for range n {
		_, err := net.Dial("tcp", "127.0.0.1:1")
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
}

// end stops the agent and returns its status.
func (r *running) end(t *testing.T) syscall.WaitStatus {
	t.Helper()
	require.NoError(t, r.cmd.Process.Signal(syscall.SIGTERM))
	return r.wait(t)
}

func (r *running) wait(t *testing.T) syscall.WaitStatus {
	t.Helper()
	_ = r.cmd.Wait() // how it ended is for the test to judge
	status, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	return status
}

// A pipe that nobody reads delays nobody, and the agent ends all the same.
func TestAgentWhoseOutputNobodyReads(t *testing.T) {
	g := startGateway(t)
	a, _ := startAgent(t, "--polku", "http://"+g.address)
	const events = 40 // many times what the pipe holds
	refuse(t, events)
	require.Eventually(t, func() bool { return g.count() >= events }, patience, time.Millisecond)
	require.Equal(t, 1, a.end(t).ExitStatus())
	assert.Regexp(t, `(?m)^tapio: stop: write events to standard output: \d+ are left: nobody reads the output$`, a.String())
	assert.Equal(t, 1, strings.Count(a.String(), "are left"), "said once: %s", a)
	assert.Regexp(t, `(?m)^ +polku +\d{2,} +0 +0$`, a.String())
	assert.Regexp(t, `(?m)^ +stdout +\d+ +\d{2,} +0$`, a.String())
}

// A reader that has gone ends the agent as it ends any program, unless others
// get its events, too.
func TestAgentWhoseReaderGoes(t *testing.T) {
	t.Run("alone", func(t *testing.T) {
		a, r := startAgent(t)
		require.NoError(t, r.Close())
		refuse(t, 1)
		require.Equal(t, syscall.SIGPIPE, a.wait(t).Signal())
	})
	t.Run("with a gateway", func(t *testing.T) {
		g := startGateway(t)
		a, r := startAgent(t, "--polku", "http://"+g.address)
		require.NoError(t, r.Close())
		refuse(t, 1)
		require.Eventually(t, func() bool { return strings.Contains(a.String(), "broken pipe") }, patience, time.Millisecond, "%s", a)
		refuse(t, 1)
		require.Eventually(t, func() bool { return g.count() >= 2 }, patience, time.Millisecond)
		require.Zero(t, a.end(t).ExitStatus(), "%s", a)
		assert.Regexp(t, `(?m)^ +polku +([2-9]|\d{2,}) +0 +0$`, a.String())
		// What others on this machine did before the reader went was delivered.
		assert.Regexp(t, `(?m)^ +stdout +\d+ +([2-9]|\d{2,}) +0$`, a.String())
	})
}
