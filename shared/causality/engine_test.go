package causality_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

const mib = 1 << 20

// incident is what a test expects of one.
type incident struct {
	root    string // id of the entity
	mode    string // of the first cause; empty when nothing explains it
	summary string
	chain   []string // kinds
	sure    float64  // least confidence
}

// stories are faults as the observers tell them, and what is to be made of them.
func stories() map[string]struct {
	tell func(st *story, s *shop)
	want []incident
} {
	type told = struct {
		tell func(st *story, s *shop)
		want []incident
	}
	return map[string]told{
		"nothing happens": {tell: func(*story, *shop) {}},
		"healthy rollout": {
			tell: func(st *story, s *shop) {
				st.change(0, s.api, "updated", "spec.template.spec.containers[api].image: api:1 -> api:2")
				st.change(time.Second, s.apiSet, "created")
				next := newThing(pod, "shop", "api-8e1-b7").ownedBy(s.apiSet).tie(runsOn, s.n1)
				st.change(2*time.Second, next, "created")
				st.kube(9*time.Second, next, "Unhealthy", "Readiness probe failed: connection refused")
				st.refused(12*time.Second, "connection_reset", s.webContainer, s.apiEndpoint)
				st.change(15*time.Second, s.apiPod, "deleted")
			},
		},
		"memory limit lowered": {
			tell: func(st *story, s *shop) {
				st.change(0, s.web, "updated", "spec.template.spec.containers[web].image: web:1 -> web:2")
				st.change(10*time.Second, s.api, "updated", "spec.template.spec.containers[api].resources.limits.memory: 512Mi -> 64Mi")
				s.rollOut(st, 10*time.Second, s.api)
				st.oom(51*time.Second, s.apiContainer, 64*mib, 64*mib)
				st.exit(51*time.Second+time.Millisecond, s.apiContainer, "SIGKILL")
				st.refused(52*time.Second, "connection_refused", s.webContainer, s.apiEndpoint)
				st.refused(53*time.Second, "connection_refused", s.webContainer, s.apiEndpoint)
				st.kube(62*time.Second, s.apiPod, "BackOff", "Back-off restarting failed container api in pod")
			},
			want: []incident{{
				root: "uid-shop-api", mode: "memory_limit_lowered", sure: 0.85,
				chain: []string{"k8s.deployment.updated", "k8s.replicaset.created", "k8s.pod.created", "container.oom_kill", "container.exit_error"},
				summary: "Deployment shop/api was rolled out at 14:00:10 UTC (memory limit 512Mi → 64Mi); 41 s later its container api was OOM-killed (limit 64Mi, used 64Mi)." +
					" Then container api of Pod shop/api-8e1-x1 failed (server: SIGKILL); connections of container web of Pod shop/web-5c4-k2 to Service shop/api (10.96.0.9:80) are refused (2 times); Pod shop/api-8e1-x1 crashes again and again.",
			}},
		},
		"image that is not there": {
			tell: func(st *story, s *shop) {
				st.change(0, s.api, "updated", "spec.template.spec.containers[api].image: api:1 -> api:oops")
				st.change(time.Second, s.apiSet, "created")
				for i, name := range []string{"api-8e1-b7", "api-8e1-c3", "api-8e1-d9"} {
					p := newThing(pod, "shop", name).ownedBy(s.apiSet).tie(runsOn, s.n1)
					st.change(time.Duration(i+2)*time.Second, p, "created")
					st.kube(time.Duration(i+4)*time.Second, p, "Failed", `Failed to pull image "api:oops": not found`)
					st.change(time.Duration(i+5)*time.Second, p, "updated", "status.containerStatuses[api].state.waiting.reason: ContainerCreating -> ErrImagePull")
					st.kube(time.Duration(i+6)*time.Second, p, "BackOff", `Back-off pulling image "api:oops"`)
				}
			},
			want: []incident{{
				root: "uid-shop-api", mode: "image_changed", sure: 0.85,
				chain:   []string{"k8s.deployment.updated", "k8s.replicaset.created", "k8s.pod.created", "k8s.event.Failed"},
				summary: "Deployment shop/api was rolled out at 14:00:00 UTC (image api:1 → api:oops); 4 s later the image of its pod api-8e1-b7 cannot be pulled. Seen 9 times on 3 pods, last at 14:00:08 UTC.",
			}},
		},
		"config change breaks pods later": {
			tell: func(st *story, s *shop) {
				st.change(0, s.config, "updated", "data[database.url]: postgres://db -> postgres://bd")
				st.exit(90*time.Second, s.apiContainer, "1")
				st.kube(95*time.Second, s.apiPod, "BackOff", "Back-off restarting failed container api")
			},
			want: []incident{{
				root: "uid-shop-settings", mode: "config_changed", sure: 0.8,
				chain:   []string{"k8s.configmap.updated", "container.exit_error"},
				summary: "ConfigMap shop/settings was changed at 14:00:00 UTC (data database.url postgres://db → postgres://bd); 90 s later container api of Pod shop/api-7d9-x1 failed (server: exit code 1). Then Pod shop/api-7d9-x1 crashes again and again.",
			}},
		},
		"selector matches nothing": {
			tell: func(st *story, s *shop) {
				st.change(0, s.api, "updated", "spec.template.spec.containers[api].image: api:1 -> api:2")
				st.change(5*time.Minute, s.apiService, "updated", "spec.selector[app]: api -> apis")
				for i := range 5 {
					st.refused(5*time.Minute+time.Duration(i+1)*time.Second, "connection_refused", s.webContainer, s.apiEndpoint)
				}
			},
			want: []incident{{
				root: "uid-shop-api", mode: "selector_changed", sure: 0.6,
				chain:   []string{"k8s.service.updated", "network.connection_refused"},
				summary: "Service shop/api was changed at 14:05:00 UTC (selector app api → apis); 1 s later connections of container web of Pod shop/web-5c4-k2 to Service shop/api (10.96.0.9:80) are refused. Seen 5 times, last at 14:05:05 UTC.",
			}},
		},
		"scaled beyond the quota": {
			tell: func(st *story, s *shop) {
				q := newThing(quota, "shop", "limits")
				st.change(-20*time.Hour, q, "created")
				st.change(0, s.api, "updated", "spec.replicas: 3 -> 30")
				st.change(100*time.Millisecond, s.apiSet, "updated", "spec.replicas: 3 -> 30")
				for i := range 4 {
					st.kube(time.Duration(i+1)*time.Second, s.apiSet, "FailedCreate", "exceeded quota: limits, requested: pods=1, used: pods=10, limited: pods=10")
				}
			},
			want: []incident{{
				root: "uid-shop-api", mode: "scaled_beyond_quota", sure: 0.8,
				chain:   []string{"k8s.deployment.updated", "k8s.event.FailedCreate"},
				summary: "Deployment shop/api was scaled at 14:00:00 UTC (replicas 3 → 30); 1 s later pods of ReplicaSet shop/api-7d9 are not admitted: exceeded quota: limits, requested: pods=1, used: pods=10, limited: pods=10. Seen 4 times, last at 14:00:04 UTC.",
			}},
		},
		"node drained": {
			tell: func(st *story, s *shop) {
				st.change(0, s.n1, "updated", "spec.unschedulable: false -> true")
				p := newThing(pod, "shop", "api-7d9-z9").ownedBy(s.apiSet)
				st.change(5*time.Second, p, "created")
				for i := range 2 {
					st.kube(time.Duration(6+i)*time.Second, p, "FailedScheduling", "0/2 nodes are available: 1 node(s) were unschedulable, 1 Insufficient cpu.")
				}
			},
			want: []incident{{
				root: "n1", mode: "node_cordoned", sure: 0.5,
				chain:   []string{"k8s.node.updated", "k8s.pod.created", "k8s.event.FailedScheduling"},
				summary: "Node n1 was cordoned at 14:00:00 UTC; 6 s later Pod shop/api-7d9-z9 fits on no node.",
			}},
		},
		"no Kubernetes: a server dies of memory and its clients find nobody": {
			tell: func(st *story, _ *shop) {
				server := newThing(container, "", "server")
				server.id = "host/demo/server"
				client := newThing(container, "", "client")
				client.id = "host/demo/client"
				address := newThing(endpoint, "", "host/127.0.0.1:8080")
				server.tie(exposes, address)
				st.oom(0, server, 64*mib, 64*mib)
				st.exit(2*time.Millisecond, server, "SIGKILL")
				reset := st.refused(-time.Millisecond, "connection_reset", client, address)
				reset.Severity = eventv1.Severity_SEVERITY_WARNING
				for i := range 20 {
					st.refused(time.Duration(i+1)*100*time.Millisecond, "connection_refused", client, address)
				}
			},
			want: []incident{{
				root:  "host/demo/server",
				chain: []string{"container.oom_kill", "container.exit_error"},
				summary: "Control group /demo/server on host was OOM-killed (limit 64Mi, used 64Mi) at 14:00:00 UTC. No change that was seen explains it." +
					" Then control group /demo/server on host failed (server: SIGKILL); connections of control group /demo/client on host to control group /demo/server on host (127.0.0.1:8080) are refused (20 times); connections of control group /demo/client on host with control group /demo/server on host (127.0.0.1:8080) are reset.",
			}},
		},
		"two faults at once stay two": {
			tell: func(st *story, s *shop) {
				st.change(0, s.api, "updated", "spec.template.spec.containers[api].resources.limits.memory: 512Mi -> 64Mi")
				s.rollOut(st, 0, s.api)
				st.change(time.Second, s.web, "updated", "spec.template.spec.containers[web].image: web:1 -> web:2")
				s.rollOut(st, time.Second, s.web)
				st.oom(30*time.Second, s.apiContainer, 64*mib, 64*mib)
				st.exit(40*time.Second, s.webContainer, "2")
			},
			want: []incident{
				{
					root: "uid-shop-web", mode: "new_version_fails", sure: 0.6,
					chain:   []string{"k8s.deployment.updated", "k8s.replicaset.created", "k8s.pod.created", "container.exit_error"},
					summary: "Deployment shop/web was rolled out at 14:00:01 UTC (image web:1 → web:2); 39 s later its container web failed (server: exit code 2).",
				},
				{
					root: "uid-shop-api", mode: "memory_limit_lowered", sure: 0.85,
					chain:   []string{"k8s.deployment.updated", "k8s.replicaset.created", "k8s.pod.created", "container.oom_kill"},
					summary: "Deployment shop/api was rolled out at 14:00:00 UTC (memory limit 512Mi → 64Mi); 30 s later its container api was OOM-killed (limit 64Mi, used 64Mi).",
				},
			},
		},
		"rollout with a failed probe here and there": {
			tell: func(st *story, s *shop) {
				st.change(0, s.api, "updated", "spec.template.spec.containers[api].image: api:1 -> api:2")
				for i := range 4 {
					p := newThing(pod, "shop", fmt.Sprintf("api-8e1-n%d", i)).ownedBy(s.apiSet).tie(runsOn, s.n1)
					st.change(time.Duration(i)*time.Second, p, "created")
					st.kube(time.Duration(i+5)*time.Second, p, "Unhealthy", "Readiness probe failed")
				}
			},
		},
		"scaled down: pods end as they are told to": {
			tell: func(st *story, s *shop) {
				st.change(0, s.api, "updated", "spec.replicas: 3 -> 2")
				st.exit(2*time.Second, s.apiContainer, "143")
				st.kube(3*time.Second, s.apiPod, "Unhealthy", "Readiness probe failed: connection refused")
				st.kube(4*time.Second, s.apiPod, "Unhealthy", "Readiness probe failed: connection refused")
				st.kube(5*time.Second, s.apiPod, "Unhealthy", "Readiness probe failed: connection refused")
				st.change(8*time.Second, s.apiPod, "deleted")
				st.kube(9*time.Second, s.apiPod, "Killing", "Stopping container api") // does not revive it
			},
		},
		"a change that shows hours later": {
			tell: func(st *story, s *shop) {
				st.change(-8*time.Hour, s.config, "updated", "data[pool]: 10 -> 0")
				st.exit(0, s.apiContainer, "1")
			},
			want: []incident{{
				root: "uid--api", chain: []string{"container.exit_error"},
				summary: "Container api of Pod shop/api-7d9-x1 failed (server: exit code 1) at 14:00:00 UTC. Not sure why: perhaps because ConfigMap shop/settings was changed at 06:00:00 UTC (41 %).",
			}},
		},
		"names resolve no more": {
			tell: func(st *story, s *shop) {
				st.oom(0, s.apiContainer, 64*mib, 64*mib)
				for i := range 6 {
					ev := st.refused(time.Duration(i+1)*time.Second, "dns_timeout", s.webContainer, s.apiEndpoint)
					ev.Data = &ahtiv1.AhtiEvent_Network{Network: &eventv1.NetworkEventData{DnsQuery: "db.shop.svc"}}
				}
			},
			want: []incident{{
				root: "uid--api", chain: []string{"container.oom_kill", "network.dns_timeout"},
				summary: "Container api of Pod shop/api-7d9-x1 was OOM-killed (limit 64Mi, used 64Mi) at 14:00:00 UTC. No change that was seen explains it. Then container web of Pod shop/web-5c4-k2 cannot resolve db.shop.svc (6 times).",
			}},
		},
		"the only pod drained away": {
			tell: func(st *story, s *shop) {
				st.change(0, s.n1, "updated", "spec.unschedulable: false -> true")
				st.change(20*time.Second, s.apiPod, "deleted")
				for i := range 4 {
					st.refused(time.Duration(21+i)*time.Second, "connection_refused", s.webContainer, s.apiEndpoint)
				}
			},
			want: []incident{{
				root: "n1", mode: "callee_drained", sure: 0.4,
				chain:   []string{"k8s.node.updated", "network.connection_refused"},
				summary: "Node n1 was cordoned at 14:00:00 UTC; 21 s later connections of container web of Pod shop/web-5c4-k2 to Service shop/api (10.96.0.9:80) are refused. Seen 4 times, last at 14:00:24 UTC.",
			}},
		},
		"a caller that finds nobody": {
			tell: func(st *story, s *shop) {
				for i := range 40 {
					to := newThing(endpoint, "", fmt.Sprintf("10.9.9.%d:9%03d", i, i))
					st.refused(time.Duration(2*i)*time.Millisecond, "connection_refused", s.webContainer, to)
					st.refused(time.Duration(2*i+1)*time.Millisecond, "connection_refused", s.webContainer, to)
				}
			},
			want: []incident{{
				root: "uid--web", chain: []string{"network.connection_refused"},
				summary: "Connections of container web of Pod shop/web-5c4-k2 to 10.9.9.0:9000 are refused at 14:00:00 UTC. No change that was seen explains it. Seen 80 times, last at 14:00:00 UTC.",
			}},
		},
		"a name that is not ASCII": {
			tell: func(st *story, _ *shop) {
				st.exit(0, newThing(ahtiv1.EntityType_ENTITY_TYPE_OBJECT, "", "élan"), "1")
			},
			want: []incident{{
				root: "uid--élan", chain: []string{"container.exit_error"},
				summary: "Élan failed (server: exit code 1) at 14:00:00 UTC. No change that was seen explains it.",
			}},
		},
		"nobody saw why": {
			tell: func(st *story, s *shop) {
				st.exit(0, s.apiContainer, "SIGSEGV")
			},
			want: []incident{{
				root: "uid--api", chain: []string{"container.exit_error"},
				summary: "Container api of Pod shop/api-7d9-x1 failed (server: SIGSEGV) at 14:00:00 UTC. No change that was seen explains it.",
			}},
		},
	}
}

