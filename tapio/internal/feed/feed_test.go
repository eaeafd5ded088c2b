package feed_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/bpf/tcp"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/tapio/internal/feed"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// node is a feed on a real ring.
type node struct {
	*feed.Feed
	t      testing.TB
	shared *bpf.Shared
	sender *bpftest.Sender
	log    bytes.Buffer
	sent   []string // types of the events
	broken error    // what emit returns
}

func open(t testing.TB) *node {
	n := &node{t: t, shared: bpftest.Open(t)}
	n.sender = bpftest.NewSender(t, n.shared)
	var err error
	n.Feed, err = feed.Open(n.shared, slog.New(slog.NewTextHandler(&n.log, nil)), func(e *eventv1.Event) error {
		if n.broken != nil {
			return n.broken
		}
		n.sent = append(n.sent, e.GetEventType())
		return nil
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, n.Close()) })
	return n
}

// send sends n records of a signal and has them handled.
func (n *node) send(s bpf.Signal, times int) {
	n.t.Helper()
	require.Equal(n.t, times, n.sender.Send(record(s), times))
	require.NoError(n.t, n.Drain())
}

func (n *node) line(s bpf.Signal) feed.Line {
	n.t.Helper()
	lines, err := n.Accounting()
	require.NoError(n.t, err)
	require.Len(n.t, lines, bpf.SignalCount)
	for i, l := range lines {
		require.Equal(n.t, bpf.Signal(i), l.Signal)
		require.Equal(n.t, l.Seen, l.Kept+l.Suppressed()+l.Lost(), "%s", l.Signal)
	}
	return lines[s]
}

func record(s bpf.Signal) []byte {
	e := &tcp.Event{}
	e.Head.Signal = uint32(s)
	return bpftest.Bytes(e)
}

func named(name string) feed.Handler {
	return func([]byte) (*eventv1.Event, uint64, error) { return &eventv1.Event{EventType: name}, 1, nil }
}

func subscriber(h feed.Handler, signals ...bpf.Signal) *feed.Subscriber {
	s := &feed.Subscriber{Handlers: map[bpf.Signal]feed.Handler{}}
	for _, signal := range signals {
		s.Handlers[signal] = h
	}
	return s
}

func TestRouting(t *testing.T) {
	n := open(t)
	n.Subscribe(subscriber(named("network"), bpf.ConnectRefused, bpf.RTT))
	cancel := n.Subscribe(subscriber(named("container"), bpf.ExitCode))
	n.send(bpf.ExitCode, 1)
	n.send(bpf.ConnectRefused, 2)
	n.send(bpf.RTT, 1)
	assert.Equal(t, []string{"container", "network", "network", "network"}, n.sent)

	n.sent = nil
	cancel()
	n.send(bpf.ExitCode, 3)
	n.send(bpf.RTT, 1)
	assert.Equal(t, []string{"network"}, n.sent)
	assert.Equal(t, feed.Line{Signal: bpf.ExitCode, Seen: 4, Kept: 1, Unclaimed: 3}, n.line(bpf.ExitCode))

	n.sent = nil
	n.Subscribe(subscriber(named("again"), bpf.ExitCode))
	cancel() // of the one before, once more: it must not take the new one away
	n.send(bpf.ExitCode, 1)
	assert.Equal(t, []string{"again"}, n.sent)
}

