package event

import (
	"slices"
	"strings"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// K8sEventPrefix begins the kind of what a Kubernetes Event tells; its reason
// follows: k8s.event.BackOff. Reasons are open: every controller has its own.
const K8sEventPrefix = "k8s.event."

const k8sPrefix = "k8s."

// What may happen to an object of the Kubernetes API, as the last word of
// k8s.WORD.created and so on.
const (
	K8sCreated = "created"
	K8sUpdated = "updated"
	K8sDeleted = "deleted"
)

// k8sWords are how kinds of the Kubernetes API stand in event types: in lower
// case, and the four longest by the names that kubectl takes. Sorted; nothing
// changes it.
var k8sWords = []string{
	"configmap", "cronjob", "daemonset", "deployment", "endpointslice", "hpa", "ingress", "job", "limitrange", "namespace",
	"networkpolicy", "node", "pdb", "pod", "pv", "pvc", "replicaset", "resourcequota", "secret", "service", "statefulset",
}

// K8sWords returns how kinds of the Kubernetes API stand in event types, sorted.
func K8sWords() []string { return slices.Clone(k8sWords) }

// K8sKinds describes the families of kinds that changes of the Kubernetes API
// have. Type has the part in capitals that differs: a word of K8sWords, or the
// reason of a Kubernetes Event.
func K8sKinds() []Kind {
	return []Kind{
		k8sKind("k8s.KIND."+K8sCreated, K8sCreated), k8sKind("k8s.KIND."+K8sDeleted, K8sDeleted),
		k8sKind("k8s.KIND."+K8sUpdated, K8sUpdated), k8sEvent(K8sEventPrefix + "REASON"),
	}
}

func lookupK8s(eventType, rest string) (Kind, bool) {
	if reason, ok := strings.CutPrefix(eventType, K8sEventPrefix); ok {
		if !isReason(reason) {
			return Kind{}, false
		}
		return k8sEvent(eventType), true
	}
	word, action, _ := strings.Cut(rest, ".")
	if _, ok := slices.BinarySearch(k8sWords, word); !ok {
		return Kind{}, false
	}
	switch action {
	case K8sCreated, K8sUpdated, K8sDeleted:
		return k8sKind(eventType, action), true
	}
	return Kind{}, false
}

// isReason says whether a text can be the reason of a Kubernetes Event. The API
// takes 128 bytes, in older versions any.
func isReason(reason string) bool {
	for i := range len(reason) {
		if c := reason[i]; c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return reason != "" && len(reason) <= MaxTypeLen-len(K8sEventPrefix)
}

func k8sKind(eventType, action string) Kind {
	k := Kind{Type: eventType, Severity: eventv1.Severity_SEVERITY_INFO, Data: DataK8s}
	switch action {
	case K8sCreated:
		k.Description = "An object of the Kubernetes API was created, or is told of for the first time; `changes` has its fields."
	case K8sUpdated:
		k.Description = "An object of the Kubernetes API has a new version; `changes` has the fields that differ."
	case K8sDeleted:
		k.Description = "An object of the Kubernetes API is gone; `changes` has what its status was."
	}
	return k
}

func k8sEvent(eventType string) Kind {
	return Kind{
		Type: eventType, Severity: eventv1.Severity_SEVERITY_INFO, Data: DataK8s,
		Description: "A component of Kubernetes told something about an object in a Kubernetes Event; a warning when its type is Warning.",
	}
}
