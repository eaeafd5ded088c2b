package transform_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/polku/internal/transform"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

const (
	mib = 1 << 20
	ms  = time.Millisecond
	sec = time.Second
)

// noon is when the stories begin.
var noon = time.Date(2026, time.March, 3, 14, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant that Go cannot express

// story writes events as a watcher of the Kubernetes API and the agents of the
// nodes send them, and keeps what the transformer makes of them.
type story struct {
	t      testing.TB
	events []*ahtiv1.AhtiEvent
}

func (s *story) send(at time.Duration, e *eventv1.Event) {
	e.Id, e.TimestampUnixNs = fmt.Sprintf("e%04d", len(s.events)), noon.Add(at).UnixNano()
	if e.Metadata == nil {
		e.Metadata = map[string]string{}
	}
	e.Metadata[event.K8sClusterName] = "prod"
	out, err := transform.Event(e)
	require.NoError(s.t, err)
	s.events = append(s.events, out)
}

// object is one of the Kubernetes API.
type object struct {
	ref       *eventv1.ObjectReference
	owners    []*eventv1.ObjectReference
	links     []*eventv1.ObjectLink
	metadata  map[string]string
	container string // id of a pod's only container
	node      string
}

func newObject(kind, ns, name string, owners ...*object) *object {
	o := &object{ref: &eventv1.ObjectReference{Kind: kind, Namespace: ns, Name: name, Uid: "uid-" + kind + "-" + ns + "-" + name}, metadata: map[string]string{}}
	for _, w := range owners {
		o.owners = append(o.owners, w.ref)
	}
	return o
}

// link ties the object to another by its name: the specification of a pod knows no
// uid.
func (o *object) link(kind string, to *object) *object {
	target := &eventv1.ObjectReference{Kind: to.ref.GetKind(), Namespace: to.ref.GetNamespace(), Name: to.ref.GetName()}
	o.links = append(o.links, &eventv1.ObjectLink{Type: kind, Target: target})
	return o
}

func (o *object) data() *eventv1.K8SEventData {
	return &eventv1.K8SEventData{ResourceType: o.ref.GetKind(), ResourceName: o.ref.GetName(), Namespace: o.ref.GetNamespace(), Object: o.ref}
}

// change tells that an object changed, with its fields as "path: old -> new".
func (s *story) change(at time.Duration, o *object, action string, fields ...string) {
	k := o.data()
	k.Owners, k.Links, k.ResourceVersion = o.owners, o.links, fmt.Sprint(len(s.events))
	for _, f := range fields {
		path, values, _ := strings.Cut(f, ": ")
		older, newer, _ := strings.Cut(values, " -> ")
		k.Changes = append(k.Changes, &eventv1.FieldChange{Path: path, Old: strings.TrimSpace(older), New: strings.TrimSpace(newer)})
	}
	s.send(at, &eventv1.Event{
		Source: "portti", EventType: "k8s." + eventWord(o.ref.GetKind()) + "." + action, Severity: eventv1.Severity_SEVERITY_INFO,
		Metadata: maps.Clone(o.metadata), Data: &eventv1.Event_K8S{K8S: k},
	})
}

// normal and warning tell Kubernetes Events. Their times have whole seconds.
func (s *story) normal(at time.Duration, o *object, reason, message string, container ...string) {
	s.kube(at, o, eventv1.Severity_SEVERITY_INFO, 1, reason, message, container...)
}

func (s *story) warning(at time.Duration, o *object, reason, message string, container ...string) {
	s.kube(at, o, eventv1.Severity_SEVERITY_WARNING, 1, reason, message, container...)
}

func (s *story) kube(at time.Duration, o *object, severity eventv1.Severity, count int32, reason, message string, container ...string) {
	k := o.data()
	k.Reason, k.Message, k.Count = reason, message, count
	metadata := map[string]string{}
	if len(container) > 0 {
		metadata[event.K8sContainerName] = container[0]
	}
	s.send(at.Truncate(sec), &eventv1.Event{
		Source: "portti", EventType: "k8s.event." + reason, Severity: severity, Metadata: metadata, Data: &eventv1.Event_K8S{K8S: k},
	})
}

// agent tells what the agent of a node saw of the container of a pod, with
// metadata as name and value in turns.
func (s *story) agent(at time.Duration, p *object, kind string, severity eventv1.Severity, more ...string) {
	m := map[string]string{
		event.K8sPodUID: p.ref.GetUid(), event.ContainerID: p.container, event.HostName: p.node,
		event.ProcessPID: "4711", event.ProcessExecutableName: "server", event.ProcessLinuxCgroup: p.cgroup(),
	}
	for i := 0; i+1 < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	s.send(at, &eventv1.Event{Source: "tapio", EventType: kind, Severity: severity, Outcome: eventv1.Outcome_OUTCOME_FAILURE, Metadata: m})
}

func (o *object) cgroup() string {
	return "/kubepods.slice/kubepods-pod" + o.ref.GetUid() + ".slice/cri-containerd-" + o.container + ".scope"
}

func (s *story) oom(at time.Duration, p *object, limit int) {
	s.agent(at, p, event.KindContainerOOMKill, eventv1.Severity_SEVERITY_CRITICAL, event.TapioOOMLimitBytes, fmt.Sprint(limit),
		event.TapioOOMUsageBytes, fmt.Sprint(limit-4096), event.TapioOOMConstraint, "memcg", event.TapioOOMCgroup, p.cgroup())
	s.killed(at+ms, p, "SIGKILL")
}

func (s *story) killed(at time.Duration, p *object, signal string) {
	s.agent(at, p, event.KindContainerExitError, eventv1.Severity_SEVERITY_ERROR, event.ProcessExitCode, "0", event.TapioProcessSignal, signal)
}

func (s *story) exit(at time.Duration, p *object, code string) {
	s.agent(at, p, event.KindContainerExitError, eventv1.Severity_SEVERITY_ERROR, event.ProcessExitCode, code)
}

func (s *story) refused(at time.Duration, p *object, ip, port string) {
	s.agent(at, p, event.KindNetworkConnectionRefused, eventv1.Severity_SEVERITY_ERROR, event.NetworkPeerAddress, ip, event.NetworkPeerPort, port, event.ErrorType, "ECONNREFUSED")
}

// podsWait tells what the scheduler's metrics say.
func (s *story) podsWait(at time.Duration) {
	s.send(at, &eventv1.Event{
		Source: "scheduler-scraper", EventType: event.KindSchedulerUnschedulable, Severity: eventv1.Severity_SEVERITY_WARNING,
		Outcome: eventv1.Outcome_OUTCOME_FAILURE, Metadata: map[string]string{event.HostName: "cp-1"},
		Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{ResourceType: "Scheduler", ResourceName: "kube-scheduler", Message: "1 pod is unschedulable"}},
	})
}

