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
	at := func() string { p, _, _ := table.at(ip); return p.UID }
	left := func() bool { _, left, _ := table.at(ip); return !left.IsZero() }
	old, next := pod("old", "10.0.0.1"), pod("next", "10.0.0.1")
	require.NoError(t, table.Add(old))
	require.Equal(t, "old", at())
	old.Status.Phase = corev1.PodSucceeded
	require.NoError(t, table.Add(old))
	require.Equal(t, "old", at(), "until another one has it")
	require.True(t, left(), "which may be on another node")
	require.NoError(t, table.Add(next))
	require.Equal(t, "next", at())
	require.False(t, left())
	require.NoError(t, table.Add(old))
	require.NoError(t, table.Delete(old))
	require.Equal(t, "next", at(), "a pod that has ended takes no address back")
	require.NoError(t, table.Delete(next))
	require.Equal(t, "next", at(), "the last one counts")
	require.True(t, left())
}

// A pod that has ended keeps its addresses in the API, for days. They are those of
// others by then.
func TestEndedPods(t *testing.T) {
	const running, done = corev1.PodRunning, corev1.PodSucceeded
	now := time.Unix(1_700_000_000, 0)
	for name, test := range map[string]struct {
		phase         corev1.PodPhase
		started, took time.Duration // before now; until the end
		over          string        // the pod that it is to be preferred to
	}{
		"one that runs":             {phase: running, started: time.Hour, over: "ended"},
		"the later of two":          {phase: running, started: time.Minute, over: "runs"},
		"the later that has ended":  {phase: done, started: time.Minute, took: time.Second, over: "ended"},
		"nobody, it was days ago":   {phase: done, started: 48 * time.Hour, took: time.Hour},
		"nobody, evicted days ago":  {phase: corev1.PodFailed, started: 48 * time.Hour},
		"somebody, it is not a day": {phase: done, started: time.Hour, took: time.Hour - time.Second, over: "ended"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod("a", "10.0.0.1")
			began := metav1.NewTime(now.Add(-test.started))
			p.CreationTimestamp, p.Status.StartTime, p.Status.Phase = began, &began, test.phase
			if test.took > 0 {
				p.Status.ContainerStatuses[0].State.Terminated = &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(began.Add(test.took))}
			}
			k := newPod(p)
			require.Equal(t, test.phase == running, k.ended.IsZero())
			require.Equal(t, test.over == "" || k.ended.Before(now.Add(-lingers)) && test.phase != running, hasLeft(now, k.ended))
			ended := &Pod{started: now.Add(-24 * time.Hour), ended: now.Add(-23 * time.Hour)}
			runs := &Pod{started: now.Add(-24 * time.Hour)}
			switch test.over {
			case "ended":
				require.True(t, k.hasSince(ended))
				require.False(t, ended.hasSince(k))
			case "runs":
				require.True(t, k.hasSince(runs))
				require.False(t, runs.hasSince(k))
			}
		})
	}
}

// Anybody may write the annotation with the hash; only the kubelet's mirror pods
// are what it says. Else one pod could take another one's events.
func TestAnotherPodsHash(t *testing.T) {
	table, _ := testTable(t)
	victim, thief := pod("victim", "10.0.0.1"), pod("thief", "10.0.0.2")
	thief.Annotations = map[string]string{configHash: "victim"}
	require.NoError(t, table.Add(victim))
	require.NoError(t, table.Add(thief))
	require.Equal(t, "victim", table.lookup("victim").UID)
	thief.Annotations[mirror] = "h"
	thief.Annotations[configHash] = "0123"
	require.NoError(t, table.Add(thief))
	require.Equal(t, "thief", table.lookup("0123").UID)
}

func TestContainersInContainers(t *testing.T) {
	k := newPod(pod("outer", "10.0.0.1"))
	for cgroup, want := range map[string]string{
		"/kubepods/poda/outer/docker/inner":                               "main",
		"/kubepods.slice/a.slice/cri-containerd-outer.scope/docker/inner": "main",
		"/system.slice/a.slice:cri-containerd:outer/inner":                "main",
		"/kubepods/poda/inner":                                            "",
		"/kubepods/poda/outer2/inner":                                     "",
		"":                                                                "",
	} {
		name, ok := k.container("inner", cgroup)
		assert.Equal(t, want, name, cgroup)
		assert.Equal(t, want != "", ok, cgroup)
	}
}

