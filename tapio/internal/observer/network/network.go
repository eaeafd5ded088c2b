// Package network observes TCP: connects that fail, connections that the peer
// resets or lets die, and peers that become slow or lossy.
package network

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/tcp"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/tapio/internal/feed"
	"github.com/yairfalse/tapio/tapio/internal/observer"
)

// Name is the observer's name on the command line and in messages.
const Name = "network"

// Observer is the network observer. All but Run happens on the feed's goroutine.
type Observer struct {
	node    *observer.Node
	options tcp.Options
	peer    func(tcp.PeerKey) (tcp.Peer, bool)
	now     func() uint64          // CLOCK_MONOTONIC, ns
	spikes  map[tcp.PeerKey]*spike // the last one of each peer
}

// spike is one whose end the kernel side has not told. It tells when a spike
// begins and when the peer recovers; that its last connection closed shows only
// here.
type spike struct {
	startNs uint64
	start   *tcp.Event
	over    bool // at the last look; the record that says so may be on its way
	told    bool // there is no more to tell of it, whatever the kernel side says
}

// maxSpikes bounds the spikes that are followed at once, about 1 MB; of
// further ones only start and recovery are told.
const maxSpikes = 4096

// New returns the observer.
func New(node *observer.Node, options tcp.Options) *Observer {
	return &Observer{node: node, options: options, now: bpf.Now}
}

// Run observes until ctx is done.
func (o *Observer) Run(ctx context.Context, ready func()) error {
	o.spikes = map[tcp.PeerKey]*spike{}
	// The first record may be handled before Attach has returned.
	var attached atomic.Pointer[tcp.Signal]
	o.peer = func(key tcp.PeerKey) (tcp.Peer, bool) {
		if s := attached.Load(); s != nil {
			return s.Peer(key)
		}
		return tcp.Peer{}, false
	}
	sub := &feed.Subscriber{Handlers: map[bpf.Signal]feed.Handler{}, Idle: o.idle}
	for s := bpf.ConnectRefused; s <= bpf.RetransmitSYN; s++ {
		sub.Handlers[s] = o.handle
	}
	return o.node.Watch(ctx, Name, ready, sub, func(s *bpf.Shared) ([]*bpf.Attachment, error) {
		signal, err := tcp.Attach(s, o.options)
		if err != nil {
			return nil, fmt.Errorf("watch TCP: %w", err)
		}
		attached.Store(signal)
		return []*bpf.Attachment{signal.Attachment}, nil
	})
}

func (o *Observer) handle(record []byte) (*eventv1.Event, uint64, error) {
	t, err := tcp.Decode(record)
	if err != nil {
		return nil, 1, err
	}
	weight := uint64(t.Segments)
	kind, err := kindOf(t)
	if err != nil {
		return nil, weight, err
	}
	if o.node.Foreign(bpf.HeadOf(t)) {
		return nil, weight, feed.ErrForeign
	}
	e := o.newEvent(kind, t)
	switch t.Kind {
	case tcp.RTTStart:
		o.supersede(t)
		if o.toldByOtherEnd(t) {
			o.follow(t, true)
			return nil, weight, nil
		}
		o.follow(t, false)
		describeSpike(e, t, event.RTTPhaseStart)
	case tcp.RTTEnd, tcp.RTTSettled:
		o.supersede(t)
		s := o.spikes[t.Peer]
		delete(o.spikes, t.Peer)
		if s != nil && s.told {
			return nil, weight, nil
		}
		describeSpike(e, t, event.RTTPhaseEnd)
		e.Metadata[event.TapioRTTEndedBy] = event.RTTEndedByRecovered
		if t.Kind == tcp.RTTSettled {
			e.Metadata[event.TapioRTTEndedBy] = event.RTTEndedByBecameNormal
		}
	case tcp.Retransmit:
		e.GetNetwork().RetransmitCount = t.Retransmits
		e.Metadata[event.TapioRetransmitCount] = strconv.FormatUint(uint64(t.Retransmits), 10)
		e.Metadata[event.TapioRetransmitWindowMs] = milliseconds(t.DurationNs)
	default:
		e.Metadata[event.ErrorType] = errorType(t)
		if t.DurationNs > 0 {
			e.Metadata[event.TapioNetworkElapsedMs] = milliseconds(t.DurationNs)
		}
	}
	return e, weight, nil
}

