package transform

import (
	"cmp"
	"strconv"
	"strings"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Metadata of an object that its entity has as an attribute too, and the address
// that it means.
const (
	podIP     = "k8s.pod.ip"
	clusterIP = "k8s.service.cluster_ip"
)

// Attributes by which the causality engine knows for how long an object has been
// there, and since when it is told to go.
const (
	attributeCreated  = "creation_timestamp"
	attributeDeleting = "deletion_timestamp"
)

// objectOf returns the object of the Kubernetes API that an event is about, its
// kind in lower case; false when it is about none.
func objectOf(e *eventv1.Event) (*eventv1.ObjectReference, bool) {
	if !strings.HasPrefix(e.GetEventType(), kubernetes) {
		return nil, false
	}
	object := referenceOf(e.GetK8S())
	if object.GetKind() == "" && !strings.HasPrefix(e.GetEventType(), kubernetesEvent) {
		kind, _, _ := strings.Cut(strings.TrimPrefix(e.GetEventType(), kubernetes), ".")
		object.Kind = kind
	}
	return object, object.GetKind() != "" && (object.GetName() != "" || object.GetUid() != "")
}

// referenceOf returns the object that the data names, in the new fields or in
// those that every server of the protocol knows.
func referenceOf(k *eventv1.K8SEventData) *eventv1.ObjectReference {
	o := k.GetObject()
	return &eventv1.ObjectReference{
		Kind:      strings.ToLower(cmp.Or(o.GetKind(), k.GetResourceType())),
		Namespace: cmp.Or(o.GetNamespace(), k.GetNamespace()),
		Name:      cmp.Or(o.GetName(), k.GetResourceName()),
		Uid:       o.GetUid(),
	}
}

// addReference adds an object; nil when the reference does not tell which.
func (g *graph) addReference(o *eventv1.ObjectReference) *thing {
	kind := strings.ToLower(o.GetKind())
	if kind == "" {
		return nil
	}
	_, class := classOf(kind)
	return g.add(class, objectID(class, kind, o), o.GetName(), o.GetNamespace())
}

func objectID(class ahtiv1.EntityType, kind string, o *eventv1.ObjectReference) string {
	id := o.GetUid()
	switch {
	case class == ahtiv1.EntityType_ENTITY_TYPE_NODE, class == ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE:
		// Node agents know them by name only.
		return cmp.Or(o.GetName(), id)
	case id != "":
	case o.GetNamespace() == "":
		id = o.GetName()
	default:
		id = qualified(o.GetNamespace(), o.GetName())
	}
	if class == ahtiv1.EntityType_ENTITY_TYPE_OBJECT && id != "" {
		id = kind + "/" + id
	}
	return id
}

// addObject adds an object of the Kubernetes API, its owners and what it is tied
// to.
func (g *graph) addObject(e *eventv1.Event, object *eventv1.ObjectReference) {
	k := e.GetK8S()
	subject := g.addReference(object)
	// A Kubernetes Event tells something about its object, not what it is like.
	isChange := !strings.HasPrefix(e.GetEventType(), kubernetesEvent)
	deleted := isChange && strings.HasSuffix(e.GetEventType(), ".deleted")
	if isChange {
		describeObject(subject, k)
		for _, c := range k.GetChanges() {
			subject.describe(attributeOf(c.GetPath()), c.GetNew())
			g.addContainerStatus(subject, c)
		}
		subject.entity.State = ahtiv1.EntityState_ENTITY_STATE_ACTIVE
	}
	if deleted {
		subject.entity.State = ahtiv1.EntityState_ENTITY_STATE_DELETED
		subject.entity.DeletedAt = g.out.GetTimestamp()
	}
	// What the object was tied to itself ends with it; the ties between its
	// owners do not.
	endIfDeleted := func(r *ahtiv1.Relationship) {
		if deleted {
			g.end(r)
		}
	}

	owned := subject
	var service *thing
	for i, o := range k.GetOwners() {
		if !g.room() {
			continue
		}
		owner := g.addReference(o)
		if owner == nil {
			continue
		}
		r := g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, owner, owned)
		if i == 0 {
			endIfDeleted(r)
		}
		if service == nil && owner.entity.GetType() == ahtiv1.EntityType_ENTITY_TYPE_SERVICE {
			service = owner
		}
		owned = owner
	}

	for _, link := range k.GetLinks() {
		kind, ok := tieOf(link.GetType())
		if !ok {
			continue
		}
		source := subject
		// An EndpointSlice is bookkeeping: it is the Service that makes its pods
		// reachable.
		if service != nil && object.GetKind() == "endpointslice" && kind == ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES {
			if source = service; deleted && !link.GetRemoved() {
				continue // another slice of the Service may have the pod
			}
		}
		if !g.room() {
			continue
		}
		r := g.tie(kind, source, g.addReference(link.GetTarget()))
		if endIfDeleted(r); link.GetRemoved() {
			g.end(r)
		}
	}

	if !isChange {
		g.addWebhook(subject, k.GetMessage())
	}
	for _, name := range [...]string{podIP, clusterIP} {
		address := g.labels[name]
		if isChange {
			subject.describe(name, address)
		}
		if addressOf(subject.entity.GetType()) == name {
			endIfDeleted(g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES, subject, g.addEndpoint(address, 0)))
		}
	}
	namespace := object.GetNamespace()
	if subject.entity.GetType() == ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE {
		namespace = object.GetName()
	}
	g.addNamespace(namespace)
}

