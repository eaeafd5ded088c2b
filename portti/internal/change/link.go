package change

import (
	"slices"
	"strings"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Types of links, as eventv1.ObjectLink has them.
const (
	scheduledOn = "scheduled_on"
	mounts      = "mounts"
	uses        = "uses"
	exposes     = "exposes"
	scales      = "scales"
	routesTo    = "routes_to"
)

// tie says that a field names another object. In a path a star is every entry of a
// list.
type tie struct{ path, link, kind string }

// podTies are the names in the specification of a pod.
func podTies() []tie {
	ties := []tie{
		{"nodeName", scheduledOn, "Node"},
		{"serviceAccountName", uses, "ServiceAccount"},
		{"priorityClassName", uses, "PriorityClass"},
		{"imagePullSecrets.*.name", uses, "Secret"},
		{"volumes.*.configMap.name", mounts, "ConfigMap"},
		{"volumes.*.secret.secretName", mounts, "Secret"},
		{"volumes.*.persistentVolumeClaim.claimName", mounts, "PersistentVolumeClaim"},
		{"volumes.*.projected.sources.*.configMap.name", mounts, "ConfigMap"},
		{"volumes.*.projected.sources.*.secret.name", mounts, "Secret"},
	}
	for _, list := range [...]string{"containers", "initContainers", "ephemeralContainers"} {
		ties = append(ties,
			tie{list + ".*.env.*.valueFrom.configMapKeyRef.name", uses, "ConfigMap"},
			tie{list + ".*.env.*.valueFrom.secretKeyRef.name", uses, "Secret"},
			tie{list + ".*.envFrom.*.configMapRef.name", uses, "ConfigMap"},
			tie{list + ".*.envFrom.*.secretRef.name", uses, "Secret"},
		)
	}
	return ties
}

// tiesOf returns the fields of a kind that name other objects, and where the
// specification of its pods is, if it has one.
func tiesOf(kind string) (ties []tie, podSpec string) {
	switch kind {
	case "Pod":
		return nil, "spec"
	case "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job":
		return nil, "spec.template.spec"
	case "CronJob":
		return nil, "spec.jobTemplate.spec.template.spec"
	case "PersistentVolumeClaim":
		return []tie{{"spec.volumeName", uses, "PersistentVolume"}, {"spec.storageClassName", uses, "StorageClass"}}, ""
	case "PersistentVolume":
		return []tie{{"spec.storageClassName", uses, "StorageClass"}}, ""
	case "Ingress":
		return []tie{
			{"spec.defaultBackend.service.name", routesTo, "Service"},
			{"spec.rules.*.http.paths.*.backend.service.name", routesTo, "Service"},
			{"spec.tls.*.secretName", uses, "Secret"},
			{"spec.ingressClassName", uses, "IngressClass"},
		}, ""
	}
	return nil, ""
}

// isClusterWide says whether objects of a kind that is linked to are in no
// namespace.
func isClusterWide(kind string) bool {
	switch kind {
	case "Node", "PersistentVolume", "StorageClass", "PriorityClass", "IngressClass":
		return true
	}
	return false
}

// linksOf returns what an object is tied to, sorted and each once.
func linksOf(k Kind, head Version, object map[string]any) []link {
	var links []link
	add := func(kind string, target reference) {
		target.name, target.uid, target.namespace = clean(target.name), clean(target.uid), clean(target.namespace)
		if target.name == "" || target.kind == "" {
			return
		}
		if isClusterWide(target.kind) {
			target.namespace = ""
		}
		links = append(links, link{kind, target})
	}
	ties, podSpec := tiesOf(k.Kind)
	follow := func(root any, ties []tie) {
		for _, t := range ties {
			each(root, t.path, func(value any) {
				name, _ := value.(string)
				add(t.link, reference{kind: t.kind, namespace: head.Namespace, name: name})
			})
		}
	}
	follow(object, ties)
	if podSpec != "" {
		each(object, podSpec, func(spec any) { follow(spec, podTies()) })
	}
	switch k.Kind {
	case "EndpointSlice":
		each(object, "endpoints.*.targetRef", func(value any) {
			add(exposes, referenceIn(value, head.Namespace))
		})
	case "HorizontalPodAutoscaler":
		each(object, "spec.scaleTargetRef", func(value any) {
			add(scales, referenceIn(value, head.Namespace))
		})
	}
	slices.SortFunc(links, link.compare)
	return slices.Compact(links)
}

// referenceIn reads a reference to an object.
func referenceIn(value any, namespace string) reference {
	m, _ := value.(map[string]any)
	of := func(name string) string {
		s, _ := m[name].(string)
		return clean(s)
	}
	r := reference{of("kind"), of("namespace"), of("name"), of("uid")}
	if r.namespace == "" {
		r.namespace = namespace
	}
	return r
}

// each calls do for each value at a path.
func each(value any, path string, do func(value any)) {
	if path == "" {
		do(value)
		return
	}
	name, rest, _ := strings.Cut(path, ".")
	if name == "*" {
		list, _ := value.([]any)
		for _, entry := range list {
			each(entry, rest, do)
		}
		return
	}
	m, _ := value.(map[string]any)
	if next, ok := m[name]; ok {
		each(next, rest, do)
	}
}

// serviceLabel names the Service of an EndpointSlice.
const serviceLabel = "kubernetes.io/service-name"

// ownersOf returns the owners that an object names, its controller first.
func ownersOf(k Kind, head Version, metadata map[string]any) []reference {
	list, _ := metadata["ownerReferences"].([]any)
	var owners []reference
	for _, entry := range list {
		r := referenceIn(entry, head.Namespace)
		if r.kind == "" || r.name == "" {
			continue
		}
		if isClusterWide(r.kind) {
			r.namespace = ""
		}
		m, _ := entry.(map[string]any)
		if controls, _ := m["controller"].(bool); controls {
			owners = slices.Insert(owners, 0, r)
		} else {
			owners = append(owners, r)
		}
	}
	if len(owners) == 0 && k.Kind == "EndpointSlice" {
		labels, _ := metadata["labels"].(map[string]any)
		if name, _ := labels[serviceLabel].(string); name != "" {
			owners = append(owners, reference{kind: "Service", namespace: head.Namespace, name: clean(name)})
		}
	}
	return owners
}

const (
	// hashLabel is the hash of a pod's template, with which the name of its
	// ReplicaSet ends.
	hashLabel = "metadata.labels[pod-template-hash]"
	// maxOwners is how far the chain of owners is followed. Kubernetes needs
	// two; those of operators have a few more.
	maxOwners = 8
)

// owners returns who owns the object, the nearest first.
func (p *Projector) owners(v *Version) []*eventv1.ObjectReference {
	named := v.owners()
	if len(named) == 0 {
		return nil
	}
	chain := []*eventv1.ObjectReference{named[0].proto()}
	for len(chain) < maxOwners {
		last := chain[len(chain)-1]
		next, ok := p.ownerOf(last)
		if !ok && last.GetKind() == "ReplicaSet" {
			next, ok = deploymentOf(last, v.Field(hashLabel))
		}
		if !ok || slices.ContainsFunc(chain, func(o *eventv1.ObjectReference) bool {
			return o.GetKind() == next.GetKind() && o.GetName() == next.GetName() && o.GetNamespace() == next.GetNamespace()
		}) {
			break
		}
		chain = append(chain, next)
	}
	return chain
}

func (p *Projector) ownerOf(o *eventv1.ObjectReference) (*eventv1.ObjectReference, bool) {
	if p.config.Owners == nil {
		return nil, false
	}
	next, ok := p.config.Owners(o)
	return next, ok && next.GetKind() != "" && next.GetName() != ""
}

// deploymentOf tells the Deployment of a ReplicaSet by how the controller names it.
func deploymentOf(rs *eventv1.ObjectReference, hash string) (*eventv1.ObjectReference, bool) {
	name, ok := strings.CutSuffix(rs.GetName(), "-"+hash)
	if !ok || hash == "" || name == "" {
		return nil, false
	}
	return &eventv1.ObjectReference{Kind: "Deployment", Namespace: rs.GetNamespace(), Name: name}, true
}
