package changes

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// mostMemory is what portti may have resident with ten thousand pods, bytes.
const mostMemory = 150 << 20

// TestMemory measures portti with many pods: while it watches them come, when it
// lists them at a first start, and when it goes on from its state. PODS=10000 is
// what the bound is for.
func TestMemory(t *testing.T) {
	pods := number(t, "PODS", 500)
	l := start(t)
	var group errgroup.Group
	group.SetLimit(writers)
	size := 0
	for i := range pods {
		group.Go(func() error {
			made, err := l.client.Resource(resources()["pod"]).Namespace("default").Create(t.Context(), realisticPod(i), metav1.CreateOptions{})
			if err != nil {
				return err
			}
			status := made.DeepCopy()
			status.Object["status"] = podStatus(i)
			made, err = l.client.Resource(resources()["pod"]).Namespace("default").UpdateStatus(t.Context(), status, metav1.UpdateOptions{})
			if err == nil && i == 0 {
				text, _ := made.MarshalJSON() // it came as JSON
				size = len(text)
			}
			return err
		})
	}
	require.NoError(t, group.Wait())
	p := l.porttis[0]
	report := func(how string) {
		require.Eventually(t, func() bool {
			objects, _ := p.now("portti_objects")
			open, known := p.now("portti_changes_open")
			return p.ready() && objects >= float64(pods) && known && open == 0
		}, patience, pollEvery, "%s: %s", how, p.logEnd())
		peak, err := residentPeak(p.cmd.Process.Pid)
		require.NoError(t, err)
		now, _ := p.now("process_resident_memory_bytes")
		fmt.Printf("memory: %d pods of %d bytes, %s: %d MiB resident at most, %.0f MiB then\n", pods, size, how, peak>>20, now/(1<<20))
		require.LessOrEqual(t, peak, int64(mostMemory), how)
	}
	report("watched")
	p.kill()
	p.start()
	report("from its state")
	p.kill()
	require.NoError(t, os.RemoveAll(l.path("portti-a")))
	p.start()
	report("listed")
}

// realisticPod is one as a Deployment with a sidecar makes it.
func realisticPod(i int) *unstructured.Unstructured {
	container := func(name string) map[string]any {
		var env, mounts []any
		for j := range 12 {
			env = append(env, map[string]any{"name": fmt.Sprintf("%s_SETTING_%d", strings.ToUpper(name), j), "value": fmt.Sprintf("value-%d-%d", i, j)})
		}
		for j := range 3 {
			mounts = append(mounts, map[string]any{"name": fmt.Sprintf("volume-%d", j), "mountPath": fmt.Sprintf("/var/lib/%s/%d", name, j), "readOnly": true})
		}
		probe := map[string]any{"httpGet": map[string]any{"path": "/healthz", "port": int64(8080)}, "periodSeconds": int64(10)}
		return map[string]any{
			"name": name, "image": "registry.local/team/" + name + ":v1.2.3", "env": env, "volumeMounts": mounts,
			"ports":         []any{map[string]any{"name": "http", "containerPort": int64(8080)}},
			"livenessProbe": probe, "readinessProbe": probe,
			"resources": map[string]any{
				"limits": map[string]any{"cpu": "500m", "memory": "256Mi"}, "requests": map[string]any{"cpu": "100m", "memory": "128Mi"},
			},
		}
	}
	var volumes []any
	for j := range 3 {
		volumes = append(volumes, map[string]any{"name": fmt.Sprintf("volume-%d", j), "configMap": map[string]any{"name": fmt.Sprintf("settings-%d-%d", i%300, j)}})
	}
	app := fmt.Sprintf("app-%d", i%300)
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"name":        fmt.Sprintf("%s-7d4b9c8f6-%05d", app, i),
			"labels":      map[string]any{"app.kubernetes.io/name": app, "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d4b9c8f6", "team": "checkout"},
			"annotations": map[string]any{"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "checksum/config": strings.Repeat("0123456789abcdef", 4)},
			"ownerReferences": []any{map[string]any{
				"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": app + "-7d4b9c8f6", "controller": true,
				"uid": fmt.Sprintf("00000000-0000-4000-8000-%012d", i%300),
			}},
		},
		"spec": map[string]any{
			"nodeName": fmt.Sprintf("node-%d", i%100), "serviceAccountName": app,
			"containers": []any{container("app"), container("proxy")}, "volumes": volumes,
		},
	}}
}

func podStatus(i int) map[string]any {
	at := "2026-01-02T03:04:05Z"
	var conditions, containers []any
	for _, kind := range []string{"PodScheduled", "Initialized", "ContainersReady", "Ready"} {
		conditions = append(conditions, map[string]any{"type": kind, "status": "True", "lastTransitionTime": at})
	}
	for _, name := range []string{"app", "proxy"} {
		containers = append(containers, map[string]any{
			"name": name, "image": "registry.local/team/" + name + ":v1.2.3", "ready": true, "started": true, "restartCount": int64(0),
			"imageID":     "registry.local/team/" + name + "@sha256:" + strings.Repeat("0123456789abcdef", 4),
			"containerID": "containerd://" + strings.Repeat(fmt.Sprintf("%016x", i), 4),
			"state":       map[string]any{"running": map[string]any{"startedAt": at}},
		})
	}
	ip := fmt.Sprintf("10.1.%d.%d", i/250, i%250)
	return map[string]any{
		"phase": "Running", "startTime": at, "podIP": ip, "podIPs": []any{map[string]any{"ip": ip}}, "hostIP": "10.0.0.1",
		"qosClass": "Burstable", "conditions": conditions, "containerStatuses": containers,
	}
}
