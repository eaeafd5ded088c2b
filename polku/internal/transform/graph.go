package transform

import (
	"cmp"
	"fmt"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// MaxNameLen is the longest id, name, namespace or cluster of an entity, bytes.
// Kubernetes allows a quarter of it; only a forged or broken path is longer, and
// a cut id would be the id of something else.
const MaxNameLen = 1 << 10

// few is how many things or ties nearly every event has at most.
const few = 8

// graph collects the entities and relationships of one event.
type graph struct {
	out    *ahtiv1.AhtiEvent
	labels map[string]string
	// host is the name that ids begin with which mean something on one node
	// only; empty when nobody said which node it was.
	host   string
	things []*thing
	// index finds things when there are too many to look through.
	index map[key]*thing
	// links is how many more owners, links and container states have room, and
	// dropped how many had none.
	links, dropped int
	err            error
}

// thing is an entity with the reference that all relationships share.
type thing struct {
	entity ahtiv1.Entity
	ref    ahtiv1.EntityReference
}

type key struct {
	kind ahtiv1.EntityType
	id   string
}

func newGraph(out *ahtiv1.AhtiEvent, labels map[string]string, links int) *graph {
	out.Entities = make([]*ahtiv1.Entity, 0, few)
	out.Relationships = make([]*ahtiv1.Relationship, 0, few)
	g := &graph{
		out:    out,
		labels: labels,
		host:   cmp.Or(labels[event.K8sNodeName], labels[event.HostName]),
		things: make([]*thing, 0, few),
		links:  links,
	}
	g.check(out.GetCluster())
	return g
}

// add returns the thing with that id, which is new or was added before; nil
// when the id is empty, which ties to nothing. Its state is left open: to name a
// thing is not to say that it still exists, and events about a pod that is gone
// may come late.
func (g *graph) add(kind ahtiv1.EntityType, id, name, namespace string) *thing {
	if id == "" {
		return nil
	}
	g.check(id)
	g.check(name)
	g.check(namespace)
	if t := g.find(kind, id); t != nil {
		t.entity.Name = cmp.Or(t.entity.Name, name)
		t.entity.Namespace = cmp.Or(t.entity.Namespace, namespace)
		return t
	}
	t := &thing{}
	cluster := g.out.GetCluster()
	t.entity.Type, t.entity.Id, t.entity.ClusterId = kind, id, cluster
	t.entity.Name, t.entity.Namespace = name, namespace
	t.ref.Type, t.ref.Id, t.ref.ClusterId = kind, id, cluster
	g.things = append(g.things, t)
	g.out.Entities = append(g.out.Entities, &t.entity)
	if g.index != nil {
		g.index[key{kind, id}] = t
	}
	return t
}

func (g *graph) check(name string) {
	if len(name) > MaxNameLen && g.err == nil {
		g.err = fmt.Errorf("transform event %q: a name that begins with %.40q has %d bytes: use at most %d",
			g.out.GetId(), name, len(name), MaxNameLen)
	}
}

func (g *graph) find(kind ahtiv1.EntityType, id string) *thing {
	// A map costs more than it saves for a few, but a Service may have thousands
	// of pods.
	if g.index == nil && len(g.things) > few {
		g.index = make(map[key]*thing, 2*len(g.things))
		for _, t := range g.things {
			g.index[key{t.entity.GetType(), t.entity.GetId()}] = t
		}
	}
	if g.index != nil {
		return g.index[key{kind, id}]
	}
	for _, t := range g.things {
		if t.entity.GetType() == kind && t.entity.GetId() == id {
			return t
		}
	}
	return nil
}

// tie says how source and target are tied. It returns nil when one of them is
// not known, or both are the same.
func (g *graph) tie(kind ahtiv1.RelationshipType, source, target *thing) *ahtiv1.Relationship {
	if source == nil || target == nil || source == target {
		return nil
	}
	r := &ahtiv1.Relationship{
		Type:   kind,
		Source: &source.ref,
		Target: &target.ref,
		State:  ahtiv1.EntityState_ENTITY_STATE_ACTIVE,
	}
	g.out.Relationships = append(g.out.Relationships, r)
	return r
}

// end says that a tie is gone since the event.
func (g *graph) end(r *ahtiv1.Relationship) {
	if r != nil {
		r.State = ahtiv1.EntityState_ENTITY_STATE_DELETED
		r.DeletedAt = g.out.GetTimestamp()
	}
}

// addNamespace adds the namespace of the subject.
func (g *graph) addNamespace(namespace string) {
	g.out.Namespace = namespace
	g.add(ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE, namespace, namespace, "")
}

// describe sets an attribute unless its value is empty, or longer than any such
// value is.
func (t *thing) describe(name, value string) {
	if t == nil || name == "" || value == "" || len(value) > MaxNameLen {
		return
	}
	if t.entity.Attributes == nil {
		t.entity.Attributes = map[string]string{}
	}
	t.entity.Attributes[name] = value
}