func newEngine(t *testing.T) *causality.Engine {
	t.Helper()
	e, err := causality.New(causality.Options{})
	require.NoError(t, err)
	return e
}

func tell(t *testing.T, name string) []*ahtiv1.AhtiEvent {
	t.Helper()
	st := &story{}
	s := newShop()
	s.quietDay(st)
	told, ok := stories()[name]
	require.True(t, ok, name)
	told.tell(st, s)
	return st.events
}

func TestStories(t *testing.T) {
	for name, told := range stories() {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			for _, ev := range tell(t, name) {
				e.Apply(ev)
			}
			got := e.Incidents(noon.Add(6 * time.Minute))
			for _, in := range got {
				t.Log(protojson.Format(in))
			}
			require.Len(t, got, len(told.want))
			for i, want := range told.want {
				in := got[i]
				require.Equal(t, want.summary, in.GetSummary())
				require.Equal(t, want.root, in.GetRoot().GetId())
				var chain []string
				for _, l := range in.GetChain() {
					chain = append(chain, l.GetKind())
				}
				require.Equal(t, want.chain, chain)
				if want.mode == "" {
					require.Zero(t, in.GetConfidence())
					continue
				}
				require.Equal(t, want.mode, in.GetCauses()[0].GetFailureMode())
				require.GreaterOrEqual(t, in.GetConfidence(), want.sure)
			}
		})
	}
}

