package event

import (
	"slices"
	"strings"
)

// Metadata keys. A constant is named after its dotted key. Names without the
// tapio prefix are those of the OpenTelemetry semantic conventions.
const (
	ContainerID           = "container.id"
	ErrorType             = "error.type"
	HostName              = "host.name"
	K8sClusterName        = "k8s.cluster.name"
	K8sContainerName      = "k8s.container.name"
	K8sCronJobName        = "k8s.cronjob.name"
	K8sCronJobUID         = "k8s.cronjob.uid"
	K8sDaemonSetName      = "k8s.daemonset.name"
	K8sDaemonSetUID       = "k8s.daemonset.uid"
	K8sDeploymentName     = "k8s.deployment.name"
	K8sJobName            = "k8s.job.name"
	K8sJobUID             = "k8s.job.uid"
	K8sNamespaceName      = "k8s.namespace.name"
	K8sNodeName           = "k8s.node.name"
	K8sPodIP              = "k8s.pod.ip"
	K8sPodLabel           = "k8s.pod.label." // and the label's own key
	K8sPodName            = "k8s.pod.name"
	K8sPodUID             = "k8s.pod.uid"
	K8sReplicaSetName     = "k8s.replicaset.name"
	K8sReplicaSetUID      = "k8s.replicaset.uid"
	K8sServiceClusterIP   = "k8s.service.cluster_ip"
	K8sStatefulSetName    = "k8s.statefulset.name"
	K8sStatefulSetUID     = "k8s.statefulset.uid"
	NetworkLocalAddress   = "network.local.address"
	NetworkLocalPort      = "network.local.port"
	NetworkPeerAddress    = "network.peer.address"
	NetworkPeerPort       = "network.peer.port"
	NetworkTransport      = "network.transport"
	NetworkType           = "network.type"
	ProcessExecutableName = "process.executable.name"
	ProcessExitCode       = "process.exit.code"
	ProcessLinuxCgroup    = "process.linux.cgroup"
	ProcessParentPID      = "process.parent_pid"
	ProcessPID            = "process.pid"

	TapioAttribution             = "tapio.attribution"
	TapioEventID                 = "tapio.event.id"
	TapioGapBegan                = "tapio.gap.began"
	TapioGapEvents               = "tapio.gap.events"
	TapioK8sDroppedChanges       = "tapio.k8s.dropped_changes"
	TapioK8sDroppedLinks         = "tapio.k8s.dropped_links"
	TapioNetworkElapsedMs        = "tapio.network.elapsed_ms"
	TapioNetworkRole             = "tapio.network.role"
	TapioOOMAnonBytes            = "tapio.oom.anon_bytes"
	TapioOOMCgroup               = "tapio.oom.cgroup"
	TapioOOMConstraint           = "tapio.oom.constraint"
	TapioOOMFileBytes            = "tapio.oom.file_bytes"
	TapioOOMLimitBytes           = "tapio.oom.limit_bytes"
	TapioOOMShmemBytes           = "tapio.oom.shmem_bytes"
	TapioOOMTriggerName          = "tapio.oom.trigger.name"
	TapioOOMTriggerPID           = "tapio.oom.trigger.pid"
	TapioOOMUsageBytes           = "tapio.oom.usage_bytes"
	TapioPeerKind                = "tapio.peer.kind"
	TapioPeerName                = "tapio.peer.name"
	TapioPeerNamespace           = "tapio.peer.namespace"
	TapioPeerOwnerKind           = "tapio.peer.owner.kind"
	TapioPeerOwnerName           = "tapio.peer.owner.name"
	TapioPeerUID                 = "tapio.peer.uid"
	TapioProcessContainerInit    = "tapio.process.container_init"
	TapioProcessCoreDumped       = "tapio.process.core_dumped"
	TapioProcessParentName       = "tapio.process.parent_name"
	TapioProcessRuntimeS         = "tapio.process.runtime_s"
	TapioProcessSignal           = "tapio.process.signal"
	TapioReason                  = "tapio.reason"
	TapioRetransmitCount         = "tapio.retransmit.count"
	TapioRetransmitWindowMs      = "tapio.retransmit.window_ms"
	TapioRTTBaselineMs           = "tapio.rtt.baseline_ms"
	TapioRTTCurrentMs            = "tapio.rtt.current_ms"
	TapioRTTDurationS            = "tapio.rtt.duration_s"
	TapioRTTEndedBy              = "tapio.rtt.ended_by"
	TapioRTTPhase                = "tapio.rtt.phase"
	TapioRTTWorstMs              = "tapio.rtt.worst_ms"
	TapioSchedulerAttemptCount   = "tapio.scheduler.attempt.count"
	TapioSchedulerBaselineMs     = "tapio.scheduler.baseline_ms"
	TapioSchedulerCurrentMs      = "tapio.scheduler.current_ms"
	TapioSchedulerDurationS      = "tapio.scheduler.duration_s"
	TapioSchedulerErrorCount     = "tapio.scheduler.error.count"
	TapioSchedulerExtensionPoint = "tapio.scheduler.extension_point"
	TapioSchedulerGrowthCount    = "tapio.scheduler.growth.count"
	TapioSchedulerInstance       = "tapio.scheduler.instance"
	TapioSchedulerLatency        = "tapio.scheduler.latency"
	TapioSchedulerPhase          = "tapio.scheduler.phase"
	TapioSchedulerPlugin         = "tapio.scheduler.plugin"
	TapioSchedulerPlugins        = "tapio.scheduler.plugins"
	TapioSchedulerPodCount       = "tapio.scheduler.pod.count"
	TapioSchedulerQuantile       = "tapio.scheduler.quantile"
	TapioSchedulerQueue          = "tapio.scheduler.queue"
	TapioSchedulerVictimCount    = "tapio.scheduler.victim.count"
	TapioSchedulerWindowS        = "tapio.scheduler.window_s"
	TapioServiceUnit             = "tapio.service.unit"
	TapioSignal                  = "tapio.signal"
	TapioSuppressed              = "tapio.suppressed"
)

