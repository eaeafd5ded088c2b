package causality_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

// crowd makes events of many pods on a few nodes: refused connects, failed
// containers and, once in a while, a rollout.
func crowd(pods, events int) []*ahtiv1.AhtiEvent {
	st := &story{events: make([]*ahtiv1.AhtiEvent, 0, events)}
	type app struct{ deployment, set, pod, container, address *thing }
	apps := make([]app, pods)
	for i := range apps {
		a := &apps[i]
		a.deployment = newThing(deployment, "ns", fmt.Sprintf("app%d", i/5))
		a.set = newThing(replicaset, "ns", fmt.Sprintf("app%d-1", i/5)).ownedBy(a.deployment)
		a.pod = newThing(pod, "ns", fmt.Sprintf("app%d-1-%d", i/5, i)).ownedBy(a.set).tie(runsOn, newThing(node, "", fmt.Sprintf("n%d", i%20)))
		a.container = newThing(container, "", fmt.Sprintf("c%d", i)).ownedBy(a.pod)
		a.address = newThing(endpoint, "", fmt.Sprintf("10.0.%d.%d:80", i/250, i%250))
		a.address.ties = append(a.address.ties, &ahtiv1.Relationship{Type: exposes, Source: a.container.ref(), Target: a.address.ref()})
	}
	for i := range events {
		a := apps[i%pods]
		at := time.Duration(i) * time.Millisecond
		switch i % 10 {
		case 0:
			st.exit(at, a.container, "1")
		case 1:
			st.change(at, a.deployment, "updated", "spec.template.spec.containers[app].image: a:1 -> a:2")
		default:
			st.refused(at, "connection_refused", a.container, apps[(i*7)%pods].address)
		}
	}
	return st.events
}

func BenchmarkApply(b *testing.B) {
	events := crowd(2000, 20_000)
	e, err := causality.New(causality.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e.Apply(events[i%len(events)])
		i++
	}
}

func BenchmarkRelevance(b *testing.B) {
	events := crowd(100, 1000)
	e, err := causality.New(causality.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		e.Relevance(events[i%len(events)])
		i++
	}
}

// BenchmarkIncidents asks after each new symptom, as a stream does, and after
// everything changed.
func BenchmarkIncidents(b *testing.B) {
	for _, pods := range []int{200, 2000} {
		e, err := causality.New(causality.Options{})
		if err != nil {
			b.Fatal(err)
		}
		events := crowd(pods, 10*pods)
		for _, ev := range events {
			e.Apply(ev)
		}
		now := noon.Add(time.Minute)
		b.Run(fmt.Sprintf("pods=%d/one-new", pods), func(b *testing.B) {
			fresh := crowd(pods, pods)
			i := 0
			for b.Loop() {
				ev := fresh[i%len(fresh)]
				ev.Id = fmt.Sprint("fresh", i)
				ev.Timestamp = timestamppb.New(noon.Add(time.Minute))
				e.Apply(ev)
				e.Incidents(now)
				i++
			}
			b.ReportMetric(float64(len(e.Incidents(now))), "incidents")
			b.ReportMetric(float64(e.Size().Symptoms), "symptoms")
		})
		b.Run(fmt.Sprintf("pods=%d/from-scratch", pods), func(b *testing.B) {
			for b.Loop() {
				e.Teach(causality.Lessons{}) // forgets every explanation
				e.Incidents(now)
			}
		})
	}
}

// FuzzApply hands events of all shapes to an engine: wrong input of a source is
// an entity or event more, never a panic.
func FuzzApply(f *testing.F) {
	f.Add("container.oom_kill", int32(2), "h/c", "n", int64(1772546400), int32(3), int32(3), "x", "spec.replicas", "1", "2", int32(4))
	f.Add("k8s.deployment.updated", int32(4), "", "", int64(-5), int32(4), int32(2), "", "[", "", "x", int32(0))
	f.Add("network.connection_refused", int32(2), "a", "b", int64(1)<<40, int32(1), int32(1), "a", "]", "Mi", "1Mi", int32(5))
	f.Add("k8s.node.updated", int32(3), "n1", "n1", int64(1772546400), int32(6), int32(1), "p", "status.conditions[Ready].status", "False", "True", int32(2))
	f.Add("k8s.pod.updated", int32(1), "shop/db-0", "db-0", int64(1772546400), int32(3), int32(1), "c", "status.containerStatuses[a].lastState.terminated.reason", "", "Error", int32(2))
	f.Add("0", int32(2), "0", "0", int64(1772546400), int32(3), int32(3), "0", "spec.replicas", "1", "2", int32(4)) // owns itself
	modes, err := causality.ReadModes(causality.DefaultModes())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind string, entity int32, id, name string, at int64, tie, state int32, target, path, older, newer string, severity int32) {
		e, err := causality.New(causality.Options{Modes: modes})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			ev := &ahtiv1.AhtiEvent{
				Id: fmt.Sprint(i), Timestamp: &timestamppb.Timestamp{Seconds: at}, Subtype: kind, Severity: eventv1.Severity(severity), Cluster: "c",
				Entities: []*ahtiv1.Entity{{Type: ahtiv1.EntityType(entity), Id: id, Name: name, State: ahtiv1.EntityState(state)}, {}},
				Relationships: []*ahtiv1.Relationship{
					{
						Type: ahtiv1.RelationshipType(tie), Source: &ahtiv1.EntityReference{Type: ahtiv1.EntityType(entity), Id: id},
						Target: &ahtiv1.EntityReference{Type: ahtiv1.EntityType(entity), Id: target}, State: ahtiv1.EntityState(state),
					}, {}, nil,
				},
				Data: &ahtiv1.AhtiEvent_K8S{K8S: &eventv1.K8SEventData{Changes: []*eventv1.FieldChange{{Path: path, Old: older, New: newer}, {}}}},
			}
			e.Relevance(ev)
			e.Apply(ev)
		}
		now := time.Unix(at, 0)
		e.Incidents(now)
		refs := e.Resolve(name, "")
		e.Why(refs, now.Add(-time.Hour), now, now)
		e.Topology(refs, now, 3, 10)
		e.Learn(now.Add(time.Hour))
		e.Forget(now.Add(time.Hour))
		e.Incidents(now)
	})
}

// BenchmarkWhy asks about one pod while there is much that is wrong.
func BenchmarkWhy(b *testing.B) {
	for _, pods := range []int{2000, 20_000} {
		e, err := causality.New(causality.Options{})
		if err != nil {
			b.Fatal(err)
		}
		for _, ev := range crowd(pods, 10*pods) {
			e.Apply(ev)
		}
		now := noon.Add(time.Minute)
		refs := e.Resolve("app7-1-39", "")
		e.Incidents(now)
		b.Run(fmt.Sprintf("pods=%d", pods), func(b *testing.B) {
			for b.Loop() {
				e.Why(refs, noon.Add(-time.Hour), now, now)
			}
			b.ReportMetric(float64(e.Size().Symptoms), "symptoms")
		})
	}
}
