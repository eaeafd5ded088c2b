package kube_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/shared/kube"
)

const kubeconfig = `apiVersion: v1
kind: Config
current-context: here
clusters:
- name: here
  cluster: {server: "https://127.0.0.1:6443"}
- name: there
  cluster: {server: "https://127.0.0.1:7443"}
contexts:
- name: here
  context: {cluster: here}
- name: there
  context: {cluster: there}
`

func TestConnect(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(file, []byte(kubeconfig), 0o600))
	missing := filepath.Join(t.TempDir(), "none")

	for name, c := range map[string]struct {
		environ string
		config  kube.Config
		host    string
		problem string
	}{
		"named":           {missing, kube.Config{Kubeconfig: file}, "https://127.0.0.1:6443", ""},
		"environment":     {file, kube.Config{}, "https://127.0.0.1:6443", ""},
		"context":         {file, kube.Config{Context: "there"}, "https://127.0.0.1:7443", ""},
		"unknown context": {file, kube.Config{Context: "elsewhere"}, "", `context "elsewhere" does not exist`},
		"no file":         {missing, kube.Config{}, "", kube.ErrNoCluster.Error()},
		"named no file":   {file, kube.Config{Kubeconfig: missing}, "", "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.environ)
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			got, err := c.config.Connect("test")
			if c.problem != "" {
				require.ErrorContains(t, err, c.problem)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.host, got.Host)
			require.Contains(t, got.UserAgent, "test/")
		})
	}
}