// Values of the keys that allow only some.
const (
	AttributionPartial = "partial"
	AttributionUnknown = "unknown"

	OOMConstraintMemcg  = "memcg"
	OOMConstraintSystem = "system"

	PeerNode    = "Node"
	PeerPod     = "Pod"
	PeerService = "Service"

	RoleClient = "client"
	RoleServer = "server"

	RTTEndedByAgentStopped = "agent_stopped"
	RTTEndedByBecameNormal = "became_normal"
	RTTEndedByClosed       = "closed"
	RTTEndedByIdle         = "idle"
	RTTEndedByRecovered    = "recovered"

	RTTPhaseEnd   = "end"
	RTTPhaseStart = "start"

	SchedulerLatencyAttempt        = "attempt"
	SchedulerLatencyExtensionPoint = "extension_point"
	SchedulerLatencyPod            = "pod"

	SchedulerPhaseEnd     = "end"
	SchedulerPhaseOngoing = "ongoing"
	SchedulerPhaseStart   = "start"
)

// ErrorTypeTimeout is the error.type of an operation that the application gave
// up before the kernel had an answer. Other values are errno names such as
// ECONNREFUSED.
const ErrorTypeTimeout = "timeout"

// Unit says what the text under a key counts.
type Unit string

// The units of metadata values. A value with a unit is a decimal number without
// the unit's name.
const (
	UnitNone         Unit = ""
	UnitBytes        Unit = "bytes"
	UnitCount        Unit = "count"
	UnitMilliseconds Unit = "milliseconds"
	UnitSeconds      Unit = "seconds"
)

// Key describes one metadata key.
type Key struct {
	// Name is the key as it stands in Event.metadata.
	Name string
	// Unit is what the value counts; UnitNone for text and identifiers.
	Unit Unit
	// Values are the only values that are allowed; nil allows any.
	Values []string
	// Description says what the value is, in one sentence.
	Description string
}

// yesOrNo are the values of a key that is a boolean, as strconv.FormatBool
// writes them.
var yesOrNo = []string{"false", "true"}