// The same events give the same answer in whatever order they come, and
// whether the engine was asked in between or not.
func TestOrderDoesNotMatter(t *testing.T) {
	var events []*ahtiv1.AhtiEvent
	for name := range stories() {
		for _, ev := range tell(t, name) {
			ev.Id = name + ev.GetId()
			events = append(events, ev)
		}
	}
	now := noon.Add(10 * time.Minute)
	slices.SortFunc(events, func(a, b *ahtiv1.AhtiEvent) int { return a.GetTimestamp().AsTime().Compare(b.GetTimestamp().AsTime()) })
	first := newEngine(t)
	for _, ev := range events {
		first.Apply(ev)
	}
	first.Learn(now.Add(time.Hour))
	want := show(first.Incidents(now))
	require.NotEmpty(t, want)
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // a test wants the same order each time
		random.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		e := newEngine(t)
		for i, ev := range events {
			e.Apply(ev)
			if seed%2 == 0 && i%7 == 0 {
				e.Incidents(now)
			}
		}
		e.Learn(now.Add(time.Hour))
		require.Equal(t, want, show(e.Incidents(now)), "seed %d", seed)
		require.Equal(t, first.Lessons(), e.Lessons(), "seed %d", seed)
	}
}

func show(incidents []*ahtiv1.Incident) []string {
	var out []string
	for _, in := range incidents {
		text, err := protojson.MarshalOptions{Indent: " "}.Marshal(in)
		if err != nil {
			panic(err)
		}
		// Whitespace of protojson is random on purpose.
		out = append(out, string(slices.DeleteFunc(text, func(b byte) bool { return b == ' ' || b == '\n' })))
	}
	return out
}

