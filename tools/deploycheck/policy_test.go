package deploycheck

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// pod is the pod that a workload makes.
func pod(object runtime.Object) (corev1.PodSpec, bool) {
	switch o := object.(type) {
	case *appsv1.DaemonSet:
		return o.Spec.Template.Spec, true
	case *appsv1.StatefulSet:
		return o.Spec.Template.Spec, true
	}
	return corev1.PodSpec{}, false
}

// component is the name of what an object belongs to.
func component(key string) string { return key[strings.LastIndex(key, "/")+1:] }

// mayDo is what a component may beyond the others: all else is refused.
type mayDo struct {
	root, hostNetwork, token bool
	capabilities             []corev1.Capability
	hostPaths                []string
	apiRules                 []string
}

func permissions() map[string]mayDo {
	return map[string]mayDo{
		"tapio": {
			root: true, token: true,
			capabilities: []corev1.Capability{"BPF", "PERFMON"},
			hostPaths:    []string{"/sys/fs/cgroup"},
			apiRules:     []string{"get jobs.batch", "list pods", "list services", "watch pods"},
		},
		"portti":            {token: true, apiRules: porttiRules()},
		"scheduler-scraper": {hostNetwork: true, token: true, apiRules: []string{"get /metrics"}},
		"polku":             {},
		"ahti":              {},
	}
}

func porttiRules() []string {
	var rules []string
	for _, resource := range []string{
		"configmaps", "events", "limitranges", "namespaces", "nodes", "persistentvolumeclaims", "persistentvolumes", "pods",
		"resourcequotas", "secrets", "services",
		"daemonsets.apps", "deployments.apps", "replicasets.apps", "statefulsets.apps",
		"horizontalpodautoscalers.autoscaling", "cronjobs.batch", "jobs.batch", "endpointslices.discovery.k8s.io",
		"ingresses.networking.k8s.io", "networkpolicies.networking.k8s.io", "poddisruptionbudgets.policy",
	} {
		rules = append(rules, "get "+resource, "list "+resource, "watch "+resource)
	}
	slices.Sort(rules)
	return rules
}

// porttiKinds is what portti says that it watches.
func porttiKinds(t *testing.T) []string {
	t.Helper()
	help, err := exec.CommandContext(t.Context(), filepath.Join(binaries, "portti"), "--help").CombinedOutput()
	require.NoError(t, err, "%s", help)
	kinds := regexp.MustCompile(`--kinds .*\(default \[(.*)\]\)`).FindSubmatch(help)
	require.NotNil(t, kinds, "%s", help)
	return strings.Split(string(kinds[1]), ",")
}

func TestPorttiMayReadAsManyKindsAsItWatches(t *testing.T) {
	require.Len(t, porttiRules(), 3*len(porttiKinds(t)))
}

func TestPodsMayDoNoMoreThanTheyNeed(t *testing.T) {
	for _, overlay := range []string{"full", "minimal", "kind"} {
		seen := 0
		for key, object := range kustomize(t, overlay) {
			spec, ok := pod(object)
			if !ok {
				continue
			}
			seen++
			t.Run(overlay+"/"+component(key), func(t *testing.T) {
				may, known := permissions()[component(key)]
				require.True(t, known)
				require.False(t, spec.HostPID)
				require.Equal(t, may.hostNetwork, spec.HostNetwork)
				require.False(t, spec.HostIPC)
				require.Equal(t, &may.token, spec.AutomountServiceAccountToken)
				require.Equal(t, component(key), spec.ServiceAccountName)
				require.Equal(t, "tapio", spec.PriorityClassName)
				require.Equal(t, corev1.SeccompProfileTypeRuntimeDefault, spec.SecurityContext.SeccompProfile.Type)
				if !may.root {
					require.True(t, *spec.SecurityContext.RunAsNonRoot)
					require.EqualValues(t, 65532, *spec.SecurityContext.RunAsUser)
				}
				// They would look like settings that are misspelled.
				require.False(t, *spec.EnableServiceLinks)
				require.NotNil(t, spec.TerminationGracePeriodSeconds)

				var hostPaths []string
				for _, v := range spec.Volumes {
					if v.HostPath != nil {
						hostPaths = append(hostPaths, v.HostPath.Path)
					}
				}
				require.Equal(t, may.hostPaths, hostPaths)
				require.Empty(t, spec.InitContainers)
				require.Len(t, spec.Containers, 1)
				checkContainer(t, spec.Containers[0], may)
			})
		}
		require.Equal(t, map[string]int{"full": 5, "minimal": 1, "kind": 5}[overlay], seen)
	}
}

