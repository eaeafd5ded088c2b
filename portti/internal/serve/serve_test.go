package serve_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/serve"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/kube/apiservertest"
)

// within is how long anything may take on a machine that has much else to do.
const within = time.Minute

// cluster is an API server and somebody who writes to it.
type cluster struct {
	t      *testing.T
	server *apiservertest.Server
	client dynamic.Interface
}

func newCluster(t *testing.T) *cluster {
	s := apiservertest.Start(t)
	client, err := dynamic.NewForConfig(s.Config())
	require.NoError(t, err)
	return &cluster{t: t, server: s, client: client}
}

func (c *cluster) of(word string) dynamic.NamespaceableResourceInterface {
	k, ok := change.LookupKind(word)
	require.True(c.t, ok, word)
	return c.client.Resource(k.Resource)
}

// in returns the objects of a kind in the namespace default, or of the cluster.
func (c *cluster) in(word string) dynamic.ResourceInterface {
	if k, _ := change.LookupKind(word); !k.Namespaced {
		return c.of(word)
	}
	return c.of(word).Namespace("default")
}

func (c *cluster) create(word, text string) *unstructured.Unstructured {
	c.t.Helper()
	o := &unstructured.Unstructured{}
	require.NoError(c.t, yaml.Unmarshal([]byte(text), &o.Object))
	made, err := c.in(word).Create(c.t.Context(), o, metav1.CreateOptions{})
	require.NoError(c.t, err)
	return made
}

// set changes one text of an object.
func (c *cluster) set(word, name, value string, path ...string) *unstructured.Unstructured {
	c.t.Helper()
	o, err := c.in(word).Get(c.t.Context(), name, metav1.GetOptions{})
	require.NoError(c.t, err)
	require.NoError(c.t, unstructured.SetNestedField(o.Object, value, path...))
	o, err = c.in(word).Update(c.t.Context(), o, metav1.UpdateOptions{})
	require.NoError(c.t, err)
	return o
}

func (c *cluster) delete(word, name string) {
	c.t.Helper()
	now, background := int64(0), metav1.DeletePropagationBackground
	require.NoError(c.t, c.in(word).Delete(c.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &now, PropagationPolicy: &background}))
}

func configMap(name string) string {
	return "{apiVersion: v1, kind: ConfigMap, metadata: {name: " + name + "}, data: {key: '0'}}"
}

// key names a change by what makes it one.
func key(o *unstructured.Unstructured) string {
	return string(o.GetUID()) + "@" + o.GetResourceVersion()
}

// portti is one run, which writes what it sends.
type portti struct {
	t    *testing.T
	stop func()
	url  string

	mu     sync.Mutex
	events []*eventv1.Event
	log    bytes.Buffer
}

func (p *portti) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *portti) logged() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// start runs portti until stop or the end of the test.
func start(t *testing.T, c *cluster, stateDir string, change ...func(*serve.Config)) *portti {
	p := &portti{t: t}
	port, err := apiservertest.FreePort()
	require.NoError(t, err)
	p.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	read, write := io.Pipe()
	config := serve.Config{
		API: c.server.Config(), Kinds: kinds(), Cluster: "test", Stdout: write, StateDir: stateDir,
		Listen: strings.TrimPrefix(p.url, "http://"), Log: slog.New(slog.NewTextHandler(p, nil)),
	}
	for _, f := range change {
		f(&config)
	}
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	running.Go(func() {
		lines := bufio.NewScanner(read)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			e := &eventv1.Event{}
			if err := protojson.Unmarshal(lines.Bytes(), e); err != nil {
				t.Errorf("read what portti wrote: %v", err)
			}
			if err := event.Validate(e); err != nil {
				t.Errorf("portti wrote an invalid event: %v", err)
			}
			p.mu.Lock()
			p.events = append(p.events, e)
			p.mu.Unlock()
		}
	})
	running.Go(func() {
		if err := serve.Run(ctx, config); err != nil {
			t.Errorf("portti ended: %v", err)
		}
		_ = write.Close() // never fails
	})
	p.stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("portti's log:\n%s", p.logged())
		}
	})
	return p
}

func kinds() []change.Kind { return change.Kinds() }

