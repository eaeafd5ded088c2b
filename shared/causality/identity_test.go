package causality_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

// Two objects of kinds without a type of their own and with one name are two
// things.
func TestObjectsOfOneNameAreTwo(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	object := ahtiv1.EntityType_ENTITY_TYPE_OBJECT
	rollout := &thing{kind: object, id: "rollout/uid-1", name: "api", ns: "shop"}
	monitor := &thing{kind: object, id: "servicemonitor/uid-2", name: "api", ns: "shop"}
	st.change(-time.Hour, monitor, "created")
	st.change(-time.Hour, rollout, "created")
	set := newThing(replicaset, "shop", "api-1").ownedBy(rollout)
	p := newThing(pod, "shop", "api-1-x").ownedBy(set)
	st.change(-time.Hour, set, "created")
	st.exit(0, p, "1")
	for _, ev := range st.events {
		e.Apply(ev)
	}
	refs := []*ahtiv1.EntityReference{monitor.ref()}
	require.Empty(t, e.Why(refs, noon.Add(-time.Hour), noon.Add(time.Hour), noon.Add(time.Minute)), "the ServiceMonitor has nothing to do with the pods of the Rollout")
}

// What one source knows by uid and another by name is one thing, of any kind.
func TestObjectByUIDAndByName(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	object := ahtiv1.EntityType_ENTITY_TYPE_OBJECT
	account := &thing{kind: object, id: "serviceaccount/uid-1", name: "api", ns: "shop"}
	named := &thing{kind: object, id: "serviceaccount/shop/api", name: "api", ns: "shop"}
	st.change(-time.Hour, account, "created")
	p := newThing(pod, "shop", "api-1-x").tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_USES, named)
	st.change(-time.Hour, p, "created")
	for _, ev := range st.events {
		e.Apply(ev)
	}
	require.Contains(t, around(e, account, 1), p.id)
}

// A pod names its ConfigMap, and the watcher knows its uid: the topology of one
// shows the other.
func TestTopologyFollowsNames(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	settings := newThing(configmap, "shop", "settings")
	named := newThing(configmap, "shop", "settings")
	named.id = "shop/settings"
	p := newThing(pod, "shop", "api-1-x").tie(mounts, named)
	st.change(-time.Hour, settings, "created")
	st.change(-time.Hour, p, "created")
	for _, ev := range st.events {
		e.Apply(ev)
	}
	require.Contains(t, around(e, settings, 1), p.id)
}

// What was only named by what is gone is forgotten.
func TestNamesOfWhatIsGoneAreForgotten(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	for i := range 500 {
		ns := fmt.Sprint("ci-", i)
		ca := newThing(configmap, ns, "kube-root-ca.crt")
		named := newThing(configmap, ns, "kube-root-ca.crt")
		named.id = ns + "/kube-root-ca.crt"
		p := newThing(pod, ns, "test").tie(mounts, named)
		for _, o := range []*thing{ca, p} {
			st.change(0, o, "created")
			st.change(time.Minute, o, "deleted")
		}
	}
	for _, ev := range st.events {
		e.Apply(ev)
	}
	e.Forget(noon.Add(100 * time.Hour))
	require.Zero(t, e.Size().Entities)
}

// Where nobody watches the API server, pods and what owns them are known from
// what agents mention, and addresses from who connects to them. All of it is
// forgotten some time after it was mentioned last, the node of today's pods not.
func TestWhatIsOnlyMentionedIsForgotten(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	node := newThing(node, "", "n1")
	api := newThing(deployment, "shop", "api")
	for i := range 100 {
		p := newThing(pod, "shop", fmt.Sprint("api-1-", i)).ownedBy(api).tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_SCHEDULED_ON, node)
		c := newThing(container, "", fmt.Sprint("c", i)).ownedBy(p)
		c.ties, c.entities = append(c.ties, p.ties...), append(c.entities, p.entities...)
		host, port := fmt.Sprint("10.0.0.", i), fmt.Sprintf("10.0.0.%d:80", i)
		serving := &thing{kind: endpoint, id: host, name: host}
		serving.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES, &thing{kind: endpoint, id: port, name: port})
		st.exit(time.Duration(i)*time.Hour, c, "1")
		st.add(time.Duration(i)*time.Hour, "network.connection_refused", eventv1.Severity_SEVERITY_ERROR, serving)
	}
	for _, ev := range st.events {
		e.Apply(ev)
	}
	before := e.Size().Entities
	e.Forget(noon.Add(90*time.Hour - time.Minute))
	require.Less(t, e.Size().Entities, before/9, "a tenth and the two is left")
	require.NotEmpty(t, e.Resolve("deploy/api", ""))
	e.Forget(noon.Add(200 * time.Hour))
	require.Zero(t, e.Size().Entities)
}

// around returns the ids of what is so many ties away from a thing at most.
func around(e *causality.Engine, of *thing, depth int) []string {
	entities, _, _ := e.Topology([]*ahtiv1.EntityReference{of.ref()}, noon, depth, 100)
	var ids []string
	for _, en := range entities {
		ids = append(ids, en.GetId())
	}
	return ids
}

// The pods of a StatefulSet keep their name: one that comes again after a rollout is
// no pod from before it, even for an agent that knows names only.
func TestPodsOfOneNameAreToldApart(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	set := newThing(ahtiv1.EntityType_ENTITY_TYPE_STATEFULSET, "shop", "db")
	was := newThing(pod, "shop", "db-0").ownedBy(set)
	is := newThing(pod, "shop", "db-0")
	is.id += "-again"
	is.ownedBy(set)
	named := newThing(pod, "shop", "db-0")
	named.id = "shop/db-0"
	c := newThing(container, "", "db").ownedBy(named)
	st.change(-time.Hour, set, "created")
	st.change(-time.Hour, was, "created")
	st.kube(-time.Minute, named, "Pulled", "Container image already present")
	st.change(0, set, "updated", "spec.template.spec.containers[db].image: db:1 -> db:2")
	st.change(3*time.Second, was, "deleted")
	st.change(4*time.Second, is, "created")
	st.exit(9*time.Second, c, "1")
	for _, ev := range st.events {
		e.Apply(ev)
	}
	found := e.Incidents(noon.Add(time.Minute))
	require.Len(t, found, 1)
	require.Equal(t, "new_version_fails", found[0].GetCauses()[0].GetFailureMode())
}
