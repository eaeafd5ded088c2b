package deploycheck

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
)

// binaries is where "make build" puts them.
const binaries = "../../bin"

func TestFlagsExist(t *testing.T) {
	withTLS, _ := helm(t, valuesText(t, `{tls: {secretName: x}, otlp: {endpoint: "http://collector:4317"}}`))
	for installation, all := range map[string]objects{"full": kustomize(t, "full"), "minimal": kustomize(t, "minimal"), "with TLS": withTLS} {
		for key, object := range all {
			spec, ok := pod(object)
			if !ok {
				continue
			}
			t.Run(installation+"/"+component(key), func(t *testing.T) {
				help, err := exec.CommandContext(t.Context(), filepath.Join(binaries, component(key)), "--help").CombinedOutput()
				require.NoError(t, err, "%s", help)
				for _, arg := range spec.Containers[0].Args {
					flag, _, _ := strings.Cut(arg, "=")
					require.Regexp(t, regexp.MustCompile(regexp.QuoteMeta(flag)+`\s`), string(help))
				}
			})
		}
	}
}

func TestPortsAreThoseOfTheFlags(t *testing.T) {
	for key, object := range kustomize(t, "full") {
		spec, ok := pod(object)
		if !ok {
			continue
		}
		help, err := exec.CommandContext(t.Context(), filepath.Join(binaries, component(key)), "--help").CombinedOutput()
		require.NoError(t, err, "%s", help)
		said := strings.Join(spec.Containers[0].Args, " ") + string(help)
		for _, p := range spec.Containers[0].Ports {
			require.Regexp(t, regexp.MustCompile(`listen.*:`+strconv.Itoa(int(p.ContainerPort))+`\b`), said, key)
		}
	}
}

func TestImagesAreOfTheChartsVersion(t *testing.T) {
	chart, err := os.ReadFile(filepath.Join(chartDir, "Chart.yaml"))
	require.NoError(t, err)
	version := regexp.MustCompile(`(?m)^appVersion: (\S+)$`).FindSubmatch(chart)
	require.NotNil(t, version)
	for key, object := range kustomize(t, "full") {
		if spec, ok := pod(object); ok {
			require.Equal(t, component(key)+":"+string(version[1]), spec.Containers[0].Image)
		}
	}
	for key, object := range kustomize(t, "full") {
		if _, ok := pod(object); ok {
			said, err := exec.CommandContext(t.Context(), filepath.Join(binaries, component(key)), "version").CombinedOutput()
			require.NoError(t, err, "%s", said)
			require.Contains(t, string(said), component(key)+" "+string(version[1])+"\n", "what the Makefile stamps")
		}
	}
	for key, object := range kustomize(t, "kind") {
		if s, ok := object.(*appsv1.StatefulSet); ok {
			require.Empty(t, s.Spec.VolumeClaimTemplates, key)
		}
	}
}
