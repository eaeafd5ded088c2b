package server

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// A name means everything that has it in one namespace: a Deployment, its Service
// and its ConfigMap are one story. In two namespaces it means two things.

// home is where a name means one thing: a namespace, or what there is of one kind
// without a namespace.
type home struct {
	cluster, namespace string
	kind               ahtiv1.EntityType // of what has no namespace
	id                 string            // of what shares its name with others of its kind
}

// meant is what a name means of the entities that have it, and where they are.
// Containers are parts of pods and often have the name of what runs in them: they
// are meant when nothing else is.
func meant(name string, entities []*ahtiv1.Entity) ([]*ahtiv1.Entity, []home) {
	part := func(e *ahtiv1.Entity) bool {
		return e.GetType() == ahtiv1.EntityType_ENTITY_TYPE_CONTAINER && e.GetId() != name
	}
	if slices.ContainsFunc(entities, func(e *ahtiv1.Entity) bool { return !part(e) }) {
		entities = slices.DeleteFunc(entities, part)
	}
	var homes []home
	for _, e := range entities {
		if h := homeOf(name, e); !slices.Contains(homes, h) {
			homes = append(homes, h)
		}
	}
	slices.SortFunc(homes, func(a, b home) int {
		return cmp.Or(strings.Compare(a.namespace, b.namespace), cmp.Compare(a.kind, b.kind), strings.Compare(a.id, b.id), strings.Compare(a.cluster, b.cluster))
	})
	return entities, homes
}

func homeOf(name string, e *ahtiv1.Entity) home {
	if e.GetNamespace() != "" {
		return home{cluster: e.GetClusterId(), namespace: e.GetNamespace()}
	}
	// What others named without its uid has namespace/name as its id.
	if steps := strings.Split(name, "/"); len(steps) > 1 && e.GetId() == name {
		return home{cluster: e.GetClusterId(), namespace: steps[len(steps)-2]}
	}
	h := home{cluster: e.GetClusterId(), kind: e.GetType()}
	switch e.GetType() {
	case ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, ahtiv1.EntityType_ENTITY_TYPE_SERVICE_UNIT, ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT:
		h.id = e.GetId() // each node may have one of the name
	default:
	}
	return h
}

// maxChoices is how many choices an error names.
const maxChoices = 10

// choices tells how to name each of the things that a name may mean.
func choices(name string, homes []home) string {
	steps := strings.Split(name, "/")
	last := steps[len(steps)-1]
	kind := "" // as it was asked for, if it was
	if len(steps) == 3 || len(steps) == 2 && !slices.ContainsFunc(homes, func(h home) bool { return h.namespace == steps[0] }) {
		kind = steps[0] + "/"
	}
	clusters := slices.ContainsFunc(homes, func(h home) bool { return h.cluster != homes[0].cluster })
	var texts []string
	for _, h := range homes[:min(maxChoices, len(homes))] {
		text := h.id
		switch {
		case h.namespace != "":
			text = kind + h.namespace + "/" + last
		case h.id == "":
			text = strings.ToLower(strings.TrimPrefix(h.kind.String(), "ENTITY_TYPE_")) + "/" + last
		}
		if clusters {
			text += fmt.Sprintf(" in cluster %q", h.cluster)
		}
		texts = append(texts, text)
	}
	if more := len(homes) - maxChoices; more > 0 {
		texts = append(texts, fmt.Sprintf("one of %d more", more))
	}
	text := strings.Join(texts[:len(texts)-1], ", ") + " or " + texts[len(texts)-1] + ": name one of them"
	if clusters {
		text += " and its cluster"
	}
	return text
}
