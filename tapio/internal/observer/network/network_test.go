package network

import (
	"bytes"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/bpf/tcp"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/tapio/internal/observer/observertest"
)

// States of include/net/tcp_states.h.
const (
	established = 1
	synSent     = 2
)

// record returns one of a connection from 10.0.0.5:40000 to 10.0.0.7:5432.
func record(s bpf.Signal, kind uint8, change func(*tcp.Event)) *tcp.Event {
	t := &tcp.Event{
		LocalAddress: netip.MustParseAddr("10.0.0.5").As16(),
		LocalPort:    40000,
		PeerPort:     5432,
		Family:       syscall.AF_INET,
		Kind:         kind,
		State:        synSent,
		Segments:     1,
	}
	*bpf.HeadOf(t) = observertest.Head(s, observertest.Pod, "api")
	t.Peer = tcp.PeerKey{CgroupId: observertest.Pod, Port: 5432, Role: tcp.Client, Address: netip.MustParseAddr("10.0.0.7").As16()}
	if change != nil {
		change(t)
	}
	return t
}

func open(t testing.TB) (*Observer, *observertest.Node) {
	n := observertest.New(t)
	o := New(n.Node, tcp.Options{})
	o.spikes = map[tcp.PeerKey]*spike{}
	return o, n
}

func (o *Observer) mustHandle(t *testing.T, r *tcp.Event) *eventv1.Event {
	t.Helper()
	e, weight, err := o.handle(bpftest.Bytes(r))
	require.NoError(t, err)
	assert.Equal(t, uint64(r.Segments), weight)
	return e
}

func TestEvents(t *testing.T) {
	errno := func(e syscall.Errno) func(*tcp.Event) {
		return func(r *tcp.Event) { r.Error, r.DurationNs = uint32(e), 1_500_000 }
	}
	tests := []struct {
		name   string
		record *tcp.Event
	}{
		{"refused", record(bpf.ConnectRefused, tcp.Failure, errno(syscall.ECONNREFUSED))},
		{"connect_timeout", record(bpf.ConnectTimeout, tcp.Failure, errno(syscall.ETIMEDOUT))},
		{"connect_given_up", record(bpf.ConnectTimeout, tcp.Failure, errno(0))},
		{"unreachable", record(bpf.ConnectUnreachable, tcp.Failure, func(r *tcp.Event) {
			r.Error = uint32(syscall.EHOSTUNREACH)
			r.LocalAddress = netip.MustParseAddr("::ffff:0.0.0.0").As16()
			r.LocalPort = 0
		})},
		{"connect_reset", record(bpf.ConnectReset, tcp.Failure, errno(syscall.ECONNRESET))},
		{"port_exhausted", record(bpf.ConnectNoPort, tcp.Failure, func(r *tcp.Event) { r.LocalPort = 0 })},
		{"reset_by_peer", record(bpf.ResetByPeer, tcp.Failure, func(r *tcp.Event) {
			r.State, r.Error = established, uint32(syscall.ECONNRESET)
			r.RttUs, r.BytesSent, r.BytesReceived = 12_345, 100, 1<<40
		})},
		{"peer_timeout", record(bpf.PeerTimeout, tcp.Failure, func(r *tcp.Event) { r.State, r.Error = established, uint32(syscall.ETIMEDOUT) })},
		{"peer_unreachable", record(bpf.PeerUnreachable, tcp.Failure, func(r *tcp.Event) { r.State, r.Error = established, uint32(syscall.ENETUNREACH) })},
		{"unknown_errno", record(bpf.ConnectUnreachable, tcp.Failure, func(r *tcp.Event) { r.Error = 4000 })},
		{"server_role", record(bpf.ResetByPeer, tcp.Failure, func(r *tcp.Event) {
			r.Peer.Role, r.Peer.Port = tcp.Server, 8080
			r.LocalPort, r.PeerPort = 8080, 51234
			r.State, r.Error = established, uint32(syscall.ECONNRESET)
		})},
		{"ipv6", record(bpf.ConnectRefused, tcp.Failure, func(r *tcp.Event) {
			r.Family = syscall.AF_INET6
			r.LocalAddress = netip.MustParseAddr("fd00::5").As16()
			r.Peer.Address = netip.MustParseAddr("fd00::7").As16()
			r.Error = uint32(syscall.ECONNREFUSED)
		})},
		{"ipv4_in_ipv6_socket", record(bpf.ConnectRefused, tcp.Failure, func(r *tcp.Event) {
			r.Family = syscall.AF_INET6
			r.Error = uint32(syscall.ECONNREFUSED)
		})},
		{"unknown_owner", record(bpf.ConnectRefused, tcp.Failure, func(r *tcp.Event) {
			r.Head.CgroupId, r.Head.Suppressed = observertest.Unknown, 17
			r.Error = uint32(syscall.ECONNREFUSED)
		})},
		{"service", record(bpf.ConnectRefused, tcp.Failure, func(r *tcp.Event) {
			r.Head.CgroupId = observertest.Service
			r.Error = uint32(syscall.ECONNREFUSED)
		})},
		{"unknown_process", record(bpf.PeerTimeout, tcp.Failure, func(r *tcp.Event) {
			r.Head.Pid, r.Head.Comm = 0, bpf.Comm{}
			r.State, r.Error = established, uint32(syscall.ETIMEDOUT)
		})},
		{"hostile_names", record(bpf.ConnectRefused, tcp.Failure, func(r *tcp.Event) {
			r.Head.CgroupId, r.Head.Comm = observertest.Hostile, observertest.Comm("\x1b[2J\xff\n")
			r.Error = uint32(syscall.ECONNREFUSED)
		})},
		{"rtt_start", record(bpf.RTT, tcp.RTTStart, func(r *tcp.Event) {
			r.State, r.RttUs, r.BaselineUs, r.WorstUs = established, 61_500, 1_200, 61_500
		})},
		{"rtt_start_without_baseline", record(bpf.RTT, tcp.RTTStart, func(r *tcp.Event) { r.State, r.RttUs, r.WorstUs = established, 750_000, 750_000 })},
		{"rtt_recovered", record(bpf.RTT, tcp.RTTEnd, func(r *tcp.Event) {
			r.State, r.RttUs, r.BaselineUs, r.WorstUs = established, 1_300, 1_200, 98_765
			r.DurationNs = uint64(12_345 * time.Millisecond)
		})},
		{"rtt_became_normal", record(bpf.RTT, tcp.RTTSettled, func(r *tcp.Event) {
			r.State, r.RttUs, r.BaselineUs, r.WorstUs = established, 60_000, 1_200, 98_765
			r.DurationNs = uint64(15 * time.Minute)
		})},
		{"retransmit", record(bpf.Retransmit, tcp.Retransmit, func(r *tcp.Event) {
			r.State, r.RttUs, r.Segments, r.Retransmits, r.TotalRetransmits = established, 900, 3, 12, 40
			r.DurationNs = uint64(4_200 * time.Millisecond)
		})},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o, n := open(t)
			observertest.Golden(t, test.name, o.mustHandle(t, test.record))
			assert.Empty(t, n.Emitted)
		})
	}
}

