package causality_test

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

const (
	pod        = ahtiv1.EntityType_ENTITY_TYPE_POD
	container  = ahtiv1.EntityType_ENTITY_TYPE_CONTAINER
	node       = ahtiv1.EntityType_ENTITY_TYPE_NODE
	deployment = ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT
	replicaset = ahtiv1.EntityType_ENTITY_TYPE_REPLICASET
	service    = ahtiv1.EntityType_ENTITY_TYPE_SERVICE
	configmap  = ahtiv1.EntityType_ENTITY_TYPE_CONFIGMAP
	quota      = ahtiv1.EntityType_ENTITY_TYPE_RESOURCEQUOTA
	endpoint   = ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT

	owns     = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS
	runsOn   = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_SCHEDULED_ON
	mounts   = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_MOUNTS
	exposes  = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES
	connects = ahtiv1.RelationshipType_RELATIONSHIP_TYPE_CONNECTS_TO
)

// noon is when the stories begin.
var noon = time.Date(2026, time.March, 3, 14, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant that Go cannot express

// story writes events as the transformer of the gateway makes them.
type story struct {
	events []*ahtiv1.AhtiEvent
	ids    int
}

// thing is an entity that a story knows.
type thing struct {
	kind          ahtiv1.EntityType
	id, name, ns  string
	ties          []*ahtiv1.Relationship
	entities      []*ahtiv1.Entity
	containerName string
}

func (t *thing) entity() *ahtiv1.Entity {
	return &ahtiv1.Entity{Type: t.kind, Id: t.id, Name: t.name, Namespace: t.ns, ClusterId: "test"}
}

func (t *thing) ref() *ahtiv1.EntityReference {
	return &ahtiv1.EntityReference{Type: t.kind, Id: t.id, ClusterId: "test"}
}

func newThing(kind ahtiv1.EntityType, ns, name string) *thing {
	id := "uid-" + ns + "-" + name
	if kind == node || kind == endpoint {
		id = name
	}
	return &thing{kind: kind, id: id, name: name, ns: ns}
}

// tie notes that t is tied to another; what is told of t from now on says so.
func (t *thing) tie(kind ahtiv1.RelationshipType, to *thing) *thing {
	t.ties = append(t.ties, &ahtiv1.Relationship{Type: kind, Source: t.ref(), Target: to.ref()})
	t.entities = append(t.entities, to.entity())
	return t
}

func (t *thing) ownedBy(owner *thing) *thing {
	t.ties = append(t.ties, &ahtiv1.Relationship{Type: owns, Source: owner.ref(), Target: t.ref()})
	t.entities = append(t.entities, owner.entity())
	return t
}

func (s *story) add(at time.Duration, kind string, severity eventv1.Severity, subject *thing) *ahtiv1.AhtiEvent {
	s.ids++
	ev := &ahtiv1.AhtiEvent{
		Id: fmt.Sprintf("e%03d", s.ids), Timestamp: timestamppb.New(noon.Add(at)), Subtype: kind, Severity: severity,
		Source: "test", Cluster: "test", Namespace: subject.ns, Labels: map[string]string{},
		Entities: append([]*ahtiv1.Entity{subject.entity()}, subject.entities...), Relationships: subject.ties,
	}
	s.events = append(s.events, ev)
	return ev
}

// change tells that fields of a Kubernetes object changed: "path: old -> new".
func (s *story) change(at time.Duration, subject *thing, action string, fields ...string) *ahtiv1.AhtiEvent {
	kind := strings.ToLower(strings.TrimPrefix(subject.kind.String(), "ENTITY_TYPE_"))
	ev := s.add(at, "k8s."+kind+"."+action, eventv1.Severity_SEVERITY_INFO, subject)
	data := &eventv1.K8SEventData{ResourceType: kind, ResourceName: subject.name, Namespace: subject.ns}
	for _, f := range fields {
		path, values, _ := strings.Cut(f, ": ")
		older, newer, _ := strings.Cut(values, " -> ")
		data.Changes = append(data.Changes, &eventv1.FieldChange{Path: path, Old: older, New: newer})
	}
	ev.Data = &ahtiv1.AhtiEvent_K8S{K8S: data}
	ev.Entities[0].State = ahtiv1.EntityState_ENTITY_STATE_ACTIVE
	if action == "deleted" {
		ev.Entities[0].State = ahtiv1.EntityState_ENTITY_STATE_DELETED
	}
	return ev
}

// kube tells a Kubernetes Event.
func (s *story) kube(at time.Duration, subject *thing, reason, message string) *ahtiv1.AhtiEvent {
	ev := s.add(at, "k8s.event."+reason, eventv1.Severity_SEVERITY_WARNING, subject)
	ev.Data = &ahtiv1.AhtiEvent_K8S{K8S: &eventv1.K8SEventData{Reason: reason, Message: message}}
	return ev
}

// oom tells that the kernel killed a container for memory.
func (s *story) oom(at time.Duration, subject *thing, limit, used int) *ahtiv1.AhtiEvent {
	ev := s.add(at, "container.oom_kill", eventv1.Severity_SEVERITY_CRITICAL, subject)
	maps.Copy(ev.Labels, map[string]string{
		"tapio.oom.limit_bytes": fmt.Sprint(limit), "tapio.oom.usage_bytes": fmt.Sprint(used), "process.pid": "4711",
	})
	if subject.containerName != "" {
		ev.Labels["k8s.container.name"] = subject.containerName
	}
	return ev
}

// exit tells that a process of a container failed.
func (s *story) exit(at time.Duration, subject *thing, how string) *ahtiv1.AhtiEvent {
	ev := s.add(at, "container.exit_error", eventv1.Severity_SEVERITY_ERROR, subject)
	ev.Labels["process.executable.name"] = "server"
	if strings.HasPrefix(how, "SIG") {
		ev.Labels["tapio.process.signal"] = how
	} else {
		ev.Labels["process.exit.code"] = how
	}
	return ev
}

// refused tells that connects of a container to an address fail.
func (s *story) refused(at time.Duration, kind string, caller, to *thing) *ahtiv1.AhtiEvent {
	ev := s.add(at, "network."+kind, eventv1.Severity_SEVERITY_ERROR, caller)
	host, port, _ := strings.Cut(to.id, ":")
	maps.Copy(ev.Labels, map[string]string{"network.peer.address": host, "network.peer.port": port})
	ev.Entities = append(ev.Entities, to.entity())
	ev.Entities = append(ev.Entities, to.entities...)
	ev.Relationships = append(append([]*ahtiv1.Relationship{{Type: connects, Source: caller.ref(), Target: to.ref()}}, to.ties...), caller.ties...)
	return ev
}

// shop is a small application: Deployment, ReplicaSet, pod and container of api
// on node n1, and of web on n2, which calls api through its Service.
type shop struct {
	n1, n2                                            *thing
	api, apiSet, apiPod, apiContainer                 *thing
	web, webSet, webPod, webContainer                 *thing
	apiService, apiAddress, apiServiceIP, apiEndpoint *thing
	config                                            *thing
}

func newShop() *shop {
	s := &shop{n1: newThing(node, "", "n1"), n2: newThing(node, "", "n2")}
	s.config = newThing(configmap, "shop", "settings")
	s.api = newThing(deployment, "shop", "api")
	s.apiSet = newThing(replicaset, "shop", "api-7d9").ownedBy(s.api)
	s.apiPod = newThing(pod, "shop", "api-7d9-x1").ownedBy(s.apiSet).tie(runsOn, s.n1).tie(mounts, s.config)
	s.apiContainer = newThing(container, "", "api").ownedBy(s.apiPod)
	s.apiContainer.containerName = "api"
	s.web = newThing(deployment, "shop", "web")
	s.webSet = newThing(replicaset, "shop", "web-5c4").ownedBy(s.web)
	s.webPod = newThing(pod, "shop", "web-5c4-k2").ownedBy(s.webSet).tie(runsOn, s.n2)
	s.webContainer = newThing(container, "", "web").ownedBy(s.webPod)
	s.apiAddress = newThing(endpoint, "", "10.0.0.7")
	s.apiPod.tie(exposes, s.apiAddress)
	s.apiServiceIP = newThing(endpoint, "", "10.96.0.9")
	s.apiService = newThing(service, "shop", "api").tie(exposes, s.apiPod).tie(exposes, s.apiServiceIP)
	s.apiEndpoint = newThing(endpoint, "", "10.96.0.9:80")
	s.apiEndpoint.ties = append(s.apiEndpoint.ties, &ahtiv1.Relationship{Type: exposes, Source: s.apiServiceIP.ref(), Target: s.apiEndpoint.ref()})
	return s
}

// quietDay tells that everything is there.
func (s *shop) quietDay(st *story) {
	for _, t := range []*thing{s.n1, s.n2, s.config, s.api, s.apiSet, s.apiPod, s.web, s.webSet, s.webPod, s.apiService} {
		st.change(-24*time.Hour, t, "created")
	}
}

// rollOut tells the ReplicaSet and the pod that a Deployment gets a moment after its
// template was changed. They take the place of the old ones.
func (s *shop) rollOut(st *story, at time.Duration, of *thing) {
	set := newThing(replicaset, "shop", of.name+"-8e1").ownedBy(of)
	p := newThing(pod, "shop", set.name+"-x1").ownedBy(set).tie(runsOn, s.n1)
	c := newThing(container, "", of.name)
	c.id, c.containerName = c.id+"-8e1", of.name
	c.ownedBy(p)
	st.change(at+time.Second, set, "created")
	st.change(at+2*time.Second, p, "created")
	if of == s.web {
		s.webSet, s.webPod, s.webContainer = set, p, c
		return
	}
	s.apiSet, s.apiPod, s.apiContainer = set, p, c
	st.change(at+3*time.Second, s.apiService.tie(exposes, p), "updated")
}
