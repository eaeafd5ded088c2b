package transform_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/polku/internal/transform"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

// eventWord is how the kind of an object stands in event_type: in lower case, and
// four long ones by the names that kubectl takes.
func eventWord(kind string) string {
	switch kind {
	case "PersistentVolumeClaim":
		return "pvc"
	case "PersistentVolume":
		return "pv"
	case "HorizontalPodAutoscaler":
		return "hpa"
	case "PodDisruptionBudget":
		return "pdb"
	}
	return strings.ToLower(kind)
}

// A row of the table of failure modes that looks for a kind which no event has
// would never match.
func TestTheTableOfFailureModesNamesKindsThatEventsHave(t *testing.T) {
	words := map[string]bool{}
	for _, kind := range []string{
		"Pod", "Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob", "Service", "Ingress",
		"PersistentVolumeClaim", "PersistentVolume", "ConfigMap", "Secret", "HorizontalPodAutoscaler", "PodDisruptionBudget",
		"NetworkPolicy", "ResourceQuota", "LimitRange", "Node", "Namespace",
	} {
		words[eventWord(kind)] = true
	}
	found := regexp.MustCompile(`k8s\.([a-z]+)\.(?:created|updated|deleted)`).FindAllStringSubmatch(string(causality.DefaultModes()), -1)
	require.NotEmpty(t, found)
	for _, kind := range found {
		require.True(t, words[kind[1]], "%s: no event has such a kind", kind[0])
		out, err := transform.Event(&eventv1.Event{Id: "a", EventType: kind[0], Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{
			ResourceName: "n", Namespace: "ns",
		}}})
		require.NoError(t, err)
		require.NotEmpty(t, out.GetEntities(), kind[0])
		require.NotEqual(t, ahtiv1.EntityType_ENTITY_TYPE_OBJECT, out.GetEntities()[0].GetType(), kind[0])
	}
}
