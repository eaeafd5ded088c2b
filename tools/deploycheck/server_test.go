package deploycheck

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"github.com/yairfalse/tapio/shared/kube/apiservertest"
)

func TestAnAPIServerTakesItAll(t *testing.T) {
	server := apiservertest.Start(t)
	// The largest last, because what it makes stays.
	for _, overlay := range []string{"minimal", "full"} {
		apply(t, server.Config(), kustomize(t, overlay))
	}
	withMore, _ := helm(t, valuesText(t, `
tls: {secretName: certificates}
otlp: {endpoint: "http://collector:4317"}
image: {pullSecrets: [mine]}
networkPolicy: {controlPlaneCIDRs: [10.0.0.0/28, "fd00::/64"]}
tapio: {extraCapabilities: [SYS_RESOURCE]}
ahti: {extraEgress: [{ports: [{port: 5432}]}]}
`))
	apply(t, server.Config(), withMore)
	chart, _ := helm(t, nil)
	apply(t, server.Config(), chart)

	for name, may := range permissions() {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, may.apiRules, canDo(t, server.Config(), name))
		})
	}
}

// apply does what "kubectl apply --server-side" does, refusing unknown fields. The
// namespace goes first.
func apply(t *testing.T, config *rest.Config, all objects) {
	t.Helper()
	client, err := dynamic.NewForConfig(config)
	require.NoError(t, err)
	d, err := discovery.NewDiscoveryClientForConfig(config)
	require.NoError(t, err)
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d))

	keys := make([]string, 0, len(all))
	for key := range all {
		if key != onlyKustomize {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	if _, ok := all[onlyKustomize]; ok {
		keys = slices.Insert(keys, 0, onlyKustomize)
	}
	for _, key := range keys {
		kind := all[key].GetObjectKind().GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		require.NoError(t, err)
		document, err := json.Marshal(all[key])
		require.NoError(t, err)
		var meta metav1.PartialObjectMetadata
		require.NoError(t, json.Unmarshal(document, &meta))
		_, err = client.Resource(mapping.Resource).Namespace(meta.Namespace).Patch(t.Context(), meta.Name, types.ApplyPatchType, document,
			metav1.PatchOptions{FieldManager: "deploycheck", Force: new(true), FieldValidation: metav1.FieldValidationStrict})
		require.NoError(t, err, key)
	}
}

// canDo is what the API server says that an account may, as "kubectl auth can-i
// --list" does, without what everybody may.
func canDo(t *testing.T, config *rest.Config, account string) []string {
	t.Helper()
	everybody := ask(t, config, "system:serviceaccount:default:nobody")
	var lines []string
	for _, line := range ask(t, config, "system:serviceaccount:"+namespace+":"+account) {
		if !slices.Contains(everybody, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

func ask(t *testing.T, config *rest.Config, user string) []string {
	t.Helper()
	c := rest.CopyConfig(config)
	c.Impersonate = rest.ImpersonationConfig{
		UserName: user,
		Groups:   []string{"system:serviceaccounts", "system:authenticated"},
	}
	client, err := kubernetes.NewForConfig(c)
	require.NoError(t, err)
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(),
		&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}, metav1.CreateOptions{})
	require.NoError(t, err)
	require.False(t, review.Status.Incomplete)
	var policy []rbacv1.PolicyRule
	for _, r := range review.Status.ResourceRules {
		policy = append(policy, rbacv1.PolicyRule{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources})
	}
	for _, r := range review.Status.NonResourceRules {
		policy = append(policy, rbacv1.PolicyRule{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
	}
	return slices.Compact(rules(policy))
}