// keys is the registry, sorted by name. Nothing changes it.
var keys = []Key{
	{Name: ContainerID, Description: "Full id of the container, without a runtime prefix."},
	{Name: ErrorType, Description: "Errno by name, such as `ECONNREFUSED`, `ETIMEDOUT`, `EHOSTUNREACH`, `ENETUNREACH` or `ECONNRESET`; `timeout` when the application gave up first. Of `scheduler.unavailable` the class of what failed: `connection_refused`, `timeout`, `unreachable`, `tls`, `unauthorized`, `forbidden`, `redirect`, `http_status`, `too_large`, `not_metrics`, `token`, `no_leader`, or `restarted`."},
	{Name: HostName, Description: "Name of the node: the one in the Kubernetes API where that is known, else the one that its kernel reports."},
	{Name: K8sClusterName, Description: "Name of the cluster."},
	{Name: K8sContainerName, Description: "Name of the container in the pod's specification."},
	{Name: K8sCronJobName, Description: "Name of the CronJob that made the pod's Job."},
	{Name: K8sCronJobUID, Description: "UID of the CronJob that made the pod's Job."},
	{Name: K8sDaemonSetName, Description: "Name of the DaemonSet that made the pod."},
	{Name: K8sDaemonSetUID, Description: "UID of the DaemonSet that made the pod."},
	{Name: K8sDeploymentName, Description: "Name of the Deployment that made the pod's ReplicaSet."},
	{Name: K8sJobName, Description: "Name of the Job that made the pod."},
	{Name: K8sJobUID, Description: "UID of the Job that made the pod."},
	{Name: K8sNamespaceName, Description: "Namespace of the pod."},
	{Name: K8sNodeName, Description: "Name of the node in the Kubernetes API."},
	{Name: K8sPodIP, Description: "IP address of the pod, the first of several; absent when the pod uses the network of its node."},
	{Name: K8sPodLabel + "<key>", Description: "Value of a label of the pod, for the first 16 in order of their keys; without those whose key names a secret and those that only controllers need."},
	{Name: K8sPodName, Description: "Name of the pod."},
	{Name: K8sPodUID, Description: "UID of the pod in the Kubernetes API; of a static pod that the API does not know (yet), the hash of its manifest."},
	{Name: K8sReplicaSetName, Description: "Name of the ReplicaSet that made the pod."},
	{Name: K8sReplicaSetUID, Description: "UID of the ReplicaSet that made the pod."},
	{Name: K8sServiceClusterIP, Description: "IP address of the Service within the cluster, the first of several."},
	{Name: K8sStatefulSetName, Description: "Name of the StatefulSet that made the pod."},
	{Name: K8sStatefulSetUID, Description: "UID of the StatefulSet that made the pod."},
	{Name: NetworkLocalAddress, Description: "IP address of the observed side."},
	{Name: NetworkLocalPort, Description: "Port of the observed side, 0 to 65535."},
	{Name: NetworkPeerAddress, Description: "IP address of the other side."},
	{Name: NetworkPeerPort, Description: "Port of the other side, 0 to 65535."},
	{Name: NetworkTransport, Description: "Transport: `tcp` or `udp`."},
	{Name: NetworkType, Description: "Network layer: `ipv4` or `ipv6`."},
	{Name: ProcessExecutableName, Description: "Name of the process as the kernel keeps it, at most 15 bytes (comm); absent when it has none."},
	{Name: ProcessExitCode, Description: "Exit code of the process, 0 to 255; 0 beside a signal that ended it."},
	{Name: ProcessLinuxCgroup, Description: "Path of the process's control group, from the root of its hierarchy as the node sees it."},
	{Name: ProcessParentPID, Description: "Process id of the parent in the host's namespace."},
	{Name: ProcessPID, Description: "Process id in the host's namespace; for an OOM kill the victim's."},
	{Name: TapioAttribution, Values: []string{AttributionPartial, AttributionUnknown}, Description: "Set when the owner of the event could not be told: nobody knows its control group (`unknown`), or the pod or container that it belongs to is known by its id only (`partial`)."},
	{Name: TapioEventID, Description: "Id of the event, in formats that have no field for it, such as an OpenTelemetry log record."},
	{Name: TapioGapBegan, Description: "Time of the oldest missing event, RFC 3339; the newest is of the event's own time."},
	{Name: TapioGapEvents, Unit: UnitCount, Description: "Events that are missing because of the gap; absent when their number is not known."},
	{Name: TapioK8sDroppedChanges, Unit: UnitCount, Description: "Changed fields that the event had no room for."},
	{Name: TapioK8sDroppedLinks, Unit: UnitCount, Description: "Links to other objects that the event had no room for."},
	{Name: TapioNetworkElapsedMs, Unit: UnitMilliseconds, Description: "Time from connect() to the failure."},
	{Name: TapioNetworkRole, Values: []string{RoleClient, RoleServer}, Description: "Whether the observed side opened the connection or accepted it."},
	{Name: TapioOOMAnonBytes, Unit: UnitBytes, Description: "Anonymous memory of the victim."},
	{Name: TapioOOMCgroup, Description: "Path of the control group whose limit was hit, which may be a parent of the victim's own."},
	{Name: TapioOOMConstraint, Values: []string{OOMConstraintMemcg, OOMConstraintSystem}, Description: "What ran out: the limit of a control group, or the memory of the node. Absent when the kernel did not tell."},
	{Name: TapioOOMFileBytes, Unit: UnitBytes, Description: "File-backed memory of the victim."},
	{Name: TapioOOMLimitBytes, Unit: UnitBytes, Description: "Memory limit of `tapio.oom.cgroup`."},
	{Name: TapioOOMShmemBytes, Unit: UnitBytes, Description: "Shared memory of the victim."},
	{Name: TapioOOMTriggerName, Description: "Name of the process whose allocation ran into the limit."},
	{Name: TapioOOMTriggerPID, Description: "Process id, in the host's namespace, of the process whose allocation ran into the limit."},
	{Name: TapioOOMUsageBytes, Unit: UnitBytes, Description: "Memory charged to `tapio.oom.cgroup` when its limit was hit."},
	{Name: TapioPeerKind, Values: []string{PeerNode, PeerPod, PeerService}, Description: "What the address of the other side belongs to; absent when that is not known."},
	{Name: TapioPeerName, Description: "Name of the pod, Service or node at the other side."},
	{Name: TapioPeerNamespace, Description: "Namespace of the pod or Service at the other side."},
	{Name: TapioPeerOwnerKind, Description: "Kind of the workload that made the pod at the other side, such as `Deployment`."},
	{Name: TapioPeerOwnerName, Description: "Name of the workload that made the pod at the other side."},
	{Name: TapioPeerUID, Description: "UID of the pod or Service at the other side."},
	{Name: TapioProcessContainerInit, Values: yesOrNo, Description: "Whether the process was PID 1 of its container."},
	{Name: TapioProcessCoreDumped, Values: yesOrNo, Description: "Whether the kernel wrote a core dump."},
	{Name: TapioProcessParentName, Description: "Name of the parent process as the kernel keeps it, at most 15 bytes."},
	{Name: TapioProcessRuntimeS, Unit: UnitSeconds, Description: "Time from the start of the process to its end."},
	{Name: TapioProcessSignal, Description: "Signal that ended the process, by name, such as `SIGSEGV`."},
	{Name: TapioReason, Description: "Why, in words for people."},
	{Name: TapioRetransmitCount, Unit: UnitCount, Description: "Segments that were sent again within the window."},
	{Name: TapioRetransmitWindowMs, Unit: UnitMilliseconds, Description: "Length of the window in which retransmits were counted."},
	{Name: TapioRTTBaselineMs, Unit: UnitMilliseconds, Description: "Round trip time that was learned as normal."},
	{Name: TapioRTTCurrentMs, Unit: UnitMilliseconds, Description: "Round trip time now."},
	{Name: TapioRTTDurationS, Unit: UnitSeconds, Description: "Time from the start of the spike to its end."},
	{Name: TapioRTTEndedBy, Values: []string{RTTEndedByAgentStopped, RTTEndedByBecameNormal, RTTEndedByClosed, RTTEndedByIdle, RTTEndedByRecovered}, Description: "What ended the spike."},
	{Name: TapioRTTPhase, Values: []string{RTTPhaseEnd, RTTPhaseStart}, Description: "Whether the event is the start of a spike or its end."},
	{Name: TapioRTTWorstMs, Unit: UnitMilliseconds, Description: "Highest round trip time during the spike."},
	{Name: TapioSchedulerAttemptCount, Unit: UnitCount, Description: "Attempts within `tapio.scheduler.window_s`: to schedule a pod, for `scheduler.preemption_storm` to preempt others."},
	{Name: TapioSchedulerBaselineMs, Unit: UnitMilliseconds, Description: "What was learned as normal for `tapio.scheduler.current_ms`."},
	{Name: TapioSchedulerCurrentMs, Unit: UnitMilliseconds, Description: "The quantile `tapio.scheduler.quantile` of the latency now."},
	{Name: TapioSchedulerDurationS, Unit: UnitSeconds, Description: "Time since the condition began."},
	{Name: TapioSchedulerErrorCount, Unit: UnitCount, Description: "Scheduling attempts within `tapio.scheduler.window_s` that ended with an error."},
	{Name: TapioSchedulerExtensionPoint, Description: "Extension point of the scheduling framework that takes most of the time, such as `PreBind`."},
	{Name: TapioSchedulerGrowthCount, Unit: UnitCount, Description: "By how many pods the queue grew within `tapio.scheduler.window_s`."},
	{Name: TapioSchedulerInstance, Description: "Host and port of the scheduler whose metrics tell it."},
	{Name: TapioSchedulerLatency, Values: []string{SchedulerLatencyAttempt, SchedulerLatencyExtensionPoint, SchedulerLatencyPod}, Description: "Which latency is high: of a pod from the queue to its node, of one attempt to schedule it, or of one extension point."},
	{Name: TapioSchedulerPhase, Values: []string{SchedulerPhaseEnd, SchedulerPhaseOngoing, SchedulerPhaseStart}, Description: "Whether the condition began, goes on (told once a minute) or is over."},
	{Name: TapioSchedulerPlugin, Description: "Plugin that takes most of the time of `tapio.scheduler.extension_point`, such as `VolumeBinding`; absent when none was sampled."},
	{Name: TapioSchedulerPlugins, Description: "Plugins that refuse pods and how many each, the most first: `NodeResourcesFit=3,TaintToleration=1`. A pod may be refused by several."},
	{Name: TapioSchedulerPodCount, Unit: UnitCount, Description: "Pods that wait: that find no node, or that are in `tapio.scheduler.queue`."},
	{Name: TapioSchedulerQuantile, Description: "Quantile that is told, such as `0.99`."},
	{Name: TapioSchedulerQueue, Description: "Queue of the scheduler: `active`, `backoff`, `unschedulable` or `gated`."},
	{Name: TapioSchedulerVictimCount, Unit: UnitCount, Description: "Pods that were evicted for others within `tapio.scheduler.window_s`."},
	{Name: TapioSchedulerWindowS, Unit: UnitSeconds, Description: "Time in which was counted."},
	{Name: TapioServiceUnit, Description: "Systemd unit that owns the process, for what runs outside of pods."},
	{Name: TapioSignal, Description: "Signal of the agent that the event is about, such as `network`."},
	{Name: TapioSuppressed, Unit: UnitCount, Description: "Events of this signal and control group that the rate limit held back since the last one that was sent."},
}

// Keys returns every metadata key, sorted by name. The caller owns the slice
// and must not change what Values points to.
func Keys() []Key {
	return slices.Clone(keys)
}

// LookupKey finds the description of a metadata key. Keys that are not in the
// registry are allowed in an event; they have no description.
func LookupKey(name string) (Key, bool) {
	i, ok := slices.BinarySearchFunc(keys, name, func(k Key, n string) int {
		return strings.Compare(k.Name, n)
	})
	if !ok {
		return Key{}, false
	}
	return keys[i], true
}