// kindOf returns the kind of event that a record stands for.
func kindOf(t *tcp.Event) (string, error) {
	signal := bpf.Signal(t.Head.Signal)
	want := tcp.Failure
	switch {
	case signal == bpf.Retransmit:
		want = tcp.Retransmit
	case signal == bpf.RTT && t.Kind >= tcp.RTTStart && t.Kind <= tcp.RTTSettled:
		want = t.Kind
	case signal == bpf.RTT:
		want = tcp.RTTStart
	}
	if t.Kind != want {
		return "", fmt.Errorf("a record of %s says %d, want %d", signal, t.Kind, want)
	}
	switch signal {
	case bpf.ConnectRefused:
		return event.KindNetworkConnectionRefused, nil
	case bpf.ConnectTimeout, bpf.PeerTimeout:
		return event.KindNetworkConnectionTimeout, nil
	case bpf.ConnectUnreachable, bpf.PeerUnreachable:
		return event.KindNetworkConnectionUnreachable, nil
	case bpf.ConnectReset, bpf.ResetByPeer:
		return event.KindNetworkConnectionReset, nil
	case bpf.ConnectNoPort:
		return event.KindNetworkPortExhausted, nil
	case bpf.RTT:
		return event.KindNetworkRTTSpike, nil
	case bpf.Retransmit:
		return event.KindNetworkRetransmitSpike, nil
	}
	return "", fmt.Errorf("no event for a record of %s", signal)
}

func (o *Observer) newEvent(kind string, t *tcp.Event) *eventv1.Event {
	e, who := o.node.NewEvent(kind, bpf.HeadOf(t))
	local, peer := address(t.LocalAddress), address(t.Peer.Address)
	m := e.Metadata
	m[event.NetworkTransport] = "tcp"
	m[event.NetworkType] = "ipv4"
	if peer.Is6() {
		m[event.NetworkType] = "ipv6"
	}
	m[event.NetworkPeerAddress] = peer.String()
	m[event.NetworkPeerPort] = strconv.Itoa(int(t.PeerPort))
	localIP := "" // a connect that found no way never had one
	if !local.IsUnspecified() {
		localIP = local.String()
		m[event.NetworkLocalAddress] = localIP
	}
	if t.LocalPort != 0 {
		m[event.NetworkLocalPort] = strconv.Itoa(int(t.LocalPort))
	}
	n := &eventv1.NetworkEventData{
		Protocol:      "tcp",
		SrcIp:         localIP,
		SrcPort:       uint32(t.LocalPort),
		DstIp:         peer.String(),
		DstPort:       uint32(t.PeerPort),
		LatencyMs:     float64(t.RttUs) / 1000,
		BytesSent:     t.BytesSent,
		BytesReceived: t.BytesReceived,
		TcpState:      stateName(t.State),
		ProcessName:   m[event.ProcessExecutableName],
		ContainerId:   who.ContainerID,
	}
	// A connection older than the agent may leave open who dialed.
	switch t.Peer.Role {
	case tcp.Client:
		m[event.TapioNetworkRole] = event.RoleClient
		n.Direction = "outbound"
	case tcp.Server:
		m[event.TapioNetworkRole] = event.RoleServer
		n.Direction = "inbound"
		n.SrcIp, n.DstIp = n.DstIp, n.SrcIp
		n.SrcPort, n.DstPort = n.DstPort, n.SrcPort
	}
	e.Data = &eventv1.Event_Network{Network: n}
	return e
}

func describeSpike(e *eventv1.Event, t *tcp.Event, phase string) {
	n, m := e.GetNetwork(), e.Metadata
	n.RttCurrentMs = float64(t.RttUs) / 1000
	m[event.TapioRTTPhase] = phase
	m[event.TapioRTTCurrentMs] = micros(t.RttUs)
	if t.BaselineUs > 0 {
		n.RttBaselineMs = float64(t.BaselineUs) / 1000
		n.RttDegradationPct = 100 * (float64(t.RttUs) - float64(t.BaselineUs)) / float64(t.BaselineUs)
		m[event.TapioRTTBaselineMs] = micros(t.BaselineUs)
	}
	if phase == event.RTTPhaseEnd {
		m[event.TapioRTTWorstMs] = micros(t.WorstUs)
		m[event.TapioRTTDurationS] = strconv.FormatFloat(float64(t.DurationNs)/1e9, 'f', 3, 64)
		e.Severity = eventv1.Severity_SEVERITY_INFO
		e.Outcome = eventv1.Outcome_OUTCOME_SUCCESS
	}
}

// supersede ends the spike that is followed if a record is of a later one of
// the same peer: the record that ended the first was held back, or its last
// connection had closed long enough ago for the kernel side to begin anew.
func (o *Observer) supersede(t *tcp.Event) {
	s := o.spikes[t.Peer]
	began := t.Head.TimeNs - t.DurationNs
	if s == nil || s.startNs == began {
		return
	}
	delete(o.spikes, t.Peer)
	if s.told {
		return
	}
	by := event.RTTEndedByClosed
	if t.Head.Suppressed > 0 {
		by = event.RTTEndedByRecovered
	}
	o.tellEnd(s, tcp.Peer{WorstUs: s.start.RttUs, BadNs: began}, by)
}

// toldByOtherEnd says whether this spike is on already as the other end of the
// same connection saw it: between two processes of one node a slow path is one
// thing to know, and who dialed tells it. The dialing side's own port gives the
// pair away; addresses and the service's port may be translated in between.
func (o *Observer) toldByOtherEnd(t *tcp.Event) bool {
	for _, s := range o.spikes {
		if s.told || s.over {
			continue
		}
		client, server := s.start, t
		if t.Peer.Role == tcp.Client {
			client, server = t, s.start
		}
		if client.Peer.Role == tcp.Client && server.Peer.Role == tcp.Server && client.LocalPort == server.PeerPort {
			return true
		}
	}
	return false
}

