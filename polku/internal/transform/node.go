package transform

import (
	"cmp"
	"path"
	"strings"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Attributes of an entity that are no metadata keys.
const attributeImage = "container.image.name"

// scheduler is the name of the scheduler that every cluster has.
const scheduler = "kube-scheduler"

// addNodeEvent adds what an event that is not about an object of the API is
// about: a process of a container, of a service or of nobody known, or the node.
func (g *graph) addNodeEvent(e *eventv1.Event) {
	family, _, _ := strings.Cut(e.GetEventType(), ".")
	namespace := g.labels[event.K8sNamespaceName]
	var subject, container, pod, node *thing
	switch family {
	case "scheduler":
		subject = g.addScheduler(e)
		g.addPod(e, namespace)
	case "node", "storage", "agent":
		// The node, whichever process noticed.
	default:
		container = g.addContainer(e, namespace)
		pod = g.addPod(e, namespace)
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, pod, container)
		g.addOwners(pod, namespace)
		if subject = cmp.Or(container, pod); subject == nil {
			subject = g.addCgroup(e)
		}
	}
	// Who watches the API does not run where the things do that it sees.
	if family != "scheduler" && family != "k8s" {
		name := cmp.Or(g.labels[event.K8sNodeName], e.GetResource().GetNodeName(), g.labels[event.HostName])
		node = g.add(ahtiv1.EntityType_ENTITY_TYPE_NODE, name, name, "")
	}
	g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_SCHEDULED_ON, cmp.Or(pod, subject), node)
	g.addNamespace(namespace)
	if family == "network" {
		g.addFlow(e, cmp.Or(subject, node))
	}
}

// addContainer adds the container that the event names; nil when there is none.
func (g *graph) addContainer(e *eventv1.Event, namespace string) *thing {
	data := e.GetContainer()
	id := cmp.Or(g.labels[event.ContainerID], data.GetContainerId(), e.GetNetwork().GetContainerId())
	name := cmp.Or(g.labels[event.K8sContainerName], data.GetContainerName())
	container := g.add(ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, id, name, namespace)
	container.describe(attributeImage, data.GetImage())
	g.describeMemory(container, cgroupOf(e))
	return container
}

// describeMemory tells which limit the victim of an OOM kill had. How full it was
// is of the event, not of the thing: each kill would make a version of it. The
// group is named where it is not the victim's own: then raising the limit of the
// container would help nobody.
func (g *graph) describeMemory(victim *thing, own string) {
	limit := g.labels[event.TapioOOMCgroup]
	victim.describe(event.TapioOOMLimitBytes, g.labels[event.TapioOOMLimitBytes])
	if limit != own && (own == "" || isParent(limit, own)) {
		victim.describe(event.TapioOOMCgroup, limit)
	}
}

// isParent tells whether a control group lies above another one.
func isParent(parent, child string) bool {
	rest, ok := strings.CutPrefix(child, strings.TrimSuffix(parent, "/"))
	return ok && len(rest) > 1 && rest[0] == '/'
}

// cgroupOf returns the control group of the process or container, or nothing.
func cgroupOf(e *eventv1.Event) string {
	return cmp.Or(e.GetMetadata()[event.ProcessLinuxCgroup], e.GetContainer().GetCgroupPath())
}

// addPod adds the pod that the event names; nil when there is none.
func (g *graph) addPod(e *eventv1.Event, namespace string) *thing {
	name := cmp.Or(g.labels[event.K8sPodName], e.GetNetwork().GetPodName())
	id := cmp.Or(g.labels[event.K8sPodUID], qualified(namespace, name))
	return g.add(ahtiv1.EntityType_ENTITY_TYPE_POD, id, name, namespace)
}

// qualified returns "namespace/name", or nothing when half of it is missing: a
// name alone is the name of many things.
func qualified(namespace, name string) string {
	if namespace == "" || name == "" {
		return ""
	}
	return namespace + "/" + name
}

// addCgroup adds what holds a process that is in no container: its systemd unit,
// else its control group. The root group holds everybody and tells nothing.
func (g *graph) addCgroup(e *eventv1.Event) *thing {
	if g.host == "" {
		return nil // the same path is on every node
	}
	if unit := g.labels[event.TapioServiceUnit]; unit != "" {
		t := g.add(ahtiv1.EntityType_ENTITY_TYPE_SERVICE_UNIT, g.host+"/"+unit, unit, "")
		g.describeMemory(t, cgroupOf(e))
		return t
	}
	// The group whose limit was hit holds the victim, even if that was gone
	// before anybody could ask for its own.
	group := cmp.Or(cgroupOf(e), g.labels[event.TapioOOMCgroup])
	if strings.Trim(group, "/") == "" {
		return nil
	}
	t := g.add(ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, g.host+"/"+strings.TrimPrefix(group, "/"), path.Base(group), "")
	g.describeMemory(t, group)
	return t
}

// addScheduler adds the scheduler of the cluster and the object that it speaks
// of.
func (g *graph) addScheduler(e *eventv1.Event) *thing {
	object := referenceOf(e.GetK8S())
	name := scheduler
	if object.GetKind() == "scheduler" {
		name = cmp.Or(object.GetName(), scheduler)
	}
	s := g.add(ahtiv1.EntityType_ENTITY_TYPE_SCHEDULER, name, name, "")
	if object.GetKind() != "scheduler" {
		g.addReference(object)
	}
	return s
}

// addOwners adds the workload that a pod belongs to, as far as the metadata
// names it. The keys are those of the OpenTelemetry semantic conventions.
func (g *graph) addOwners(pod *thing, namespace string) {
	if pod == nil {
		return
	}
	owned := pod
	for _, o := range [...]struct {
		kind      ahtiv1.EntityType
		name, uid string
	}{ // from the nearest to the farthest; a pod has one or two of these
		{ahtiv1.EntityType_ENTITY_TYPE_REPLICASET, "k8s.replicaset.name", "k8s.replicaset.uid"},
		{ahtiv1.EntityType_ENTITY_TYPE_JOB, "k8s.job.name", "k8s.job.uid"},
		{ahtiv1.EntityType_ENTITY_TYPE_STATEFULSET, "k8s.statefulset.name", "k8s.statefulset.uid"},
		{ahtiv1.EntityType_ENTITY_TYPE_DAEMONSET, "k8s.daemonset.name", "k8s.daemonset.uid"},
		{ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT, "k8s.deployment.name", "k8s.deployment.uid"},
		{ahtiv1.EntityType_ENTITY_TYPE_CRONJOB, "k8s.cronjob.name", "k8s.cronjob.uid"},
	} {
		name := g.labels[o.name]
		owner := g.add(o.kind, cmp.Or(g.labels[o.uid], qualified(namespace, name)), name, namespace)
		if owner == nil {
			continue
		}
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, owner, owned)
		owned = owner
	}
}
