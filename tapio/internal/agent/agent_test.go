package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/tapio/internal/observer/container"
)

// patience is how long a test waits for what must come. It is spent only by a
// test that fails.
const patience = 60 * time.Second

// lab is a running agent and what it has printed.
type lab struct {
	t      *testing.T
	listen string
	stop   context.CancelFunc
	done   chan error
	cgroup string // a directory of our own in cgroup v2

	mu      sync.Mutex
	events  []*eventv1.Event
	changed chan struct{}
	summary bytes.Buffer
}

// startLab runs an agent as a user would, with a few changes.
func startLab(t *testing.T, change func(*Config)) *lab { return startLabOf(t, change, Run) }

func startLabOf(t *testing.T, change func(*Config), run func(context.Context, Config) error) *lab {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it loads kernel programs and makes control groups and network namespaces")
	}
	l := &lab{t: t, changed: make(chan struct{}), done: make(chan error, 1), listen: freePort(t)}
	l.cgroup = l.makeCgroup(cgroup2(t), fmt.Sprintf("tapio-test-%d", os.Getpid()))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	ready := make(chan struct{})
	c := Config{
		Observers: Observers(),
		ExitScope: container.Scope{Containers: true, Services: true},
		Output:    humanoutput.JSON,
		Listen:    l.listen,
		CgroupFS:  "/sys/fs/cgroup",
		ProcFS:    "/proc",
		Stdout:    w,
		Summary:   &l.summary,
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
		Ready:     func() { close(ready) },
	}
	if change != nil {
		change(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	go l.read(r)
	go func() {
		err := run(ctx, c)
		_ = w.Close() // the reader's end of file; nothing is buffered
		l.done <- err
	}()
	t.Cleanup(l.stop)
	select {
	case <-ready:
	case err := <-l.done:
		t.Fatalf("the agent ended: %v", err)
	}
	return l
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { assert.NoError(t, l.Close()) }()
	return l.Addr().String()
}

func (l *lab) read(r io.ReadCloser) {
	defer func() { _ = r.Close() }() // only read
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		e := &eventv1.Event{}
		err := protojson.Unmarshal(lines.Bytes(), e)
		if !assert.NoError(l.t, err, "line %q", lines.Text()) {
			continue
		}
		assert.NoError(l.t, event.Validate(e))
		l.mu.Lock()
		l.events = append(l.events, e)
		close(l.changed)
		l.changed = make(chan struct{})
		l.mu.Unlock()
	}
}

type match func(*eventv1.Event) bool

// is matches events of a kind with the given metadata.
func is(kind string, metadata map[string]string) match {
	return func(e *eventv1.Event) bool {
		if e.GetEventType() != kind {
			return false
		}
		for k, v := range metadata {
			if e.GetMetadata()[k] != v {
				return false
			}
		}
		return true
	}
}

// all returns the events so far that match.
func (l *lab) all(m match) []*eventv1.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*eventv1.Event
	for _, e := range l.events {
		if m(e) {
			found = append(found, e)
		}
	}
	return found
}

// await returns the first event that matches.
func (l *lab) await(t *testing.T, m match) *eventv1.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if found := l.all(m); len(found) > 0 {
			return found[0]
		}
		select {
		case <-changed:
		case err := <-l.done:
			t.Fatalf("the agent ended: %v", err)
		case <-timeout:
			l.mu.Lock()
			defer l.mu.Unlock()
			for _, e := range l.events {
				t.Log(e)
			}
			t.Fatal("the event did not come")
		}
	}
}

// barrier returns when everything that happened before was read: records come
// in the order in which they were made.
func (l *lab) barrier(t *testing.T) {
	t.Helper()
	h := l.start(t, "refused", helperOptions{cgroup: l.makeCgroup(l.cgroup, "barrier-"+strconv.FormatInt(time.Now().UnixNano(), 36))})
	h.tell("127.0.0.1:2")
	h.hear()
	l.await(t, is(event.KindNetworkConnectionRefused, pid(h)))
}

// metric returns the sum of a metric's samples that have all the labels.
func (l *lab) metric(t *testing.T, name string, labels map[string]string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + l.listen + "/metrics")
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }() // only read
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	require.NoError(t, err)
	sum := 0.0
next:
	for _, m := range families[name].GetMetric() {
		got := map[string]string{}
		for _, p := range m.GetLabel() {
			got[p.GetName()] = p.GetValue()
		}
		for k, v := range labels {
			if got[k] != v {
				continue next
			}
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return sum
}

// seen returns the four figures of one line of the accounting.
func (l *lab) seen(t *testing.T, signal, reason string) [4]float64 {
	labels := map[string]string{"signal": signal, "reason": reason}
	return [4]float64{
		l.metric(t, "tapio_signal_seen_total", labels),
		l.metric(t, "tapio_signal_kept_total", labels),
		l.metric(t, "tapio_signal_suppressed_total", labels),
		l.metric(t, "tapio_signal_lost_total", labels),
	}
}

// mountOf finds where a control group hierarchy is mounted.
func mountOf(t *testing.T, wanted func(fstype, options string) bool) string {
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) > 3 && wanted(f[2], f[3]) {
			return f[1]
		}
	}
	return ""
}

