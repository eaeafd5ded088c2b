// Package tcp watches TCP connections in the kernel: connects that fail,
// connections that the peer resets, and peers that become slow or lossy.
package tcp

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/yairfalse/tapio/bpf"
)

//go:generate bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type tcp_event tcp tcp.bpf.c -- -O2 -Wall -Werror -I../include

// Event is a record of one of the signals from bpf.ConnectRefused to
// bpf.RetransmitSYN. Times are in ns (CLOCK_MONOTONIC) or µs as the names say,
// addresses are IPv6 with IPv4 mapped into it, ports in host order.
type Event = tcpTcpEvent

// PeerKey is what a baseline is learned for.
type PeerKey = tcpPeerKey

// Peer is what the kernel side knows of a peer.
type Peer = tcpPeer

// What an Event says (Event.Kind).
const (
	Failure    = uint8(tcpTcpEventKindTCP_EVENT_FAILURE)
	RTTStart   = uint8(tcpTcpEventKindTCP_EVENT_RTT_START)
	RTTEnd     = uint8(tcpTcpEventKindTCP_EVENT_RTT_END)
	RTTSettled = uint8(tcpTcpEventKindTCP_EVENT_RTT_SETTLED)
	Retransmit = uint8(tcpTcpEventKindTCP_EVENT_RETRANSMIT)
)

// Which side of the connection we are (PeerKey.Role); 0 when nobody knows.
const (
	Client = uint16(tcpRoleROLE_CLIENT)
	Server = uint16(tcpRoleROLE_SERVER)
)

// Options are the constants of the programs; a zero leaves the default of the C source.
type Options struct {
	RTTNormal time.Duration // after which a spike has become what is normal
}

// Linger is how long after its last connection has closed a spike is over
// (rtt_linger_ns in tcp.bpf.c).
const Linger = 5 * time.Second

// Signal is the attached programs.
type Signal struct {
	*bpf.Attachment
	peers *ebpf.Map
}

// Attach loads the programs and attaches them.
func Attach(s *bpf.Shared, o Options) (*Signal, error) {
	spec, err := loadTcp()
	if err != nil {
		return nil, fmt.Errorf("read the embedded object: %w", err)
	}
	constants := bpf.Constants{}
	constants.Set("rtt_normal_ns", uint64(o.RTTNormal))
	a, err := s.Attach(spec, constants)
	if err != nil {
		return nil, err
	}
	return &Signal{Attachment: a, peers: a.Map(tcpMapPeers)}, nil
}

// Peer looks up what is known of a peer now; ok is false when it has been forgotten.
func (s *Signal) Peer(key PeerKey) (p Peer, ok bool) {
	return p, s.peers.Lookup(&key, &p) == nil
}

// Decode views a record as an Event.
func Decode(record []byte) (*Event, error) { return bpf.View[Event](record) }