func TestRecordsWithoutMeaning(t *testing.T) {
	o, n := open(t)
	tests := []struct {
		name   string
		record []byte
		want   string
	}{
		{"short", bpftest.Bytes(record(bpf.RTT, tcp.RTTStart, nil))[:100], "read kernel record: 100 bytes"},
		{"a signal that is only counted", bpftest.Bytes(record(bpf.ResetByUs, tcp.Failure, nil)), "no event for a record of reset/by_us"},
		{"a spike that is a failure", bpftest.Bytes(record(bpf.RTT, tcp.Failure, nil)), "a record of rtt/sample says 0, want 1"},
		{"a failure that is a spike", bpftest.Bytes(record(bpf.ConnectRefused, tcp.RTTEnd, nil)), "a record of connect/refused says 2, want 0"},
		{"a burst that is a failure", bpftest.Bytes(record(bpf.Retransmit, tcp.Failure, nil)), "a record of retransmit/segment says 0, want 4"},
		{"an unknown kind", bpftest.Bytes(record(bpf.RTT, 77, nil)), "a record of rtt/sample says 77, want 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e, weight, err := o.handle(test.record)
			assert.ErrorContains(t, err, test.want)
			assert.Nil(t, e)
			assert.Equal(t, uint64(1), weight)
		})
	}
	assert.Empty(t, o.spikes)
	assert.Empty(t, n.Emitted)
}

func FuzzHandle(f *testing.F) {
	n := observertest.New(f)
	for s := bpf.ConnectRefused; s <= bpf.RetransmitSYN; s++ {
		for kind := range uint8(6) {
			f.Add(bytes.Clone(bpftest.Bytes(record(s, kind, nil))))
		}
	}
	f.Add(bytes.Repeat([]byte{0xff}, len(bpftest.Bytes(&tcp.Event{}))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o := New(n.Node, tcp.Options{})
		o.spikes = map[tcp.PeerKey]*spike{}
		if h, err := bpf.View[bpf.Head](raw); err == nil {
			h.TimeNs = bpf.Now() // an absurd time is refused when the event is sent
		}
		e, _, err := o.handle(raw)
		if err != nil {
			require.Nil(t, e)
			return
		}
		require.NotNil(t, e)
		require.NoError(t, event.Validate(e))
	})
}