func cgroup2(t *testing.T) string {
	dir := mountOf(t, func(fstype, _ string) bool { return fstype == "cgroup2" })
	if dir == "" {
		t.Skip("needs cgroup v2, mounted")
	}
	return dir
}

// memoryRoot returns the root of the hierarchy that has the memory controller
// and the name of its limit.
func memoryRoot(t *testing.T) (dir, limit string) {
	v1 := mountOf(t, func(fstype, options string) bool {
		return fstype == "cgroup" && strings.Contains(","+options+",", ",memory,")
	})
	if v1 != "" {
		return v1, "memory.limit_in_bytes"
	}
	return cgroup2(t), "memory.max"
}

// makeCgroup makes a control group and removes it after the test.
func (l *lab) makeCgroup(parent, name string) string {
	dir := filepath.Join(parent, name)
	require.NoError(l.t, os.Mkdir(dir, 0o755))
	l.t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for {
			err := os.Remove(dir)
			if err == nil || time.Now().After(deadline) {
				assert.NoError(l.t, err, "remove the test's control group")
				return
			}
			// The last process in it is still on its way out.
			time.Sleep(time.Millisecond)
		}
	})
	return dir
}

// process is a running helper.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

type helperOptions struct {
	cgroup  string // cgroup v2 directory to be born in
	network bool   // a network namespace of its own

	pidNamespace bool
	caps         []uintptr
	uid          uint32
}

// start starts a helper. It ends with the test at the latest.
func (l *lab) start(t *testing.T, name string, o helperOptions) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	if o.uid != 0 {
		// The test binary's directory is closed to others, our open file is not.
		cmd = exec.Command("/proc/self/exe")
	}
	cmd.Env = append(os.Environ(), helperVariable+"="+name)
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if o.network {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	}
	if o.pidNamespace {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
	}
	if o.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.uid}
		cmd.SysProcAttr.AmbientCaps = o.caps
	}
	if o.cgroup == "" && l != nil {
		o.cgroup = l.cgroup
	}
	if o.cgroup != "" {
		dir, err := os.Open(o.cgroup)
		require.NoError(t, err)
		defer func() { _ = dir.Close() }() // only read
		cmd.SysProcAttr.UseCgroupFD = true
		cmd.SysProcAttr.CgroupFD = int(dir.Fd())
	}
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	p := &process{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = in.Close() // it may have ended already
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p
}

func (p *process) pid() string { return strconv.Itoa(p.cmd.Process.Pid) }

func (p *process) tell(line string) {
	p.t.Helper()
	_, err := fmt.Fprintln(p.in, line)
	require.NoError(p.t, err)
}

func (p *process) hear() string {
	p.t.Helper()
	require.True(p.t, p.out.Scan(), "the helper ended without a word")
	return p.out.Text()
}

// wait waits for the end and returns its status.
func (p *process) wait() syscall.WaitStatus {
	_ = p.cmd.Wait() // that it fails is what the test wants
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(p.t, ok)
	return status
}

func pid(p *process) map[string]string { return map[string]string{event.ProcessPID: p.pid()} }

// comm is the name of every helper.
func comm(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// containerID makes an id as a container runtime does.
func containerID(seed string) string {
	sum := sha256.Sum256([]byte(seed))
	return hex.EncodeToString(sum[:])
}

func TestAgent(t *testing.T) {
	l := startLab(t, nil)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *lab)
	}{
		{"refused", testRefused},
		{"reset", testReset},
		{"reset of a worker", testWorker},
		{"no local port", testNoPort},
		{"timeout", testTimeout},
		{"unreachable", testUnreachable},
		{"retransmit", testRetransmit},
		{"round trip", testRoundTrip},
		{"slow application", testSlowApplication},
		{"exit code", testExitCode},
		{"exit that is a habit", testHabit},
		{"killed by a signal", testSignal},
		{"ordered stop", testOrderedStop},
		{"container ends", testContainerEnds},
		{"exit out of scope", testOutOfScope},
		{"leader ends first", testLeaderFirst},
		{"oom in a memory cgroup", testOOM},
		{"oom at the parent's limit", testOOMParent},
		{"burst", testBurst},
		{"probes", testProbes},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, l) })
	}
	t.Run("stop", func(t *testing.T) { testStop(t, l) })
}

