package deploycheck

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	rbacv1 "k8s.io/api/rbac/v1"
)

// A chart cannot make the namespace that Helm keeps its release in.
const onlyKustomize = "Namespace/" + namespace

func TestKustomizeAndHelmDescribeTheSame(t *testing.T) {
	for overlay, values := range map[string]map[string]any{
		"full":    nil,
		"minimal": valuesFile(t, minimal),
	} {
		t.Run(overlay, func(t *testing.T) {
			want := kustomize(t, overlay)
			require.Contains(t, want, onlyKustomize)
			delete(want, onlyKustomize)
			got, _ := helm(t, values)
			require.Equal(t, want.text(t), got.text(t))
		})
	}
}

func TestChartHasNoLint(t *testing.T) {
	for name, values := range map[string]map[string]any{"full": {}, "minimal": valuesFile(t, minimal)} {
		for _, m := range lint.RunAll(chartDir, values, namespace).Messages {
			require.LessOrEqual(t, m.Severity, support.InfoSev, "%s: %v", name, m)
		}
	}
}

func TestChartRefusesWhatItDoesNotKnow(t *testing.T) {
	for problem, values := range map[string]string{
		"clustername":                    `clustername: prod`,
		"'goMemlimit' not allowed":       `tapio: {goMemlimit: 1GiB}`,
		"got string, want boolean":       `polku: {persistence: {enabled: "no"}}`,
		"/tapio/extraCapabilities/0":     `tapio: {extraCapabilities: [SYS_ADMIN]}`,
		"'not' failed":                   `image: {tag: latest}`,
		"/otlp/endpoint":                 `otlp: {endpoint: "http://collector"}`,
		"/portti/excludeKinds/0":         `portti: {excludeKinds: [secrets]}`,
		"/schedulerScraper/endpoint":     `schedulerScraper: {endpoint: "127.0.0.1:10259"}`,
		"ahti gets its events":           `{polku: {enabled: false}, portti: {enabled: false}, schedulerScraper: {enabled: false}}`,
		"portti and schedulerScraper se": `{polku: {enabled: false}, ahti: {enabled: false}}`,
	} {
		_, _, err := tryHelm(t, valuesText(t, values))
		require.ErrorContains(t, err, problem, values)
	}
}

func TestChartDoesWhatItsValuesSay(t *testing.T) {
	const values = `
clusterName: prod
image: {registry: registry.example/tools/, tag: "2.0", pullSecrets: [mine]}
otlp: {endpoint: "http://collector:14317"}
storageClass: slow
tls: {secretName: certificates}
networkPolicy: {controlPlaneCIDRs: [10.0.0.0/28], apiServerPorts: [16443]}
portti: {persistence: {storageClass: fast}, nodeSelector: {pool: tools}, tolerations: [{operator: Exists}]}
tapio: {extraCapabilities: [SYS_RESOURCE]}
ahti:
  persistence: {enabled: false}
  extraArgs: [--retention=24h]
  extraEnv: [{name: HTTPS_PROXY, value: x}]
  extraEgress: [{ports: [{port: 5432}]}]
`
	o, notes := helm(t, valuesText(t, values))
	text := o.text(t)
	for key, parts := range map[string][]string{
		"DaemonSet/tapio-system/tapio": {
			"value: prod\n", "- PERFMON\n            - SYS_RESOURCE\n", "image: registry.example/tools/tapio:2.0", "name: OTEL_EXPORTER_OTLP_ENDPOINT",
			"--polku-cert=/etc/tapio/tls/tls.crt", "secretName: certificates", "imagePullSecrets:\n      - name: mine",
		},
		"NetworkPolicy/tapio-system/tapio":                        {"port: 14317", "port: 16443"},
		"NetworkPolicy/tapio-system/polku-from-scheduler-scraper": {"cidr: 10.0.0.0/28"},
		"NetworkPolicy/tapio-system/portti":                       {"port: 16443"},
		"NetworkPolicy/tapio-system/ahti":                         {"egress:\n  - ports:\n    - port: 5432"},
		"StatefulSet/tapio-system/portti":                         {"storageClassName: fast", "pool: tools", "--polku-key="},
		"StatefulSet/tapio-system/polku":                          {"--tls-client-ca=", "--ahti-tls-ca=", "mountPath: /etc/tapio/tls", "storageClassName: slow"},
		"StatefulSet/tapio-system/ahti":                           {"emptyDir: {}", "--retention=24h", "HTTPS_PROXY", "--tls-ca="},
		"DaemonSet/tapio-system/scheduler-scraper":                {"--polku-ca=", "mountPath: /etc/tapio/tls"},
	} {
		for _, part := range parts {
			require.Contains(t, text[key], part, key)
		}
	}
	require.NotContains(t, text["StatefulSet/tapio-system/ahti"], "volumeClaimTemplates")
	require.NotContains(t, text["Service/tapio-system/polku"], "h2c", "it speaks TLS")
	require.Contains(t, notes, "in prod")
	require.Contains(t, notes, "exec ahti-0 -- /ahti incidents --tls-ca /etc/tapio/tls/ca.crt --tls-cert")
	require.NotContains(t, notes, "Any pod may send")
}

func TestPorttiWithoutSecrets(t *testing.T) {
	dir := overlay(t, `
resources: [DEPLOY/overlays/full]
components: [DEPLOY/components/without-secrets]
`)
	want := kustomizeDir(t, dir)
	delete(want, onlyKustomize)
	got, _ := helm(t, valuesText(t, `portti: {excludeKinds: [secret]}`))
	require.Equal(t, want.text(t), got.text(t))

	role := get[*rbacv1.ClusterRole](t, want, "ClusterRole/portti")
	less := slices.DeleteFunc(porttiRules(), func(rule string) bool { return strings.HasSuffix(rule, " secrets") })
	require.Equal(t, less, rules(role.Rules))
	spec, _ := pod(want["StatefulSet/"+namespace+"/portti"])
	told := strings.Split(strings.TrimPrefix(spec.Containers[0].Args[len(spec.Containers[0].Args)-1], "--kinds="), ",")
	require.ElementsMatch(t, slices.DeleteFunc(porttiKinds(t), func(kind string) bool { return kind == "secret" }), told)
}
