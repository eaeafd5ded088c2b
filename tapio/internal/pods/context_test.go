package pods

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/kube/apiservertest"
)

const (
	// patience is how long a test waits for what must come.
	patience = 60 * time.Second
	nodeIP   = "172.18.0.5"
)

// cluster is a real API server, whose objects the test makes as the kubelet and
// the controllers would.
type cluster struct {
	*apiservertest.Server
	t      *testing.T
	client *rest.RESTClient
	node   string // that the agent is of
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{Server: apiservertest.Start(t), t: t}
	var err error
	c.client, err = newClient(c.Config())
	require.NoError(t, err)
	// The rights that the agent is given, and no others.
	c.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"metadata":{"name":"agent"},"rules":[
		{"apiGroups":[""],"resources":["pods"],"verbs":["list","watch"]},
		{"apiGroups":[""],"resources":["services"],"verbs":["list"]},
		{"apiGroups":["batch"],"resources":["jobs"],"verbs":["get"]}]}`)
	c.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"metadata":{"name":"agent"},
		"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"agent"},
		"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"`+apiservertest.LimitedUser+`"}]}`)
	return c
}

// create makes an object of JSON and returns its UID.
func (c *cluster) create(path, object string) string {
	c.t.Helper()
	var made corev1.ConfigMap // of which only the metadata is of interest
	text, err := c.client.Post().AbsPath(path).SetHeader("Content-Type", "application/json").SetHeader("Accept", "application/json").
		Body([]byte(object)).DoRaw(c.t.Context())
	require.NoError(c.t, err, "%s: %s", path, text)
	require.NoError(c.t, decode(text, &made))
	return string(made.UID)
}

// pod makes a pod: more is what its metadata, spec and status have beside the usual.
func (c *cluster) pod(name, node, metadata, spec, status string) string {
	c.t.Helper()
	uid := c.create("/api/v1/namespaces/default/pods", fmt.Sprintf(
		`{"metadata":{"name":%q%s},"spec":{"nodeName":%q,"terminationGracePeriodSeconds":0,"containers":[{"name":"main","image":"i"}]%s}}`, name, metadata, node, spec))
	c.status(name, status)
	return uid
}

func (c *cluster) status(name, status string) {
	c.t.Helper()
	c.phase(name, "Running", status)
}

func (c *cluster) phase(name, phase, status string) {
	c.t.Helper()
	text, err := c.client.Patch("application/merge-patch+json").Namespace("default").Resource("pods").Name(name).SubResource("status").
		Body([]byte(`{"status":{"phase":"` + phase + `"` + status + `}}`)).DoRaw(c.t.Context())
	require.NoError(c.t, err, "%s", text)
}

func (c *cluster) delete(name string) {
	c.t.Helper()
	require.NoError(c.t, c.client.Delete().Namespace("default").Resource("pods").Name(name).Do(c.t.Context()).Error())
}

// receiver is where events go.
type receiver struct {
	mu   sync.Mutex
	sent []*eventv1.Event
}

func (r *receiver) take(e *eventv1.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, e)
	return event.Validate(e)
}

func (r *receiver) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for _, e := range r.sent {
		ids = append(ids, e.GetMetadata()[event.ProcessPID])
	}
	return ids
}

// running is a Context that runs, with what it has sent and logged.
type running struct {
	*Context
	receiver
	t    *testing.T
	log  strings.Builder
	stop func()
}

func run(t *testing.T, c *cluster) *running {
	r := &running{t: t}
	var err error
	r.Context, err = Open(Config{Node: c.node, API: c.ConfigOf(apiservertest.LimitedToken), Send: r.take, Log: slog.New(slog.NewTextHandler(&r.log, nil))})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	r.stop = func() { cancel(); <-done }
	t.Cleanup(r.stop)
	require.Eventually(t, func() bool { return r.Ready() == nil }, patience, 10*time.Millisecond)
	return r
}

// await waits until the pod of a UID is as the condition wants it.
func (r *running) await(uid string, is func(*Pod) bool) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { p := r.table.lookup(uid); return p != nil && is(p) }, patience, 10*time.Millisecond)
}

// exited is an event of a process in a container.
func exited(uid, container, pid string) *eventv1.Event {
	e := event.NewFactory().New(event.KindContainerExitError, time.Now(), "tapio")
	e.Metadata[event.K8sPodUID] = uid
	e.Metadata[event.ContainerID] = container
	e.Metadata[event.ProcessPID] = pid
	e.Metadata[event.ProcessExitCode] = "3"
	e.Data = &eventv1.Event_Process{Process: &eventv1.ProcessEventData{Pid: 1, ExitCode: 3}}
	return e
}

