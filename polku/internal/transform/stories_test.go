package transform_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/causality"
	"github.com/yairfalse/tapio/shared/event"
)

// finding is an incident that a story leads to.
type finding struct {
	root string // type/name; empty when a container is, whose name nobody knows
	mode string // of the likeliest cause; empty when it does not matter
	says string // a part of the summary
}

// stories are what happens in a cluster as the observers tell it, and what is to be
// made of it at the end.
func stories() []struct {
	name  string
	until time.Duration
	want  []finding
	tell  func(s *story, c *cluster)
} {
	return []struct {
		name  string
		until time.Duration
		want  []finding
		tell  func(s *story, c *cluster)
	}{
		{
			name: "limit lowered", until: 2 * time.Minute, want: []finding{{"deployment/api", "memory_limit_lowered", "OOM-killed"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].resources.limits.memory: 512Mi -> 64Mi")
				c.started(s, 2*sec, p[0])
				for i, at := range []time.Duration{8 * sec, 20 * sec, 45 * sec} {
					s.oom(at, p[0], 64*mib)
					c.crash(s, at, p[0], "OOMKilled", "137", i+2)
				}
			},
		},
		{
			name: "limit lowered, whole rollout stuck", until: 15 * time.Minute, want: []finding{{"deployment/api", "memory_limit_lowered", "OOM-killed"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].resources.limits.memory: 512Mi -> 64Mi")
				c.started(s, 2*sec, p[0])
				at := 8 * sec
				for i, wait := range []time.Duration{12 * sec, 22 * sec, 42 * sec, 82 * sec, 162 * sec, 302 * sec, 302 * sec} {
					s.oom(at, p[0], 64*mib)
					c.crash(s, at, p[0], "OOMKilled", "137", i+2)
					at += wait
				}
				s.change(600*sec, c.api, "updated", "status.conditions[Progressing].status: True -> False", "status.conditions[Progressing].reason: ReplicaSetUpdated -> ProgressDeadlineExceeded")
			},
		},
		{
			name: "limit lowered, Kubernetes only (no agent)", until: 2 * time.Minute, want: []finding{{"deployment/api", "memory_limit_lowered", "OOM-killed. Seen 3 times"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].resources.limits.memory: 512Mi -> 64Mi")
				c.started(s, 2*sec, p[0])
				for i, at := range []time.Duration{8 * sec, 20 * sec, 45 * sec} {
					c.crash(s, at, p[0], "OOMKilled", "137", i+2)
				}
			},
		},
		{
			name: "Recreate: callers are refused", until: 2 * time.Minute, want: []finding{{"deployment/api", "callee_rolled_out", "memory limit 512Mi → 64Mi"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.api, "updated", "spec.template.spec.containers[api].resources.limits.memory: 512Mi -> 64Mi")
				s.change(20*ms, c.apiRS, "updated", "spec.replicas: 2 -> 0", "metadata.generation: 1 -> 2")
				c.gone(s, 30*ms, c.apiA, 3*sec)
				c.gone(s, 30*ms, c.apiB, 3*sec)
				c.slice.links = []*eventv1.ObjectLink{{Type: "exposes", Target: c.apiA.ref, Removed: true}, {Type: "exposes", Target: c.apiB.ref, Removed: true}}
				s.change(3100*ms, c.slice, "updated", "endpoints[0].targetRef.name: api-7d9c-aaaaa -> ")
				rs := newObject("ReplicaSet", "shop", "api-8e1f", c.api)
				s.change(3200*ms, rs, "created")
				p := c.born(s, 3300*ms, rs, "p0000", c.n1, "10.244.1.20")
				c.started(s, 5*sec, p)
				for i := range 4 {
					s.refused(3500*ms+time.Duration(i)*sec, c.webPod, "10.96.0.9", "80")
				}
				for i, at := range []time.Duration{9 * sec, 21 * sec} {
					s.oom(at, p, 64*mib)
					c.crash(s, at, p, "OOMKilled", "137", i+2)
				}
			},
		},
		{
			name: "bad image", until: 2 * time.Minute, want: []finding{{"deployment/api", "image_changed", "cannot be pulled"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 2, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:oops")
				for _, p := range p {
					s.normal(1*sec, p, "Pulling", `Pulling image "reg/api:oops"`, "api")
					s.warning(2*sec, p, "Failed", `Failed to pull image "reg/api:oops": rpc error: code = NotFound desc = failed to pull and unpack image "reg/api:oops": not found`, "api")
					s.warning(2*sec, p, "Failed", "Error: ErrImagePull", "api")
					s.change(2500*ms, p, "updated", "status.containerStatuses[api].state.waiting.reason: ContainerCreating -> ErrImagePull", "status.containerStatuses[api].state.waiting.message:  -> rpc error")
					s.normal(3*sec, p, "BackOff", `Back-off pulling image "reg/api:oops"`, "api")
					s.warning(3*sec, p, "Failed", "Error: ImagePullBackOff", "api")
					s.change(14*sec, p, "updated", "status.containerStatuses[api].state.waiting.reason: ErrImagePull -> ImagePullBackOff")
				}
			},
		},
		{
			name: "config change, pod deleted", until: 4 * time.Minute, want: []finding{{"configmap/settings", "config_changed", "exit code 1"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.config, "updated", "data[database.url]: postgres://db -> postgres://bd")
				c.gone(s, 2*time.Minute, c.apiA, 4*sec)
				p := c.born(s, 2*time.Minute+50*ms, c.apiRS, "ccccc", c.n1, "10.244.1.30")
				c.started(s, 2*time.Minute+2*sec, p)
				for i, at := range []time.Duration{4 * sec, 8 * sec, 22 * sec} {
					s.exit(2*time.Minute+at, p, "1")
					c.crash(s, 2*time.Minute+at, p, "Error", "1", i+2)
				}
			},
		},
		{
			name: "config change, rollout restart, paths with dots", until: 4 * time.Minute, want: []finding{{"configmap/settings", "config_changed", "exit code 1"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.config, "updated", "data.LOG_LEVEL: info -> inof")
				_, p := c.rollout(s, 2*time.Minute, "8e1f", 1, "spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]:  -> 2026-03-03T14:02:00Z")
				c.started(s, 2*time.Minute+2*sec, p[0])
				for i, at := range []time.Duration{4 * sec, 8 * sec, 22 * sec} {
					s.exit(2*time.Minute+at, p[0], "1")
					c.crash(s, 2*time.Minute+at, p[0], "Error", "1", i+2)
				}
			},
		},
		{
			name: "config change, rollout restart", until: 4 * time.Minute, want: []finding{{"configmap/settings", "config_changed", "exit code 1"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.config, "updated", "data[LOG_LEVEL]: info -> inof")
				_, p := c.rollout(s, 2*time.Minute, "8e1f", 1, "spec.template.metadata.annotations[kubectl.kubernetes.io/restartedAt]:  -> 2026-03-03T14:02:00Z")
				c.started(s, 2*time.Minute+2*sec, p[0])
				for i, at := range []time.Duration{4 * sec, 8 * sec, 22 * sec} {
					s.exit(2*time.Minute+at, p[0], "1")
					c.crash(s, 2*time.Minute+at, p[0], "Error", "1", i+2)
				}
			},
		},
		{
			name: "selector", until: 2 * time.Minute, want: []finding{{"service/api", "selector_changed", "refused"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.svc, "updated", "spec.selector[app]: api -> apj")
				c.slice.links = []*eventv1.ObjectLink{{Type: "exposes", Target: c.apiA.ref, Removed: true}, {Type: "exposes", Target: c.apiB.ref, Removed: true}}
				s.change(60*ms, c.slice, "updated", "endpoints[0].targetRef.name: api-7d9c-aaaaa -> ", "endpoints[1].targetRef.name: api-7d9c-bbbbb -> ")
				for i := range 20 {
					s.refused(sec+time.Duration(i)*sec, c.webPod, "10.96.0.9", "80")
				}
				for i := range 4 {
					s.warning(10*sec+time.Duration(i)*10*sec, c.webPod, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", "web")
				}
			},
		},
		{
			name: "selector, an hour later", until: 2 * time.Minute, want: []finding{{"service/api", "selector_changed", "refused"}},
			tell: func(s *story, c *cluster) {
				s.change(-time.Hour, c.svc, "updated", "spec.selector[app]: api -> apj")
				c.slice.links = []*eventv1.ObjectLink{{Type: "exposes", Target: c.apiA.ref, Removed: true}, {Type: "exposes", Target: c.apiB.ref, Removed: true}}
				s.change(-time.Hour+60*ms, c.slice, "updated")
				for i := range 5 {
					s.refused(sec+time.Duration(i)*sec, c.webPod, "10.96.0.9", "80")
				}
			},
		},
		{
			name: "selector, first call 6 minutes later", until: 2 * time.Minute, want: []finding{{"service/api", "selector_changed", "refused"}},
			tell: func(s *story, c *cluster) {
				s.change(-6*time.Minute, c.svc, "updated", "spec.selector[app]: api -> apj")
				for i := range 5 {
					s.refused(sec+time.Duration(i)*sec, c.webPod, "10.96.0.9", "80")
				}
			},
		},
		{
			name: "selector written with dots", until: 2 * time.Minute, want: []finding{{"service/api", "selector_changed", "refused"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.svc, "updated", "spec.selector.app: api -> apj")
				for i := range 5 {
					s.refused(sec+time.Duration(i)*sec, c.webPod, "10.96.0.9", "80")
				}
			},
		},
		{
			name: "a Service is deleted, and who keeps its address waits in vain", until: 2 * time.Minute, want: []finding{{"service/api", "service_deleted", "time out"}},
			tell: func(s *story, c *cluster) {
				// What is behind it is only a little older.
				young := newObject("Deployment", "shop", "young")
				set := newObject("ReplicaSet", "shop", "young-1", young)
				p := newObject("Pod", "shop", "young-1-x", set, young).link("scheduled_on", c.n1)
				for _, o := range []*object{young, set, p} {
					s.change(-10*sec, o, "created", "metadata.creationTimestamp:  -> 2026-03-03T13:59:50Z")
				}
				c.slice.links = []*eventv1.ObjectLink{{Type: "exposes", Target: p.ref}}
				s.change(-9*sec, c.slice, "updated")
				s.change(0, c.svc, "deleted")
				s.change(100*ms, c.slice, "deleted")
				for i := range 20 {
					s.agent(5*sec+time.Duration(2*i)*sec, c.webPod, event.KindNetworkConnectionTimeout, eventv1.Severity_SEVERITY_ERROR, event.NetworkPeerAddress, "10.96.0.9", event.NetworkPeerPort, "80", event.ErrorType, "timeout", event.TapioNetworkRole, event.RoleClient)
				}
				for i := range 4 {
					s.agent(20*sec+time.Duration(2*i)*sec, c.apiA, event.KindNetworkConnectionReset, eventv1.Severity_SEVERITY_WARNING, event.ErrorType, "ECONNRESET",
						event.TapioNetworkRole, event.RoleServer, event.NetworkPeerAddress, "10.244.1.1", event.NetworkLocalAddress, "10.244.1.5", event.NetworkLocalPort, "8080")
				}
			},
		},
		{
			name: "a node that was mended long ago is not blamed for what a deleted Service does", until: 2 * time.Minute,
			want: []finding{{"service/api", "service_deleted", "time out"}, {"node/n1", "", "is not ready"}},
			tell: func(s *story, c *cluster) {
				s.change(-12*time.Minute, c.n1, "updated", "status.conditions[Ready].status: True -> Unknown")
				s.change(-10*time.Minute, c.n1, "updated", "status.conditions[Ready].status: Unknown -> True")
				s.change(0, c.svc, "deleted")
				for i := range 20 {
					s.agent(5*sec+time.Duration(2*i)*sec, c.webPod, event.KindNetworkConnectionTimeout, eventv1.Severity_SEVERITY_ERROR, event.NetworkPeerAddress, "10.96.0.9", event.NetworkPeerPort, "80", event.ErrorType, "timeout", event.TapioNetworkRole, event.RoleClient)
				}
			},
		},
		{
			name: "new claim of an unknown class", until: 2 * time.Minute, want: []finding{{"pvc/data", "", "cannot be had"}},
			tell: func(s *story, _ *cluster) {
				claim := newObject("PersistentVolumeClaim", "shop", "data")
				lim := newObject("LimitRange", "shop", "young")
				s.change(-sec, lim, "created", "metadata.creationTimestamp:  -> 2026-03-03T13:59:59Z")
				s.change(0, claim, "created", "metadata.creationTimestamp:  -> 2026-03-03T14:00:00Z", "spec.storageClassName:  -> nowhere")
				db := newObject("Deployment", "shop", "db").link("mounts", claim)
				rs := newObject("ReplicaSet", "shop", "db-1", db)
				p := newObject("Pod", "shop", "db-1-x", rs, db).link("mounts", claim)
				for _, o := range []*object{db, rs, p} {
					s.change(0, o, "created", "metadata.creationTimestamp:  -> 2026-03-03T14:00:00Z")
				}
				for i := range 2 {
					s.warning(0, p, "FailedScheduling", "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.")
					s.warning(time.Duration(15*i)*sec, claim, "ProvisioningFailed", `storageclass.storage.k8s.io "nowhere" not found`)
				}
			},
		},
		{
			name: "quota", until: 11 * time.Minute, want: []finding{{"deployment/api", "scaled_beyond_quota", "exceeded quota"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.api, "updated", "spec.replicas: 2 -> 20", "metadata.generation: 4 -> 5")
				s.normal(0, c.api, "ScalingReplicaSet", "Scaled up replica set api-7d9c from 2 to 20")
				s.change(20*ms, c.apiRS, "updated", "spec.replicas: 2 -> 20", "metadata.annotations[deployment.kubernetes.io/desired-replicas]: 2 -> 20")
				for i := range 3 {
					p := c.born(s, 100*ms+time.Duration(i)*10*ms, c.apiRS, fmt.Sprintf("q%04d", i), c.n1, fmt.Sprintf("10.244.1.%d", 60+i))
					c.started(s, 2*sec, p)
					s.change(150*ms, c.quota, "updated", fmt.Sprintf("status.used[pods]: %d -> %d", 7+i, 8+i))
				}
				for i := range 6 {
					s.warning(time.Duration(1<<i)*sec-500*ms, c.apiRS, "FailedCreate", `Error creating: pods "api-7d9c-xx" is forbidden: exceeded quota: limits, requested: pods=1, used: pods=10, limited: pods=10`)
				}
				s.change(700*ms, c.apiRS, "updated", "status.conditions[ReplicaFailure].status:  -> True", "status.conditions[ReplicaFailure].reason:  -> FailedCreate")
				s.change(800*ms, c.api, "updated", "status.conditions[ReplicaFailure].status:  -> True", "status.conditions[ReplicaFailure].reason:  -> FailedCreate")
				s.change(600*sec, c.api, "updated", "status.conditions[Progressing].status: True -> False", "status.conditions[Progressing].reason: ReplicaSetUpdated -> ProgressDeadlineExceeded")
			},
		},
		{
			name: "unschedulable", until: 2 * time.Minute, want: []finding{{"deployment/api", "requests_raised", "no node"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.api, "updated", "spec.template.spec.containers[api].resources.requests.cpu: 500m -> 64")
				rs := newObject("ReplicaSet", "shop", "api-8e1f", c.api)
				s.change(20*ms, rs, "created")
				p := c.pod(rs, c.api, "p0000", nil, "")
				s.change(50*ms, p, "created")
				s.warning(60*ms, p, "FailedScheduling", "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.")
				s.change(70*ms, p, "updated", "status.conditions[PodScheduled].status:  -> False", "status.conditions[PodScheduled].reason:  -> Unschedulable", "status.conditions[PodScheduled].message:  -> 0/2 nodes are available: 2 Insufficient cpu.")
				for i := range 3 {
					s.podsWait(30*sec + time.Duration(i)*30*sec)
				}
			},
		},
		{
			name: "drain", until: 6 * time.Minute, want: []finding{{"node/n1", "node_cordoned", "no node"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.n1, "updated", "spec.unschedulable:  -> true")
				s.normal(0, c.n1, "NodeNotSchedulable", "Node n1 status is now: NodeNotSchedulable")
				s.change(200*ms, c.n1, "updated", "spec.taints[0].effect:  -> NoSchedule", "spec.taints[0].key:  -> node.kubernetes.io/unschedulable", "spec.taints[0].timeAdded:  -> 2026-03-03T14:00:00Z")
				s.change(900*ms, c.apiA, "updated", "status.conditions[DisruptionTarget].status:  -> True", "status.conditions[DisruptionTarget].reason:  -> EvictionByEvictionAPI")
				c.gone(s, sec, c.apiA, 5*sec)
				c.slice.links = []*eventv1.ObjectLink{{Type: "exposes", Target: c.apiA.ref, Removed: true}, {Type: "exposes", Target: c.apiB.ref}}
				s.change(1200*ms, c.slice, "updated")
				p := c.pod(c.apiRS, c.api, "ddddd", nil, "")
				s.change(1100*ms, p, "created")
				s.warning(1150*ms, p, "FailedScheduling", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.")
				s.change(1160*ms, p, "updated", "status.conditions[PodScheduled].status:  -> False", "status.conditions[PodScheduled].reason:  -> Unschedulable")
				s.warning(301*sec, p, "FailedScheduling", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.")
			},
		},
		{
			name: "drain, replacements fit", until: 6 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				s.change(0, c.n1, "updated", "spec.unschedulable:  -> true")
				s.change(200*ms, c.n1, "updated", "spec.taints[0].effect:  -> NoSchedule", "spec.taints[0].key:  -> node.kubernetes.io/unschedulable")
				c.gone(s, sec, c.apiA, 31*sec)
				p := c.born(s, 1100*ms, c.apiRS, "ddddd", c.n2, "10.244.2.40")
				c.started(s, 3*sec, p)
			},
		},
		{
			name: "leak", until: 85 * time.Minute, want: []finding{{"", "", "No change that was seen explains it"}},
			tell: func(s *story, c *cluster) {
				for i, at := range []time.Duration{0, 40 * time.Minute, 80 * time.Minute} {
					s.oom(at, c.apiA, 512*mib)
					if i == 0 {
						c.crash(s, at, c.apiA, "OOMKilled", "137", 2)
					} else {
						c.crash(s, at, c.apiA, "OOMKilled", "137", i+2)
					}
				}
			},
		},
		{
			name: "healthy rollout", until: 3 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				_, ps := c.rollout(s, 0, "8e1f", 2, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				for i, p := range ps {
					c.started(s, 2*sec, p)
					for j := range 2 {
						s.warning(5*sec+time.Duration(5*j)*sec, p, "Unhealthy", "Readiness probe failed: Get \"http://10.244.1.20:8080/\": dial tcp: connect: connection refused", "api")
					}
					s.change(15*sec, p, "updated", "status.conditions[Ready].status: False -> True", "status.containerStatuses[api].ready: false -> true")
					s.change(15*sec+time.Duration(i)*sec, c.apiRS, "updated", fmt.Sprintf("spec.replicas: %d -> %d", 2-i, 1-i))
					old := []*object{c.apiA, c.apiB}[i]
					c.gone(s, 15*sec+time.Duration(i)*sec, old, 31*sec)
					s.change(15*sec+time.Duration(i)*sec, c.slice, "updated")
				}
				s.refused(16*sec, c.webPod, "10.244.1.5", "8080")
				s.change(47*sec, c.api, "updated", "status.conditions[Progressing].reason: ReplicaSetUpdated -> NewReplicaSetAvailable")
			},
		},
		{
			name: "probes: refused before a pod listens, and cut short by who probes", until: 4 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				_, ps := c.rollout(s, 0, "8e1f", 2, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				for i, p := range ps {
					c.started(s, 2*sec, p)
					for j := range 4 {
						s.send(2*sec+time.Duration(j)*sec, &eventv1.Event{
							Source: "tapio", EventType: event.KindNetworkConnectionRefused, Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
							Metadata: map[string]string{
								event.HostName: "n1", event.K8sNodeName: "n1", event.TapioServiceUnit: "kubelet.service", event.ProcessExecutableName: "kubelet", event.ProcessLinuxCgroup: "/kubelet.slice/kubelet.service",
								event.NetworkPeerAddress: fmt.Sprintf("10.244.1.%d", 20+i), event.NetworkPeerPort: "8080", event.TapioNetworkRole: event.RoleClient, event.TapioPeerKind: event.PeerPod,
							},
						})
					}
					for j := range 20 {
						s.agent(10*sec+time.Duration(10*j)*sec, p, event.KindNetworkConnectionReset, eventv1.Severity_SEVERITY_WARNING, event.ErrorType, "ECONNRESET",
							event.TapioNetworkRole, event.RoleServer, event.NetworkPeerAddress, "10.244.1.1", event.NetworkLocalAddress, fmt.Sprintf("10.244.1.%d", 20+i), event.NetworkLocalPort, "8080")
					}
				}
			},
		},
		{
			name: "healthy rollout of a slow starter", until: 3 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				_, ps := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				p := ps[0]
				c.started(s, 2*sec, p)
				for j := range 5 {
					s.warning(5*sec+time.Duration(5*j)*sec, p, "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", "api")
				}
				s.change(30*sec, p, "updated", "status.conditions[Ready].status: False -> True", "status.containerStatuses[api].ready: false -> true")
				c.gone(s, 31*sec, c.apiA, 31*sec)
				s.change(63*sec, c.api, "updated", "status.conditions[Progressing].reason: ReplicaSetUpdated -> NewReplicaSetAvailable")
			},
		},
		{
			name: "healthy rollout, 10 pods", until: 3 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				_, ps := c.rollout(s, 0, "8e1f", 10, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				for _, p := range ps {
					c.started(s, 2*sec, p)
					for j := range 2 {
						s.warning(5*sec+time.Duration(5*j)*sec, p, "Unhealthy", "Readiness probe failed: connection refused", "api")
					}
					s.change(15*sec, p, "updated", "status.conditions[Ready].status: False -> True", "status.containerStatuses[api].ready: false -> true")
				}
			},
		},
		{
			name: "rollout beside a Job that fails", until: 3 * time.Minute, want: []finding{{"pod/report-29-zzzzz", "", "crashes again"}},
			tell: func(s *story, c *cluster) {
				_, ps := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				c.started(s, 2*sec, ps[0])
				s.warning(20*sec, c.jobPod, "BackOff", "Back-off restarting failed container report in pod report", "report")
			},
		},
		{
			name: "old pods fail probes while they end (grace 5 min)", until: 4 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				_, ps := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				c.started(s, 2*sec, ps[0])
				c.gone(s, 10*sec, c.apiA, 200*sec)
				for j := range 12 {
					s.warning(20*sec+time.Duration(15*j)*sec, c.apiA, "Unhealthy", "Readiness probe failed: connection refused", "api")
				}
			},
		},
		{
			name: "four replicas fail for a reason that nobody saw; callers are refused", until: 2 * time.Minute, want: []finding{{"", "", "refused"}},
			tell: func(s *story, c *cluster) {
				for i := range 4 {
					p := c.pod(c.apiRS, c.api, fmt.Sprintf("r%04d", i), c.n1, fmt.Sprintf("10.244.1.%d", 80+i))
					s.change(-time.Hour*24, p, "created")
					c.slice.links = append(c.slice.links, &eventv1.ObjectLink{Type: "exposes", Target: p.ref})
					s.change(-time.Hour*24+time.Minute, c.slice, "updated")
					s.exit(time.Duration(i)*100*ms, p, "1")
				}
				for i := range 5 {
					s.refused(sec+time.Duration(i)*sec, c.webPod, "10.96.0.9", "80")
				}
			},
		},
		{
			name: "node goes away", until: 6 * time.Minute, want: []finding{{"node/n1", "", "Node n1 is not ready"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.n1, "updated", "status.conditions[Ready].status: True -> Unknown", "status.conditions[Ready].reason: KubeletReady -> NodeStatusUnknown")
				s.normal(0, c.n1, "NodeNotReady", "Node n1 status is now: NodeNotReady")
				s.change(100*ms, c.n1, "updated", "spec.taints[0].key:  -> node.kubernetes.io/unreachable", "spec.taints[0].effect:  -> NoSchedule")
				s.change(200*ms, c.n1, "updated", "spec.taints[1].key:  -> node.kubernetes.io/unreachable", "spec.taints[1].effect:  -> NoExecute")
				for _, p := range []*object{c.apiA, c.jobPod} {
					s.warning(sec, p, "NodeNotReady", "Node is not ready")
					s.change(sec, p, "updated", "status.conditions[Ready].status: True -> False")
				}
				for i := range 5 {
					s.agent(20*sec+time.Duration(i)*10*sec, c.webPod, "network.connection_timeout", eventv1.Severity_SEVERITY_ERROR, "network.peer.address", "10.96.0.9", "network.peer.port", "80", "error.type", "ETIMEDOUT", "tapio.network.role", "client")
				}
				s.change(300*sec, c.apiA, "updated", "metadata.deletionTimestamp:  -> 2026-03-03T14:05:30Z")
				p := c.pod(c.apiRS, c.api, "eeeee", nil, "")
				s.change(300*sec, p, "created")
				for i := range 2 {
					s.warning(301*sec+time.Duration(i)*20*sec, p, "FailedScheduling", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }.")
				}
			},
		},
		{
			name: "liveness probe kills", until: 2 * time.Minute, want: []finding{{"", "", "fails its liveness probe"}},
			tell: func(s *story, c *cluster) {
				for i := range 3 {
					s.warning(time.Duration(i)*10*sec, c.apiA, "Unhealthy", "Liveness probe failed: context deadline exceeded", "api")
				}
				s.normal(20*sec, c.apiA, "Killing", "Container api failed liveness probe, will be restarted", "api")
				s.agent(50*sec, c.apiA, "container.exit_error", eventv1.Severity_SEVERITY_ERROR, "process.exit.code", "0", "tapio.process.signal", "SIGKILL")
				c.crash(s, 50*sec, c.apiA, "Error", "137", 2)
			},
		},
		{
			name: "claim deleted", until: 2 * time.Minute, want: []finding{{"pvc/cache", "claim_missing", "no node"}},
			tell: func(s *story, c *cluster) {
				pvc := newObject("PersistentVolumeClaim", "shop", "cache")
				s.change(-time.Hour*50, pvc, "created")
				s.change(0, pvc, "deleted")
				p := c.pod(c.apiRS, c.api, "ppppp", nil, "")
				p.link("mounts", pvc)
				s.change(60*sec, p, "created")
				for i := range 2 {
					s.warning(60*sec+time.Duration(i)*sec, p, "FailedScheduling", `0/2 nodes are available: persistentvolumeclaim "cache" not found.`)
				}
			},
		},
		{
			name: "CronJob that fails every 5 minutes", until: 21 * time.Minute, want: []finding{{"", "", "exit code 1"}},
			tell: func(s *story, c *cluster) {
				cron := newObject("CronJob", "shop", "report")
				s.change(-time.Hour*100, cron, "created")
				for i := range 5 {
					at := time.Duration(i) * 5 * time.Minute
					j := newObject("Job", "shop", fmt.Sprintf("report-%d", i), cron)
					s.change(at, j, "created")
					p := newObject("Pod", "shop", fmt.Sprintf("report-%d-x", i), j, cron).link("scheduled_on", c.n1)
					p.node, p.container = "n1", containerID(fmt.Sprint("cron", i))
					s.change(at+100*ms, p, "created")
					s.exit(at+5*sec, p, "1")
					s.change(at+6*sec, p, "updated", "status.phase: Running -> Failed", "status.containerStatuses[report].state.terminated.reason:  -> Error", "status.containerStatuses[report].state.terminated.exitCode:  -> 1")
					s.warning(at+7*sec, j, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
				}
			},
		},
		{
			name: "kubelet restarts: caches are not there yet", until: 2 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				s.warning(0, c.apiA, "FailedMount", `MountVolume.SetUp failed for volume "config" : failed to sync configmap cache: timed out waiting for the condition`)
				s.warning(0, c.apiB, "FailedMount", `MountVolume.SetUp failed for volume "kube-api-access-x" : object "shop"/"kube-root-ca.crt" not registered`)
			},
		},
		{
			name: "sandbox killed for memory", until: 2 * time.Minute, want: []finding{{"deployment/api", "memory_limit_lowered", "OOM"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].resources.limits.memory: 512Mi -> 4Mi")
				s.warning(2*sec, p[0], "FailedCreatePodSandBox", "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to create containerd task: OCI runtime create failed: container init was OOM-killed (memory limit too low?)")
			},
		},
		{
			name: "image pull policy Never", until: 2 * time.Minute, want: []finding{{"deployment/api", "", "cannot be pulled"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].imagePullPolicy: IfNotPresent -> Never")
				s.warning(2*sec, p[0], "ErrImageNeverPull", `Container image "reg/api:1" is not present with pull policy of Never`, "api")
				s.change(2*sec, p[0], "updated", "status.containerStatuses[api].state.waiting.reason: ContainerCreating -> ErrImageNeverPull")
			},
		},
		{
			name: "quota lowered, then a rollout", until: 31 * time.Minute, want: []finding{{"resourcequota/limits", "quota_changed", "exceeded quota"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.quota, "updated", "spec.hard[pods]: 10 -> 2")
				s.change(30*time.Minute, c.api, "updated", "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				rs := newObject("ReplicaSet", "shop", "api-8e1f", c.api)
				s.change(30*time.Minute+20*ms, rs, "created")
				for i := range 3 {
					s.warning(30*time.Minute+time.Duration(i)*sec, rs, "FailedCreate", `Error creating: pods "api-8e1f-xx" is forbidden: exceeded quota: limits, requested: pods=1, used: pods=3, limited: pods=2`)
				}
			},
		},
		{
			name: "pod security", until: 2 * time.Minute, want: []finding{{"namespace/shop", "", "PodSecurity"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.ns, "updated", "metadata.labels[pod-security.kubernetes.io/enforce]: privileged -> restricted")
				s.change(60*sec, c.api, "updated", "spec.replicas: 2 -> 3")
				s.change(60*sec+20*ms, c.apiRS, "updated", "spec.replicas: 2 -> 3")
				for i := range 3 {
					s.warning(61*sec+time.Duration(i)*sec, c.apiRS, "FailedCreate", `Error creating: pods "api-8e1f-xx" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false`)
				}
			},
		},
		{
			name: "node label taken away", until: 2 * time.Minute, want: []finding{{"node/n1", "", "no node"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.n1, "updated", "metadata.labels[disk]: ssd -> ")
				p := c.pod(c.apiRS, c.api, "lllll", nil, "")
				s.change(60*sec, p, "created")
				for i := range 2 {
					s.warning(60*sec+time.Duration(i)*sec, p, "FailedScheduling", "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.")
				}
			},
		},
		{
			name: "portti starts while all is well, then an OOM", until: 2 * time.Minute, want: []finding{{"", "", "No change that was seen explains it"}},
			tell: func(s *story, c *cluster) {
				for _, o := range []*object{c.api, c.apiRS, c.apiA, c.apiB, c.svc, c.config} {
					s.change(0, o, "created") // the first list, told with the time of the list
				}
				s.oom(20*sec, c.apiA, 512*mib)
			},
		},
		{
			name: "Secret rotated, pull fails", until: 2 * time.Minute, want: []finding{{"secret/regcred", "pull_secret_data_changed", "cannot be pulled"}},
			tell: func(s *story, c *cluster) {
				sec1 := newObject("Secret", "shop", "regcred")
				s.change(-time.Hour*100, sec1, "created")
				s.change(0, sec1, "updated", "data[.dockerconfigjson]: sha256:aa -> sha256:bb")
				p := c.pod(c.apiRS, c.api, "sssss", c.n1, "")
				p.link("uses", sec1)
				s.change(60*sec, p, "created")
				s.warning(62*sec, p, "Failed", `Failed to pull image "reg/api:1": rpc error: code = Unknown desc = failed to authorize: 401 Unauthorized; check image pull secret`, "api")
				s.warning(62*sec, p, "Failed", "Error: ErrImagePull", "api")
			},
		},
		{
			name: "uncordon is no cause", until: 2 * time.Minute, want: []finding{{"", "", "No change that was seen explains it"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.n1, "updated", "spec.unschedulable: true -> ", "spec.taints[0].key: node.kubernetes.io/unschedulable -> ", "spec.taints[0].effect: NoSchedule -> ")
				p := c.pod(c.apiRS, c.api, "uuuuu", nil, "")
				s.change(20*sec, p, "created")
				for i := range 2 {
					s.warning(20*sec+time.Duration(i)*sec, p, "FailedScheduling", "0/2 nodes are available: 2 Insufficient memory.")
				}
			},
		},
		{
			name: "a node joins (autoscaler): its not-ready taint goes", until: 2 * time.Minute, want: []finding{{"", "", "No change that was seen explains it"}},
			tell: func(s *story, c *cluster) {
				n3 := newObject("Node", "", "n3")
				s.change(0, n3, "created")
				s.change(5*sec, n3, "updated", "metadata.labels[topology.kubernetes.io/zone]:  -> a")
				s.change(10*sec, n3, "updated", "spec.taints[0].key: node.kubernetes.io/not-ready -> ", "spec.taints[0].effect: NoSchedule -> ", "status.conditions[Ready].status: False -> True")
				p := c.pod(c.apiRS, c.api, "uuuuu", nil, "")
				s.change(20*sec, p, "created")
				for i := range 2 {
					s.warning(20*sec+time.Duration(i)*sec, p, "FailedScheduling", "0/3 nodes are available: 3 Insufficient memory.")
				}
			},
		},
		{
			name: "node boots: Ready False, then True", until: 2 * time.Minute, want: nil,
			tell: func(s *story, _ *cluster) {
				n3 := newObject("Node", "", "n3")
				s.change(0, n3, "created")
				s.change(1*sec, n3, "updated", "status.conditions[Ready].status:  -> False", "status.conditions[Ready].reason:  -> KubeletNotReady")
				s.normal(1*sec, n3, "NodeNotReady", "Node n3 status is now: NodeNotReady")
				s.change(20*sec, n3, "updated", "status.conditions[Ready].status: False -> True", "status.conditions[Ready].reason: KubeletNotReady -> KubeletReady")
				s.normal(20*sec, n3, "NodeReady", "Node n3 status is now: NodeReady")
			},
		},
		{
			name: "Job ends well after SIGTERM of its sidecar; Completed", until: 2 * time.Minute, want: nil,
			tell: func(s *story, c *cluster) {
				s.change(0, c.jobPod, "updated", "status.phase: Running -> Succeeded", "status.containerStatuses[report].state.terminated.reason:  -> Completed", "status.containerStatuses[report].state.terminated.exitCode:  -> 0")
			},
		},
		{
			name: "HPA: two replicas too many to place", until: 2 * time.Minute, want: []finding{{"hpa/api", "scaled_up", "no node"}},
			tell: func(s *story, c *cluster) {
				hpa := newObject("HorizontalPodAutoscaler", "shop", "api")
				hpa.links = []*eventv1.ObjectLink{{Type: "scales", Target: &eventv1.ObjectReference{Kind: "Deployment", Namespace: "shop", Name: "api"}}}
				s.change(-time.Hour*100, hpa, "created")
				s.change(0, hpa, "updated", "spec.minReplicas: 2 -> 40")
				s.change(15*sec, c.api, "updated", "spec.replicas: 2 -> 40")
				s.change(15*sec+20*ms, c.apiRS, "updated", "spec.replicas: 2 -> 40")
				p := c.pod(c.apiRS, c.api, "hhhhh", nil, "")
				s.change(16*sec, p, "created")
				for i := range 2 {
					s.warning(16*sec+time.Duration(i)*sec, p, "FailedScheduling", "0/2 nodes are available: 2 Insufficient cpu.")
				}
			},
		},
		{
			name: "one FailedScheduling", until: 4 * time.Minute, want: []finding{{"deployment/api", "placement_changed", "no node"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.api, "updated", "spec.template.spec.nodeSelector.disk:  -> ssd")
				rs := newObject("ReplicaSet", "shop", "api-8e1f", c.api)
				s.change(20*ms, rs, "created")
				p := c.pod(rs, c.api, "p0000", nil, "")
				s.change(50*ms, p, "created")
				s.warning(60*ms, p, "FailedScheduling", "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.")
				s.change(70*ms, p, "updated", "status.conditions[PodScheduled].status:  -> False", "status.conditions[PodScheduled].reason:  -> Unschedulable")
			},
		},
		{
			name: "two containers crash after a rollout, sidecar innocent", until: 2 * time.Minute, want: []finding{{"deployment/api", "new_version_fails", "its container api failed (server: exit code 1)"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[proxy].image: p:1 -> p:2")
				c.started(s, 2*sec, p[0])
				s.exit(10*sec, p[0], "1") // the agent knows no container name
				c.crash(s, 10*sec, p[0], "Error", "1", 2)
			},
		},
		{
			name: "the fix is not blamed: undo of a bad rollout", until: 3 * time.Minute, want: []finding{{"deployment/api", "new_version_fails", "reg/api:1 → reg/api:2"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				c.started(s, 2*sec, p[0])
				for i, at := range []time.Duration{4 * sec, 16 * sec, 40 * sec} {
					s.exit(at, p[0], "1")
					c.crash(s, at, p[0], "Error", "1", i+2)
				}
				s.change(79*sec, c.api, "updated", "spec.template.spec.containers[api].image: reg/api:2 -> reg/api:1") // kubectl rollout undo
				s.exit(82*sec, p[0], "1")                                                                              // the bad pod, once more
				c.crash(s, 82*sec, p[0], "Error", "1", 5)
				s.change(90*sec, p[0], "updated", "metadata.deletionTimestamp:  -> 2026-03-03T14:02:00Z")
				s.change(92*sec, p[0], "deleted")
			},
		},
		{
			name: "a rollout is not blamed for pods from before it", until: 3 * time.Minute, want: []finding{{"", "", "No change that was seen explains it"}},
			tell: func(s *story, c *cluster) {
				c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				s.oom(20*sec, c.apiB, 512*mib) // runs the old version
				c.crash(s, 20*sec, c.apiB, "OOMKilled", "137", 2)
			},
		},
		{
			name: "node-problem-detector tells an OOM kill too", until: 3 * time.Minute, want: []finding{{"", "", "No change that was seen explains it"}},
			tell: func(s *story, c *cluster) {
				s.oom(0, c.apiA, 512*mib)
				s.warning(0, c.n1, "OOMKilling", "Memory cgroup out of memory: Killed process 4711 (server) total-vm:1GiB")
				c.crash(s, 0, c.apiA, "OOMKilled", "137", 2)
			},
		},
		{
			name: "a readiness probe asks another port, nobody has to wait long for the answer", until: 20 * sec, want: []finding{{"deployment/api", "probe_changed", "probes"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].readinessProbe.tcpSocket.port: 8080 -> 8099")
				c.started(s, 2*sec, p[0])
				for j := range 4 {
					s.warning(3*sec+time.Duration(j)*sec, p[0], "Unhealthy", "Readiness probe failed: dial tcp 10.244.1.20:8099: connect: connection refused", "api")
				}
			},
		},
		{
			name: "rollout that adds a startup probe which fails", until: 5 * time.Minute, want: []finding{{"deployment/api", "probe_changed", "probes"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].startupProbe:  -> {\"httpGet\":{\"port\":81}}")
				c.started(s, 2*sec, p[0])
				for j := range 20 {
					s.warning(12*sec+time.Duration(10*j)*sec, p[0], "Unhealthy", "Startup probe failed: connection refused", "api")
				}
			},
		},
		{
			name: "admission webhook is down", until: 2 * time.Minute, want: []finding{{"", "", "webhook"}},
			tell: func(s *story, c *cluster) {
				s.change(0, c.api, "updated", "spec.replicas: 2 -> 3")
				s.change(20*ms, c.apiRS, "updated", "spec.replicas: 2 -> 3")
				for i := range 3 {
					s.warning(time.Duration(i+1)*sec, c.apiRS, "FailedCreate", `Error creating: Internal error occurred: failed calling webhook "inject.istio.io": failed to call webhook: Post "https://istiod.istio-system.svc:443/inject": dial tcp 10.96.7.7:443: connect: connection refused`)
				}
			},
		},
		{
			name: "Kubernetes only: a crash is told though the pod is deleted soon after", until: 2 * time.Minute, want: []finding{{"deployment/api", "new_version_fails", "reg/api:1 → reg/api:2"}},
			tell: func(s *story, c *cluster) {
				_, p := c.rollout(s, 0, "8e1f", 1, "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:2")
				c.started(s, 2*sec, p[0])
				c.crash(s, 4*sec, p[0], "Error", "1", 2)
				s.change(59*sec, c.api, "updated", "spec.template.spec.containers[api].image: reg/api:2 -> reg/api:1")
				s.change(60*sec, p[0], "updated", "metadata.deletionTimestamp:  -> 2026-03-03T14:02:00Z")
				s.change(62*sec, p[0], "deleted")
			},
		},
		{
			name: "leak, and an attempt to mend it between", until: 85 * time.Minute,
			want: []finding{{"", "", "at 14:40:00 UTC. No change"}, {"", "", "at 14:00:00 UTC. No change"}},
			tell: func(s *story, c *cluster) {
				s.oom(0, c.apiA, 512*mib)
				s.change(20*time.Minute, c.api, "updated", "spec.strategy.type: RollingUpdate -> Recreate")
				s.oom(40*time.Minute, c.apiA, 512*mib)
			},
		},
		{
			name: "a probe fails here and there, all day", until: 6 * time.Hour,
			tell: func(s *story, c *cluster) {
				for i := range 17 {
					s.warning(time.Duration(i)*20*time.Minute, c.apiA, "Unhealthy", "Readiness probe failed: context deadline exceeded", "api")
				}
			},
		},
		{
			name: "a series that is told once", until: 4 * time.Minute, want: []finding{{"pod/web-5c4f-kkkkk", "", "Seen 7 times"}},
			tell: func(s *story, c *cluster) {
				s.kube(0, c.webPod, eventv1.Severity_SEVERITY_WARNING, 7, "Unhealthy", "Readiness probe failed: connection refused", "web")
			},
		},
		{
			name: "the pods behind a webhook fail", until: 2 * time.Minute, want: []finding{{"deployment/hook", "new_version_fails", "exit code 1"}},
			tell: func(s *story, c *cluster) {
				hook := newObject("Deployment", "ops", "hook")
				service := newObject("Service", "ops", "hook")
				s.change(-time.Hour, hook, "created")
				s.change(-time.Hour, service, "created")
				s.change(0, hook, "updated", "spec.template.spec.containers[hook].image: hook:1 -> hook:2")
				set := newObject("ReplicaSet", "ops", "hook-2b", hook)
				s.change(20*ms, set, "created")
				p := newObject("Pod", "ops", "hook-2b-x", set, hook).link("scheduled_on", c.n2)
				p.node, p.container = "n2", containerID("hook")
				s.change(50*ms, p, "created")
				slice := newObject("EndpointSlice", "ops", "hook-z", service)
				slice.links = []*eventv1.ObjectLink{{Type: "exposes", Target: p.ref}}
				s.change(sec, slice, "updated")
				s.exit(2*sec, p, "1")
				s.exit(10*sec, p, "1")
				for i, set := range []*object{c.apiRS, c.webRS, c.apiRS} {
					s.warning(time.Duration(12+i)*sec, set, "FailedCreate", `Error creating: Internal error occurred: failed calling webhook "check.ops.io": failed to call webhook: Post "https://hook.ops.svc:443/check?timeout=10s": dial tcp 10.96.7.8:443: connect: connection refused`)
				}
			},
		},
		{
			name: "a webhook that nobody watches keeps all pods out", until: 2 * time.Minute,
			want: []finding{{"replicaset/api-7d9c", "", "Seen 2 times on 2 replicasets"}},
			tell: func(s *story, c *cluster) {
				for i, set := range []*object{c.apiRS, c.webRS} {
					s.warning(time.Duration(i)*sec, set, "FailedCreate", `failed calling webhook "check.ops.io": failed to call webhook: Post "https://hook.ops.svc:443/check": EOF`)
				}
			},
		},
		{
			name: "a node that never becomes ready", until: 4 * time.Minute, want: []finding{{"node/n3", "", "Node n3 is not ready"}},
			tell: func(s *story, _ *cluster) {
				n3 := newObject("Node", "", "n3")
				s.change(0, n3, "created")
				s.change(sec, n3, "updated", "status.conditions[Ready].status:  -> False", "status.conditions[Ready].reason:  -> KubeletNotReady")
			},
		},
		{
			name: "a watcher that starts tells of what is there", until: 2 * time.Minute, want: []finding{{"", "", "No change that was seen explains it"}},
			tell: func(s *story, c *cluster) {
				db := newObject("Deployment", "shop", "db")
				p := newObject("Pod", "shop", "db-1-x", newObject("ReplicaSet", "shop", "db-1", db), db).link("scheduled_on", c.n1)
				p.node, p.container = "n1", containerID("db")
				s.change(0, db, "created", "metadata.creationTimestamp:  -> 2026-02-01T10:00:00Z")
				s.change(0, p, "created", "metadata.creationTimestamp:  -> 2026-02-01T10:00:00Z")
				s.exit(20*sec, p, "1")
			},
		},
		{
			name: "a new Deployment that fails", until: 2 * time.Minute, want: []finding{{"deployment/db", "fails_from_the_start", "exit code 1"}},
			tell: func(s *story, c *cluster) {
				db := newObject("Deployment", "shop", "db")
				set := newObject("ReplicaSet", "shop", "db-1", db)
				p := newObject("Pod", "shop", "db-1-x", set, db).link("scheduled_on", c.n1)
				p.node, p.container = "n1", containerID("db")
				for i, o := range []*object{db, set, p} {
					s.change(700*ms+time.Duration(i)*20*ms, o, "created", "metadata.creationTimestamp:  -> 2026-03-03T14:00:00Z")
				}
				s.exit(5*sec, p, "1")
			},
		},
		{
			name: "a container that ends by SIGTERM though nobody told its pod to go", until: 2 * time.Minute, want: []finding{{"", "", "exit code 143"}},
			tell: func(s *story, c *cluster) {
				s.exit(0, c.apiA, "143")
			},
		},
		{
			name: "a Job exceeds its deadline", until: 2 * time.Minute, want: []finding{{"job/report-29", "", "Job shop/report-29 failed"}},
			tell: func(s *story, c *cluster) {
				s.warning(0, c.job, "DeadlineExceeded", "Job was active longer than specified deadline")
				s.change(100*ms, c.job, "updated", "status.conditions[Failed].status:  -> True", "status.conditions[Failed].reason:  -> DeadlineExceeded")
			},
		},
	}
}

// TestStories tells each story in its order, in others, and to an engine that was
// started anew: the answer is the same.
func TestStories(t *testing.T) {
	modes, err := causality.ReadModes(causality.DefaultModes())
	require.NoError(t, err)
	for _, told := range stories() {
		t.Run(told.name, func(t *testing.T) {
			s := &story{t: t}
			told.tell(s, newCluster(s))
			now := noon.Add(told.until)
			e := newEngine(t, modes)
			for _, ev := range s.events {
				e.Apply(ev)
			}
			got := e.Incidents(now)
			t.Log(show(got))
			require.Len(t, got, len(told.want))
			for i, want := range told.want {
				root := got[i].GetRoot()
				if want.root != "" {
					require.Equal(t, want.root, strings.ToLower(strings.TrimPrefix(root.GetType().String(), "ENTITY_TYPE_"))+"/"+root.GetName())
				}
				if want.mode != "" {
					require.NotEmpty(t, got[i].GetCauses())
					require.Equal(t, want.mode, got[i].GetCauses()[0].GetFailureMode())
					require.Greater(t, got[i].GetConfidence(), 0.7)
				}
				require.Contains(t, got[i].GetSummary(), want.says)
			}
			requireNothingElse(t, modes, s.events, got)
			for seed := range uint64(12) {
				events := shuffled(s.events, seed)
				require.Equal(t, show(got), show(hear(t, modes, events, seed%2 == 0, now)), "another order, seed %d", seed)
				require.Equal(t, show(got), show(restart(t, modes, events, now)), "after a restart, seed %d", seed)
			}
		})
	}
}

// TestChainBeginsWithItsCause: the API writes when something was made in whole seconds,
// so what a rollout made seems to be older than it.
func TestChainBeginsWithItsCause(t *testing.T) {
	modes, err := causality.ReadModes(causality.DefaultModes())
	require.NoError(t, err)
	s := &story{t: t}
	c := newCluster(s)
	s.change(300*ms, c.api, "updated", "spec.template.spec.containers[api].image: reg/api:1 -> reg/api:oops")
	rs := newObject("ReplicaSet", "shop", "api-8e1f", c.api)
	p := c.pod(rs, c.api, "p0000", nil, "")
	s.change(0, p, "created")
	s.change(0, rs, "created")
	s.warning(0, p, "Failed", `Failed to pull image "reg/api:oops": not found`, "api")
	e := newEngine(t, modes)
	for _, ev := range s.events {
		e.Apply(ev)
	}
	got := e.Incidents(noon.Add(time.Minute))
	require.Len(t, got, 1)
	var kinds []string
	for _, l := range got[0].GetChain() {
		kinds = append(kinds, l.GetKind())
	}
	require.Equal(t, []string{"k8s.deployment.updated", "k8s.replicaset.created", "k8s.pod.created", "k8s.event.Failed"}, kinds)
}

// A watcher that starts hears of what went wrong in the last hour, and how it is now.
func TestWhatAWatcherFindsWhenItStarts(t *testing.T) {
	modes, err := causality.ReadModes(causality.DefaultModes())
	require.NoError(t, err)
	for ready, want := range map[string]ahtiv1.IncidentState{
		"True":    ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED,
		"Unknown": ahtiv1.IncidentState_INCIDENT_STATE_OPEN,
	} {
		t.Run(ready, func(t *testing.T) {
			s := &story{t: t}
			n := newObject("Node", "", "n7")
			s.normal(-4*time.Minute, n, "NodeNotReady", "Node n7 status is now: NodeNotReady")
			s.change(0, n, "created", "metadata.creationTimestamp:  -> 2025-12-24T18:00:00Z", "status.conditions[Ready].status:  -> "+ready)
			e := newEngine(t, modes)
			for _, ev := range s.events {
				e.Apply(ev)
			}
			got := e.Incidents(noon.Add(time.Second))
			require.Len(t, got, 1)
			require.Equal(t, want, got[0].GetState(), got[0].GetSummary())
		})
	}
}

// The scheduler only counts the pods that wait: while others do, it has told of those,
// and what begins later is none of them.
func TestSchedulerToldOfOthersBefore(t *testing.T) {
	modes, err := causality.ReadModes(causality.DefaultModes())
	require.NoError(t, err)
	s := &story{t: t}
	c := newCluster(s)
	wait := func(at time.Duration, name string) *object {
		p := c.pod(c.apiRS, c.api, name, nil, "")
		s.change(at, p, "created")
		s.warning(at, p, "FailedScheduling", "0/2 nodes are available: 2 Insufficient cpu.")
		s.change(at, p, "updated", "status.conditions[PodScheduled].status:  -> False", "status.conditions[PodScheduled].reason:  -> Unschedulable")
		return p
	}
	s.change(0, c.api, "updated", "spec.template.spec.containers[api].resources.requests.cpu: 500m -> 64")
	first := wait(time.Second, "first")
	s.podsWait(15 * time.Second)
	s.change(20*time.Second, first, "updated", "status.conditions[PodScheduled].status: False -> True", "status.conditions[PodScheduled].reason: Unschedulable -> ", "spec.nodeName:  -> n1")
	s.change(60*time.Second, c.n1, "updated", "spec.unschedulable:  -> true")
	wait(61*time.Second, "later")
	s.podsWait(75 * time.Second)
	e := newEngine(t, modes)
	for _, ev := range s.events {
		e.Apply(ev)
	}
	told := 0
	for _, in := range e.Incidents(noon.Add(80 * time.Second)) {
		for _, symptom := range in.GetSymptoms() {
			if symptom.GetKind() == event.KindSchedulerUnschedulable {
				told++
				require.Equal(t, noon.Add(61*time.Second), symptom.GetFirstAt().AsTime(), in.GetSummary())
			}
		}
	}
	require.Equal(t, 1, told)
}

// requireNothingElse asks after each event, in the order of time: what is an incident
// for a while only is a false alarm.
func requireNothingElse(t *testing.T, modes *causality.Modes, events []*ahtiv1.AhtiEvent, want []*ahtiv1.Incident) {
	t.Helper()
	events = slices.Clone(events)
	slices.SortStableFunc(events, func(a, b *ahtiv1.AhtiEvent) int { return a.GetTimestamp().AsTime().Compare(b.GetTimestamp().AsTime()) })
	e := newEngine(t, modes)
	for _, ev := range events {
		e.Apply(ev)
		for _, in := range e.Incidents(ev.GetTimestamp().AsTime()) {
			known := slices.ContainsFunc(want, func(w *ahtiv1.Incident) bool { return w.GetId() == in.GetId() })
			require.True(t, known, "after %s: %s", ev.GetSubtype(), in.GetSummary())
		}
	}
}

func newEngine(t *testing.T, modes *causality.Modes) *causality.Engine {
	t.Helper()
	e, err := causality.New(causality.Options{Modes: modes})
	require.NoError(t, err)
	return e
}

func shuffled(events []*ahtiv1.AhtiEvent, seed uint64) []*ahtiv1.AhtiEvent {
	events = slices.Clone(events)
	random := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // a test wants the same order each time
	random.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	return events
}

// hear returns the answer of an engine that may be asked in between too.
func hear(t *testing.T, modes *causality.Modes, events []*ahtiv1.AhtiEvent, asked bool, now time.Time) []*ahtiv1.Incident {
	e := newEngine(t, modes)
	for i, ev := range events {
		e.Apply(ev)
		if asked && i%5 == 0 {
			e.Incidents(now)
		}
	}
	return e.Incidents(now)
}

// restart returns the answer of an engine that knows what a store keeps.
func restart(t *testing.T, modes *causality.Modes, events []*ahtiv1.AhtiEvent, now time.Time) []*ahtiv1.Incident {
	e, again := newEngine(t, modes), newEngine(t, modes)
	for _, ev := range events {
		d := e.Apply(ev)
		again.Observe(ev.GetTimestamp().AsTime(), d.Entities, d.Relationships)
	}
	for _, ev := range events {
		if e.Relevance(ev) != causality.Irrelevant {
			again.Apply(ev)
		}
	}
	return again.Incidents(now)
}

// show tells of incidents what people see first.
func show(incidents []*ahtiv1.Incident) string {
	var b strings.Builder
	for _, in := range incidents {
		fmt.Fprintf(&b, "\n%s %s/%s sure %.2f: %s\n\t%s\n\t%s\n", in.GetState(), in.GetRoot().GetType(), in.GetRoot().GetName(), in.GetConfidence(), in.GetId(), in.GetSummary(), in.GetAdvice())
		for _, c := range in.GetCauses() {
			fmt.Fprintf(&b, "\t\t%.2f %s: %s\n", c.GetConfidence(), c.GetFailureMode(), c.GetText())
		}
	}
	return b.String()
}
