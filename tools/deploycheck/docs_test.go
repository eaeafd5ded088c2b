package deploycheck

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"
)

func installGuide(t *testing.T) string {
	t.Helper()
	guide, err := os.ReadFile("../../docs/install.md")
	require.NoError(t, err)
	return string(guide)
}

func TestOverlayInTheGuideIsWhatHelmSays(t *testing.T) {
	guide := installGuide(t)
	example := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(guide)
	require.NotNil(t, example)
	want := kustomizeDir(t, overlay(t, strings.ReplaceAll(example[1], "../tapio/deploy/kustomize", "DEPLOY")))
	delete(want, onlyKustomize)

	values := valuesText(t, `
clusterName: prod
image: {registry: registry.example/tools}
storageClass: fast
otlp: {endpoint: "http://otel-collector.observability:4317"}
portti: {excludeKinds: [secret]}
`)
	for _, setting := range []string{
		"clusterName=prod", "image.registry=registry.example/tools", "storageClass=fast",
		"otlp.endpoint=http://otel-collector.observability:4317", "portti.excludeKinds={secret}",
	} {
		require.Contains(t, guide, setting)
	}
	got, _ := helm(t, values)
	require.Equal(t, want.text(t), got.text(t))
}

// The guide's table has request, limit and volume of each as "cpu, memory".
func TestSizesInTheGuideAreThoseOfThePods(t *testing.T) {
	rows := regexp.MustCompile(`(?m)^\| ([a-z-]+)(?:,[^|]*)? \| (\w+), (\w+) \| (\w+), (\w+) \|`).FindAllStringSubmatch(installGuide(t), -1)
	all := kustomize(t, "full")
	require.Len(t, rows, len(permissions()))
	for _, row := range rows {
		r := all.template(row[1]).Spec.Containers[0].Resources
		for i, is := range []*resource.Quantity{r.Requests.Cpu(), r.Requests.Memory(), r.Limits.Cpu(), r.Limits.Memory()} {
			require.Equal(t, row[2+i], is.String(), row[0])
		}
	}
}