// What has often followed a change that no row of the table names is believed
// after a while; before, it is not.
func TestLearnsFromExperience(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	s := newShop()
	s.quietDay(st)
	// An operator patches a Service's annotation, and 20 s later the callers'
	// DNS fails. Thirty times.
	at := time.Duration(0)
	for range 30 {
		st.change(at, s.apiService, "updated", "metadata.labels[track]: a -> b")
		st.refused(at+20*time.Second, "dns_timeout", s.webContainer, s.apiEndpoint)
		st.refused(at+21*time.Second, "dns_timeout", s.webContainer, s.apiEndpoint)
		at += 40 * time.Minute
	}
	var first, last *ahtiv1.Incident
	for i, ev := range st.events {
		e.Apply(ev)
		now := ev.GetTimestamp().AsTime()
		e.Learn(now)
		if found := e.Incidents(now); len(found) > 0 && ev.GetSubtype() == "network.dns_timeout" {
			last = found[0]
			if i < 13 {
				first = found[0]
			}
		}
	}
	require.Zero(t, first.GetConfidence(), "nothing is known yet: %s", first.GetSummary())
	require.Greater(t, last.GetConfidence(), 0.6, last.GetSummary())
	require.Contains(t, last.GetSummary(), "Service shop/api was changed")

	data, err := e.Lessons().MarshalBinary()
	require.NoError(t, err)
	var lessons causality.Lessons
	require.NoError(t, lessons.UnmarshalBinary(data))
	require.Equal(t, e.Lessons(), lessons)
	taught := newEngine(t)
	taught.Teach(lessons)
	for _, ev := range st.events[len(st.events)-13:] {
		taught.Apply(ev)
	}
	require.False(t, taught.Learn(noon.Add(at-40*time.Minute)), "what the lessons hold is not counted twice")
}

