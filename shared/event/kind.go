package event

import (
	"slices"
	"strings"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Values of Event.event_type. A constant is named after its dotted value.
const (
	KindNetworkConnectionRefused     = "network.connection_refused"
	KindNetworkConnectionTimeout     = "network.connection_timeout"
	KindNetworkConnectionUnreachable = "network.connection_unreachable"
	KindNetworkConnectionReset       = "network.connection_reset"
	KindNetworkPortExhausted         = "network.port_exhausted"
	KindNetworkRTTSpike              = "network.rtt_spike"
	KindNetworkRetransmitSpike       = "network.retransmit_spike"
	KindNetworkDNSFailure            = "network.dns_failure"
	KindNetworkDNSTimeout            = "network.dns_timeout"
	KindNetworkDNSSlow               = "network.dns_slow"

	KindContainerOOMKill        = "container.oom_kill"
	KindContainerExitError      = "container.exit_error"
	KindContainerMemoryPressure = "container.memory_pressure"
	KindContainerCPUThrottling  = "container.cpu_throttling"

	KindNodeMemoryPressure = "node.memory_pressure"
	KindNodeCPUPressure    = "node.cpu_pressure"
	KindNodeIOPressure     = "node.io_pressure"
	KindNodeIPCDegradation = "node.ipc_degradation"

	KindStorageLatencySpike = "storage.latency_spike"
	KindStorageIOError      = "storage.io_error"

	KindSchedulerLatencySpike    = "scheduler.latency_spike"
	KindSchedulerQueueGrowth     = "scheduler.queue_growth"
	KindSchedulerUnschedulable   = "scheduler.unschedulable"
	KindSchedulerErrors          = "scheduler.errors"
	KindSchedulerPreemptionStorm = "scheduler.preemption_storm"
	KindSchedulerUnavailable     = "scheduler.unavailable"

	KindAgentGap               = "agent.gap"
	KindAgentSignalUnavailable = "agent.signal_unavailable"
)

// Data names a field of the event's data oneof.
type Data string

// The fields of the oneof by their protobuf names.
const (
	DataNone      Data = ""
	DataNetwork   Data = "network"
	DataKernel    Data = "kernel"
	DataContainer Data = "container"
	DataK8s       Data = "k8s"
	DataProcess   Data = "process"
	DataResource  Data = "resource"
)

// String returns the name of the field, or "nothing".
func (d Data) String() string {
	if d == DataNone {
		return "nothing"
	}
	return string(d)
}

// Kind describes one kind of event.
type Kind struct {
	// Type is the value of Event.event_type.
	Type string
	// Severity is what New gives the event. An observer that knows better may
	// say so in the event.
	Severity eventv1.Severity
	// Outcome is what New gives the event; unspecified where the kind is not
	// about an operation that ends.
	Outcome eventv1.Outcome
	// Description says in one sentence what happened.
	Description string
	// Data is the field of the oneof that an event of this kind carries.
	Data Data
	// Required are the metadata keys that must be there and not be empty:
	// only what the observer can always know.
	Required []string
}

// connectionKeys is what is known of every connection that failed.
var connectionKeys = []string{NetworkPeerAddress, NetworkPeerPort, ErrorType}

// kinds is the registry, sorted by type. Nothing changes it.
var kinds = []Kind{
	{
		Type:     KindAgentGap,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "The agent did not watch for a while, or lost what it saw: what happened then is not in the record.",
		Data:        DataNone,
	},
	{
		Type:     KindAgentSignalUnavailable,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "A signal cannot be observed on this node; the others go on.",
		Data:        DataNone,
		Required:    []string{TapioSignal, TapioReason},
	},
	{
		Type:     KindContainerCPUThrottling,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "A container was held back by its CPU limit in more scheduling periods than it normally is.",
		Data:        DataContainer,
	},
	{
		Type:     KindContainerExitError,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "A process ended with a non-zero exit code or by a signal that means a fault.",
		Data:        DataProcess,
		Required:    []string{ProcessPID, ProcessExitCode},
	},
	{
		Type:     KindContainerMemoryPressure,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "A container is close to its memory limit and its processes wait for memory.",
		Data:        DataContainer,
	},
	{
		Type:     KindContainerOOMKill,
		Severity: eventv1.Severity_SEVERITY_CRITICAL, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "The kernel killed a process because a memory limit was hit or the node had no memory left.",
		Data:        DataKernel,
		Required:    []string{ProcessPID},
	},
	{
		Type:     KindNetworkConnectionRefused,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "A peer answered a connect with a reset: its host is there and nothing accepts on that port.",
		Data:        DataNetwork,
		Required:    connectionKeys,
	},
	{
		Type:     KindNetworkConnectionReset,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "An established connection was ended by a reset.",
		Data:        DataNetwork,
		Required:    connectionKeys,
	},
	{
		Type:     KindNetworkConnectionTimeout,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_TIMEOUT,
		Description: "A connect, or data on an established connection, was not answered in time.",
		Data:        DataNetwork,
		Required:    connectionKeys,
	},
	{
		Type:     KindNetworkConnectionUnreachable,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "A connect failed because there is no way to the peer's host or network.",
		Data:        DataNetwork,
		Required:    connectionKeys,
	},
	{
		Type:     KindNetworkDNSFailure,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "A name server answered a query with an error.",
		Data:        DataNetwork,
	},
	{
		Type:     KindNetworkDNSSlow,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_SUCCESS,
		Description: "A name server answered a query far later than it normally does.",
		Data:        DataNetwork,
	},
	{
		Type:     KindNetworkDNSTimeout,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_TIMEOUT,
		Description: "A name server did not answer a query.",
		Data:        DataNetwork,
	},
	{
		Type:     KindNetworkPortExhausted,
		Severity: eventv1.Severity_SEVERITY_CRITICAL, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "A connect failed because no local port was free (EADDRNOTAVAIL).",
		Data:        DataNetwork,
		Required:    connectionKeys,
	},
	{
		Type:     KindNetworkRetransmitSpike,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "A connection had to send many segments again within a short time.",
		Data:        DataNetwork,
		Required:    []string{NetworkPeerAddress, NetworkPeerPort, TapioRetransmitCount},
	},
	{
		Type:     KindNetworkRTTSpike,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "The round trip time to a peer rose far above what was learned for it, or came back from there.",
		Data:        DataNetwork,
		Required:    []string{NetworkPeerAddress, TapioRTTPhase, TapioRTTCurrentMs},
	},
	{
		Type:     KindNodeCPUPressure,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "Tasks of the node wait for a processor.",
		Data:        DataResource,
	},
	{
		Type:     KindNodeIOPressure,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "Tasks of the node wait for block I/O.",
		Data:        DataResource,
	},
	{
		Type:     KindNodeIPCDegradation,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "The processors of the node get fewer instructions done per cycle than they normally do.",
		Data:        DataResource,
	},
	{
		Type:     KindNodeMemoryPressure,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "Tasks of the node wait for memory.",
		Data:        DataResource,
	},
	{
		Type:     KindSchedulerErrors,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "Scheduling attempts ended with an error of the scheduler itself.",
		Data:        DataK8s,
	},
	{
		Type:     KindSchedulerLatencySpike,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "The scheduler takes far longer to place a pod than it normally does.",
		Data:        DataK8s,
	},
	{
		Type:     KindSchedulerPreemptionStorm,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "The scheduler evicts many pods to make room for others.",
		Data:        DataK8s,
	},
	{
		Type:     KindSchedulerQueueGrowth,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "More pods wait for the scheduler than it places.",
		Data:        DataK8s,
	},
	{
		Type:     KindSchedulerUnavailable,
		Severity: eventv1.Severity_SEVERITY_CRITICAL, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "The scheduler does not answer, does not let its metrics be read, or none leads: whether pods are placed is not known.",
		Data:        DataK8s,
	},
	{
		Type:     KindSchedulerUnschedulable,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "The scheduler found no node for pods.",
		Data:        DataK8s,
	},
	{
		Type:     KindStorageIOError,
		Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
		Description: "A block device ended a request with an error.",
		Data:        DataResource,
	},
	{
		Type:     KindStorageLatencySpike,
		Severity: eventv1.Severity_SEVERITY_WARNING, Outcome: eventv1.Outcome_OUTCOME_UNSPECIFIED,
		Description: "A block device takes far longer for a request than it normally does.",
		Data:        DataResource,
	},
}

// Kinds returns every kind of event, sorted by type. The caller owns the slice
// and must not change what Required points to.
func Kinds() []Kind {
	return slices.Clone(kinds)
}

// Lookup finds the kind whose Type is eventType.
func Lookup(eventType string) (Kind, bool) {
	i, ok := slices.BinarySearchFunc(kinds, eventType, func(k Kind, t string) int {
		return strings.Compare(k.Type, t)
	})
	if !ok {
		return Kind{}, false
	}
	return kinds[i], true
}
