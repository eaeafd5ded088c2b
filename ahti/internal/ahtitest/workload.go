package ahtitest

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Workload makes events as a cluster of some pods does: mostly changes of
// objects, and now and then something that fails. The same numbers always give
// the same events.
type Workload struct {
	Pods    int
	Start   time.Time
	Step    time.Duration // between two events
	Cluster string
}

// Sizes of the cluster, by what is usual.
const (
	podsPerNode       = 40
	podsPerDeployment = 5
	namespaces        = 20
)

// Event returns the event with a number.
func (w Workload) Event(n int) *ahtiv1.AhtiEvent {
	// Steps that share no factor with the number of pods visit all of them.
	pod := n * 7919 % w.Pods
	at := timestamppb.New(w.Start.Add(time.Duration(n) * w.Step))
	deployment, node := pod/podsPerDeployment, pod%max(1, w.Pods/podsPerNode)
	namespace := fmt.Sprintf("team-%d", deployment%namespaces)
	name := fmt.Sprintf("app-%d-5d8f7c9b4-%05d", deployment, pod)
	nodeName := fmt.Sprintf("node-%d", node)
	containerID := fmt.Sprintf("%064x", pod)
	podRef := &ahtiv1.EntityReference{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: uid("pod", pod), ClusterId: w.Cluster}
	nodeRef := &ahtiv1.EntityReference{Type: ahtiv1.EntityType_ENTITY_TYPE_NODE, Id: nodeName, ClusterId: w.Cluster}
	setRef := &ahtiv1.EntityReference{Type: ahtiv1.EntityType_ENTITY_TYPE_REPLICASET, Id: uid("set", deployment), ClusterId: w.Cluster}
	containerRef := &ahtiv1.EntityReference{Type: ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, Id: containerID, ClusterId: w.Cluster}
	e := &ahtiv1.AhtiEvent{
		Id: fmt.Sprintf("01K5%022d", n), Timestamp: at, Cluster: w.Cluster, Namespace: namespace,
		Labels: map[string]string{
			"k8s.cluster.name": w.Cluster, "k8s.namespace.name": namespace, "k8s.pod.name": name, "k8s.pod.uid": podRef.GetId(),
			"k8s.node.name": nodeName, "k8s.container.name": "app", "container.id": containerID,
		},
		Entities: []*ahtiv1.Entity{
			{
				Type: podRef.GetType(), Id: podRef.GetId(), Name: name, ClusterId: w.Cluster, Namespace: namespace,
				Labels:     map[string]string{"app": fmt.Sprintf("app-%d", deployment), "pod-template-hash": "5d8f7c9b4"},
				Attributes: map[string]string{"k8s.pod.ip": fmt.Sprintf("10.%d.%d.%d", pod>>16, pod>>8&255, pod&255)},
				State:      ahtiv1.EntityState_ENTITY_STATE_ACTIVE,
			},
			{Type: containerRef.GetType(), Id: containerID, Name: "app", ClusterId: w.Cluster, Namespace: namespace},
			{Type: nodeRef.GetType(), Id: nodeName, Name: nodeName, ClusterId: w.Cluster},
			{Type: setRef.GetType(), Id: setRef.GetId(), Name: fmt.Sprintf("app-%d-5d8f7c9b4", deployment), ClusterId: w.Cluster, Namespace: namespace},
		},
		Relationships: []*ahtiv1.Relationship{
			{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, Source: podRef, Target: containerRef},
			{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_SCHEDULED_ON, Source: podRef, Target: nodeRef},
			{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, Source: setRef, Target: podRef},
		},
	}
	switch {
	case n%50 == 7: // one of fifty is a symptom
		e.Type, e.Subtype, e.Source = ahtiv1.EventType_EVENT_TYPE_CONTAINER, "container.oom_kill", "tapio"
		e.Severity, e.Outcome = eventv1.Severity_SEVERITY_CRITICAL, eventv1.Outcome_OUTCOME_FAILURE
		e.Labels["process.pid"], e.Labels["process.executable.name"] = "4711", "app"
		e.Labels["tapio.oom.limit_bytes"], e.Labels["tapio.oom.constraint"] = "134217728", "memcg"
		e.Data = &ahtiv1.AhtiEvent_Kernel{Kernel: &eventv1.KernelEventData{EventType: "oom_kill", Pid: 4711, OomVictimComm: "app"}}
	case n%5 == 1:
		e.Type, e.Subtype, e.Source = ahtiv1.EventType_EVENT_TYPE_NETWORK, "network.connection_refused", "tapio"
		e.Severity, e.Outcome = eventv1.Severity_SEVERITY_ERROR, eventv1.Outcome_OUTCOME_FAILURE
		e.Labels["network.peer.address"], e.Labels["network.peer.port"], e.Labels["error.type"] = "10.0.0.7", "5432", "ECONNREFUSED"
		e.Data = &ahtiv1.AhtiEvent_Network{Network: &eventv1.NetworkEventData{Protocol: "tcp", SrcIp: "10.0.0.9", DstIp: "10.0.0.7", SrcPort: 41234, DstPort: 5432, Direction: "outbound"}}
	default:
		e.Type, e.Subtype, e.Source = ahtiv1.EventType_EVENT_TYPE_POD, "k8s.pod.updated", "portti"
		e.Severity = eventv1.Severity_SEVERITY_INFO
		e.Data = &ahtiv1.AhtiEvent_K8S{K8S: &eventv1.K8SEventData{
			ResourceType: "pod", ResourceName: name, Namespace: namespace,
			Changes: []*eventv1.FieldChange{{Path: "status.containerStatuses[app].restartCount", Old: "1", New: "2"}},
		}}
	}
	return e
}

// Events returns n events from a number on.
func (w Workload) Events(from, n int) []*ahtiv1.AhtiEvent {
	events := make([]*ahtiv1.AhtiEvent, n)
	for i := range events {
		events[i] = w.Event(from + i)
	}
	return events
}

func uid(kind string, n int) string { return fmt.Sprintf("%08x-0000-4000-8000-%s%09d", n, kind, n) }
