package deploycheck

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	kubeyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const (
	namespace = "tapio-system"
	overlays  = "../../deploy/kustomize/overlays"
	chartDir  = "../../deploy/helm/tapio"
	minimal   = chartDir + "/values-minimal.yaml"
)

// objects are what an installation consists of, by kind, namespace and name.
type objects map[string]runtime.Object

// add decodes an object strictly: a field that its type does not have fails the test.
func (o objects) add(t *testing.T, document []byte) {
	t.Helper()
	strict := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	object, kind, err := strict.Decode(document, nil, nil)
	require.NoError(t, err, "%s", document)
	accessor, err := meta.Accessor(object)
	require.NoError(t, err)
	key := path.Join(kind.Kind, accessor.GetNamespace(), accessor.GetName())
	require.NotContains(t, o, key, "it is there twice")
	o[key] = object
}

// get is the object of a key, which must be there.
func get[T runtime.Object](t *testing.T, o objects, key string) T {
	t.Helper()
	object, ok := o[key].(T)
	require.True(t, ok, key)
	return object
}

// text is all objects as YAML, to compare.
func (o objects) text(t *testing.T) map[string]string {
	t.Helper()
	text := make(map[string]string, len(o))
	for key, object := range o {
		y, err := yaml.Marshal(object)
		require.NoError(t, err)
		text[key] = string(y)
	}
	return text
}

// kustomize renders an overlay of ours.
func kustomize(t *testing.T, overlay string) objects {
	t.Helper()
	return kustomizeDir(t, path.Join(overlays, overlay))
}

// overlay makes a directory of a kustomization; DEPLOY in it is deploy/kustomize.
func overlay(t *testing.T, kustomization string) string {
	t.Helper()
	// Kustomize knows relative paths only.
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	deploy, err := filepath.Abs("../../deploy/kustomize")
	require.NoError(t, err)
	deploy, err = filepath.Rel(dir, deploy)
	require.NoError(t, err)
	text := strings.ReplaceAll(kustomization, "DEPLOY", deploy)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600))
	return dir
}

func kustomizeDir(t *testing.T, dir string) objects {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	require.NoError(t, err)
	o := make(objects)
	for _, r := range resources.Resources() {
		document, err := r.AsYAML()
		require.NoError(t, err)
		o.add(t, document)
	}
	return o
}

// helm renders the chart with values on top of its own; notes are what it says to
// the user.
func helm(t *testing.T, values map[string]any) (o objects, notes string) {
	t.Helper()
	o, notes, err := tryHelm(t, values)
	require.NoError(t, err)
	return o, notes
}

func tryHelm(t *testing.T, values map[string]any) (o objects, notes string, err error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	require.NoError(t, err)
	all, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "tapio", Namespace: namespace, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, "", err
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		return nil, "", err
	}
	o = make(objects)
	for name, text := range files {
		if strings.HasSuffix(name, "NOTES.txt") {
			notes = text
			continue
		}
		reader := kubeyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
		for {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, "", fmt.Errorf("split %s: %w", name, err)
			}
			if len(bytes.TrimSpace(document)) > 0 {
				o.add(t, document)
			}
		}
	}
	return o, notes, nil
}

// valuesFile reads values as "helm --values" does.
func valuesFile(t *testing.T, name string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	values := make(map[string]any)
	require.NoError(t, yaml.Unmarshal(data, &values))
	return values
}

// valuesText parses values written in a test.
func valuesText(t *testing.T, text string) map[string]any {
	t.Helper()
	values := make(map[string]any)
	require.NoError(t, yaml.Unmarshal([]byte(text), &values))
	return values
}
