package causality

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPaths(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"spec.replicas", "spec.replicas", true},
		{"spec.replicas", "spec.replicas.x", false},
		{"spec.replicas", "spec", false},
		{"**.image", "spec.template.spec.containers[api].image", true},
		{"**.image", "spec.template.spec.containers[api].imagePullPolicy", false},
		{"spec.selector[*]", "spec.selector[app.kubernetes.io/name]", true},
		{"spec.selector[*]", "spec.selector.app", false},
		{"**.env[*].**", "spec.template.spec.containers[api].env[DB_URL].value", true},
		{"**.env[*].**", "spec.template.spec.containers[api].env[DB_URL]", true},
		{"**.resources.limits.memory", "spec.template.spec.initContainers[init].resources.limits.memory", true},
		{"status.*[*].state.waiting.reason", "status.containerStatuses[api].state.waiting.reason", true},
		{"status.*[*].state.waiting.reason", "status.phase", false},
		{"data[*]", "data[app.properties]", true},
		{"data[*]", "", false},
		{"data[*]", "data[", true},
	} {
		require.Equal(t, c.want, matchPath(splitPath(c.pattern), splitPath(c.path)), "%s on %s", c.pattern, c.path)
	}
	require.Equal(t, "api", entryIn(splitPath("spec.template.spec.containers[api].env[X]"), containerLists()...))
}

func TestBuiltInTable(t *testing.T) {
	m, err := ReadModes(DefaultModes())
	require.NoError(t, err)
	unexplained := []string{
		"hpa_failed", "node_disk_pressure", "port_exhausted", "storage_error",
		"pods_wait", "scheduler_unavailable", "scheduler_slow",
	}
	for _, s := range m.symptoms {
		if s.Normal {
			continue
		}
		require.Equal(t, slices.Contains(unexplained, s.Name), len(m.explainer[s.Name]) == 0, "does a row explain %s?", s.Name)
	}
}

func TestReadModesNamesWhatIsWrong(t *testing.T) {
	const symptom = "symptoms: [{name: s, on: [{kind: k}], text: t}]\n"
	for _, c := range []struct{ name, text, want string }{
		{"unknown column", "symptoms: [{nme: x}]", "nme"},
		{"no name", "symptoms: [{on: [{kind: k}], text: t}]", `the name "" is empty`},
		{"taken", "symptoms: [{name: s, on: [{kind: k}], text: t}, {name: s, on: [{kind: k}], text: t}]", "taken"},
		{"no cause", symptom + "modes: [{name: m, explains: [s], where: [self], prior: 1, typical: 1s, within: 1s}]", "mode m: cause must have"},
		{"prior", symptom + "modes: [{name: m, explains: [s], cause: {kinds: [k]}, where: [self], prior: 2, typical: 1s, within: 1s}]", "prior is 2"},
		{"delay", symptom + "modes: [{name: m, explains: [s], cause: {kinds: [k]}, where: [self], prior: 1, typical: 2s, within: 1s}]", "typical is 2s"},
		{"place", symptom + "modes: [{name: m, explains: [s], cause: {kinds: [k]}, where: [moon], prior: 1, typical: 1s, within: 1s}]", `"moon"`},
		{"symptom", symptom + "modes: [{name: m, explains: [x], cause: {kinds: [k]}, where: [self], prior: 1, typical: 1s, within: 1s}]", `no symptom is named "x"`},
		{"class", symptom + "modes: [{name: m, explains: [s], cause: {kinds: [k], field: f}, where: [self], prior: 1, typical: 1s, within: 1s}]", `no field has class "f"`},
		{"end", "symptoms: [{name: s, on: [{kind: k}], over: [{kind: 'k8s.*'}], text: t}]", `over: "k8s.*" is no kind`},
		{"support", "symptoms: [{name: s, on: [{kind: k}], supports: [s], text: t}]", `no other symptom is named "s"`},
		{"direction", symptom + "modes: [{name: m, explains: [s], cause: {kinds: [k], direction: up}, where: [self], prior: 1, typical: 1s, within: 1s}]", `direction is "up"`},
		{"no YAML", "]", "read failure modes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadModes([]byte(c.text))
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestFill(t *testing.T) {
	value := func(name string) string {
		return map[string]string{"subject": "it", "limit": "67108864"}[name]
	}
	for text, want := range map[string]string{
		"{subject} died":                         "it died",
		"{subject} died[ (limit {limit|bytes})]": "it died (limit 64Mi)",
		"{subject} died[ (used {used|bytes})]!":  "it died!",
		"{subject} died[ (limit {limit|bytes})":  "it died",
		"no placeholders":                        "no placeholders",
		"{":                                      "{",
		"}{":                                     "}{",
		"[{subject}][{missing}][ and {subject}]": "it and it",
	} {
		require.Equal(t, want, fill(text, value), text)
	}
}

func FuzzPath(f *testing.F) {
	for _, seed := range []string{"spec.containers[a.b].image", "[", "]", "a[", "a[]b", "..", ""} {
		f.Add(seed, seed)
	}
	f.Fuzz(func(_ *testing.T, pattern, path string) {
		// Patterns of an operator have few stars.
		if strings.Count(pattern, "**") < 4 && len(path) < 200 {
			matchPath(splitPath(pattern), splitPath(path))
		}
		entryIn(splitPath(path), containerLists()...)
	})
}

func FuzzReadModes(f *testing.F) {
	f.Add(DefaultModes())
	f.Add([]byte("modes: [{name: a}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ReadModes(text)
		if err == nil && m == nil {
			t.Fatal("neither a table nor an error")
		}
	})
}