// cluster is what was there before a story: api on two nodes behind a Service, web
// that calls it, and a Job.
type cluster struct {
	n1, n2, ns                     *object
	api, apiRS, apiA, apiB         *object
	web, webRS, webPod             *object
	svc, slice, config, quota, lim *object
	job, jobPod                    *object
}

// containerID makes an id of the length that runtimes give.
func containerID(seed string) string {
	return (fmt.Sprintf("%x", seed) + strings.Repeat("0", 64))[:64]
}

func (c *cluster) pod(rs, dep *object, suffix string, node *object, ip string) *object {
	p := newObject("Pod", "shop", rs.ref.GetName()+"-"+suffix, rs, dep)
	p.link("mounts", c.config)
	if node != nil {
		p.link("scheduled_on", node)
		p.node = node.ref.GetName()
	}
	if ip != "" {
		p.metadata["k8s.pod.ip"] = ip
	}
	p.container = containerID(p.ref.GetName() + "1")
	return p
}

func newCluster(s *story) *cluster {
	c := &cluster{n1: newObject("Node", "", "n1"), n2: newObject("Node", "", "n2"), ns: newObject("Namespace", "", "shop")}
	c.config, c.quota, c.lim = newObject("ConfigMap", "shop", "settings"), newObject("ResourceQuota", "shop", "limits"), newObject("LimitRange", "shop", "defaults")
	c.api = newObject("Deployment", "shop", "api").link("mounts", c.config)
	c.apiRS = newObject("ReplicaSet", "shop", "api-7d9c", c.api)
	c.apiA = c.pod(c.apiRS, c.api, "aaaaa", c.n1, "10.244.1.5")
	c.apiB = c.pod(c.apiRS, c.api, "bbbbb", c.n2, "10.244.2.5")
	c.web = newObject("Deployment", "shop", "web")
	c.webRS = newObject("ReplicaSet", "shop", "web-5c4f", c.web)
	c.webPod = newObject("Pod", "shop", "web-5c4f-kkkkk", c.webRS, c.web).link("scheduled_on", c.n2)
	c.webPod.node, c.webPod.container = "n2", containerID("web")
	c.webPod.metadata["k8s.pod.ip"] = "10.244.2.9"
	c.svc = newObject("Service", "shop", "api")
	c.svc.metadata["k8s.service.cluster_ip"] = "10.96.0.9"
	c.slice = newObject("EndpointSlice", "shop", "api-x1", c.svc)
	c.slice.links = []*eventv1.ObjectLink{{Type: "exposes", Target: c.apiA.ref}, {Type: "exposes", Target: c.apiB.ref}}
	c.job = newObject("Job", "shop", "report-29")
	c.jobPod = newObject("Pod", "shop", "report-29-zzzzz", c.job).link("scheduled_on", c.n1)
	for _, o := range []*object{c.n1, c.n2, c.ns, c.config, c.quota, c.lim, c.api, c.apiRS, c.apiA, c.apiB, c.web, c.webRS, c.webPod, c.svc, c.slice, c.job, c.jobPod} {
		s.change(-5*24*time.Hour, o, "created")
	}
	return c
}