// refused is an event of a connect from a container.
func refused(uid, peer string) *eventv1.Event {
	e := event.NewFactory().New(event.KindNetworkConnectionRefused, time.Now(), "tapio")
	for key, value := range map[string]string{
		event.K8sPodUID: uid, event.NetworkPeerAddress: peer, event.NetworkPeerPort: "80", event.NetworkTransport: "tcp", event.NetworkType: "ipv4",
		event.ErrorType: "ECONNREFUSED", event.TapioNetworkRole: event.RoleClient, event.ProcessPID: peer,
	} {
		e.Metadata[key] = value
	}
	e.Data = &eventv1.Event_Network{Network: &eventv1.NetworkEventData{Protocol: "tcp", SrcIp: "10.0.0.1", DstIp: peer, SrcPort: 40000, DstPort: 80}}
	return e
}

// described sends an event and returns its metadata once it comes out.
func (r *running) described(e *eventv1.Event) map[string]string {
	r.t.Helper()
	require.NoError(r.t, r.Send(e))
	require.Eventually(r.t, func() bool {
		r.mu().Lock()
		defer r.mu().Unlock()
		return len(r.sent) > 0 && r.sent[len(r.sent)-1] == e
	}, patience, 5*time.Millisecond)
	return e.GetMetadata()
}

func (r *running) mu() *sync.Mutex { return &r.receiver.mu }

func containers(id, name string) string {
	return fmt.Sprintf(`[{"name":%q,"containerID":"containerd://%s","image":"i","imageID":"i","ready":false,"restartCount":0}]`, name, id)
}

func owned(kind, version, name string) string {
	return fmt.Sprintf(`,"ownerReferences":[{"apiVersion":%q,"kind":%q,"name":%q,"uid":"uid-of-%s","controller":true}]`, version, kind, name, name)
}

// TestCluster runs against one API server, with a node for each of its parts.
func TestCluster(t *testing.T) {
	c := newCluster(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *cluster)
	}{{"names", testNames}, {"peers", testPeers}, {"events wait", testEventsWait}} { // the last one ends the server
		t.Run(part.name, func(t *testing.T) {
			part.test(t, &cluster{Server: c.Server, t: t, client: c.client, node: strings.Fields(part.name)[0]})
		})
	}
}

