package pods

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

func decode(text []byte, into any) error { return json.Unmarshal(text, into) }

func pod(uid, ip string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Name: "pod-" + uid, Namespace: "default"}}
	p.Spec.NodeName = "node-a"
	p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", ContainerID: "containerd://" + uid}}
	return p
}

func testTable(t testing.TB) (*table, func(time.Duration)) {
	now := time.Unix(1_700_000_000, 0)
	table := newTable(func() {})
	table.now = func() time.Time { return now }
	t.Cleanup(func() { require.NoError(t, table.Resync()) })
	return table, func(d time.Duration) { now = now.Add(d) }
}

func TestAfterlife(t *testing.T) {
	table, wait := testTable(t)
	a, b := pod("a", "10.0.0.1"), pod("b", "10.0.0.2")
	require.NoError(t, table.Replace([]any{a, b}, "1"))
	require.NoError(t, table.Replace([]any{b}, "2"), "the deletion of a was missed")
	wait(afterlife - time.Second)
	require.NotNil(t, table.lookup("a"), "an event of it came")
	wait(afterlife - time.Second)
	require.NoError(t, table.Add(b))
	require.NotNil(t, table.lookup("a"))
	wait(afterlife)
	require.NoError(t, table.Add(b))
	require.Nil(t, table.lookup("a"))
	require.NotNil(t, table.lookup("b"))
	alive, gone, synced := table.sizes()
	assert.Equal(t, [2]int{1, 0}, [2]int{alive, gone})
	assert.True(t, synced)

	for i := range maxGone + 100 {
		p := pod(fmt.Sprint("x", i), "10.0.0.9")
		require.NoError(t, table.Add(p))
		require.NoError(t, table.Delete(p))
	}
	_, gone, _ = table.sizes()
	assert.Equal(t, maxGone, gone)
	assert.Nil(t, table.lookup("x0"))
	assert.NotNil(t, table.lookup(fmt.Sprint("x", maxGone+99)))
}

func TestAddressChangesHands(t *testing.T) {
	table, _ := testTable(t)
	ip := netip.MustParseAddr("10.0.0.1")
	at := func() string { p, _ := table.at(ip); return p.UID }
	old, next := pod("old", "10.0.0.1"), pod("next", "10.0.0.1")
	require.NoError(t, table.Add(old))
	require.Equal(t, "old", at())
	old.Status.Phase = corev1.PodSucceeded
	require.NoError(t, table.Add(old))
	require.Equal(t, "old", at(), "until another one has it")
	require.NoError(t, table.Add(next))
	require.Equal(t, "next", at())
	require.NoError(t, table.Add(old))
	require.NoError(t, table.Delete(old))
	require.Equal(t, "next", at(), "a pod that has ended takes no address back")
	require.NoError(t, table.Delete(next))
	require.Equal(t, "next", at(), "the last one counts")
}

func TestBounds(t *testing.T) {
	table, _ := testTable(t)
	p := pod("a", "10.0.0.1")
	p.Labels = map[string]string{}
	for i := range 100 {
		p.Labels[fmt.Sprintf("label-%03d", i)] = "value"
	}
	for i := range 3 * maxContainers {
		p.Status.ContainerStatuses[0].ContainerID = fmt.Sprintf("containerd://%d", i)
		require.NoError(t, table.Add(p))
	}
	k := table.lookup("a")
	assert.LessOrEqual(t, len(k.containers), maxContainers)
	assert.Equal(t, "main", k.containers[fmt.Sprint(3*maxContainers-1)], "the newest is known")
	assert.Len(t, k.metadata, maxLabels+3)
}

// BenchmarkSend is what names cost an event whose pod is known.
func BenchmarkSend(b *testing.B) {
	c := &Context{
		table: newTable(func() {}), send: func(*eventv1.Event) error { return nil },
		now: time.Now, kick: make(chan struct{}, 1), held: map[string][]held{}, counts: newCounts(),
	}
	c.watcher = newWatcher(nil, "node-a", c.table, nil)
	const pods = 110
	for i := range pods {
		p := pod(fmt.Sprint("p", i), fmt.Sprintf("10.0.0.%d", i))
		p.Labels = map[string]string{"app": "web", "team": "blue"}
		require.NoError(b, c.table.Add(p))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		uid := fmt.Sprint("p", i%pods)
		e := &eventv1.Event{Metadata: map[string]string{event.K8sPodUID: uid, event.ContainerID: uid}}
		if err := c.Send(e); err != nil || e.GetMetadata()[event.K8sContainerName] == "" {
			b.Fatal("unknown")
		}
	}
}