// rollout makes a ReplicaSet and its first pods as the controllers do.
func (c *cluster) rollout(s *story, at time.Duration, hash string, n int, fields ...string) (*object, []*object) {
	s.change(at, c.api, "updated", append(fields, "metadata.generation: 3 -> 4")...)
	rs := newObject("ReplicaSet", "shop", "api-"+hash, c.api)
	s.change(at+20*ms, rs, "created")
	s.normal(at+30*ms, c.api, "ScalingReplicaSet", "Scaled up replica set api-"+hash+" from 0 to 1")
	s.change(at+40*ms, c.api, "updated", "metadata.annotations[deployment.kubernetes.io/revision]: 3 -> 4", "status.observedGeneration: 3 -> 4", "status.conditions[Progressing].reason: NewReplicaSetAvailable -> ReplicaSetUpdated")
	var pods []*object
	for i := range n {
		pods = append(pods, c.born(s, at+50*ms+time.Duration(i)*10*ms, rs, fmt.Sprintf("p%04d", i), c.n1, fmt.Sprintf("10.244.1.%d", 20+i)))
	}
	s.normal(at+60*ms, rs, "SuccessfulCreate", "Created pod: "+rs.ref.GetName())
	s.change(at+70*ms, rs, "updated", "status.replicas: 0 -> 1")
	return rs, pods
}

// born is a pod that is made, scheduled and started.
func (c *cluster) born(s *story, at time.Duration, rs *object, suffix string, node *object, ip string) *object {
	p := c.pod(rs, c.api, suffix, nil, "")
	s.change(at, p, "created")
	p.link("scheduled_on", node)
	p.node = node.ref.GetName()
	s.change(at+10*ms, p, "updated", "spec.nodeName:  -> "+p.node, "status.conditions[PodScheduled].status:  -> True")
	s.normal(at+10*ms, p, "Scheduled", "Successfully assigned shop/"+p.ref.GetName()+" to "+p.node)
	s.change(at+30*ms, p, "updated", "status.containerStatuses[api].state.waiting.reason:  -> ContainerCreating", "status.conditions[Ready].status:  -> False", "status.conditions[Ready].reason:  -> ContainersNotReady")
	p.metadata["k8s.pod.ip"] = ip
	return p
}