// attributeOf returns the attribute that keeps a field of the metadata: when an
// object was made, which a watcher that starts later did not see, and that it was
// told to go. Nothing for other fields.
func attributeOf(path string) string {
	switch path {
	case "metadata.creationTimestamp":
		return attributeCreated
	case "metadata.deletionTimestamp":
		return attributeDeleting
	}
	return ""
}

// addContainerStatus adds the container that a pod's status names: an agent knows
// it by its id only.
func (g *graph) addContainerStatus(pod *thing, c *eventv1.FieldChange) {
	path, ok := strings.CutSuffix(c.GetPath(), "].containerID")
	if !ok || pod.entity.GetType() != ahtiv1.EntityType_ENTITY_TYPE_POD {
		return
	}
	list, name, ok := strings.Cut(path, "[")
	if !ok || !strings.HasPrefix(list, "status.") {
		return
	}
	// The API writes the runtime before the id: containerd://…
	if _, id, ok := strings.Cut(c.GetNew(), "://"); ok && g.room() {
		container := g.add(ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, id, name, pod.entity.GetNamespace())
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, pod, container)
	}
}

// addWebhook ties an object whose pods a webhook keeps from being made to the
// Service that stands behind the webhook, whose name the API server tells in the
// address that it called: https://NAME.NAMESPACE.svc:443/PATH.
func (g *graph) addWebhook(caller *thing, message string) {
	_, call, ok := strings.Cut(message, "failed calling webhook ")
	if !ok {
		return
	}
	_, host, ok := strings.Cut(call, `"https://`)
	if !ok {
		return
	}
	host = host[:max(0, strings.IndexAny(host, `:/?"`))]
	if part := strings.Split(host, "."); len(part) >= 3 && part[2] == "svc" {
		service := g.addReference(&eventv1.ObjectReference{Kind: "service", Namespace: part[1], Name: part[0]})
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_DEPENDS_ON, caller, service)
	}
}

// addressOf returns the metadata key of the address that objects of a type make
// reachable.
func addressOf(class ahtiv1.EntityType) string {
	switch class {
	case ahtiv1.EntityType_ENTITY_TYPE_POD:
		return podIP
	case ahtiv1.EntityType_ENTITY_TYPE_SERVICE:
		return clusterIP
	}
	return ""
}

// tieOf returns what the type of an ObjectLink means.
func tieOf(link string) (ahtiv1.RelationshipType, bool) {
	switch link {
	case "scheduled_on":
		return ahtiv1.RelationshipType_RELATIONSHIP_TYPE_SCHEDULED_ON, true
	case "mounts":
		return ahtiv1.RelationshipType_RELATIONSHIP_TYPE_MOUNTS, true
	case "uses":
		return ahtiv1.RelationshipType_RELATIONSHIP_TYPE_USES, true
	case "exposes":
		return ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES, true
	case "scales":
		return ahtiv1.RelationshipType_RELATIONSHIP_TYPE_MANAGES, true
	case "routes_to":
		return ahtiv1.RelationshipType_RELATIONSHIP_TYPE_DEPENDS_ON, true
	}
	return ahtiv1.RelationshipType_RELATIONSHIP_TYPE_UNSPECIFIED, false
}

// describeObject copies what the event tells about the state of the object.
func describeObject(t *thing, k *eventv1.K8SEventData) {
	t.entity.Generation = k.GetGeneration()
	t.describe("resource_version", k.GetResourceVersion())
	t.describe("rollout_status", k.GetRolloutStatus())
	for _, c := range [...]struct {
		name  string
		value int32
	}{
		{"replicas", k.GetReplicas()},
		{"ready_replicas", k.GetReadyReplicas()},
		{"updated_replicas", k.GetUpdatedReplicas()},
	} {
		if c.value != 0 { // zero is not told from absent
			t.describe(c.name, strconv.FormatInt(int64(c.value), 10))
		}
	}
}