func testRefused(t *testing.T, l *lab) {
	for _, address := range []string{"127.0.0.1:1", "[::1]:1"} {
		h := l.start(t, "refused", helperOptions{})
		h.tell(address)
		h.hear()
		e := l.await(t, is(event.KindNetworkConnectionRefused, pid(h)))
		host, port, err := net.SplitHostPort(address)
		require.NoError(t, err)
		m := e.GetMetadata()
		family := "ipv4"
		if strings.Contains(host, ":") {
			family = "ipv6"
		}
		assert.Equal(t, host, m[event.NetworkPeerAddress])
		assert.Equal(t, port, m[event.NetworkPeerPort])
		assert.Equal(t, host, m[event.NetworkLocalAddress])
		assert.Equal(t, family, m[event.NetworkType])
		assert.Equal(t, "tcp", m[event.NetworkTransport])
		assert.Equal(t, "ECONNREFUSED", m[event.ErrorType])
		assert.Equal(t, event.RoleClient, m[event.TapioNetworkRole])
		assert.Equal(t, comm(t), m[event.ProcessExecutableName])
		assert.NotEmpty(t, m[event.HostName])
		assert.Contains(t, m[event.ProcessLinuxCgroup], "/tapio-test-")
		assert.Equal(t, "SYN_SENT", e.GetNetwork().GetTcpState())
		assert.Equal(t, "outbound", e.GetNetwork().GetDirection())
		assert.Equal(t, host, e.GetNetwork().GetDstIp())
		assert.EqualValues(t, 1, e.GetNetwork().GetDstPort())
		assert.Equal(t, "tapio", e.GetSource())
		assert.Equal(t, eventv1.Outcome_OUTCOME_FAILURE, e.GetOutcome())
		l.barrier(t)
		assert.Len(t, l.all(is(event.KindNetworkConnectionRefused, pid(h))), 1)
	}
}

func testReset(t *testing.T, l *lab) {
	h := l.start(t, "reset", helperOptions{})
	port := h.hear()

	h.tell("client")
	assert.Contains(t, h.hear(), "connection reset")
	e := l.await(t, is(event.KindNetworkConnectionReset, map[string]string{
		event.ProcessPID: h.pid(), event.TapioNetworkRole: event.RoleClient,
	}))
	m := e.GetMetadata()
	assert.Equal(t, "127.0.0.1", m[event.NetworkPeerAddress])
	assert.Equal(t, port, m[event.NetworkPeerPort])
	assert.Equal(t, "ECONNRESET", m[event.ErrorType])
	assert.Equal(t, comm(t), m[event.ProcessExecutableName])
	assert.Equal(t, "ESTABLISHED", e.GetNetwork().GetTcpState())
	assert.EqualValues(t, 6, e.GetNetwork().GetBytesSent(), "5 bytes and the SYN, as the kernel counts")

	h.tell("server")
	assert.Contains(t, h.hear(), "connection reset")
	e = l.await(t, is(event.KindNetworkConnectionReset, map[string]string{
		event.ProcessPID: h.pid(), event.TapioNetworkRole: event.RoleServer,
	}))
	m = e.GetMetadata()
	assert.Equal(t, port, m[event.NetworkLocalPort])
	assert.Equal(t, "ECONNRESET", m[event.ErrorType])
	assert.Equal(t, "inbound", e.GetNetwork().GetDirection())
	assert.Equal(t, port, strconv.Itoa(int(e.GetNetwork().GetDstPort())))
	l.barrier(t)
	assert.Len(t, l.all(is(event.KindNetworkConnectionReset, pid(h))), 2, "the side that cuts has no failure")
}

// testWorker: the process is the one that serves, not the one that listens.
func testWorker(t *testing.T, l *lab) {
	h := l.start(t, "master", helperOptions{})
	worker := h.hear()
	e := l.await(t, is(event.KindNetworkConnectionReset, map[string]string{
		event.ProcessPID: worker, event.TapioNetworkRole: event.RoleServer,
	}))
	assert.Equal(t, comm(t), e.GetMetadata()[event.ProcessExecutableName])
	h.tell("end")
	require.Equal(t, 0, h.wait().ExitStatus())
}

func testNoPort(t *testing.T, l *lab) {
	h := l.start(t, "no-port", helperOptions{network: true})
	assert.Contains(t, h.hear(), "cannot assign requested address")
	e := l.await(t, is(event.KindNetworkPortExhausted, pid(h)))
	assert.Equal(t, "127.0.0.1", e.GetMetadata()[event.NetworkPeerAddress])
	assert.Equal(t, "80", e.GetMetadata()[event.NetworkPeerPort])
	assert.Equal(t, "EADDRNOTAVAIL", e.GetMetadata()[event.ErrorType])
	assert.Empty(t, e.GetMetadata()[event.NetworkLocalPort])
}

func startPath(t *testing.T, l *lab) *process {
	h := l.start(t, "path", helperOptions{network: true})
	require.Equal(t, "ready", h.hear())
	return h
}

