// Package pods knows the pods of a node: which pod, container and workload the
// ids in a control group's path stand for, and whose an IP address is. It adds
// that to events on their way out.
package pods

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/kube"
)

const (
	// maxLabels is how many labels of a pod its events have.
	maxLabels = 16
	// maxLabelKey is the longest key of a label that is told, bytes.
	maxLabelKey = 128
	// maxContainers is how many ids of containers are remembered of one pod: each
	// restart makes a new one, and an event of the one before may be on its way.
	maxContainers = 64
)

// configHash is the annotation that has what the kubelet takes for a static
// pod's UID, in the paths of control groups among others. The UID in the API is
// another one: that of the mirror pod, which only the kubelet makes and marks by
// mirror. Anybody may write configHash on a pod.
const (
	configHash = "kubernetes.io/config.hash"
	mirror     = corev1.MirrorPodAnnotationKey
)

// Pod is what is kept of a pod.
type Pod struct {
	UID         string
	Namespace   string
	Name        string
	Node        string
	HostNetwork bool // its addresses are those of the node
	Addresses   []netip.Addr

	started    time.Time         // when the kubelet took it
	ended      time.Time         // when its last container did; zero while it runs
	static     string            // the UID that the kubelet uses for a static pod
	nodeAddr   []netip.Addr      // of its node
	containers map[string]string // names by id
	owner      reference         // that the controller reference names
	workload   reference         // the farthest owner that is known from the pod alone
	metadata   map[string]string // what every event of the pod has
}

// reference names an object.
type reference struct{ kind, name, uid string }

// newPod keeps what matters of a pod.
func newPod(p *corev1.Pod) *Pod {
	k := &Pod{
		UID: string(p.UID), Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName,
		HostNetwork: p.Spec.HostNetwork, ended: endOf(p),
		containers: map[string]string{}, metadata: map[string]string{},
	}
	if _, ok := p.Annotations[mirror]; ok {
		k.static = p.Annotations[configHash]
	}
	if p.Status.StartTime != nil {
		k.started = p.Status.StartTime.Time
	}
	k.nodeAddr = appendAddress(k.nodeAddr, p.Status.HostIP) // all there is before 1.30
	for _, ip := range p.Status.PodIPs {
		k.Addresses = appendAddress(k.Addresses, ip.IP)
	}
	for _, ip := range p.Status.HostIPs {
		k.nodeAddr = appendAddress(k.nodeAddr, ip.IP)
	}
	for _, statuses := range [][]corev1.ContainerStatus{
		p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses,
	} {
		for i := range statuses {
			k.addContainer(&statuses[i])
		}
	}
	k.addOwner(p)
	k.addLabels(p.Labels)
	k.metadata[event.K8sPodUID] = k.UID
	k.metadata[event.K8sPodName] = k.Name
	k.metadata[event.K8sNamespaceName] = k.Namespace
	return k
}

// endOf returns when a pod has ended; zero while it runs. From then on its
// addresses are not its own any more, although its status has them for as long as
// it exists.
func endOf(p *corev1.Pod) time.Time {
	if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
		return time.Time{}
	}
	var ended time.Time
	for i := range p.Status.ContainerStatuses {
		if last := p.Status.ContainerStatuses[i].State.Terminated; last != nil && last.FinishedAt.After(ended) {
			ended = last.FinishedAt.Time
		}
	}
	if ended.IsZero() { // it was evicted: better no name than a wrong one
		ended = p.CreationTimestamp.Add(1)
	}
	return ended
}

func appendAddress(all []netip.Addr, text string) []netip.Addr {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return all // the API server checks these
	}
	return append(all, ip.Unmap())
}

// addContainer takes the ids of a container's present and last run.
func (k *Pod) addContainer(s *corev1.ContainerStatus) {
	ids := []string{s.ContainerID}
	for _, state := range []corev1.ContainerState{s.State, s.LastTerminationState} {
		if state.Terminated != nil {
			ids = append(ids, state.Terminated.ContainerID)
		}
	}
	for _, id := range ids {
		// It is written RUNTIME://ID.
		if _, id, ok := strings.Cut(id, "://"); ok && id != "" {
			k.containers[id] = s.Name
		}
	}
}

// container returns the name of the container with an id, or of the one in whose
// control group it lies: a program in it may run containers of its own, as docker
// does, of which the API never tells.
func (k *Pod) container(id, cgroup string) (name string, ok bool) {
	if name, ok := k.containers[id]; ok {
		return name, true
	}
	for segment := range strings.SplitSeq(cgroup, "/") {
		segment = strings.TrimSuffix(segment, ".scope")
		if name, ok := k.containers[segment[strings.LastIndexAny(segment, "-:")+1:]]; ok {
			return name, true
		}
	}
	return "", false
}

// remember adds the containers that an earlier version of the pod had.
func (k *Pod) remember(earlier *Pod) {
	for id, name := range earlier.containers {
		if len(k.containers) >= maxContainers {
			return
		}
		if _, ok := k.containers[id]; !ok {
			k.containers[id] = name
		}
	}
}

// addOwner names who made the pod. A ReplicaSet of a Deployment is called after
// it and the hash of its template, which the pod has as a label; others have no
// such label.
func (k *Pod) addOwner(p *corev1.Pod) {
	controller := metav1.GetControllerOfNoCopy(p)
	if controller == nil {
		return
	}
	k.owner = reference{kind: controller.Kind, name: controller.Name, uid: string(controller.UID)}
	k.workload = k.owner
	k.owner.describe(k.metadata)
	hash := p.Labels["pod-template-hash"]
	if name, ok := strings.CutSuffix(controller.Name, "-"+hash); ok && hash != "" && k.owner.kind == "ReplicaSet" {
		k.workload = reference{kind: "Deployment", name: name}
		k.workload.describe(k.metadata)
	}
}

// describe adds an owner to the metadata of events, if there are keys for its
// kind.
func (r reference) describe(metadata map[string]string) {
	keys := map[string][2]string{
		"ReplicaSet":  {event.K8sReplicaSetName, event.K8sReplicaSetUID},
		"StatefulSet": {event.K8sStatefulSetName, event.K8sStatefulSetUID},
		"DaemonSet":   {event.K8sDaemonSetName, event.K8sDaemonSetUID},
		"Job":         {event.K8sJobName, event.K8sJobUID},
		"CronJob":     {event.K8sCronJobName, event.K8sCronJobUID},
		"Deployment":  {event.K8sDeploymentName, ""},
	}[r.kind]
	if keys[0] == "" {
		return
	}
	metadata[keys[0]] = r.name
	if keys[1] != "" && r.uid != "" {
		metadata[keys[1]] = r.uid
	}
}

func (k *Pod) addLabels(labels map[string]string) {
	redact, n := kube.NewRedactor(nil), 0
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if len(key) > maxLabelKey || isBookkeeping(key) || namesSecret(key) {
			continue
		}
		if n++; n > maxLabels {
			return
		}
		k.metadata[event.K8sPodLabel+key] = redact.Value(labels[key])
	}
}

// isBookkeeping says whether a label is only for the controller that set it.
func isBookkeeping(key string) bool {
	switch key {
	case "pod-template-hash", "controller-revision-hash", "pod-template-generation", "controller-uid", "job-name",
		"batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name":
		return true
	}
	return false
}

// namesSecret says whether a key suggests that its value is one.
func namesSecret(key string) bool {
	key = strings.ToLower(key)
	for _, word := range [...]string{"passw", "pwd", "secret", "token", "apikey", "api-key", "api_key", "credential", "private"} {
		if strings.Contains(key, word) {
			return true
		}
	}
	return false
}