func TestLabelsWithSecrets(t *testing.T) {
	p := pod("a", "10.0.0.1")
	p.Labels = map[string]string{"app": "web", "note": "ghp_abcdefghijklmnopqrstuvwxyz0123", "my-secret": "x"}
	m := newPod(p).metadata
	assert.Equal(t, "web", m[event.K8sPodLabel+"app"])
	assert.NotContains(t, m[event.K8sPodLabel+"note"], "ghp_")
	assert.NotContains(t, m, event.K8sPodLabel+"my-secret")
}

// Behind a flood of addresses the new ones are answered all the same.
func TestLateQuestions(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	r := newResolver(nil, func() {}) // who asks nobody needs no client
	r.now = func() time.Time { return now }
	for i := range maxWaiting {
		_, ok := r.ask(question{name: fmt.Sprint(i)})
		require.False(t, ok)
	}
	a, ok := r.ask(question{name: "one more"})
	require.True(t, ok)
	require.Equal(t, limited, a.outcome)
	now = now.Add(holdFor)
	for range maxWaiting {
		require.True(t, r.isLate(<-r.questions))
	}
	_, ok = r.ask(question{name: "0"})
	require.False(t, ok)
	require.False(t, r.isLate(<-r.questions))
	require.EqualValues(t, maxWaiting, r.counts[late])
}

// A flood of what nobody knows takes nothing from what is known, and every event of
// it goes out once, in the order of its pod.
func TestFlood(t *testing.T) {
	var sent []*eventv1.Event
	now := time.Unix(1_700_000_000, 0)
	c := &Context{
		table: newTable(func() {}), send: func(e *eventv1.Event) error { sent = append(sent, e); return nil },
		now: func() time.Time { return now }, kick: make(chan struct{}, 1), held: map[string][]held{}, counts: newCounts(),
	}
	c.watcher = newWatcher(nil, "node-a", c.table, nil)
	require.NoError(t, c.table.Add(pod("known", "10.0.0.1")))
	const flood, pods = 10_000, 3_000
	for i := range flood {
		require.NoError(t, c.Send(&eventv1.Event{Id: fmt.Sprintf("%05d", i), Metadata: map[string]string{event.K8sPodUID: fmt.Sprint("p", i%pods)}}))
		require.NoError(t, c.Send(&eventv1.Event{Metadata: map[string]string{event.K8sPodUID: "known"}}))
		require.Equal(t, "pod-known", sent[len(sent)-1].GetMetadata()[event.K8sPodName])
		require.LessOrEqual(t, c.waiting, maxHeld)
	}
	now = now.Add(holdFor)
	c.release()
	require.Len(t, sent, 2*flood)
	require.Zero(t, c.waiting)
	require.Empty(t, c.held)
	last := map[string]string{}
	for _, e := range sent {
		uid := e.GetMetadata()[event.K8sPodUID]
		require.LessOrEqual(t, last[uid], e.GetId())
		last[uid] = e.GetId()
	}
	require.EqualValues(t, flood, c.counts.unknown[causePod]+c.counts.unknown[causeCrowded])
	require.EqualValues(t, flood, c.counts.attributed)
	require.Zero(t, c.counts.lost)
}

// An event that waits costs what it costs, and not a look at all that wait.
func TestHoldingWakesNobody(t *testing.T) {
	c := &Context{
		table: newTable(func() {}), send: func(*eventv1.Event) error { return nil },
		now: time.Now, kick: make(chan struct{}, 1), held: map[string][]held{}, counts: newCounts(),
	}
	c.watcher = newWatcher(nil, "node-a", c.table, nil)
	require.NoError(t, c.Send(&eventv1.Event{Metadata: map[string]string{event.K8sPodUID: "x"}}))
	require.Equal(t, 1, c.waiting)
	require.Empty(t, c.kick)
	require.LessOrEqual(t, c.release(), holdFor)
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