func testNames(t *testing.T, c *cluster) {
	job := c.create("/apis/batch/v1/namespaces/default/jobs", `{"metadata":{"name":"nightly-1","ownerReferences":[
		{"apiVersion":"batch/v1","kind":"CronJob","name":"nightly","uid":"uid-of-nightly","controller":true}]},
		"spec":{"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"main","image":"i"}]}}}}`)
	require.NotEmpty(t, job)
	tests := []struct {
		name, metadata, spec, status string
		uid                          string // in the path, if it is not the API's
		container                    string
		want                         map[string]string
		absent                       []string
	}{
		{
			name: "web-abc12-x", metadata: `,"labels":{"app":"web","pod-template-hash":"abc12","api-token":"s3cr3t"}` + owned("ReplicaSet", "apps/v1", "web-abc12"),
			status: `,"containerStatuses":` + containers("c1", "main"), container: "c1",
			want: map[string]string{
				event.K8sContainerName: "main", event.K8sDeploymentName: "web", event.K8sReplicaSetName: "web-abc12",
				event.K8sReplicaSetUID: "uid-of-web-abc12", event.K8sPodLabel + "app": "web",
			},
			absent: []string{event.K8sPodLabel + "api-token", event.K8sPodLabel + "pod-template-hash", event.TapioAttribution},
		},
		{
			name: "lone", metadata: `,"labels":{"pod-template-hash":"abc12"}` + owned("ReplicaSet", "apps/v1", "lonely"),
			want: map[string]string{event.K8sReplicaSetName: "lonely"}, absent: []string{event.K8sDeploymentName},
		},
		{name: "db-0", metadata: owned("StatefulSet", "apps/v1", "db"), want: map[string]string{event.K8sStatefulSetName: "db", event.K8sStatefulSetUID: "uid-of-db"}},
		{name: "proxy-x", metadata: owned("DaemonSet", "apps/v1", "proxy"), spec: `,"hostNetwork":true`, want: map[string]string{event.K8sDaemonSetName: "proxy"}},
		{
			name: "nightly-1-x", metadata: strings.Replace(owned("Job", "batch/v1", "nightly-1"), "uid-of-nightly-1", job, 1),
			want: map[string]string{event.K8sJobName: "nightly-1", event.K8sCronJobName: "nightly", event.K8sCronJobUID: "uid-of-nightly"},
		},
		{
			name: "nightly-1-y", metadata: owned("Job", "batch/v1", "nightly-1"), // of another Job, which had the name before
			want: map[string]string{event.K8sJobName: "nightly-1"}, absent: []string{event.K8sCronJobName, event.TapioAttribution},
		},
		{
			name: "gone-job-x", metadata: owned("Job", "batch/v1", "gone"),
			want: map[string]string{event.K8sJobName: "gone"}, absent: []string{event.K8sCronJobName, event.TapioAttribution},
		},
		{
			name: "with-init", spec: `,"initContainers":[{"name":"prepare","image":"i"}]`,
			status: `,"initContainerStatuses":` + containers("c2", "prepare"), container: "c2", want: map[string]string{event.K8sContainerName: "prepare"},
		},
		{
			name: "restarted", container: "c3", want: map[string]string{event.K8sContainerName: "main"},
			status: `,"containerStatuses":[{"name":"main","containerID":"containerd://c4","image":"i","imageID":"i","ready":true,"restartCount":1,
				"lastState":{"terminated":{"exitCode":3,"containerID":"containerd://c3"}}}]`,
		},
		{
			name: "static-names", metadata: `,"annotations":{"kubernetes.io/config.mirror":"h","kubernetes.io/config.hash":"0123456789abcdef0123456789abcdef"}`,
			status: `,"containerStatuses":` + containers("c5", "main"), uid: "0123456789abcdef0123456789abcdef", container: "c5",
			want: map[string]string{event.K8sContainerName: "main"},
		},
	}
	uids := map[string]string{}
	for _, test := range tests {
		uids[test.name] = c.pod(test.name, c.node, test.metadata, test.spec, test.status)
	}
	elsewhere := c.pod("elsewhere", "node-b", "", "", "")
	r := run(t, c)
	require.Nil(t, r.table.lookup(elsewhere), "another node's")
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r.await(uids[test.name], func(p *Pod) bool { return test.container == "" || len(p.containers) > 0 })
			uid := uids[test.name]
			if test.uid != "" {
				uid = test.uid
			}
			m := r.described(exited(uid, test.container, "1"))
			assert.Equal(t, test.name, m[event.K8sPodName])
			assert.Equal(t, "default", m[event.K8sNamespaceName])
			assert.Equal(t, uids[test.name], m[event.K8sPodUID], "the API's")
			for key, value := range test.want {
				assert.Equal(t, value, m[key], key)
			}
			for _, key := range test.absent {
				assert.NotContains(t, m, key)
			}
		})
	}
	t.Run("ephemeral container", func(t *testing.T) {
		_, err := c.client.Patch("application/strategic-merge-patch+json").Namespace("default").Resource("pods").Name("db-0").SubResource("ephemeralcontainers").
			Body([]byte(`{"spec":{"ephemeralContainers":[{"name":"debug","image":"i"}]}}`)).DoRaw(t.Context())
		require.NoError(t, err)
		e := exited(uids["db-0"], "c9", "9")
		require.NoError(t, r.Send(e))
		c.status("db-0", `,"ephemeralContainerStatuses":`+containers("c9", "debug"))
		require.Eventually(t, func() bool { ids := r.ids(); return ids[len(ids)-1] == "9" }, patience, 5*time.Millisecond)
		require.Equal(t, "debug", e.GetMetadata()[event.K8sContainerName])
	})
	require.Equal(t, 1, testutil.CollectAndCount(r.Context, "tapio_pods_events_attributed_total"))
	require.EqualValues(t, 0, r.counts.lost)
}