func TestAccounting(t *testing.T) {
	broken := errors.New("broken pipe")
	tests := []struct {
		name   string
		handle feed.Handler
		broken error
		want   feed.Line // after ten records
	}{
		{"kept", named("x"), nil, feed.Line{Seen: 10, Kept: 10}},
		{"out of scope", func([]byte) (*eventv1.Event, uint64, error) { return nil, 1, nil }, nil, feed.Line{Seen: 10, Scope: 10}},
		{"of another node", func([]byte) (*eventv1.Event, uint64, error) { return nil, 1, feed.ErrForeign }, nil, feed.Line{Seen: 10, Foreign: 10}},
		{"not understood", func([]byte) (*eventv1.Event, uint64, error) { return nil, 1, errors.New("nonsense") }, nil, feed.Line{Seen: 10, Undecodable: 10}},
		{"not understood, of unknown weight", func([]byte) (*eventv1.Event, uint64, error) { return nil, 0, errors.New("nonsense") }, nil, feed.Line{Seen: 10, Undecodable: 10}},
		{"panics", func([]byte) (*eventv1.Event, uint64, error) { panic("oops") }, nil, feed.Line{Seen: 10, Undecodable: 10}},
		{"not sent", named("x"), broken, feed.Line{Seen: 10, Unsent: 10}},
		{"unclaimed", nil, nil, feed.Line{Seen: 10, Unclaimed: 10}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := open(t)
			n.broken = test.broken
			if test.handle != nil {
				n.Subscribe(subscriber(test.handle, bpf.PeerTimeout))
			}
			n.send(bpf.PeerTimeout, 10)
			test.want.Signal = bpf.PeerTimeout
			assert.Equal(t, test.want, n.line(bpf.PeerTimeout))
			assert.Equal(t, feed.Line{Signal: bpf.RTT}, n.line(bpf.RTT), "others have nothing to do with it")
		})
	}
}

func TestAccountingOfALossyRing(t *testing.T) {
	n := open(t)
	n.Subscribe(subscriber(named("x"), bpf.ConnectTimeout))
	took := n.sender.Send(record(bpf.ConnectTimeout), 10_000)
	require.Less(t, took, 10_000, "1 MiB has no room for so many")
	require.NoError(t, n.Drain())
	assert.Len(t, n.sent, took)
	assert.Equal(t, feed.Line{Signal: bpf.ConnectTimeout, Seen: 10_000, Kept: uint64(took), RingFull: uint64(10_000 - took)}, n.line(bpf.ConnectTimeout))
}

func TestEmit(t *testing.T) {
	n := open(t)
	n.Emit(bpf.RTT, &eventv1.Event{EventType: "end"})
	assert.Equal(t, []string{"end"}, n.sent)
	assert.Equal(t, feed.Line{Signal: bpf.RTT, Seen: 1, Kept: 1}, n.line(bpf.RTT))
	n.broken = errors.New("disk full")
	n.Emit(bpf.RTT, &eventv1.Event{EventType: "end"})
	assert.Equal(t, feed.Line{Signal: bpf.RTT, Seen: 2, Kept: 1, Unsent: 1}, n.line(bpf.RTT))
}

// The records of cgroups are bookkeeping: nobody asked for events of them.
func TestCgroupRecordsAreKept(t *testing.T) {
	n := open(t)
	n.Subscribe(subscriber(func([]byte) (*eventv1.Event, uint64, error) { return nil, 1, nil }, bpf.Cgroup))
	n.send(bpf.Cgroup, 4)
	assert.Equal(t, feed.Line{Signal: bpf.Cgroup, Seen: 4, Kept: 4}, n.line(bpf.Cgroup))
}

func TestPanicOfOneHandler(t *testing.T) {
	n := open(t)
	var faults []error
	bad := subscriber(func([]byte) (*eventv1.Event, uint64, error) {
		_, err := tcp.Decode([]byte(strings.Repeat("x", -1)))
		return nil, 1, err
	}, bpf.OOMKill)
	bad.Fault = func(err error) { faults = append(faults, err) }
	n.Subscribe(bad)
	n.Subscribe(subscriber(named("good"), bpf.RTT))
	n.send(bpf.RTT, 1)
	n.send(bpf.OOMKill, 1)
	n.send(bpf.RTT, 1)
	assert.Equal(t, []string{"good", "good"}, n.sent)
	require.Len(t, faults, 1)
	assert.ErrorContains(t, faults[0], "handler panicked: strings: negative Repeat count")
	assert.Contains(t, n.log.String(), "signal=oom/kill")
}