// ready asks /readyz.
func (p *portti) ready() (bool, string) {
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.url+"/readyz", http.NoBody)
	require.NoError(p.t, err)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, err.Error()
	}
	body, err := io.ReadAll(response.Body)
	require.NoError(p.t, err)
	require.NoError(p.t, response.Body.Close())
	return response.StatusCode == http.StatusOK, string(body)
}

func (p *portti) awaitReady() {
	p.t.Helper()
	p.await("ready", func() bool { yes, _ := p.ready(); return yes })
}

func (p *portti) await(what string, is func() bool) {
	p.t.Helper()
	require.Eventually(p.t, is, within, 20*time.Millisecond, what)
}

// told returns the events of objects by change: uid@resourceVersion, or uid@deleted.
func (p *portti) told() map[string][]*eventv1.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := map[string][]*eventv1.Event{}
	for _, e := range p.events {
		k := e.GetK8S()
		name := k.GetObject().GetUid() + "@" + k.GetResourceVersion()
		if strings.HasSuffix(e.GetEventType(), ".deleted") {
			name = k.GetObject().GetUid() + "@deleted"
		}
		if strings.HasPrefix(e.GetEventType(), event.K8sEventPrefix) {
			name = "event@" + k.GetResourceVersion() // it is about another object
		}
		all[name] = append(all[name], e)
	}
	return all
}

// awaitAll waits for changes, and checks that each was told once.
func (p *portti) awaitAll(changes []string) map[string]*eventv1.Event {
	p.t.Helper()
	missing := ""
	if !assertEventually(func() bool {
		told := p.told()
		for _, c := range changes {
			if len(told[c]) == 0 {
				missing = c
				return false
			}
		}
		return true
	}) {
		require.FailNow(p.t, "a change is missing", "%s of %d changes", missing, len(changes))
	}
	once := map[string]*eventv1.Event{}
	told := p.told()
	for _, c := range changes {
		require.Len(p.t, told[c], 1, c)
		once[c] = told[c][0]
	}
	return once
}

func assertEventually(is func() bool) bool {
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if is() {
			return true
		}
	}
	return false
}

func uid(o *unstructured.Unstructured, suffix string) string {
	return string(o.GetUID()) + "@" + suffix
}

var objects = map[string]string{
	"namespace":     "{apiVersion: v1, kind: Namespace, metadata: {name: other}}",
	"node":          "{apiVersion: v1, kind: Node, metadata: {name: node-1}}",
	"configmap":     configMap("settings"),
	"secret":        "{apiVersion: v1, kind: Secret, metadata: {name: password}, stringData: {password: hunter2-is-planted}}",
	"service":       "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}",
	"pod":           "{apiVersion: v1, kind: Pod, metadata: {name: web-1}, spec: {containers: [{name: web, image: 'web:1'}]}}",
	"deployment":    "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: 'web:1'}]}}}}",
	"statefulset":   "{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: db}, spec: {serviceName: db, selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: 'db:1'}]}}}}",
	"job":           "{apiVersion: batch/v1, kind: Job, metadata: {name: once}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: 'c:1'}]}}}}",
	"cronjob":       "{apiVersion: batch/v1, kind: CronJob, metadata: {name: nightly}, spec: {schedule: '0 0 * * *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: 'c:1'}]}}}}}}",
	"hpa":           "{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: web}, spec: {maxReplicas: 3, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}}",
	"pdb":           "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}}",
	"networkpolicy": "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web}, spec: {podSelector: {}}}",
	"ingress":       "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: web}, spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}}",
	"resourcequota": "{apiVersion: v1, kind: ResourceQuota, metadata: {name: all}, spec: {hard: {pods: '100'}}}",
	"limitrange":    "{apiVersion: v1, kind: LimitRange, metadata: {name: all}, spec: {limits: [{type: Container, max: {cpu: '1'}}]}}",
	"pv":            "{apiVersion: v1, kind: PersistentVolume, metadata: {name: disk}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /disk}}}",
	"pvc":           "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: disk}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}",
	"daemonset":     "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: agent}, spec: {selector: {matchLabels: {app: agent}}, template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: agent, image: 'agent:1'}]}}}}",
	"replicaset":    "{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: web-1}, spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: 'web:1'}]}}}}",
	"endpointslice": "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web}, addressType: IPv4, endpoints: []}",
}

