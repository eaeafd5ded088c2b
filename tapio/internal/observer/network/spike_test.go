package network

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/tcp"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/tapio/internal/observer/observertest"
)

// watched is an observer with the kernel side's table of peers in the test's hand.
type watched struct {
	*Observer
	t     *testing.T
	node  *observertest.Node
	peers map[tcp.PeerKey]tcp.Peer
}

func watch(t *testing.T) *watched {
	o, n := open(t)
	w := &watched{Observer: o, t: t, node: n, peers: map[tcp.PeerKey]tcp.Peer{}}
	// A machine that has just been started has no hour ago.
	o.now = now
	o.peer = func(key tcp.PeerKey) (tcp.Peer, bool) {
		p, ok := w.peers[key]
		return p, ok
	}
	return w
}

// now is the kernel's clock, a day ahead.
func now() uint64 { return bpf.Now() + uint64(24*time.Hour) }

func ago(d time.Duration) uint64 { return now() - uint64(d) }

// start begins a spike on the kernel side and hands over its record.
func (w *watched) start(at uint64) *tcp.Event {
	w.t.Helper()
	r := record(bpf.RTT, tcp.RTTStart, func(r *tcp.Event) {
		r.Head.TimeNs = at
		r.State, r.RttUs, r.BaselineUs, r.WorstUs = established, 60_000, 1_000, 60_000
	})
	w.peers[r.Peer] = tcp.Peer{SpikeNs: at, BadNs: at, BadSk: 1, ClosedNs: at, WorstUs: 60_000}
	require.NotNil(w.t, w.mustHandle(w.t, r))
	return r
}

// finish is the record that ends the spike of start.
func finish(start *tcp.Event, suppressed uint32) *tcp.Event {
	r := *start
	r.Kind = tcp.RTTEnd
	r.Head.TimeNs = now()
	r.Head.Suppressed = suppressed
	r.DurationNs = r.Head.TimeNs - start.Head.TimeNs
	return &r
}

func (w *watched) change(key tcp.PeerKey, change func(*tcp.Peer)) {
	p := w.peers[key]
	change(&p)
	w.peers[key] = p
}

// told returns how the spikes ended that the observer has told the end of.
func (w *watched) told() []string {
	w.t.Helper()
	var by []string
	for _, e := range w.node.Emitted {
		require.NoError(w.t, event.Validate(e))
		require.Equal(w.t, event.RTTPhaseEnd, e.GetMetadata()[event.TapioRTTPhase])
		require.Equal(w.t, eventv1.Severity_SEVERITY_INFO, e.GetSeverity())
		by = append(by, e.GetMetadata()[event.TapioRTTEndedBy])
	}
	return by
}

func TestSpikeThatGoesOn(t *testing.T) {
	w := watch(t)
	start := w.start(ago(time.Hour))
	// The connection is alive and its last sample is from just now, or even
	// from after the observer looked at the clock.
	w.change(start.Peer, func(p *tcp.Peer) { p.BadNs = now() + uint64(time.Second) })
	w.idle()
	w.idle()
	// It closed, from after the look: not longer ago than the linger.
	w.change(start.Peer, func(p *tcp.Peer) { p.BadSk, p.ClosedNs = 0, now()+uint64(time.Second) })
	w.idle()
	w.idle()
	assert.Empty(t, w.told())
	assert.Len(t, w.spikes, 1)
}

func TestSpikeRecovers(t *testing.T) {
	w := watch(t)
	start := w.start(ago(3 * time.Second))
	w.change(start.Peer, func(p *tcp.Peer) { p.SpikeNs = 0 })
	w.idle() // the record is still in the ring
	assert.Empty(t, w.told())
	e := w.mustHandle(t, finish(start, 0))
	assert.Equal(t, event.RTTEndedByRecovered, e.GetMetadata()[event.TapioRTTEndedBy])
	w.idle()
	w.idle()
	w.Stop()
	assert.Empty(t, w.told(), "nothing is told twice")
	assert.Empty(t, w.spikes)
}