func testTimeout(t *testing.T, l *lab) {
	h := startPath(t, l)
	before := l.seen(t, "connect", "abandoned")
	h.tell("connect " + blackHole + ":80 50ms")
	assert.Contains(t, h.hear(), "timeout")
	h.tell("connect " + blackHole + ":81 800ms")
	assert.Contains(t, h.hear(), "timeout")
	e := l.await(t, is(event.KindNetworkConnectionTimeout, pid(h)))
	m := e.GetMetadata()
	assert.Equal(t, blackHole, m[event.NetworkPeerAddress])
	assert.Equal(t, "81", m[event.NetworkPeerPort], "who gives up at once had no failure")
	assert.Equal(t, event.ErrorTypeTimeout, m[event.ErrorType])
	elapsed, err := strconv.ParseFloat(m[event.TapioNetworkElapsedMs], 64)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, elapsed, 790.0)
	after := l.seen(t, "connect", "abandoned")
	assert.GreaterOrEqual(t, after[2], before[2]+1, "counted as suppressed")

	h.tell("kernel-timeout " + blackHole + ":82")
	assert.Contains(t, h.hear(), "timed out")
	e = l.await(t, is(event.KindNetworkConnectionTimeout, map[string]string{event.ProcessPID: h.pid(), event.NetworkPeerPort: "82"}))
	assert.Equal(t, "ETIMEDOUT", e.GetMetadata()[event.ErrorType])
}

func testUnreachable(t *testing.T, l *lab) {
	h := startPath(t, l)
	h.tell("connect " + unreachable + ":80 30s")
	assert.Contains(t, h.hear(), "no route to host")
	e := l.await(t, is(event.KindNetworkConnectionUnreachable, pid(h)))
	assert.Equal(t, unreachable, e.GetMetadata()[event.NetworkPeerAddress])
	assert.Equal(t, "80", e.GetMetadata()[event.NetworkPeerPort])
	assert.Equal(t, "EHOSTUNREACH", e.GetMetadata()[event.ErrorType])
}

func testRetransmit(t *testing.T, l *lab) {
	h := startPath(t, l)
	h.tell("chat")
	_, port, err := net.SplitHostPort(h.hear())
	require.NoError(t, err)
	h.tell("drop on")
	// Either the question is lost or the answer: that side sends again.
	e := l.await(t, is(event.KindNetworkRetransmitSpike, pid(h)))
	h.tell("drop off")
	m := e.GetMetadata()
	assert.Equal(t, farEnd, m[event.NetworkPeerAddress])
	ours, theirs := port, echoPort
	if m[event.TapioNetworkRole] == event.RoleServer {
		ours, theirs = theirs, ours
	}
	assert.Equal(t, ours, m[event.NetworkLocalPort])
	assert.Equal(t, theirs, m[event.NetworkPeerPort])
	assert.Equal(t, comm(t), m[event.ProcessExecutableName])
	count, err := strconv.Atoi(m[event.TapioRetransmitCount])
	require.NoError(t, err)
	assert.GreaterOrEqual(t, count, 3)
	assert.EqualValues(t, count, e.GetNetwork().GetRetransmitCount())
}

func testRoundTrip(t *testing.T, l *lab) {
	// A control group of its own, for nothing to be known of the peer.
	h := l.start(t, "path", helperOptions{network: true, cgroup: l.makeCgroup(l.cgroup, "round-trip")})
	require.Equal(t, "ready", h.hear())
	h.tell("delay 1ms")
	h.tell("chat")
	_, port, err := net.SplitHostPort(h.hear())
	require.NoError(t, err)
	// The baseline is learned from four samples, one a second.
	labels := map[string]string{"signal": "rtt"}
	for first := l.metric(t, "tapio_signal_seen_total", labels); l.metric(t, "tapio_signal_seen_total", labels) < first+20; {
		time.Sleep(100 * time.Millisecond)
	}
	h.tell("delay 60ms")
	// Both ends are on this machine; one of them tells, whichever is first.
	spike := func(phase string) match {
		return is(event.KindNetworkRTTSpike, map[string]string{event.ProcessPID: h.pid(), event.TapioRTTPhase: phase})
	}
	start := l.await(t, spike(event.RTTPhaseStart))
	m := start.GetMetadata()
	assert.Equal(t, farEnd, m[event.NetworkPeerAddress])
	ours, theirs := port, echoPort
	if m[event.TapioNetworkRole] == event.RoleServer {
		ours, theirs = theirs, ours
	}
	assert.Equal(t, ours, m[event.NetworkLocalPort])
	assert.Equal(t, theirs, m[event.NetworkPeerPort])
	assert.Equal(t, comm(t), m[event.ProcessExecutableName])
	baseline, current := start.GetNetwork().GetRttBaselineMs(), start.GetNetwork().GetRttCurrentMs()
	assert.Greater(t, baseline, 2.0, "1 ms each way")
	assert.Greater(t, current, 2*baseline)
	assert.InDelta(t, 100*(current-baseline)/baseline, start.GetNetwork().GetRttDegradationPct(), 0.01)

	h.tell("delay 1ms")
	end := l.await(t, spike(event.RTTPhaseEnd))
	m = end.GetMetadata()
	assert.Equal(t, event.RTTEndedByRecovered, m[event.TapioRTTEndedBy])
	worst, err := strconv.ParseFloat(m[event.TapioRTTWorstMs], 64)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, worst, current)
	duration, err := strconv.ParseFloat(m[event.TapioRTTDurationS], 64)
	require.NoError(t, err)
	assert.Greater(t, duration, 0.9)
	assert.Len(t, l.all(spike(event.RTTPhaseStart)), 1)
	assert.Len(t, l.all(spike(event.RTTPhaseEnd)), 1)

	// A spike whose connection closes is over, too.
	h.tell("delay 60ms")
	require.Eventually(t, func() bool { return len(l.all(spike(event.RTTPhaseStart))) == 2 }, patience, 10*time.Millisecond)
	h.tell("hang-up")
	require.Eventually(t, func() bool { return len(l.all(spike(event.RTTPhaseEnd))) == 2 }, patience, 10*time.Millisecond)
	assert.Equal(t, event.RTTEndedByClosed, l.all(spike(event.RTTPhaseEnd))[1].GetMetadata()[event.TapioRTTEndedBy])
}