func (c *cluster) started(s *story, at time.Duration, p *object) {
	s.normal(at, p, "Pulled", `Container image "api:2" already present on machine`, "api")
	s.normal(at, p, "Created", "Created container api", "api")
	s.normal(at, p, "Started", "Started container api", "api")
	s.change(at+500*ms, p, "updated", "status.phase: Pending -> Running", "status.podIP:  -> "+p.metadata["k8s.pod.ip"], "status.containerStatuses[api].state.waiting.reason: ContainerCreating -> ",
		"status.containerStatuses[api].state.running.startedAt:  -> 2026-03-03T14:00:02Z", "status.containerStatuses[api].started: false -> true", "status.containerStatuses[api].containerID:  -> containerd://"+p.container)
}

// crash tells what the API sees of a container that ended, and of its restart.
func (c *cluster) crash(s *story, at time.Duration, p *object, reason, code string, n int) {
	s.change(at+700*ms, p, "updated", "status.containerStatuses[api].state.running.startedAt: 2026-03-03T14:00:02Z -> ", "status.containerStatuses[api].state.terminated.reason:  -> "+reason,
		"status.containerStatuses[api].state.terminated.exitCode:  -> "+code, "status.containerStatuses[api].ready: true -> false", "status.conditions[Ready].status: True -> False")
	was := p.container
	p.container = containerID(fmt.Sprint(p.ref.GetName(), n))
	fields := []string{
		"status.containerStatuses[api].state.terminated.reason: " + reason + " -> ", "status.containerStatuses[api].state.terminated.exitCode: " + code + " -> ",
		fmt.Sprintf("status.containerStatuses[api].restartCount: %d -> %d", n-2, n-1), "status.containerStatuses[api].containerID: containerd://" + was + " -> containerd://" + p.container,
	}
	if n == 2 {
		fields = append(fields, "status.containerStatuses[api].lastState.terminated.reason:  -> "+reason, "status.containerStatuses[api].lastState.terminated.exitCode:  -> "+code)
		s.change(at+1700*ms, p, "updated", append(fields, "status.containerStatuses[api].state.running.startedAt:  -> 2026-03-03T14:00:12Z")...)
		return
	}
	s.warning(at+1500*ms, p, "BackOff", "Back-off restarting failed container api in pod "+p.ref.GetName()+"_shop(uid)", "api")
	s.change(at+1700*ms, p, "updated", append(fields, "status.containerStatuses[api].state.waiting.reason:  -> CrashLoopBackOff")...)
	s.change(at+11700*ms, p, "updated", "status.containerStatuses[api].state.waiting.reason: CrashLoopBackOff -> ", "status.containerStatuses[api].state.running.startedAt:  -> 2026-03-03T14:00:32Z")
}

// gone is a pod that is deleted with grace: its server ends by SIGTERM.
func (c *cluster) gone(s *story, at time.Duration, p *object, took time.Duration) {
	s.change(at, p, "updated", "metadata.deletionTimestamp:  -> 2026-03-03T14:00:30Z", "metadata.deletionGracePeriodSeconds:  -> 30")
	s.normal(at, p, "Killing", "Stopping container api", "api")
	s.exit(at+took-sec, p, "143")
	s.change(at+took-500*ms, p, "updated", "status.containerStatuses[api].state.terminated.reason:  -> Error", "status.containerStatuses[api].state.terminated.exitCode:  -> 143", "status.conditions[Ready].status: True -> False")
	s.change(at+took, p, "deleted")
}