func testPeers(t *testing.T, c *cluster) {
	c.create("/api/v1/namespaces/default/services", `{"metadata":{"name":"shop"},"spec":{"ports":[{"port":80}]}}`)
	var shop corev1.Service
	require.NoError(t, c.client.Get().Namespace("default").Resource("services").Name("shop").Do(t.Context()).Into(&shop))
	clusterIP := shop.Spec.ClusterIP
	ips := func(host, pod string) string {
		return fmt.Sprintf(`,"hostIP":%q,"hostIPs":[{"ip":%q}],"podIP":%q,"podIPs":[{"ip":%q}]`, host, host, pod, pod)
	}
	uid := c.pod("caller", c.node, "", "", ips(nodeIP, "10.1.0.1"))
	c.pod("near", c.node, owned("StatefulSet", "apps/v1", "db"), "", ips(nodeIP, "10.1.0.2"))
	c.pod("agent", c.node, "", `,"hostNetwork":true`, ips(nodeIP, nodeIP))
	c.pod("far", "node-b", `,"labels":{"pod-template-hash":"abc"}`+owned("ReplicaSet", "apps/v1", "far-abc"), "", ips("172.18.0.6", "10.2.0.1"))
	// An address that was another pod's, which still exists; and one that was.
	ended := func(ip, when string) string {
		return ips("172.18.0.6", ip) + `,"containerStatuses":[{"name":"main","containerID":"containerd://e","image":"i","imageID":"i","ready":false,"restartCount":0,
			"state":{"terminated":{"exitCode":0,"containerID":"containerd://e","finishedAt":"` + when + `"}}}]`
	}
	for _, name := range []string{"done", "done-there"} {
		c.pod(name, map[string]string{"done": c.node, "done-there": "node-b"}[name], "", `,"restartPolicy":"Never"`, "")
	}
	c.phase("done", "Succeeded", strings.Replace(ended("10.2.0.2", "2026-01-02T03:04:05Z"), "172.18.0.6", nodeIP, 2))
	c.phase("done-there", "Succeeded", ended("10.2.0.3", "2026-01-02T03:04:05Z"))
	c.pod("heir", "node-b", "", "", ips("172.18.0.6", "10.2.0.2"))
	c.pod("far-agent", "node-b", "", `,"hostNetwork":true`, ips("172.18.0.6", "172.18.0.6"))
	r := run(t, c)
	r.await(uid, func(p *Pod) bool { return len(p.Addresses) > 0 })
	require.Eventually(t, func() bool { alive, _, _ := r.table.sizes(); return alive == 4 }, patience, 10*time.Millisecond)

	for address, want := range map[string][4]string{
		clusterIP:    {event.PeerService, "shop", "default", ""},
		"10.1.0.2":   {event.PeerPod, "near", "default", "db"},
		"10.2.0.1":   {event.PeerPod, "far", "default", "far"},
		nodeIP:       {event.PeerNode, c.node, "", ""}, // never a pod that shares it
		"172.18.0.6": {event.PeerNode, "node-b", "", ""},
		"10.2.0.2":   {event.PeerPod, "heir", "default", ""}, // not that of this node that had it
		"10.2.0.3":   {},
		"10.9.9.9":   {},
		"127.0.0.1":  {},
	} {
		m := r.described(refused(uid, address))
		assert.Equal(t, want, [4]string{m[event.TapioPeerKind], m[event.TapioPeerName], m[event.TapioPeerNamespace], m[event.TapioPeerOwnerName]}, address)
		assert.Equal(t, "caller", m[event.K8sPodName], address)
	}
	last := refused(uid, clusterIP)
	before := r.resolver.requests
	require.Equal(t, "shop", r.described(last)[event.TapioPeerName])
	require.Equal(t, before, r.resolver.requests, "answers are kept, of nobody, too")
	require.Equal(t, "caller", last.GetNetwork().GetPodName())
	require.EqualValues(t, 2, r.counts.unknownPeers[cause(nobody)])

	// What the internet is asked for once is not asked for again soon.
	r.described(refused(uid, "203.0.113.9"))
	for address, long := range map[string]bool{"203.0.113.9": true, "10.9.9.9": false} {
		until := r.resolver.answers[question{address: netip.MustParseAddr(address), dialed: true}].until
		require.Equal(t, long, time.Until(until) > time.Minute, address)
	}

	// A server's client is never a Service.
	e := refused(uid, "10.96.7.8")
	e.Metadata[event.TapioNetworkRole] = event.RoleServer
	before = r.resolver.requests
	r.described(e)
	require.Equal(t, before+1, r.resolver.requests)

	// Nothing is asked for what runs outside of pods.
	e = refused("", "10.2.0.1")
	delete(e.Metadata, event.K8sPodUID)
	require.NotContains(t, r.described(e), event.TapioPeerKind)
}

