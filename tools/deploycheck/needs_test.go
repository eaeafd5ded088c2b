package deploycheck

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestNamespaceAdmitsTheAgent(t *testing.T) {
	ns := get[*corev1.Namespace](t, kustomize(t, "minimal"), onlyKustomize)
	require.Equal(t, "privileged", ns.Labels["pod-security.kubernetes.io/enforce"])
}

func TestDaemonsAreOnTheirNodesAndKnowThem(t *testing.T) {
	all := kustomize(t, "full")
	agent, scraper := all.template("tapio").Spec, all.template("scheduler-scraper").Spec
	require.Empty(t, agent.NodeSelector)
	require.Equal(t, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}, agent.Tolerations)
	const controlPlane = "node-role.kubernetes.io/control-plane"
	require.Equal(t, map[string]string{controlPlane: ""}, scraper.NodeSelector)
	require.Equal(t, []corev1.Toleration{{Key: controlPlane, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}, scraper.Tolerations)
	require.Equal(t, corev1.DNSClusterFirstWithHostNet, scraper.DNSPolicy, "else it finds no polku")
	for _, spec := range []corev1.PodSpec{agent, scraper} {
		require.Contains(t, spec.Containers[0].Env, corev1.EnvVar{
			Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}},
		})
	}
}

// What is written goes to the volume, which its user may write to and which is larger
// than what the program lets it become.
func TestVolumesAreWhereDataIs(t *testing.T) {
	dir := regexp.MustCompile(`^--(?:data|state)-dir=(.*)$`)
	most := regexp.MustCompile(`^--(?:log-)?max-bytes=([0-9]+[KMGT]i)B$`)
	for _, overlay := range []string{"full", "kind"} {
		all := kustomize(t, overlay)
		for _, name := range []string{"portti", "polku", "ahti"} {
			set := get[*appsv1.StatefulSet](t, all, "StatefulSet/"+namespace+"/"+name)
			spec := set.Spec.Template.Spec
			require.NotNil(t, spec.SecurityContext.FSGroup, name)
			require.EqualValues(t, 65532, *spec.SecurityContext.FSGroup, name)
			require.Equal(t, corev1.FSGroupChangeOnRootMismatch, *spec.SecurityContext.FSGroupChangePolicy, name)
			mounts := spec.Containers[0].VolumeMounts
			require.Len(t, mounts, 1, name)
			require.Equal(t, "data", mounts[0].Name)
			found := false
			for _, arg := range spec.Containers[0].Args {
				if m := dir.FindStringSubmatch(arg); m != nil {
					found = true
					require.Equal(t, m[1], mounts[0].MountPath, name)
				}
				if m := most.FindStringSubmatch(arg); m != nil && overlay == "full" {
					limit := resource.MustParse(m[1])
					require.Positive(t, set.Spec.VolumeClaimTemplates[0].Spec.Resources.Requests.Storage().Cmp(limit), name)
				}
			}
			require.True(t, found, name)
		}
	}
}
