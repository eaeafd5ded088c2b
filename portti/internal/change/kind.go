// Package change turns objects of the Kubernetes API into events: what an object
// is, what of it changed, who owns it and what it is tied to, without any secret.
package change

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kind is a kind of object that is watched.
type Kind struct {
	// Resource names the kind in requests, in the version whose fields are told.
	Resource schema.GroupVersionResource
	// Kind as Kubernetes writes it: Deployment.
	Kind string
	// Word is the kind in event types: deployment, pvc, event.
	Word string
	// Namespaced says whether its objects are in namespaces.
	Namespaced bool
}

const eventWord = "event"

// Kinds returns all kinds, what others refer to first: who lists them in this
// order knows an object's owners before the object.
func Kinds() []Kind {
	core := func(resource, kind, word string) Kind {
		return Kind{schema.GroupVersionResource{Version: "v1", Resource: resource}, kind, word, true}
	}
	in := func(group, version, resource, kind, word string) Kind {
		return Kind{schema.GroupVersionResource{Group: group, Version: version, Resource: resource}, kind, word, true}
	}
	whole := func(k Kind) Kind { // of the whole cluster
		k.Namespaced = false
		return k
	}
	return []Kind{
		whole(core("namespaces", "Namespace", "namespace")),
		whole(core("nodes", "Node", "node")),
		whole(core("persistentvolumes", "PersistentVolume", "pv")),
		core("persistentvolumeclaims", "PersistentVolumeClaim", "pvc"),
		core("configmaps", "ConfigMap", "configmap"),
		core("secrets", "Secret", "secret"),
		core("resourcequotas", "ResourceQuota", "resourcequota"),
		core("limitranges", "LimitRange", "limitrange"),
		core("services", "Service", "service"),
		in("networking.k8s.io", "v1", "ingresses", "Ingress", "ingress"),
		in("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", "networkpolicy"),
		in("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb"),
		in("apps", "v1", "deployments", "Deployment", "deployment"),
		in("apps", "v1", "statefulsets", "StatefulSet", "statefulset"),
		in("apps", "v1", "daemonsets", "DaemonSet", "daemonset"),
		in("batch", "v1", "cronjobs", "CronJob", "cronjob"),
		in("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa"),
		in("apps", "v1", "replicasets", "ReplicaSet", "replicaset"),
		in("batch", "v1", "jobs", "Job", "job"),
		core("pods", "Pod", "pod"),
		in("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", "endpointslice"),
		core("events", "Event", eventWord),
	}
}

// LookupKind returns the kind of a word.
func LookupKind(word string) (Kind, bool) {
	kinds := Kinds()
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Word == word })
	if i < 0 {
		return Kind{}, false
	}
	return kinds[i], true
}