// A change that is seen all the time beside a symptom that comes by itself is
// no cause.
func TestLearnsWhatIsChance(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	s := newShop()
	s.quietDay(st)
	at := time.Duration(0)
	for range 60 {
		at += 35 * time.Minute
		st.refused(at, "dns_timeout", s.webContainer, s.apiEndpoint)
		st.refused(at+time.Second, "dns_timeout", s.webContainer, s.apiEndpoint)
	}
	for i := range 4 {
		st.change(time.Duration(i)*8*time.Hour, s.apiService, "updated", "metadata.labels[track]: a -> b")
	}
	for _, ev := range st.events {
		e.Apply(ev)
	}
	e.Learn(noon.Add(at + time.Hour))
	st.events = nil
	st.ids = 1000
	st.change(at+time.Hour, s.apiService, "updated", "metadata.labels[track]: a -> b")
	st.refused(at+time.Hour+time.Minute, "dns_timeout", s.webContainer, s.apiEndpoint)
	st.refused(at+time.Hour+time.Minute, "dns_timeout", s.webContainer, s.apiEndpoint)
	for _, ev := range st.events {
		e.Apply(ev)
	}
	found := e.Incidents(noon.Add(at + 62*time.Minute))
	require.NotEmpty(t, found)
	require.Zero(t, found[0].GetConfidence(), found[0].GetSummary())
}