func TestSpikeWhoseEndIsHeldBack(t *testing.T) {
	w := watch(t)
	start := w.start(ago(3 * time.Second))
	w.change(start.Peer, func(p *tcp.Peer) { p.SpikeNs, p.WorstUs, p.BadNs = 0, 99_000, start.Head.TimeNs+uint64(2*time.Second) })
	w.idle()
	assert.Empty(t, w.told(), "the record may be on its way")
	w.idle()
	assert.Equal(t, []string{event.RTTEndedByRecovered}, w.told())
	observertest.Golden(t, "rtt_end_held_back", w.node.Emitted[0])
	w.idle()
	w.Stop()
	assert.Len(t, w.told(), 1)
}

func TestSpikeWhoseLastConnectionCloses(t *testing.T) {
	w := watch(t)
	start := w.start(ago(time.Minute))
	w.change(start.Peer, func(p *tcp.Peer) { p.BadSk, p.ClosedNs = 0, ago(tcp.Linger-time.Second) })
	w.idle()
	assert.Empty(t, w.told(), "another connection may go on with it")
	w.change(start.Peer, func(p *tcp.Peer) { p.ClosedNs = ago(tcp.Linger + time.Second) })
	w.idle()
	assert.Equal(t, []string{event.RTTEndedByClosed}, w.told())
	w.idle()
	w.Stop()
	assert.Len(t, w.told(), 1)
}

func TestSpikeThatIsForgotten(t *testing.T) {
	t.Run("by the kernel side", func(t *testing.T) {
		w := watch(t)
		start := w.start(ago(time.Minute))
		delete(w.peers, start.Peer)
		w.idle()
		w.idle()
		assert.Equal(t, []string{event.RTTEndedByIdle}, w.told())
		assert.Empty(t, w.spikes)
	})
	t.Run("nothing comes any more", func(t *testing.T) {
		w := watch(t)
		start := w.start(ago(time.Hour))
		w.change(start.Peer, func(p *tcp.Peer) { p.BadNs = ago(forgotten + time.Second) })
		w.idle()
		assert.Equal(t, []string{event.RTTEndedByIdle}, w.told())
		// The connection wakes up and recovers after all.
		e := w.mustHandle(t, finish(start, 0))
		assert.Nil(t, e, "its end was told")
		w.idle()
		w.Stop()
		assert.Len(t, w.told(), 1)
		assert.Empty(t, w.spikes)
	})
	t.Run("and then recovers unseen", func(t *testing.T) {
		w := watch(t)
		start := w.start(ago(time.Hour))
		w.change(start.Peer, func(p *tcp.Peer) { p.BadNs = ago(forgotten + time.Second) })
		w.idle()
		w.change(start.Peer, func(p *tcp.Peer) { p.SpikeNs = 0 })
		w.idle()
		w.idle()
		assert.Empty(t, w.spikes)
		assert.Len(t, w.told(), 1)
	})
}

func TestSpikeAfterSpike(t *testing.T) {
	t.Run("the first had closed", func(t *testing.T) {
		w := watch(t)
		w.start(ago(time.Minute))
		second := w.start(ago(time.Second))
		assert.Equal(t, []string{event.RTTEndedByClosed}, w.told())
		assert.Equal(t, second.Head.TimeNs, w.spikes[second.Peer].startNs)
	})
	t.Run("the end of the first was held back", func(t *testing.T) {
		w := watch(t)
		first := w.start(ago(time.Minute))
		second := *first
		second.Head.TimeNs, second.Head.Suppressed = ago(time.Second), 1
		require.NotNil(t, w.mustHandle(t, &second))
		assert.Equal(t, []string{event.RTTEndedByRecovered}, w.told())
	})
	t.Run("the start of the second was held back", func(t *testing.T) {
		w := watch(t)
		first := w.start(ago(time.Minute))
		second := *first
		second.Head.TimeNs = ago(time.Second)
		e := w.mustHandle(t, finish(&second, 2))
		assert.NotNil(t, e, "the end of the second")
		assert.Equal(t, []string{event.RTTEndedByRecovered}, w.told(), "the end of the first")
		assert.Empty(t, w.spikes)
	})
	t.Run("the end of the first was told", func(t *testing.T) {
		w := watch(t)
		first := w.start(ago(time.Hour))
		w.change(first.Peer, func(p *tcp.Peer) { p.BadNs = ago(forgotten + time.Second) })
		w.idle()
		second := w.start(ago(time.Second))
		assert.Len(t, w.told(), 1)
		assert.NotNil(t, w.mustHandle(t, finish(second, 0)))
	})
	t.Run("all of the second was held back", func(t *testing.T) {
		w := watch(t)
		first := w.start(ago(time.Minute))
		next := ago(2 * time.Second)
		w.change(first.Peer, func(p *tcp.Peer) { p.SpikeNs, p.BadNs, p.WorstUs = next, now(), 500_000 })
		w.idle()
		w.idle()
		require.Equal(t, []string{event.RTTEndedByRecovered}, w.told())
		m := w.node.Emitted[0].GetMetadata()
		assert.Equal(t, "60.000", m[event.TapioRTTWorstMs], "not the worst of the second")
		assert.Equal(t, w.node.Feed.Time(next).UnixNano(), w.node.Emitted[0].GetTimestampUnixNs())
	})
}