// What does not hurt the server shares one: it takes seconds to start.
func TestWatches(t *testing.T) {
	c := newCluster(t)
	for name, test := range map[string]func(*testing.T, *cluster){
		"each change of each kind once": eachChangeOfEachKindOnce,
		"a kind that is forbidden":      kindThatIsForbidden,
		"state is for one process":      stateIsForOneProcess,
		"a disk that takes no state":    diskThatTakesNoState,
	} {
		t.Run(name, func(t *testing.T) { test(t, &cluster{t: t, server: c.server, client: c.client}) })
	}
}

func eachChangeOfEachKindOnce(t *testing.T, c *cluster) {
	p := start(t, c, t.TempDir())
	p.awaitReady()
	var want []string
	for _, k := range kinds() {
		if k.Word == "event" {
			continue
		}
		o := c.create(k.Word, objects[k.Word])
		want = append(want, key(o), key(c.set(k.Word, o.GetName(), "yes", "metadata", "labels", "changed")))
		if k.Word != "namespace" { // which waits for a controller
			c.delete(k.Word, o.GetName())
			if k.Word != "pv" && k.Word != "pvc" { // which wait, too
				want = append(want, uid(o, "deleted"))
			}
		}
	}
	e := c.create("event", "{apiVersion: v1, kind: Event, metadata: {name: e1}, reason: BackOff, message: m, type: Warning, count: 1, involvedObject: {kind: Pod, name: web-1, namespace: default}}")
	want = append(want, "event@"+e.GetResourceVersion())
	e.Object["count"] = int64(2)
	e, err := c.in("event").Update(t.Context(), e, metav1.UpdateOptions{})
	require.NoError(t, err)
	want = append(want, "event@"+e.GetResourceVersion())
	c.delete("event", "e1") // which tells nothing
	for _, told := range p.awaitAll(want) {
		require.False(t, told.GetK8S().GetGap())
	}
	p.stop()
	require.NotContains(t, fmt.Sprint(p.told()), "hunter2")
	require.Contains(t, p.logged(), "listed events")
}

// What happened while nobody watched is told version by version, because etcd
// knows it.
func TestGoesOnAfterARestart(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	p := start(t, c, dir)
	kept, gone := c.create("configmap", configMap("kept")), c.create("configmap", configMap("gone"))
	p.awaitAll([]string{key(kept), key(gone)})
	p.awaitReady()
	p.stop()
	want := []string{}
	for i := range 3 {
		want = append(want, key(c.set("configmap", "kept", strconv.Itoa(i+1), "data", "key")))
	}
	want = append(want, key(c.set("configmap", "gone", "1", "data", "key")), uid(gone, "deleted"))
	c.delete("configmap", "gone")
	passing := c.create("configmap", configMap("passing"))
	want = append(want, key(passing), uid(passing, "deleted"))
	c.delete("configmap", "passing")

	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("the API server too %t", restarted), func(t *testing.T) {
			if restarted { // its watch cache begins anew
				c.server.Kill()
				require.NoError(t, c.server.StartAPIServer())
				want = append(want[:0], key(c.set("configmap", "kept", "x", "data", "key")))
				more := c.create("configmap", configMap("passing-2"))
				want = append(want, key(more), key(c.set("configmap", "passing-2", "x", "data", "key")), uid(more, "deleted"))
				c.delete("configmap", "passing-2")
				c.server.Kill()
				require.NoError(t, c.server.StartAPIServer())
			}
			awake := time.Now()
			p := start(t, c, dir)
			for what, e := range p.awaitAll(want) {
				require.False(t, e.GetK8S().GetGap(), e)
				if !strings.HasSuffix(what, "@deleted") { // at once, of which the server does not note when
					require.Less(t, e.GetTimestampUnixNs(), awake.UnixNano(), "it happened before: %v", e)
				}
			}
			p.awaitReady()
			p.stop()
			require.Empty(t, p.told()[key(kept)], "it was sent before")
		})
	}
}