// follow remembers a spike that is on; told if nothing of it is to be told.
func (o *Observer) follow(t *tcp.Event, told bool) {
	if len(o.spikes) >= maxSpikes && !o.makeRoom() {
		return
	}
	start := *t
	o.spikes[t.Peer] = &spike{startNs: t.Head.TimeNs, start: &start, told: told}
}

// makeRoom forgets a spike whose end has been told.
func (o *Observer) makeRoom() bool {
	for key, s := range o.spikes {
		if s.told {
			delete(o.spikes, key)
			return true
		}
	}
	return false
}

// forgotten is after how long without a sample a spike counts as idle: its
// connections may have been dropped from the kernel side's tables unseen.
const forgotten = 10 * time.Minute

// idle ends the spikes whose last connection has closed.
func (o *Observer) idle() {
	if len(o.spikes) == 0 {
		return
	}
	now := o.now()
	// Negative for what happened after now was read.
	since := func(ns uint64) time.Duration { return time.Duration(now - ns) }
	for key, s := range o.spikes {
		p, ok := o.peer(key)
		switch by, over := ended(s, p, ok); {
		case over && !s.over:
			s.over = true
		case over:
			delete(o.spikes, key)
			if !s.told {
				o.tellEnd(s, o.known(s, p, ok), by)
			}
		case s.told:
		case p.BadSk == 0 && since(p.ClosedNs) > tcp.Linger:
			// The kernel side forgets it with the next sample and says nothing.
			delete(o.spikes, key)
			o.tellEnd(s, p, event.RTTEndedByClosed)
		case since(p.BadNs) > forgotten:
			s.told = true
			o.tellEnd(s, p, event.RTTEndedByIdle)
		}
	}
}

// ended says whether a spike is over for the kernel side, and how it ended if
// no record tells.
func ended(s *spike, p tcp.Peer, ok bool) (by string, over bool) {
	switch {
	case !ok:
		return event.RTTEndedByIdle, true
	case p.SpikeNs == s.startNs:
		return "", false
	case p.BadSk != 0:
		// The rate limit held the record back.
		return event.RTTEndedByRecovered, true
	}
	return event.RTTEndedByClosed, true
}

// known is what there is to say of the end of a spike that is over.
func (o *Observer) known(s *spike, p tcp.Peer, ok bool) tcp.Peer {
	switch {
	case !ok:
		return tcp.Peer{WorstUs: s.start.RttUs, BadNs: o.now()}
	case p.SpikeNs != 0:
		// The rest is of the next spike.
		return tcp.Peer{WorstUs: s.start.RttUs, BadNs: p.SpikeNs}
	}
	return p
}

// tellEnd tells the end of a spike that the kernel side cannot see.
func (o *Observer) tellEnd(s *spike, p tcp.Peer, by string) {
	t := *s.start
	t.Head.TimeNs = max(p.BadNs, s.startNs)
	t.Head.Suppressed = 0
	t.DurationNs = t.Head.TimeNs - s.startNs
	t.WorstUs = max(p.WorstUs, t.RttUs)
	e := o.newEvent(event.KindNetworkRTTSpike, &t)
	describeSpike(e, &t, event.RTTPhaseEnd)
	e.Metadata[event.TapioRTTEndedBy] = by
	o.node.Feed.Emit(bpf.RTT, e)
}

// Stop ends the spikes that are still on. The feed must have stopped.
func (o *Observer) Stop() {
	for key, s := range o.spikes {
		delete(o.spikes, key)
		if s.told {
			continue
		}
		p, ok := o.peer(key)
		by, over := ended(s, p, ok)
		if over {
			p = o.known(s, p, ok)
		} else {
			by = event.RTTEndedByAgentStopped
		}
		o.tellEnd(s, p, by)
	}
}

func address(a [16]byte) netip.Addr { return netip.AddrFrom16(a).Unmap() }

// errorType names the cause of a failure. The kernel stores no error where the
// application gave up, nor where it had no port to give.
func errorType(t *tcp.Event) string {
	errno := syscall.Errno(t.Error)
	if bpf.Signal(t.Head.Signal) == bpf.ConnectNoPort {
		errno = unix.EADDRNOTAVAIL
	}
	if errno == 0 {
		return event.ErrorTypeTimeout
	}
	if name := unix.ErrnoName(errno); name != "" {
		return name
	}
	return "errno " + strconv.Itoa(int(errno))
}

func stateName(state uint8) string {
	names := [...]string{1: "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING"}
	if int(state) < len(names) {
		return names[state]
	}
	return ""
}

func milliseconds(ns uint64) string { return strconv.FormatFloat(float64(ns)/1e6, 'f', 3, 64) }

func micros(us uint32) string { return strconv.FormatFloat(float64(us)/1000, 'f', 3, 64) }