// An engine that starts anew from facts and relevant events says the same.
func TestRestart(t *testing.T) {
	for name := range stories() {
		t.Run(name, func(t *testing.T) {
			e, again := newEngine(t), newEngine(t)
			events := tell(t, name)
			for _, ev := range events {
				at := ev.GetTimestamp().AsTime()
				d := e.Apply(ev)
				again.Observe(at, d.Entities, d.Relationships)
			}
			for _, ev := range events {
				if e.Relevance(ev) != causality.Irrelevant {
					again.Apply(ev)
				}
			}
			now := noon.Add(6 * time.Minute)
			require.Equal(t, show(e.Incidents(now)), show(again.Incidents(now)))
			entities, ties, _ := e.Topology(nil, now, 0, 1000)
			againEntities, againTies, _ := again.Topology(nil, now, 0, 1000)
			require.Len(t, againEntities, len(entities))
			require.Len(t, againTies, len(ties))
		})
	}
}

func TestWhyFindsTheIncidentFromAnySide(t *testing.T) {
	e := newEngine(t)
	for _, ev := range tell(t, "memory limit lowered") {
		e.Apply(ev)
	}
	now := noon.Add(5 * time.Minute)
	for _, name := range []string{
		"shop/api", "deployment/shop/api", "deploy/api", "api-8e1-x1", "pod/shop/api-8e1-x1", "svc/api",
		"deploy/web", "web-5c4-k2", "10.96.0.9:80",
	} {
		refs := e.Resolve(name, "")
		require.NotEmpty(t, refs, name)
		found := e.Why(refs, noon.Add(-time.Hour), now, now)
		require.Len(t, found, 1, name)
		require.Contains(t, found[0].GetSummary(), "memory limit 512Mi → 64Mi", name)
	}
	require.Empty(t, e.Why(e.Resolve("n2", "test"), noon.Add(-time.Hour), now, now), "the node has nothing to do with it")
	require.Empty(t, e.Resolve("nobody", ""))
	require.Empty(t, e.Resolve("api", "other-cluster"))
}

func TestTopology(t *testing.T) {
	e := newEngine(t)
	for _, ev := range tell(t, "healthy rollout") {
		e.Apply(ev)
	}
	names := func(at time.Duration, depth int) []string {
		entities, _, _ := e.Topology(e.Resolve("deploy/api", "test"), noon.Add(at), depth, 100)
		var out []string
		for _, en := range entities {
			out = append(out, en.GetName())
		}
		slices.Sort(out)
		return out
	}
	require.Equal(t, []string{"api"}, names(-time.Minute, 0))
	require.Equal(t, []string{"api", "api-7d9"}, names(-time.Minute, 1))
	require.Contains(t, names(10*time.Second, 2), "api-7d9-x1")
	require.Contains(t, names(10*time.Second, 2), "api-8e1-b7")
	require.NotContains(t, names(time.Minute, 2), "api-7d9-x1", "it was deleted")
	_, _, truncated := e.Topology(nil, noon, 0, 3)
	require.True(t, truncated)
}