func TestAPIServerDiesWhileWatched(t *testing.T) {
	c := newCluster(t)
	p := start(t, c, t.TempDir())
	p.awaitReady()
	o := c.create("configmap", configMap("one"))
	want := []string{key(o)}
	for i := range 200 {
		want = append(want, key(c.set("configmap", "one", strconv.Itoa(i), "data", "key")))
		if i%10 == 0 {
			passing := c.create("configmap", configMap(fmt.Sprintf("passing-%d", i)))
			want = append(want, key(passing), uid(passing, "deleted"))
			c.delete("configmap", passing.GetName())
		}
		if i%100 == 50 {
			c.server.Kill()
			require.NoError(t, c.server.StartAPIServer())
		}
	}
	for _, e := range p.awaitAll(want) {
		require.False(t, e.GetK8S().GetGap(), e)
	}
}

// What etcd has compacted while nobody watched is gone, which is told.
func TestCompaction(t *testing.T) {
	c := newCluster(t)
	dir := t.TempDir()
	p := start(t, c, dir)
	kept, gone := c.create("configmap", configMap("kept")), c.create("configmap", configMap("gone"))
	p.awaitAll([]string{key(kept), key(gone)})
	p.awaitReady()
	p.stop()
	c.set("configmap", "kept", "1", "data", "key")
	c.delete("configmap", "gone")
	fresh := c.create("configmap", configMap("fresh"))
	kept = c.set("configmap", "kept", "2", "data", "key")
	after := c.create("configmap", configMap("after"))
	require.NoError(t, c.server.Compact(kept.GetResourceVersion()))
	c.server.Kill()
	require.NoError(t, c.server.StartAPIServer())

	p = start(t, c, dir)
	told := p.awaitAll([]string{key(kept), uid(gone, "deleted"), key(fresh), key(after)})
	p.awaitReady()
	require.True(t, told[key(kept)].GetK8S().GetGap())
	require.True(t, told[uid(gone, "deleted")].GetK8S().GetGap())
	require.True(t, told[key(fresh)].GetK8S().GetGap())
	require.Contains(t, p.logged(), "may have come and gone")
}

func kindThatIsForbidden(t *testing.T, c *cluster) {
	rbac := func(resource, text string) {
		o := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal([]byte(text), &o.Object))
		gvr := schema.GroupVersion{Group: "rbac.authorization.k8s.io", Version: "v1"}
		_, err := c.client.Resource(gvr.WithResource(resource)).Create(t.Context(), o, metav1.CreateOptions{})
		require.NoError(t, err)
	}
	rbac("clusterroles", "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: watcher}, rules: [{apiGroups: [''], resources: [configmaps, namespaces], verbs: [get, list, watch]}]}")
	rbac("clusterrolebindings", "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: watcher}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: watcher}, subjects: [{kind: User, name: "+apiservertest.LimitedUser+"}]}")
	p := start(t, c, t.TempDir(), func(s *serve.Config) { s.API = c.server.ConfigOf(apiservertest.LimitedToken) })
	p.awaitAll([]string{key(c.create("configmap", configMap("seen")))})
	p.await("told", func() bool {
		yes, text := p.ready()
		return !yes && strings.Contains(text, "pods is forbidden") && !strings.Contains(text, "configmap")
	})
	rbac("clusterrolebindings", "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: all}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}, subjects: [{kind: User, name: "+apiservertest.LimitedUser+"}]}")
	p.awaitReady()
}

func diskThatTakesNoState(t *testing.T, c *cluster) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	p := start(t, c, filepath.Join(file, "state"))
	p.awaitAll([]string{key(c.create("configmap", configMap("stateless")))})
	p.await("told", func() bool {
		_, text := p.ready()
		return strings.Contains(text, "[-] state: make the state directory") && strings.Contains(text, "[+] kinds")
	})
}

func stateIsForOneProcess(t *testing.T, c *cluster) {
	dir := t.TempDir()
	p := start(t, c, dir)
	p.awaitReady()
	err := serve.Run(t.Context(), serve.Config{API: c.server.Config(), Stdout: io.Discard, StateDir: dir, Log: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "another process uses it")
}
