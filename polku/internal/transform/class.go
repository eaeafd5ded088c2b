package transform

import (
	"strings"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Beginnings of event_type.
const (
	kubernetes      = "k8s."
	kubernetesEvent = "k8s.event."
)

// typeOf returns the broad class of an event. Kinds of other sources that say
// nothing known are of no class.
func typeOf(e *eventv1.Event) ahtiv1.EventType {
	kind := e.GetEventType()
	switch kind {
	case event.KindNetworkRTTSpike, event.KindNetworkRetransmitSpike:
		return ahtiv1.EventType_EVENT_TYPE_PERFORMANCE
	case event.KindContainerOOMKill:
		return ahtiv1.EventType_EVENT_TYPE_KERNEL
	}
	family, _, _ := strings.Cut(kind, ".")
	switch family {
	case "network":
		return ahtiv1.EventType_EVENT_TYPE_NETWORK
	case "container":
		return ahtiv1.EventType_EVENT_TYPE_CONTAINER
	case "node", "storage":
		return ahtiv1.EventType_EVENT_TYPE_RESOURCE
	case "scheduler":
		return ahtiv1.EventType_EVENT_TYPE_CLUSTER
	case "agent":
		return ahtiv1.EventType_EVENT_TYPE_HEALTH
	case "k8s":
		object, _ := objectOf(e)
		class, _ := classOf(object.GetKind())
		return class
	}
	return ahtiv1.EventType_EVENT_TYPE_UNSPECIFIED
}

// classOf returns the class of events about a kind of the Kubernetes API, which
// is in lower case, and what its objects are. The short names are those that
// kubectl takes.
func classOf(kind string) (ahtiv1.EventType, ahtiv1.EntityType) {
	switch kind {
	case "pod":
		return ahtiv1.EventType_EVENT_TYPE_POD, ahtiv1.EntityType_ENTITY_TYPE_POD
	case "deployment":
		return ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT
	case "replicaset":
		return ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_REPLICASET
	case "statefulset":
		return ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_STATEFULSET
	case "daemonset":
		return ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_DAEMONSET
	case "job":
		return ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_JOB
	case "cronjob":
		return ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_CRONJOB
	case "service":
		return ahtiv1.EventType_EVENT_TYPE_SERVICE, ahtiv1.EntityType_ENTITY_TYPE_SERVICE
	case "endpointslice", "endpoints":
		return ahtiv1.EventType_EVENT_TYPE_SERVICE, ahtiv1.EntityType_ENTITY_TYPE_OBJECT
	case "ingress":
		return ahtiv1.EventType_EVENT_TYPE_SERVICE, ahtiv1.EntityType_ENTITY_TYPE_INGRESS
	case "persistentvolumeclaim", "pvc":
		return ahtiv1.EventType_EVENT_TYPE_VOLUME, ahtiv1.EntityType_ENTITY_TYPE_PVC
	case "persistentvolume", "pv":
		return ahtiv1.EventType_EVENT_TYPE_VOLUME, ahtiv1.EntityType_ENTITY_TYPE_PV
	case "configmap":
		return ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_CONFIGMAP
	case "secret":
		return ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_SECRET
	case "horizontalpodautoscaler", "hpa":
		return ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_HPA
	case "poddisruptionbudget", "pdb":
		return ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_PDB
	case "networkpolicy":
		return ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_NETWORKPOLICY
	case "resourcequota":
		return ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_RESOURCEQUOTA
	case "limitrange":
		return ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_LIMITRANGE
	case "node":
		return ahtiv1.EventType_EVENT_TYPE_CLUSTER, ahtiv1.EntityType_ENTITY_TYPE_NODE
	case "namespace":
		return ahtiv1.EventType_EVENT_TYPE_CLUSTER, ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE
	case "":
		return ahtiv1.EventType_EVENT_TYPE_UNSPECIFIED, ahtiv1.EntityType_ENTITY_TYPE_UNSPECIFIED
	}
	return ahtiv1.EventType_EVENT_TYPE_UNSPECIFIED, ahtiv1.EntityType_ENTITY_TYPE_OBJECT
}