func TestForget(t *testing.T) {
	e := newEngine(t)
	for name := range stories() {
		for _, ev := range tell(t, name) {
			e.Apply(ev)
		}
	}
	before := e.Size()
	e.Forget(noon.Add(-48 * time.Hour))
	require.Equal(t, before, e.Size(), "nothing is that old")
	e.Forget(noon.Add(48 * time.Hour))
	after := e.Size()
	require.Zero(t, after.Symptoms)
	require.Zero(t, after.Changes)
	require.Less(t, after.Entities, before.Entities)
	require.NotEmpty(t, e.Resolve("deploy/api", ""), "what exists is kept however long it is silent")
	require.Empty(t, e.Resolve("api-7d9-x1", "other"))
	require.Empty(t, e.Incidents(noon.Add(48*time.Hour)))
	// And it goes on.
	for _, ev := range tell(t, "memory limit lowered") {
		e.Apply(ev)
	}
	require.Len(t, e.Incidents(noon.Add(6*time.Minute)), 1)
}

// A thousand healthy rollouts say nothing for the one that breaks something.
func TestHealthyRolloutsAreNoAlibi(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	s := newShop()
	s.quietDay(st)
	for i := range 1000 {
		st.change(time.Duration(i)*time.Minute, s.api, "updated", "spec.template.spec.containers[api].image: api:1 -> api:2")
	}
	for _, ev := range st.events {
		e.Apply(ev)
	}
	e.Learn(noon.Add(20 * time.Hour))
	st.events = nil
	st.change(21*time.Hour, s.api, "updated", "spec.template.spec.containers[api].image: api:2 -> api:3")
	s.rollOut(st, 21*time.Hour, s.api)
	st.exit(21*time.Hour+20*time.Second, s.apiContainer, "1")
	for _, ev := range st.events {
		e.Apply(ev)
	}
	found := e.Incidents(noon.Add(21*time.Hour + time.Minute))
	require.Len(t, found, 1)
	require.Greater(t, found[0].GetConfidence(), 0.5, found[0].GetSummary())
	require.Contains(t, found[0].GetSummary(), "api:2 → api:3")
}

// What goes on keeps its cause and its name, however long it goes on.
func TestCauseOfWhatGoesOnIsKept(t *testing.T) {
	e, err := causality.New(causality.Options{Window: time.Hour})
	require.NoError(t, err)
	st := &story{}
	s := newShop()
	s.quietDay(st)
	st.change(0, s.api, "updated", "spec.template.spec.containers[api].image: api:1 -> api:2")
	s.rollOut(st, 0, s.api)
	for _, ev := range st.events {
		e.Apply(ev)
	}
	id := ""
	for i := range 24 * 60 / 5 {
		st.events = nil
		at := time.Duration(i+1) * 5 * time.Minute
		st.exit(at, s.apiContainer, "1")
		e.Apply(st.events[0])
		now := noon.Add(at)
		e.Learn(now)
		e.Forget(now.Add(-2 * time.Hour))
		found := e.Incidents(now)
		require.Len(t, found, 1)
		require.Equal(t, "new_version_fails", found[0].GetCauses()[0].GetFailureMode(), "after %s", at)
		require.Equal(t, ahtiv1.IncidentState_INCIDENT_STATE_OPEN, found[0].GetState())
		if id == "" {
			id = found[0].GetId()
		}
		require.Equal(t, id, found[0].GetId(), "after %s", at)
	}
}

// Pods that come and go leave nothing behind.
func TestForgottenPodsLeaveNothing(t *testing.T) {
	e := newEngine(t)
	n := newThing(node, "", "n1")
	st := &story{}
	for i := range 500 {
		p := newThing(pod, "shop", fmt.Sprint("pod", i)).tie(runsOn, n)
		st.change(0, p, "created")
		st.change(time.Minute, p, "deleted")
	}
	for _, ev := range st.events {
		e.Apply(ev)
	}
	e.Forget(noon.Add(100 * time.Hour))
	size := e.Size()
	require.LessOrEqual(t, size.Entities, 1, "the node")
	require.Zero(t, size.Relationships)
}