// testSlowApplication is about what is not wrong with the network.
func testSlowApplication(t *testing.T, l *lab) {
	h := l.start(t, "think", helperOptions{network: true, cgroup: l.makeCgroup(l.cgroup, "think")})
	require.Equal(t, "done", h.hear())
	l.barrier(t)
	assert.Empty(t, l.all(func(e *eventv1.Event) bool {
		return e.GetEventType() == event.KindNetworkRTTSpike && strings.HasSuffix(e.GetMetadata()[event.ProcessLinuxCgroup], "/think")
	}))
}

// testContainerEnds: when process 1 ends, the kernel kills the rest.
func testContainerEnds(t *testing.T, l *lab) {
	dir, id := inContainer(l, "ends")
	before := l.seen(t, "exit", "stopped")
	h := l.start(t, "container", helperOptions{cgroup: dir, pidNamespace: true})
	require.Equal(t, "ready", h.hear())
	h.tell("end")
	require.Equal(t, 0, h.wait().ExitStatus())
	l.barrier(t)
	assert.Empty(t, l.all(is(event.KindContainerExitError, map[string]string{event.ContainerID: id})))
	after := l.seen(t, "exit", "stopped")
	assert.Equal(t, before[0]+1, after[0])

	// Its own failure is told, and that the container ended with it.
	dir, id = inContainer(l, "fails")
	h = l.start(t, "exit", helperOptions{cgroup: dir, pidNamespace: true})
	h.wait()
	e := l.await(t, is(event.KindContainerExitError, pid(h)))
	assert.Equal(t, "true", e.GetMetadata()[event.TapioProcessContainerInit])
	assert.Equal(t, id, e.GetMetadata()[event.ContainerID])
}

// inContainer makes a control group named as a container's.
func inContainer(l *lab, seed string) (dir, id string) {
	id = containerID(l.cgroup + seed)
	return l.makeCgroup(l.cgroup, "cri-containerd-"+id+".scope"), id
}

func testExitCode(t *testing.T, l *lab) {
	dir, id := inContainer(l, "exit")
	h := l.start(t, "exit", helperOptions{cgroup: dir})
	require.Equal(t, 3, h.wait().ExitStatus())
	e := l.await(t, is(event.KindContainerExitError, pid(h)))
	m := e.GetMetadata()
	assert.Equal(t, "3", m[event.ProcessExitCode])
	assert.Equal(t, comm(t), m[event.ProcessExecutableName])
	assert.Equal(t, id, m[event.ContainerID])
	assert.Contains(t, m[event.ProcessLinuxCgroup], id)
	assert.Equal(t, strconv.Itoa(os.Getpid()), m[event.ProcessParentPID])
	assert.Equal(t, comm(t), m[event.TapioProcessParentName])
	assert.Equal(t, "false", m[event.TapioProcessContainerInit])
	assert.NotContains(t, m, event.TapioProcessSignal)
	assert.EqualValues(t, 3, e.GetProcess().GetExitCode())
	runtime, err := strconv.ParseFloat(m[event.TapioProcessRuntimeS], 64)
	require.NoError(t, err)
	assert.Less(t, runtime, patience.Seconds())
	assert.InDelta(t, runtime, e.GetProcess().GetEndTime().AsTime().Sub(e.GetProcess().GetStartTime().AsTime()).Seconds(), 0.001)
	l.barrier(t)
	assert.Len(t, l.all(is(event.KindContainerExitError, pid(h))), 1)
}

func testHabit(t *testing.T, l *lab) {
	dir, id := inContainer(l, "habit")
	before := l.seen(t, "exit", "code")
	for range 8 {
		h := l.start(t, "exit", helperOptions{cgroup: dir})
		h.wait()
	}
	l.barrier(t)
	assert.Len(t, l.all(is(event.KindContainerExitError, map[string]string{event.ContainerID: id})), 5)
	after := l.seen(t, "exit", "code")
	assert.GreaterOrEqual(t, after[0]-before[0], 8.0)
	assert.GreaterOrEqual(t, after[2]-before[2], 3.0)
}