func testEventsWait(t *testing.T, c *cluster) {
	known := c.pod("known", c.node, "", "", `,"containerStatuses":`+containers("k1", "main"))
	r := run(t, c)
	r.await(known, func(p *Pod) bool { return len(p.containers) > 0 })

	// The pod is not there yet; then its container is not. What is known passes.
	const unknown = "11111111-2222-3333-4444-555555555555"
	first, second := exited(unknown, "u1", "1"), exited(unknown, "u1", "2")
	require.NoError(t, r.Send(first))
	require.NoError(t, r.Send(second))
	require.NoError(t, r.Send(exited(known, "k1", "3")))
	require.Equal(t, []string{"3"}, r.ids())
	require.NoError(t, r.Send(exited(known, "k2", "4")))
	require.NoError(t, r.Send(exited(known, "k1", "5")))
	c.status("known", `,"containerStatuses":`+containers("k2", "main"))
	require.Eventually(t, func() bool { return strings.Contains(strings.Join(r.ids(), " "), "4 5") }, patience, 5*time.Millisecond, "in order")

	// It never comes: what is known goes out, and says so.
	require.Eventually(t, func() bool { return strings.Contains(strings.Join(r.ids(), " "), "1 2") }, patience, 5*time.Millisecond)
	require.Equal(t, event.AttributionPartial, first.GetMetadata()[event.TapioAttribution])
	require.Equal(t, unknown, second.GetMetadata()[event.K8sPodUID])
	require.EqualValues(t, 2, r.counts.unknown[causePod])

	t.Run("not without end", func(t *testing.T) {
		for i := range maxHeld + 10 {
			require.NoError(t, r.Send(exited(fmt.Sprintf("00000000-0000-0000-0000-%012d", i), "x", "x")))
		}
		require.LessOrEqual(t, r.waiting, maxHeld)
	})

	t.Run("deleted", func(t *testing.T) {
		c.delete("known")
		require.Eventually(t, func() bool { _, gone, _ := r.table.sizes(); return gone == 1 }, patience, 10*time.Millisecond)
		m := r.described(exited(known, "k1", "6"))
		require.Equal(t, "known", m[event.K8sPodName])
		require.Equal(t, "main", m[event.K8sContainerName])
	})

	t.Run("without the API server", func(t *testing.T) {
		c.Kill()
		require.Eventually(t, func() bool { return r.Ready() != nil }, patience, 10*time.Millisecond)
		require.Equal(t, "known", r.described(exited(known, "k1", "7"))[event.K8sPodName])
		require.NoError(t, r.Send(exited("22222222-2222-3333-4444-555555555555", "u1", "8")))
		ids := r.ids()
		require.Equal(t, "8", ids[len(ids)-1], "nobody waits for a server that is away")

		// It comes back, and has forgotten what the watch would go on from.
		require.NoError(t, c.StartAPIServer())
		var all corev1.PodList
		require.NoError(t, c.client.Get().Resource("pods").Do(t.Context()).Into(&all))
		require.NoError(t, c.Compact(all.ResourceVersion))
		c.Kill()
		require.NoError(t, c.StartAPIServer())
		late := c.pod("late", c.node, "", "", `,"containerStatuses":`+containers("l1", "main"))
		r.await(late, func(p *Pod) bool { return len(p.containers) > 0 })
		require.Equal(t, "late", r.described(exited(late, "l1", "9"))[event.K8sPodName])
	})

	t.Run("stop", func(t *testing.T) {
		require.NoError(t, r.Send(exited("33333333-2222-3333-4444-555555555555", "u1", "10")))
		r.Stop()
		ids := r.ids()
		require.Equal(t, "10", ids[len(ids)-1])
		require.Zero(t, r.waiting)
		r.stop()
		outages := strings.Count(r.log.String(), "cannot watch")
		require.Positive(t, outages)
		require.LessOrEqual(t, outages, strings.Count(r.log.String(), "watching the node's pods"), "an outage is told once, not each try:\n%s", &r.log)
	})
}

// A server that takes connections and answers nothing is away, and says so.
func TestServerThatHangs(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	r := &running{t: t}
	var log strings.Builder
	var mu sync.Mutex
	write := writer(func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return log.Write(p) })
	r.Context, err = Open(Config{
		Node: "node-a", API: &rest.Config{Host: "http://" + listener.Addr().String()}, Send: r.take,
		Log: slog.New(slog.NewTextHandler(write, nil)),
	})
	require.NoError(t, err)
	r.watcher.within = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { r.Run(ctx); close(done) }()
	require.Eventually(t, func() bool { return !r.watcher.live() }, patience, 10*time.Millisecond)
	require.ErrorIs(t, r.Ready(), errNoAnswer)
	require.NoError(t, r.Send(exited("11111111-2222-3333-4444-555555555555", "x", "1")))
	require.Equal(t, []string{"1"}, r.ids(), "nobody waits for it")
	cancel()
	<-done
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, 1, strings.Count(log.String(), "cannot watch"), log.String())
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
