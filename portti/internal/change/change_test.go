package change_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"

	"github.com/yairfalse/tapio/portti/internal/change"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// seen is when the observer of the tests hears of things.
func seen() time.Time { return time.Date(2026, time.March, 3, 14, 0, 0, 123456789, time.UTC) }

func newProjector(owners change.OwnerFunc) *change.Projector {
	return change.NewProjector(change.Config{Cluster: "prod", Source: "portti", DigestKey: []byte("a key of the tests"), Owners: owners})
}

// parse reads objects in YAML.
func parse(t testing.TB, text string) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	for _, doc := range strings.Split("\n"+text, "\n---\n") {
		o := &unstructured.Unstructured{}
		data, err := yaml.YAMLToJSON([]byte(doc))
		require.NoError(t, err)
		if string(data) == "null" {
			continue
		}
		require.NoError(t, json.Unmarshal(data, &o.Object))
		objects = append(objects, o)
	}
	return objects
}

func kindOf(t testing.TB, o *unstructured.Unstructured) change.Kind {
	t.Helper()
	for _, k := range change.Kinds() {
		if k.Kind == o.GetKind() {
			return k
		}
	}
	t.Fatalf("no such kind: %s", o.GetKind())
	return change.Kind{}
}

// render writes an event as a reader sees it.
func render(e *eventv1.Event) string {
	var b strings.Builder
	k := e.GetK8S()
	fmt.Fprintf(&b, "%s %s %s %s\n", time.Unix(0, e.GetTimestampUnixNs()).UTC().Format(time.RFC3339Nano), e.GetEventType(),
		strings.ToLower(strings.TrimPrefix(e.GetSeverity().String(), "SEVERITY_")), nameOf(k.GetObject()))
	for _, key := range sorted(e.GetMetadata()) {
		fmt.Fprintf(&b, "  %s=%s\n", key, e.GetMetadata()[key])
	}
	fmt.Fprintf(&b, "  rv %s, generation %d, replicas %d/%d/%d", k.GetResourceVersion(), k.GetGeneration(), k.GetReplicas(), k.GetReadyReplicas(), k.GetUpdatedReplicas())
	if k.GetRolloutStatus() != "" {
		fmt.Fprintf(&b, ", rollout %s", k.GetRolloutStatus())
	}
	if k.GetGap() {
		b.WriteString(", gap")
	}
	b.WriteString("\n")
	if k.GetReason() != "" || k.GetMessage() != "" {
		fmt.Fprintf(&b, "  %s ×%d: %s\n", k.GetReason(), k.GetCount(), k.GetMessage())
	}
	for _, o := range k.GetOwners() {
		fmt.Fprintf(&b, "  owner %s\n", nameOf(o))
	}
	for _, l := range k.GetLinks() {
		gone := ""
		if l.GetRemoved() {
			gone = " (gone)"
		}
		fmt.Fprintf(&b, "  %s %s%s\n", l.GetType(), nameOf(l.GetTarget()), gone)
	}
	for _, c := range k.GetChanges() {
		fmt.Fprintf(&b, "  %s: %s -> %s\n", c.GetPath(), quote(c.GetOld()), quote(c.GetNew()))
	}
	return b.String()
}

func nameOf(o *eventv1.ObjectReference) string {
	s := o.GetKind() + " " + o.GetName()
	if o.GetNamespace() != "" {
		s = o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
	}
	if o.GetUid() != "" {
		s += " (" + o.GetUid() + ")"
	}
	return s
}

func quote(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }

func sorted(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	for i := range keys {
		for j := i; j > 0 && keys[j] < keys[j-1]; j-- {
			keys[j], keys[j-1] = keys[j-1], keys[j]
		}
	}
	return keys
}

func valid(t testing.TB, e *eventv1.Event) *eventv1.Event {
	t.Helper()
	require.NoError(t, event.Validate(e))
	return e
}

// benchmarkPod is a pod as a cluster has them.
func benchmarkPod(b *testing.B) *unstructured.Unstructured {
	b.Helper()
	text, err := os.ReadFile("testdata/pod.yaml")
	require.NoError(b, err)
	return parse(b, string(text))[0]
}