func testSignal(t *testing.T, l *lab) {
	dir, id := inContainer(l, "signal")
	h := l.start(t, "segfault", helperOptions{cgroup: dir})
	require.Equal(t, unix.SIGSEGV, h.wait().Signal())
	e := l.await(t, is(event.KindContainerExitError, pid(h)))
	assert.Equal(t, "SIGSEGV", e.GetMetadata()[event.TapioProcessSignal])
	assert.Equal(t, "0", e.GetMetadata()[event.ProcessExitCode])
	assert.Equal(t, id, e.GetMetadata()[event.ContainerID])
	assert.EqualValues(t, 128+int(unix.SIGSEGV), e.GetProcess().GetExitCode())
}

func testOrderedStop(t *testing.T, l *lab) {
	dir, _ := inContainer(l, "stop")
	h := l.start(t, "wait", helperOptions{cgroup: dir})
	h.hear()
	before := l.seen(t, "exit", "stopped")
	require.NoError(t, h.cmd.Process.Signal(unix.SIGTERM))
	require.Equal(t, unix.SIGTERM, h.wait().Signal())
	l.barrier(t)
	assert.Empty(t, l.all(is(event.KindContainerExitError, pid(h))))
	after := l.seen(t, "exit", "stopped")
	assert.Equal(t, before[0]+1, after[0])
	assert.Equal(t, before[2]+1, after[2])
}

func testOutOfScope(t *testing.T, l *lab) {
	h := l.start(t, "exit", helperOptions{})
	h.wait()
	l.barrier(t)
	assert.Empty(t, l.all(is(event.KindContainerExitError, pid(h))), "neither a container nor a service")
	assert.GreaterOrEqual(t, l.metric(t, "tapio_signal_suppressed_total", map[string]string{"signal": "exit", "why": "scope"}), 1.0)
}

func testLeaderFirst(t *testing.T, l *lab) {
	dir, _ := inContainer(l, "leader")
	h := l.start(t, "leader-first", helperOptions{cgroup: dir})
	require.Equal(t, 4, h.wait().ExitStatus())
	e := l.await(t, is(event.KindContainerExitError, pid(h)))
	assert.Equal(t, "4", e.GetMetadata()[event.ProcessExitCode])
	l.barrier(t)
	assert.Len(t, l.all(is(event.KindContainerExitError, pid(h))), 1, "once a process, not a thread")
}

const oomLimit = 48 << 20

// startInMemory starts a helper below a limited memory cgroup; on cgroup v1 it
// joins the memory hierarchy and cgroup v2, as a container runtime does.
func startInMemory(t *testing.T, l *lab, seed string, nested bool) (h *process, limited, id string) {
	root, limit := memoryRoot(t)
	v1 := limit == "memory.limit_in_bytes"
	name := fmt.Sprintf("tapio-test-%d-%s", os.Getpid(), seed)
	outer := l.makeCgroup(root, name)
	require.NoError(t, os.WriteFile(filepath.Join(outer, limit), []byte(strconv.Itoa(oomLimit)), 0))
	if !v1 {
		require.NoError(t, os.WriteFile(filepath.Join(outer, "memory.swap.max"), []byte("0"), 0))
	}
	inner := outer
	id = containerID(name)
	scope := "cri-containerd-" + id + ".scope"
	if nested {
		if !v1 {
			require.NoError(t, os.WriteFile(filepath.Join(outer, "cgroup.subtree_control"), []byte("+memory"), 0))
		}
		inner = l.makeCgroup(outer, scope)
	}
	born := inner
	if v1 {
		born = l.makeCgroup(l.cgroup, scope)
	} else if !nested {
		born = outer
	}
	h = l.start(t, "allocate", helperOptions{cgroup: born})
	if v1 {
		require.NoError(t, os.WriteFile(filepath.Join(inner, "cgroup.procs"), []byte(h.pid()), 0))
	}
	h.tell("go")
	require.Equal(t, unix.SIGKILL, h.wait().Signal())
	return h, strings.TrimPrefix(outer, root), id
}

func testOOM(t *testing.T, l *lab) {
	h, limited, _ := startInMemory(t, l, "oom", false)
	assertOOM(t, l, h, limited)
}

func testOOMParent(t *testing.T, l *lab) {
	h, limited, id := startInMemory(t, l, "oom-parent", true)
	e := assertOOM(t, l, h, limited)
	assert.Equal(t, id, e.GetMetadata()[event.ContainerID])
}

