package deploycheck

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// world is who is no pod of ours: a pod of somebody else, the API server, a node.
const world = "world"

func TestConnectionsThatAreNeededAreAllowedAndNoOthers(t *testing.T) {
	all := kustomize(t, "full")
	for _, c := range []struct {
		from, to string
		port     int32
		allowed  bool
	}{
		{"tapio", "polku", 50051, true},
		{"portti", "polku", 50051, true},
		// The scheduler-scraper is in the node's network.
		{world, "polku", 50051, true},
		{"polku", "ahti", 50052, true},
		{"tapio", "ahti", 50052, false},
		{"portti", "ahti", 50052, false},
		{world, "ahti", 50052, false},
		{world, "ahti", 8090, false},
		{"ahti", "polku", 50051, false},
		{world, "polku", 50061, false},
		// Kubelets and Prometheus.
		{world, "tapio", 9465, true},
		{world, "polku", 9466, true},
		{world, "ahti", 9467, true},
		{world, "portti", 9468, true},
		// The API server, names, a collector.
		{"tapio", world, 443, true},
		{"tapio", world, 6443, true},
		{"tapio", world, 53, true},
		{"tapio", world, 4317, true},
		{"tapio", world, 80, false},
		{"portti", world, 443, true},
		{"portti", world, 6443, true},
		{"portti", world, 53, true},
		{"portti", world, 4317, false},
		{"polku", world, 53, true},
		{"polku", world, 443, false},
		{"ahti", world, 53, false},
		{"ahti", world, 443, false},
	} {
		t.Run(fmt.Sprintf("%s to %s:%d", c.from, c.to, c.port), func(t *testing.T) {
			require.Equal(t, c.allowed, all.allow(t, c.from, c.to, c.port, networkingv1.PolicyTypeEgress) &&
				all.allow(t, c.from, c.to, c.port, networkingv1.PolicyTypeIngress))
		})
	}
	for _, name := range []string{"tapio", "portti", "polku", "ahti"} {
		require.False(t, all.allow(t, name, world, 1, networkingv1.PolicyTypeEgress))
		require.False(t, all.allow(t, world, name, 1, networkingv1.PolicyTypeIngress))
	}
}

// allow does what a network does with policies at one end of a TCP connection.
func (o objects) allow(t *testing.T, from, to string, port int32, direction networkingv1.PolicyType) bool {
	t.Helper()
	self, other := from, to
	if direction == networkingv1.PolicyTypeIngress {
		self, other = to, from
	}
	if self == world {
		return true
	}
	isolated, allowed := false, false
	for _, object := range o {
		policy, ok := object.(*networkingv1.NetworkPolicy)
		if !ok || !matches(t, &policy.Spec.PodSelector, o.labels(self)) || !slices.Contains(policy.Spec.PolicyTypes, direction) {
			continue
		}
		isolated = true
		if direction == networkingv1.PolicyTypeIngress {
			for _, rule := range policy.Spec.Ingress {
				allowed = allowed || o.peer(t, rule.From, other) && o.port(rule.Ports, to, port)
			}
			continue
		}
		for _, rule := range policy.Spec.Egress {
			allowed = allowed || o.peer(t, rule.To, other) && o.port(rule.Ports, to, port)
		}
	}
	return !isolated || allowed
}

func (o objects) peer(t *testing.T, peers []networkingv1.NetworkPolicyPeer, name string) bool {
	t.Helper()
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		require.Nil(t, p.IPBlock)
		return name != world && p.NamespaceSelector == nil && matches(t, p.PodSelector, o.labels(name))
	})
}

func (o objects) port(ports []networkingv1.NetworkPolicyPort, to string, port int32) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		if p.Port == nil {
			return true
		}
		if p.Port.Type == intstr.Int {
			return p.Port.IntVal == port && (p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP)
		}
		return slices.ContainsFunc(o.ports(to), func(c corev1.ContainerPort) bool { return c.Name == p.Port.StrVal && c.ContainerPort == port })
	})
}

// template is the pods of a component.
func (o objects) template(name string) corev1.PodTemplateSpec {
	switch w := o.workload(name).(type) {
	case *appsv1.DaemonSet:
		return w.Spec.Template
	case *appsv1.StatefulSet:
		return w.Spec.Template
	}
	return corev1.PodTemplateSpec{}
}

func (o objects) workload(name string) any {
	if w, ok := o["DaemonSet/"+namespace+"/"+name]; ok {
		return w
	}
	return o["StatefulSet/"+namespace+"/"+name]
}

func (o objects) labels(name string) labels.Set { return o.template(name).Labels }

func (o objects) ports(name string) []corev1.ContainerPort {
	var ports []corev1.ContainerPort
	for _, c := range o.template(name).Spec.Containers {
		ports = append(ports, c.Ports...)
	}
	return ports
}

func matches(t *testing.T, selector *metav1.LabelSelector, set labels.Set) bool {
	t.Helper()
	s, err := metav1.LabelSelectorAsSelector(selector)
	require.NoError(t, err)
	return s.Matches(set)
}

func TestServicesLeadToTheirPods(t *testing.T) {
	all := kustomize(t, "full")
	seen := 0
	for key, object := range all {
		service, ok := object.(*corev1.Service)
		if !ok {
			continue
		}
		seen++
		require.Equal(t, map[string]string{"app.kubernetes.io/name": component(key)}, service.Spec.Selector)
		require.Equal(t, component(key), all.labels(component(key)).Get("app.kubernetes.io/name"))
		require.Len(t, service.Spec.Ports, 1)
		p := service.Spec.Ports[0]
		require.True(t, slices.ContainsFunc(all.ports(component(key)), func(c corev1.ContainerPort) bool {
			return c.Name == p.TargetPort.String() && c.ContainerPort == p.Port
		}), key)
	}
	require.Equal(t, 3, seen)
	require.Contains(t, all.template("portti").Spec.Containers[0].Args, "--polku=polku:50051")
	require.Contains(t, all.template("scheduler-scraper").Spec.Containers[0].Args, "--polku=polku."+namespace+":50051")
	require.Contains(t, all.template("polku").Spec.Containers[0].Args, "--ahti=ahti:50052")
	require.Contains(t, all.template("tapio").Spec.Containers[0].Env, corev1.EnvVar{Name: "POLKU_ENDPOINT", Value: "polku:50051"})
}

// A budget for what is one only would keep its node from being drained, for ever.
func TestNodesCanBeDrained(t *testing.T) {
	all := kustomize(t, "full")
	for name, replicas := range map[string]int32{"portti": 2, "polku": 1, "ahti": 1} {
		set := get[*appsv1.StatefulSet](t, all, "StatefulSet/"+namespace+"/"+name)
		require.Equal(t, replicas, *set.Spec.Replicas, name)
		budget, ok := all["PodDisruptionBudget/"+namespace+"/"+name].(*policyv1.PodDisruptionBudget)
		require.Equal(t, replicas > 1, ok, name)
		if !ok {
			continue
		}
		require.Equal(t, new(intstr.FromInt32(1)), budget.Spec.MaxUnavailable)
		require.Nil(t, budget.Spec.MinAvailable)
		require.True(t, matches(t, budget.Spec.Selector, all.labels(name)))
	}
}
