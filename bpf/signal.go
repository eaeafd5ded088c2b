package bpf

// Signal is one line of the accounting: one thing the kernel programs look
// for, with one reason. It is also the type of a record.
type Signal uint32

// The signals, in the order of enum signal in include/tapio.h.
const (
	ConnectRefused     = Signal(mapsSignalSIGNAL_CONNECT_REFUSED)
	ConnectTimeout     = Signal(mapsSignalSIGNAL_CONNECT_TIMEOUT)
	ConnectUnreachable = Signal(mapsSignalSIGNAL_CONNECT_UNREACHABLE)
	ConnectReset       = Signal(mapsSignalSIGNAL_CONNECT_RESET)
	ConnectNoPort      = Signal(mapsSignalSIGNAL_CONNECT_NO_PORT)   // no local port left
	ConnectAbandoned   = Signal(mapsSignalSIGNAL_CONNECT_ABANDONED) // by the application, early
	ResetByPeer        = Signal(mapsSignalSIGNAL_RESET_BY_PEER)
	ResetByUs          = Signal(mapsSignalSIGNAL_RESET_BY_US)
	PeerTimeout        = Signal(mapsSignalSIGNAL_PEER_TIMEOUT)     // an established connection
	PeerUnreachable    = Signal(mapsSignalSIGNAL_PEER_UNREACHABLE) // an established connection
	PeerLostLate       = Signal(mapsSignalSIGNAL_PEER_LOST_LATE)   // when one side had closed already
	RTT                = Signal(mapsSignalSIGNAL_RTT)              // one a sample
	Retransmit         = Signal(mapsSignalSIGNAL_RETRANSMIT)       // one a segment
	RetransmitSYN      = Signal(mapsSignalSIGNAL_RETRANSMIT_SYN)   // one a segment
	ExitCode           = Signal(mapsSignalSIGNAL_EXIT_CODE)
	ExitSignal         = Signal(mapsSignalSIGNAL_EXIT_SIGNAL)
	ExitStopped        = Signal(mapsSignalSIGNAL_EXIT_STOPPED) // by SIGTERM
	ExitOOM            = Signal(mapsSignalSIGNAL_EXIT_OOM)     // told as OOMKill
	OOMKill            = Signal(mapsSignalSIGNAL_OOM_KILL)
	Cgroup             = Signal(mapsSignalSIGNAL_CGROUP) // bookkeeping, not an anomaly

	SignalCount = int(mapsSignalSIGNAL_COUNT)
)

// String returns "signal/reason" as it appears in metrics and messages.
func (s Signal) String() string { return s.Name() + "/" + s.Reason() }

// Name returns the signal without its reason, such as "connect".
func (s Signal) Name() string { return s.names()[0] }

// Reason returns what tells this line from others of the same name, such as "refused".
func (s Signal) Reason() string { return s.names()[1] }

func (s Signal) names() [2]string {
	switch s {
	case ConnectRefused:
		return [2]string{"connect", "refused"}
	case ConnectTimeout:
		return [2]string{"connect", "timeout"}
	case ConnectUnreachable:
		return [2]string{"connect", "unreachable"}
	case ConnectReset:
		return [2]string{"connect", "reset"}
	case ConnectNoPort:
		return [2]string{"connect", "no_port"}
	case ConnectAbandoned:
		return [2]string{"connect", "abandoned"}
	case ResetByPeer:
		return [2]string{"reset", "by_peer"}
	case ResetByUs:
		return [2]string{"reset", "by_us"}
	case PeerTimeout:
		return [2]string{"peer", "timeout"}
	case PeerUnreachable:
		return [2]string{"peer", "unreachable"}
	case PeerLostLate:
		return [2]string{"peer", "lost_late"}
	case RTT:
		return [2]string{"rtt", "sample"}
	case Retransmit:
		return [2]string{"retransmit", "segment"}
	case RetransmitSYN:
		return [2]string{"retransmit", "syn"}
	case ExitCode:
		return [2]string{"exit", "code"}
	case ExitSignal:
		return [2]string{"exit", "signal"}
	case ExitStopped:
		return [2]string{"exit", "stopped"}
	case ExitOOM:
		return [2]string{"exit", "oom"}
	case OOMKill:
		return [2]string{"oom", "kill"}
	case Cgroup:
		return [2]string{"cgroup", "path"}
	}
	return [2]string{"unknown", "unknown"}
}
