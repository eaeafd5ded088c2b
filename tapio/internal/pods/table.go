package pods

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
)

const (
	// afterlife is how long a deleted pod is kept after its deletion and after the
	// last event of it: what its last moments caused may be told later.
	afterlife = 90 * time.Second
	// maxGone bounds the deleted pods that are kept, a few hundred bytes each.
	maxGone = 1024
)

// table holds the pods of the node. It is the store of the watch.
type table struct {
	now     func() time.Time
	changed func() // called after each change, without the lock

	mu     sync.RWMutex
	synced bool
	pods   map[string]*record // by UID, and by the kubelet's UID of static pods
	byIP   map[netip.Addr]*record
	nodes  map[netip.Addr]string // addresses of this node: its name
	gone   []*record             // in the order of their deletion
}

type record struct {
	*Pod
	gone time.Time    // zero while it exists
	used atomic.Int64 // the last lookup, ns since 1970
}

func newTable(changed func()) *table {
	return &table{
		now: time.Now, changed: changed,
		pods: map[string]*record{}, byIP: map[netip.Addr]*record{}, nodes: map[netip.Addr]string{},
	}
}

// lookup returns the pod of the UID that stands in control groups' paths. A
// deleted pod is returned as long as there are events of it.
func (t *table) lookup(uid string) *Pod {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.pods[uid]
	if r == nil {
		return nil
	}
	if !r.gone.IsZero() {
		r.used.Store(t.now().UnixNano())
	}
	return r.Pod
}

// at returns the pod of the node that has an address of its own, or the name of
// the node whose address it is. left is when the pod gave the address back, zero
// while it runs: another one may have it since, on another node, too.
func (t *table) at(ip netip.Addr) (pod *Pod, left time.Time, node string) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if node := t.nodes[ip]; node != "" {
		return nil, time.Time{}, node
	}
	r := t.byIP[ip]
	if r == nil {
		return nil, time.Time{}, ""
	}
	if !r.ended.IsZero() {
		return r.Pod, r.ended, ""
	}
	return r.Pod, r.gone, ""
}

// sizes returns how many pods exist and how many are kept after that.
func (t *table) sizes() (alive, gone int, synced bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	seen := map[*record]bool{}
	for _, r := range t.pods {
		if r.gone.IsZero() {
			seen[r] = true
		}
	}
	return len(seen), len(t.gone), t.synced
}

// Add implements cache.ReflectorStore.
func (t *table) Add(object any) error {
	if p, ok := object.(*corev1.Pod); ok {
		t.mu.Lock()
		t.expire()
		t.put(newPod(p))
		t.mu.Unlock()
		t.changed()
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (t *table) Update(object any) error { return t.Add(object) }

// Delete implements cache.ReflectorStore.
func (t *table) Delete(object any) error {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	if p, ok := object.(*corev1.Pod); ok {
		t.mu.Lock()
		t.expire()
		// The last version may tell more: how its containers ended.
		last := newPod(p)
		if last.ended.IsZero() {
			last.ended = t.now()
		}
		t.put(last)
		t.bury(t.pods[string(p.UID)])
		t.mu.Unlock()
	}
	return nil
}

// Replace implements cache.ReflectorStore: what is not in the list is gone,
// although nobody told.
func (t *table) Replace(objects []any, _ string) error {
	t.mu.Lock()
	t.expire()
	listed := map[string]bool{}
	for _, object := range objects {
		if p, ok := object.(*corev1.Pod); ok {
			listed[string(p.UID)] = true
			t.put(newPod(p))
		}
	}
	for _, r := range t.pods {
		if !listed[r.UID] {
			t.bury(r)
		}
	}
	t.synced = true
	t.mu.Unlock()
	t.changed()
	return nil
}

// Resync implements cache.ReflectorStore.
func (t *table) Resync() error { return nil }

// put adds a version of a pod. One that does not run has its addresses only until
// another one has them. It needs mu.
func (t *table) put(p *Pod) {
	r := &record{Pod: p}
	if old := t.pods[p.UID]; old != nil {
		p.remember(old.Pod)
		t.forget(old)
	}
	t.pods[p.UID] = r
	if p.static != "" {
		t.pods[p.static] = r
	}
	for _, ip := range p.nodeAddr {
		t.nodes[ip] = p.Node
	}
	if !p.HostNetwork {
		for _, ip := range p.Addresses {
			if other := t.byIP[ip]; p.ended.IsZero() || other == nil || !other.ended.IsZero() && other.ended.Before(p.ended) || !other.gone.IsZero() {
				t.byIP[ip] = r
			}
		}
	}
}

// bury needs mu.
func (t *table) bury(r *record) {
	if r == nil || !r.gone.IsZero() {
		return
	}
	r.gone = t.now()
	t.gone = append(t.gone, r)
	if len(t.gone) > maxGone {
		t.forget(t.gone[0])
		t.gone = t.gone[1:]
	}
}

// expire drops the pods whose afterlife is over. It needs mu.
func (t *table) expire() {
	now := t.now()
	kept := t.gone[:0]
	for _, r := range t.gone {
		last := max(r.gone.UnixNano(), r.used.Load())
		if now.UnixNano()-last < int64(afterlife) {
			kept = append(kept, r)
		} else {
			t.forget(r)
		}
	}
	clear(t.gone[len(kept):])
	t.gone = kept
}

// forget takes a record out, unless another one has its place. It needs mu.
func (t *table) forget(r *record) {
	for _, uid := range []string{r.UID, r.static} {
		if t.pods[uid] == r {
			delete(t.pods, uid)
		}
	}
	for _, ip := range r.Addresses {
		if t.byIP[ip] == r {
			delete(t.byIP, ip)
		}
	}
}
