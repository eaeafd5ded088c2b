package causality

import (
	"cmp"
	"slices"
	"strings"
	"time"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// Resolve finds entities by what a person types: an id, "namespace/name",
// "kind/namespace/name", "kind/name" or a name. An empty cluster is any. What
// exists comes before what is gone.
func (e *Engine) Resolve(name, cluster string) []*ahtiv1.EntityReference {
	e.mu.Lock()
	defer e.mu.Unlock()
	var found []*vertex
	match := func(v *vertex) {
		if v.cluster != cluster && cluster != "" || v.heard == 0 && len(v.ties) == 0 || slices.Contains(found, v) {
			return
		}
		found = append(found, v)
	}
	for t := range ahtiv1.EntityType_name {
		for _, c := range e.clusters(cluster) {
			if v := e.graph.vertices[key{ahtiv1.EntityType(t), c, name}]; v != nil {
				match(v)
			}
		}
	}
	parts := strings.Split(name, "/")
	for _, v := range e.graph.byName[parts[len(parts)-1]] {
		switch len(parts) {
		case 1:
			match(v)
		case 2:
			if v.namespace.value == parts[0] || isKind(v.kind, parts[0]) {
				match(v)
			}
		case 3:
			if v.namespace.value == parts[1] && isKind(v.kind, parts[0]) {
				match(v)
			}
		}
	}
	slices.SortFunc(found, func(a, b *vertex) int {
		return cmp.Or(compareBool(a.deleted(), b.deleted()), cmp.Compare(b.born, a.born), compareKeys(a.key, b.key))
	})
	refs := make([]*ahtiv1.EntityReference, len(found))
	for i, v := range found {
		refs[i] = v.reference()
	}
	return refs
}

func (e *Engine) clusters(only string) []string {
	if only != "" {
		return []string{only}
	}
	return slices.Collect(func(yield func(string) bool) {
		for c := range e.graph.clusters {
			if !yield(c) {
				return
			}
		}
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// isKind compares a type with a kind as kubectl takes it: singular or plural,
// or a usual short form.
func isKind(t ahtiv1.EntityType, word string) bool {
	word = strings.ToLower(word)
	name := strings.ToLower(strings.TrimPrefix(t.String(), "ENTITY_TYPE_"))
	if word == name || word == name+"s" || word == strings.ToLower(kindName(t)) || word == strings.ToLower(kindName(t))+"s" {
		return true
	}
	short := map[string]ahtiv1.EntityType{
		"po": ahtiv1.EntityType_ENTITY_TYPE_POD, "deploy": ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT,
		"sts": ahtiv1.EntityType_ENTITY_TYPE_STATEFULSET, "ds": ahtiv1.EntityType_ENTITY_TYPE_DAEMONSET,
		"rs": ahtiv1.EntityType_ENTITY_TYPE_REPLICASET, "svc": ahtiv1.EntityType_ENTITY_TYPE_SERVICE,
		"no": ahtiv1.EntityType_ENTITY_TYPE_NODE, "cm": ahtiv1.EntityType_ENTITY_TYPE_CONFIGMAP,
		"ns": ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE, "ing": ahtiv1.EntityType_ENTITY_TYPE_INGRESS,
		"netpol": ahtiv1.EntityType_ENTITY_TYPE_NETWORKPOLICY, "quota": ahtiv1.EntityType_ENTITY_TYPE_RESOURCEQUOTA,
		"limits": ahtiv1.EntityType_ENTITY_TYPE_LIMITRANGE, "cj": ahtiv1.EntityType_ENTITY_TYPE_CRONJOB,
	}
	known, ok := short[word]
	return ok && known == t
}

// Topology returns the entities at most depth ties away from the given ones, as
// they were at a time, with the ties between them; everything when none is
// given. It stops at limit entities and then says that there were more.
func (e *Engine) Topology(refs []*ahtiv1.EntityReference, at time.Time, depth, limit int) (entities []*ahtiv1.Entity, relationships []*ahtiv1.Relationship, truncated bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ns := at.UnixNano()
	there := func(v *vertex) bool { return v.born <= ns && (!v.deleted() || v.gone > ns) }
	var frontier []*vertex
	if len(refs) == 0 {
		for _, v := range e.graph.byIndex {
			if v != nil && v.heard != 0 && there(v) {
				frontier = append(frontier, v)
			}
		}
		depth = 0
	}
	for _, ref := range refs {
		if v := e.graph.vertices[key{ref.GetType(), ref.GetClusterId(), ref.GetId()}]; v != nil {
			frontier = append(frontier, v)
		}
	}
	chosen := map[*vertex]bool{}
	var order []*vertex
	for level := 0; len(frontier) > 0; level++ {
		frontier = withSame(frontier, there)
		slices.SortFunc(frontier, func(a, b *vertex) int { return compareKeys(a.key, b.key) })
		var next []*vertex
		for _, v := range frontier {
			if chosen[v] {
				continue
			}
			if len(order) == limit {
				truncated = true
				break
			}
			chosen[v] = true
			order = append(order, v)
			if level >= depth {
				continue
			}
			for i := range v.ties {
				for _, t := range v.ties[i].newest() {
					if o := t.other(v); t.kind != tieSame && t.since <= ns && (t.gone == 0 || t.gone < t.alive || t.gone > ns) && there(o) {
						next = append(next, o)
					}
				}
			}
		}
		frontier = next
	}
	for _, v := range order {
		entities = append(entities, v.view())
		for i := range v.ties {
			if !v.ties[i].out || v.ties[i].kind == tieSame {
				continue
			}
			for _, t := range v.ties[i].newest() {
				if chosen[t.target] && t.since <= ns && (t.gone == 0 || t.gone < t.alive || t.gone > ns) {
					relationships = append(relationships, t.view())
				}
			}
		}
	}
	slices.SortFunc(relationships, func(a, b *ahtiv1.Relationship) int {
		return cmp.Or(strings.Compare(a.GetSource().GetId(), b.GetSource().GetId()),
			strings.Compare(a.GetTarget().GetId(), b.GetTarget().GetId()), cmp.Compare(a.GetType(), b.GetType()))
	})
	return entities, relationships, truncated
}

// withSame adds what is known of the same things under other ids, by uid or by
// name, as far as the filter lets it through.
func withSame(things []*vertex, filter func(*vertex) bool) []*vertex {
	all := things
	for _, v := range things {
		for o := range v.same() {
			if filter(o) {
				all = append(all, o)
			}
		}
	}
	return all
}