func checkContainer(t *testing.T, c corev1.Container, may mayDo) {
	t.Helper()
	s := c.SecurityContext
	require.Nil(t, s.Privileged)
	require.False(t, *s.AllowPrivilegeEscalation)
	require.True(t, *s.ReadOnlyRootFilesystem)
	require.Equal(t, []corev1.Capability{"ALL"}, s.Capabilities.Drop)
	require.Equal(t, may.capabilities, s.Capabilities.Add)
	require.Equal(t, may.root, s.RunAsUser != nil)

	for _, m := range c.VolumeMounts {
		require.Equal(t, m.Name == "cgroup", m.ReadOnly, "%s: what is of the node is only read", m.Name)
		require.Equal(t, m.ReadOnly, m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyIfPossible,
			"%s: and what is mounted below", m.Name)
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		require.NotNil(t, p)
		require.Equal(t, "metrics", p.HTTPGet.Port.String())
	}
	require.Equal(t, "/healthz", c.StartupProbe.HTTPGet.Path)
	require.Equal(t, "/healthz", c.LivenessProbe.HTTPGet.Path)
	require.Equal(t, "/readyz", c.ReadinessProbe.HTTPGet.Path)

	for _, list := range []corev1.ResourceList{c.Resources.Requests, c.Resources.Limits} {
		require.Contains(t, list, corev1.ResourceCPU)
		require.Contains(t, list, corev1.ResourceMemory)
	}
	for _, e := range c.Env {
		if e.Name == "GOMEMLIMIT" {
			mebibytes, err := strconv.Atoi(strings.TrimSuffix(e.Value, "MiB"))
			require.NoError(t, err)
			limit := c.Resources.Limits.Memory().Value() >> 20
			require.Less(t, int64(mebibytes), limit, "the collector has to act before the kernel does")
			require.Greater(t, int64(mebibytes), limit/2)
		}
	}
	require.Regexp(t, regexp.MustCompile(`^[a-z-]+:[a-z0-9.]+$`), c.Image)
	require.NotContains(t, c.Image, ":latest")
}

func TestAccountsMayReadOnlyWhatTheyNeed(t *testing.T) {
	all := kustomize(t, "full")
	for name, may := range permissions() {
		account, ok := all["ServiceAccount/"+namespace+"/"+name].(*corev1.ServiceAccount)
		require.True(t, ok, name)
		require.False(t, *account.AutomountServiceAccountToken, name)

		role, ok := all["ClusterRole/"+name].(*rbacv1.ClusterRole)
		if len(may.apiRules) == 0 {
			require.False(t, ok, name)
			continue
		}
		require.True(t, ok, name)
		require.Equal(t, may.apiRules, rules(role.Rules), name)
		binding, ok := all["ClusterRoleBinding/"+name].(*rbacv1.ClusterRoleBinding)
		require.True(t, ok, name)
		require.Equal(t, rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}, binding.RoleRef)
		require.Equal(t, []rbacv1.Subject{{Kind: "ServiceAccount", Name: name, Namespace: namespace}}, binding.Subjects)
	}
	for key := range all {
		require.NotContains(t, key, "Role/"+namespace, "%s is not accounted for", key)
	}
}

// rules writes what is allowed as one line for each verb and resource, sorted.
func rules(policy []rbacv1.PolicyRule) []string {
	var lines []string
	for _, r := range policy {
		for _, verb := range r.Verbs {
			for _, url := range r.NonResourceURLs {
				lines = append(lines, verb+" "+url)
			}
			for _, resource := range r.Resources {
				for _, group := range r.APIGroups {
					lines = append(lines, strings.TrimSuffix(fmt.Sprintf("%s %s.%s", verb, resource, group), "."))
				}
			}
		}
	}
	slices.Sort(lines)
	return lines
}