func assertOOM(t *testing.T, l *lab, h *process, limited string) *eventv1.Event {
	e := l.await(t, is(event.KindContainerOOMKill, pid(h)))
	m := e.GetMetadata()
	number := func(key string) int {
		n, err := strconv.Atoi(m[key])
		assert.NoError(t, err, key)
		return n
	}
	assert.Equal(t, comm(t), m[event.ProcessExecutableName])
	assert.Equal(t, event.OOMConstraintMemcg, m[event.TapioOOMConstraint])
	assert.Equal(t, limited, m[event.TapioOOMCgroup])
	assert.Equal(t, oomLimit, number(event.TapioOOMLimitBytes))
	assert.InDelta(t, oomLimit, number(event.TapioOOMUsageBytes), float64(os.Getpagesize()))
	// What the process had before it joined counts, too.
	assert.Greater(t, number(event.TapioOOMAnonBytes), oomLimit/2)
	assert.Less(t, number(event.TapioOOMAnonBytes), 2*oomLimit)
	assert.GreaterOrEqual(t, number(event.TapioOOMShmemBytes), sharedMemory)
	assert.LessOrEqual(t, number(event.TapioOOMShmemBytes), sharedMemory+4<<20+programInMemory(t))
	assert.GreaterOrEqual(t, number(event.TapioOOMFileBytes), 0)
	assert.Equal(t, h.pid(), m[event.TapioOOMTriggerPID])
	assert.Equal(t, comm(t), m[event.TapioOOMTriggerName])
	assert.EqualValues(t, h.cmd.Process.Pid, e.GetKernel().GetOomVictimPid())
	assert.Equal(t, eventv1.Severity_SEVERITY_CRITICAL, e.GetSeverity())
	l.barrier(t)
	assert.Len(t, l.all(is(event.KindContainerOOMKill, pid(h))), 1)
	assert.Empty(t, l.all(is(event.KindContainerExitError, pid(h))), "the exit is folded into the kill")
	return e
}

// programInMemory is how much of this program may count as shared memory: all of it
// in a small VM, whose files lie there.
func programInMemory(t *testing.T) int {
	program, err := os.Executable()
	require.NoError(t, err)
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(program, &fs))
	if fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC {
		return 0
	}
	info, err := os.Stat(program)
	require.NoError(t, err)
	return int(info.Size())
}

func testBurst(t *testing.T, l *lab) {
	const connects = 10_000
	before := l.seen(t, "connect", "refused")
	h := l.start(t, "refused-burst", helperOptions{cgroup: l.makeCgroup(l.cgroup, "burst")})
	h.tell(strconv.Itoa(connects))
	require.Equal(t, "done", h.hear())
	l.barrier(t)
	after := l.seen(t, "connect", "refused")
	seen, kept, suppressed, lost := after[0]-before[0], after[1]-before[1], after[2]-before[2], after[3]-before[3]
	assert.Equal(t, float64(connects+1), seen, "and the barrier's own")
	assert.Equal(t, seen, kept+suppressed+lost)
	assert.Zero(t, lost)
	assert.GreaterOrEqual(t, kept, 50.0)
	assert.Equal(t, int(kept)-1, len(l.all(is(event.KindNetworkConnectionRefused, pid(h)))))
}

func testProbes(t *testing.T, l *lab) {
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "[+] observers\n[+] stdout\nready\n"} {
		resp, err := http.Get("http://" + l.listen + path)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.Equal(t, want, string(body))
	}
	bytes := l.metric(t, "tapio_kernel_map_bytes", nil)
	assert.Greater(t, bytes, float64(1<<20), "the ring buffer alone")
	assert.LessOrEqual(t, bytes, float64(16<<20))
	assert.Equal(t, 2.0, l.metric(t, "tapio_observer_up", nil))
}

func testStop(t *testing.T, l *lab) {
	l.stop()
	require.NoError(t, <-l.done)
	lines := bufio.NewScanner(bytes.NewReader(l.summary.Bytes()))
	require.True(t, lines.Scan())
	assert.Equal(t, []string{"signal", "seen", "kept", "suppressed", "lost"}, strings.Fields(lines.Text()))
	n := 0
	for ; lines.Scan() && !strings.Contains(lines.Text(), "sent to"); n++ {
		var name string
		var seen, kept, suppressed, lost uint64
		_, err := fmt.Sscan(lines.Text(), &name, &seen, &kept, &suppressed, &lost)
		require.NoError(t, err, lines.Text())
		assert.Equal(t, seen, kept+suppressed+lost, lines.Text())
		assert.Zero(t, lost, lines.Text())
	}
	assert.Positive(t, n)
	written := l.sentTo(t, "stdout")
	assert.Equal(t, [2]int{0, 0}, [2]int(written[1:]))
	assert.Eventually(t, func() bool {
		return len(l.all(func(*eventv1.Event) bool { return true })) == written[0]
	}, patience, time.Millisecond)
}