func TestStop(t *testing.T) {
	w := watch(t)
	w.Stop()
	w.start(ago(2 * time.Second))
	w.Stop()
	assert.Equal(t, []string{event.RTTEndedByAgentStopped}, w.told())
	w.Stop()
	assert.Len(t, w.told(), 1, "nothing is told twice")

	w = watch(t)
	start := w.start(ago(2 * time.Second))
	w.change(start.Peer, func(p *tcp.Peer) { p.SpikeNs = 0 })
	w.Stop()
	assert.Equal(t, []string{event.RTTEndedByRecovered}, w.told(), "it was over before")
}

func TestManySpikes(t *testing.T) {
	w := watch(t)
	key := func(i int) [16]byte { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).As16() }
	start := func(i int) {
		r := record(bpf.RTT, tcp.RTTStart, func(r *tcp.Event) { r.Head.TimeNs, r.Peer.Address, r.RttUs = now(), key(i), 60_000 })
		require.NotNil(t, w.mustHandle(t, r))
		w.peers[r.Peer] = tcp.Peer{SpikeNs: r.Head.TimeNs, BadNs: ago(forgotten + time.Second), BadSk: 1}
	}
	for i := range maxSpikes + 10 {
		start(i)
	}
	assert.Len(t, w.spikes, maxSpikes, "more are told and not followed")
	w.idle()
	assert.Len(t, w.told(), maxSpikes)
	start(maxSpikes + 10)
	assert.Len(t, w.spikes, maxSpikes, "one that was told makes room")
	assert.NotNil(t, w.spikes[tcp.PeerKey{CgroupId: observertest.Pod, Port: 5432, Role: tcp.Client, Address: key(maxSpikes + 10)}])
}

// TestSpikeSeenFromBothEnds: two processes of one node, one slow path between
// them, perhaps with the service's address and port translated.
func TestSpikeSeenFromBothEnds(t *testing.T) {
	w := watch(t)
	client := w.start(ago(time.Minute))
	server := *client
	server.Peer.Role, server.Peer.Port = tcp.Server, 15432
	server.LocalPort, server.PeerPort = 15432, client.LocalPort
	w.peers[server.Peer] = w.peers[client.Peer]
	assert.Nil(t, w.mustHandle(t, &server), "who dialed has told it")
	assert.Nil(t, w.mustHandle(t, finish(&server, 0)))

	// Another connection to the same server is another matter.
	server.PeerPort++
	require.NotNil(t, w.mustHandle(t, &server))
	require.NotNil(t, w.mustHandle(t, finish(&server, 0)))

	// Neither is one that begins when the first is over.
	require.NotNil(t, w.mustHandle(t, finish(client, 0)))
	server.PeerPort--
	require.NotNil(t, w.mustHandle(t, &server))
	w.Stop()
	assert.Equal(t, []string{event.RTTEndedByAgentStopped}, w.told())
}