func TestUnknownRecords(t *testing.T) {
	n := open(t)
	n.Subscribe(subscriber(func([]byte) (*eventv1.Event, uint64, error) {
		t.Error("it is nobody's")
		return nil, 1, nil
	}, bpf.ConnectRefused))
	for _, signal := range []uint32{uint32(bpf.SignalCount), 1 << 31, 1<<32 - 1} {
		n.send(bpf.Signal(signal), 1)
	}
	require.Equal(t, 1, n.sender.Send([]byte{1, 2, 3}, 1))
	require.Equal(t, 1, n.sender.Send(nil, 1))
	require.NoError(t, n.Drain())
	assert.Empty(t, n.sent)
	assert.Equal(t, 5, bytes.Count(n.log.Bytes(), []byte("kernel record of an unknown kind")))
	assert.Equal(t, feed.Line{}, n.line(bpf.ConnectRefused), "nothing that was counted is missing")
}

func TestRunAndIdle(t *testing.T) {
	n := open(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	order := []string{}
	s := subscriber(func([]byte) (*eventv1.Event, uint64, error) {
		order = append(order, "record")
		return nil, 1, nil
	}, bpf.RTT)
	s.Idle = func() {
		order = append(order, "idle")
		cancel()
	}
	n.Subscribe(s)
	n.Subscribe(subscriber(nil)) // without Idle
	n.sender.Send(record(bpf.RTT), 2)
	require.NoError(t, n.Run(ctx))
	assert.Equal(t, []string{"record", "record", "idle"}, order)
	assert.WithinRange(t, n.Time(bpf.Now()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

// The books are read while they are kept: no line may ever say less than
// nothing, and what the agent made itself counts on both sides.
func TestAccountingMeanwhile(t *testing.T) {
	n := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n.Subscribe(subscriber(func([]byte) (*eventv1.Event, uint64, error) { return nil, 1, nil }, bpf.RTT))
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(t, n.Run(ctx)) })
	var stop atomic.Bool
	wg.Go(func() {
		for !stop.Load() {
			n.sender.Send(record(bpf.RTT), 8)
		}
	})
	wg.Go(func() {
		for !stop.Load() {
			n.Emit(bpf.OOMKill, &eventv1.Event{})
		}
	})
	for range 2000 {
		lines, err := n.Accounting()
		require.NoError(t, err)
		rtt, kill := lines[bpf.RTT], lines[bpf.OOMKill]
		if !assert.LessOrEqual(t, rtt.Kept, uint64(1<<62), "%+v", rtt) ||
			!assert.Equal(t, kill.Seen, kill.Kept, "%+v", kill) {
			break
		}
	}
	stop.Store(true)
	cancel()
	wg.Wait()
	require.NoError(t, n.Drain())
	l := n.line(bpf.RTT)
	assert.Equal(t, l.Seen, l.Scope+l.RingFull)
	assert.Zero(t, l.Kept)
}

func TestSubscribeMeanwhile(t *testing.T) {
	n := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { assert.NoError(t, n.Run(ctx)) })
	for i := range 4 {
		wg.Go(func() {
			for range 100 {
				n.Subscribe(subscriber(named("x"), bpf.Signal(i)))()
				n.sender.Send(record(bpf.Signal(i)), 1)
			}
		})
	}
	cancel()
	wg.Wait()
}

// BenchmarkRead is the whole read path: records that the kernel has sent, from
// the ring to a handler that wants none of them.
func BenchmarkRead(b *testing.B) {
	n := open(b)
	handled := 0
	n.Subscribe(subscriber(func(record []byte) (*eventv1.Event, uint64, error) {
		if _, err := tcp.Decode(record); err != nil {
			return nil, 1, err
		}
		handled++
		return nil, 1, nil
	}, bpf.ConnectRefused))
	const ring = 5000 // fit into the ring
	one := record(bpf.ConnectRefused)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		require.Equal(b, ring, n.sender.Send(one, ring))
		b.StartTimer()
		if err := n.Drain(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(handled), "ns/record")
	b.ReportMetric(0, "ns/op")
}