// TestBecameNormal: a peer that stays slow is no news for ever.
func TestBecameNormal(t *testing.T) {
	l := startLab(t, func(c *Config) { c.TCP.RTTNormal = 2 * time.Second })
	h := startPath(t, l)
	h.tell("chat")
	h.hear()
	labels := map[string]string{"signal": "rtt"}
	for first := l.metric(t, "tapio_signal_seen_total", labels); l.metric(t, "tapio_signal_seen_total", labels) < first+20; {
		time.Sleep(100 * time.Millisecond)
	}
	// Where others keep the processors busy the path, which runs in a process, is
	// slow at times without being told: more than that, and it stays so. A short
	// spike may come before.
	h.tell("delay 200ms")
	end := l.await(t, is(event.KindNetworkRTTSpike, map[string]string{
		event.ProcessPID: h.pid(), event.TapioRTTPhase: event.RTTPhaseEnd, event.TapioRTTEndedBy: event.RTTEndedByBecameNormal,
	}))
	assert.NotEmpty(t, l.all(is(event.KindNetworkRTTSpike, map[string]string{event.ProcessPID: h.pid(), event.TapioRTTPhase: event.RTTPhaseStart})))
	duration, err := strconv.ParseFloat(end.GetMetadata()[event.TapioRTTDurationS], 64)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, duration, 2.0)
	l.stop()
	require.NoError(t, <-l.done)
}

// TestUnavailable: an observer that cannot attach says so, and the others go on.
func TestUnavailable(t *testing.T) {
	l := startLabOf(t, nil, func(ctx context.Context, c Config) error {
		a := newAgent(c)
		if err := a.open(ctx); err != nil {
			return err
		}
		a.supervisor.Tasks[slices.Index(c.Observers, container.Name)].Run = func(context.Context, func()) error {
			return errors.New("watch exits: no such tracepoint")
		}
		return a.run(ctx)
	})
	e := l.await(t, is(event.KindAgentSignalUnavailable, map[string]string{event.TapioSignal: container.Name}))
	assert.Contains(t, e.GetMetadata()[event.TapioReason], "no such tracepoint; next try in")
	l.barrier(t) // the network observer observes
	assert.Equal(t, 1.0, l.metric(t, "tapio_observer_up", nil))
	resp, err := http.Get("http://" + l.listen + "/readyz")
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	assert.Contains(t, string(body), "no such tracepoint")
	l.stop()
	require.NoError(t, <-l.done)
}

// TestObserversThatDoNotEnd: the kernel may take long to detach programs, which
// costs nobody events.
func TestObserversThatDoNotEnd(t *testing.T) {
	release := make(chan struct{})
	l := startLabOf(t, nil, func(ctx context.Context, c Config) error {
		a := newAgent(c)
		if err := a.open(ctx); err != nil {
			return err
		}
		task := &a.supervisor.Tasks[slices.Index(c.Observers, container.Name)]
		observe := task.Run
		task.Run = func(ctx context.Context, ready func()) error {
			err := observe(ctx, ready)
			<-release
			return err
		}
		return a.run(ctx)
	})
	t.Cleanup(func() { close(release) })
	l.refuse(t)
	l.stop()
	require.NoError(t, <-l.done)
	assert.Regexp(t, `connect/refused +[1-9]`, l.summary.String())
}

func TestReasonIsValidText(t *testing.T) {
	for _, text := range []string{
		"short", "two\nlines", strings.Repeat("\xff", 5000), strings.Repeat("a\xff", 5000),
		strings.Repeat("€", 2000), "a" + strings.Repeat("€", 2000), "aa" + strings.Repeat("€", 2000),
	} {
		e := event.NewFactory().New(event.KindAgentSignalUnavailable, time.Now(), "tapio")
		e.Metadata[event.TapioSignal], e.Metadata[event.TapioReason] = "exit", reason(errors.New(text))
		assert.NoError(t, event.Validate(e), "%.20q", text)
	}
	assert.Equal(t, "two lines", reason(errors.New("two\nlines")))
}

// TestUnprivileged runs the agent as nobody with just the two capabilities.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a child the capabilities and nothing else")
	}
	var none *lab
	h := none.start(t, "agent", helperOptions{uid: 65534, caps: []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}})
	require.Equal(t, "ready", h.hear())
	c := none.start(t, "refused", helperOptions{})
	c.tell("127.0.0.1:1")
	c.hear()
	for {
		e := &eventv1.Event{}
		require.NoError(t, protojson.Unmarshal([]byte(h.hear()), e))
		require.NotEqual(t, event.KindAgentSignalUnavailable, e.GetEventType(), e)
		if e.GetMetadata()[event.ProcessPID] == c.pid() {
			assert.Equal(t, event.KindNetworkConnectionRefused, e.GetEventType())
			break
		}
	}
	require.NoError(t, h.cmd.Process.Signal(unix.SIGTERM))
	assert.Equal(t, 0, h.wait().ExitStatus())
}

func unprivilegedAgent(*bufio.Scanner) {
	ctx, cancel := context.WithCancel(context.Background())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	go func() { <-stop; cancel() }()
	must(Run(ctx, Config{
		Observers: Observers(), Output: humanoutput.JSON, CgroupFS: "/sys/fs/cgroup", ProcFS: "/proc",
		Stdout: os.Stdout, Summary: io.Discard, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Ready: func() { say("ready") },
	}))
}