// What is told to have come right is not open any more, and open again when it
// fails again.
func TestWhatIsOverIsResolved(t *testing.T) {
	e := newEngine(t)
	st := &story{}
	s := newShop()
	s.quietDay(st)
	const path = "status.conditions[Ready].status: "
	for i, turn := range []struct {
		ready string
		state ahtiv1.IncidentState
	}{
		{"True -> False", ahtiv1.IncidentState_INCIDENT_STATE_OPEN},
		{"False -> True", ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED},
		{"True -> Unknown", ahtiv1.IncidentState_INCIDENT_STATE_OPEN},
		{"Unknown -> True", ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED},
	} {
		at := time.Duration(i) * time.Minute
		st.change(at, s.n1, "updated", path+turn.ready)
		for _, ev := range st.events {
			e.Apply(ev)
		}
		st.events = nil
		found := e.Incidents(noon.Add(at + time.Second))
		require.Len(t, found, 1)
		require.Equal(t, turn.state, found[0].GetState(), turn.ready)
	}
	e.Forget(noon.Add(48 * time.Hour))
	require.Empty(t, e.Incidents(noon.Add(48*time.Hour)))
}

// What is told late changes the answer as if it had been told in time.
func TestWhatIsToldLate(t *testing.T) {
	rollout := func(st *story, s *shop) {
		st.change(0, s.api, "updated", "spec.template.spec.containers[api].image: api:1 -> api:2")
		st.change(time.Second, s.apiSet, "created")
		st.change(20*time.Second, s.apiPod, "updated")
		st.exit(20*time.Second, s.apiContainer, "1")
	}
	for name, told := range map[string]struct{ early, late func(st *story, s *shop) }{
		"a pod was there before the rollout": {rollout, func(st *story, s *shop) {
			ev := st.kube(-time.Hour, s.apiPod, "Pulled", "Container image already present")
			ev.Entities, ev.Relationships = ev.GetEntities()[:1], nil
		}},
		"a pod was made before the rollout": {rollout, func(st *story, s *shop) {
			st.change(30*time.Second, s.apiPod, "updated").Entities[0].Attributes = map[string]string{"creation_timestamp": "2026-03-03T13:00:00Z"}
		}},
		"a pod was tied to something before the rollout": {func(st *story, s *shop) {
			s.apiPod.ties[0].CreatedAt = timestamppb.New(noon.Add(-2 * time.Hour))
			rollout(st, s)
			st.kube(30*time.Second, s.apiPod, "Pulled", "Container image already present")
		}, func(st *story, s *shop) {
			ev := st.kube(-time.Hour, s.n2, "Rebooted", "which names the pod for some reason")
			ev.Relationships = s.apiPod.ties[:1]
		}},
		"what seemed to go with its pod goes on": {func(st *story, s *shop) {
			s.quietDay(st)
			st.exit(2*time.Second, s.apiContainer, "143")
			st.change(8*time.Second, s.apiPod, "deleted")
			st.exit(9500*time.Millisecond, s.apiContainer, "143")
			st.refused(9*time.Second, "connection_refused", s.webContainer, s.apiEndpoint)
			st.refused(10*time.Second, "connection_refused", s.webContainer, s.apiEndpoint)
		}, func(st *story, s *shop) {
			st.exit(20*time.Second, s.apiContainer, "143")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			st, s, now := &story{}, newShop(), noon.Add(time.Minute)
			told.early(st, s)
			e := newEngine(t)
			for _, ev := range st.events {
				e.Apply(ev)
			}
			before := show(e.Incidents(now))
			early := len(st.events)
			told.late(st, s)
			for _, ev := range st.events[early:] {
				e.Apply(ev)
			}
			fresh := newEngine(t)
			for _, ev := range st.events {
				fresh.Apply(ev)
			}
			require.NotEqual(t, before, show(e.Incidents(now)))
			require.Equal(t, show(fresh.Incidents(now)), show(e.Incidents(now)))
		})
	}
}
