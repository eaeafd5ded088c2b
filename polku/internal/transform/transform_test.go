package transform_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/transform"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Each testdata/NAME.json is an event as an observer sends it, and
// testdata/NAME.ahti.json what AHTI gets. UPDATE_GOLDEN=1 writes the latter.
func TestGolden(t *testing.T) {
	for _, name := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			in := load(t, name)
			before := proto.Clone(in)
			out, err := transform.Event(in)
			require.NoError(t, err)
			require.True(t, proto.Equal(before, in), "the event is as it was")

			spaced, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(out)
			require.NoError(t, err)
			var got bytes.Buffer
			require.NoError(t, json.Indent(&got, compact(t, spaced), "", "  "))
			got.WriteByte('\n')
			file := filepath.Join("testdata", name+".ahti.json")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				require.NoError(t, os.WriteFile(file, got.Bytes(), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err, "write it with UPDATE_GOLDEN=1")
			assert.Equal(t, string(want), got.String())
		})
	}
}

func inputs(t testing.TB) []string {
	files, err := filepath.Glob("testdata/*.json")
	require.NoError(t, err)
	var names []string
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if !strings.HasSuffix(name, ".ahti") {
			names = append(names, name)
		}
	}
	require.NotEmpty(t, names)
	return names
}

func load(t testing.TB, name string) *eventv1.Event {
	text, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	require.NoError(t, err)
	var e eventv1.Event
	require.NoError(t, protojson.Unmarshal(text, &e))
	return &e
}

func compact(t *testing.T, text []byte) []byte {
	var b bytes.Buffer
	require.NoError(t, json.Compact(&b, text))
	return b.Bytes()
}

// Every kind of the registry has a class, or AHTI could not group it.
func TestEveryKindHasAClass(t *testing.T) {
	for _, k := range event.Kinds() {
		if strings.HasPrefix(k.Type, "k8s.") {
			continue // the kind of the object decides
		}
		out, err := transform.Event(&eventv1.Event{Id: "id", EventType: k.Type})
		require.NoError(t, err)
		assert.NotEqual(t, ahtiv1.EventType_EVENT_TYPE_UNSPECIFIED, out.GetType(), k.Type)
	}
}

func TestClassAndEntityOfAnObject(t *testing.T) {
	tests := []struct {
		kind   string
		class  ahtiv1.EventType
		entity ahtiv1.EntityType
		id     string
	}{
		{"Pod", ahtiv1.EventType_EVENT_TYPE_POD, ahtiv1.EntityType_ENTITY_TYPE_POD, "u"},
		{"Deployment", ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT, "u"},
		{"ReplicaSet", ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_REPLICASET, "u"},
		{"StatefulSet", ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_STATEFULSET, "u"},
		{"DaemonSet", ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_DAEMONSET, "u"},
		{"Job", ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_JOB, "u"},
		{"CronJob", ahtiv1.EventType_EVENT_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_CRONJOB, "u"},
		{"Service", ahtiv1.EventType_EVENT_TYPE_SERVICE, ahtiv1.EntityType_ENTITY_TYPE_SERVICE, "u"},
		{"EndpointSlice", ahtiv1.EventType_EVENT_TYPE_SERVICE, ahtiv1.EntityType_ENTITY_TYPE_OBJECT, "endpointslice/u"},
		{"Ingress", ahtiv1.EventType_EVENT_TYPE_SERVICE, ahtiv1.EntityType_ENTITY_TYPE_INGRESS, "u"},
		{"PersistentVolumeClaim", ahtiv1.EventType_EVENT_TYPE_VOLUME, ahtiv1.EntityType_ENTITY_TYPE_PVC, "u"},
		{"PersistentVolume", ahtiv1.EventType_EVENT_TYPE_VOLUME, ahtiv1.EntityType_ENTITY_TYPE_PV, "u"},
		{"ConfigMap", ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_CONFIGMAP, "u"},
		{"Secret", ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_SECRET, "u"},
		{"HorizontalPodAutoscaler", ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_HPA, "u"},
		{"PodDisruptionBudget", ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_PDB, "u"},
		{"NetworkPolicy", ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_NETWORKPOLICY, "u"},
		{"ResourceQuota", ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_RESOURCEQUOTA, "u"},
		{"LimitRange", ahtiv1.EventType_EVENT_TYPE_CONFIG, ahtiv1.EntityType_ENTITY_TYPE_LIMITRANGE, "u"},
		{"Node", ahtiv1.EventType_EVENT_TYPE_CLUSTER, ahtiv1.EntityType_ENTITY_TYPE_NODE, "n"},
		{"Namespace", ahtiv1.EventType_EVENT_TYPE_CLUSTER, ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE, "n"},
		{"Rollout", ahtiv1.EventType_EVENT_TYPE_UNSPECIFIED, ahtiv1.EntityType_ENTITY_TYPE_OBJECT, "rollout/u"},
	}
	for _, tt := range tests {
		t.Run(tt.kind, func(t *testing.T) {
			object := &eventv1.ObjectReference{Kind: tt.kind, Name: "n", Uid: "u"}
			for _, kind := range []string{"k8s." + eventWord(tt.kind) + ".created", "k8s.event.Something"} {
				out, err := transform.Event(&eventv1.Event{
					Id: "id", EventType: kind,
					Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{Object: object}},
				})
				require.NoError(t, err)
				assert.Equal(t, tt.class, out.GetType())
				require.NotEmpty(t, out.GetEntities())
				assert.Equal(t, tt.entity, out.GetEntities()[0].GetType())
				assert.Equal(t, tt.id, out.GetEntities()[0].GetId())
			}
		})
	}
}

// What kills a server is tied to its clients by the address that both name: if
// they spelled it differently, no incident would ever join the two.
func TestClientAndServerNameTheSameEndpoint(t *testing.T) {
	for _, tt := range []struct{ name, address, want string }{
		{"IPv4", "10.0.0.7", "10.0.0.7:5432"},
		{"IPv6", "fd00:0::7", "[fd00::7]:5432"},
		{"IPv4 in IPv6", "::ffff:10.0.0.7", "10.0.0.7:5432"},
		{"loopback", "127.0.0.1", "node-1/127.0.0.1:5432"},
		{"another loopback address", "127.0.0.53", "node-1/127.0.0.53:5432"},
		{"IPv6 loopback", "::1", "node-1/[::1]:5432"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			common := func(role, group string) *eventv1.Event {
				return &eventv1.Event{Id: "id", EventType: event.KindNetworkConnectionReset, Metadata: map[string]string{
					event.HostName: "node-1", event.ProcessLinuxCgroup: group, event.TapioNetworkRole: role,
				}}
			}
			client := common(event.RoleClient, "/client")
			client.Metadata[event.NetworkPeerAddress] = tt.address
			client.Metadata[event.NetworkPeerPort] = "5432"
			server := common(event.RoleServer, "/server")
			server.Metadata[event.NetworkLocalAddress] = tt.address
			server.Metadata[event.NetworkLocalPort] = "5432"
			server.Metadata[event.NetworkPeerAddress] = tt.address
			server.Metadata[event.NetworkPeerPort] = "40000"

			assert.Equal(t, "node-1/client", tied(t, client, ahtiv1.RelationshipType_RELATIONSHIP_TYPE_CONNECTS_TO, tt.want))
			assert.Equal(t, "node-1/server", tied(t, server, ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES, tt.want))
		})
	}
}

// tied returns the source of the first tie of a type to an endpoint.
func tied(t *testing.T, e *eventv1.Event, kind ahtiv1.RelationshipType, endpoint string) string {
	t.Helper()
	out, err := transform.Event(e)
	require.NoError(t, err)
	for _, r := range out.GetRelationships() {
		if r.GetType() == kind && r.GetTarget().GetId() == endpoint && r.GetSource().GetType() == ahtiv1.EntityType_ENTITY_TYPE_CONTAINER {
			return r.GetSource().GetId()
		}
	}
	return ""
}

// Two nodes have the same paths and loopback addresses. Without the name of the
// node, what is on one would seem to be on the other.
func TestNothingOfAnUnknownNodeIsNamed(t *testing.T) {
	out, err := transform.Event(&eventv1.Event{Id: "id", EventType: event.KindNetworkConnectionRefused, Metadata: map[string]string{
		event.ProcessLinuxCgroup: "/system.slice/db.service",
		event.TapioServiceUnit:   "db.service",
		event.NetworkPeerAddress: "127.0.0.1",
		event.NetworkPeerPort:    "5432",
	}})
	require.NoError(t, err)
	assert.Empty(t, out.GetEntities())
	assert.Empty(t, out.GetRelationships())
}

func TestRefuses(t *testing.T) {
	long := strings.Repeat("x", transform.MaxNameLen+1)
	for _, tt := range []struct {
		name string
		e    *eventv1.Event
		want string
	}{
		{"nil", nil, "it is nil"},
		{"no id", &eventv1.Event{EventType: "agent.gap"}, "it has no id"},
		{"long id", &eventv1.Event{Id: strings.Repeat("x", event.MaxIDLen+1), EventType: "agent.gap"}, "its id has 129 bytes: use at most 128"},
		{"no kind", &eventv1.Event{Id: "a"}, "it has no event_type"},
		{
			"long container id", &eventv1.Event{Id: "a", EventType: event.KindContainerOOMKill, Metadata: map[string]string{event.ContainerID: long}},
			`transform event "a": a name that begins with "` + strings.Repeat("x", 40) + `" has 1025 bytes: use at most 1024`,
		},
		{"long cluster", &eventv1.Event{Id: "a", EventType: "agent.gap", Metadata: map[string]string{event.K8sClusterName: long}}, "has 1025 bytes"},
		{"long namespace", &eventv1.Event{Id: "a", EventType: event.KindContainerOOMKill, Metadata: map[string]string{event.K8sPodUID: "u", event.K8sNamespaceName: long}}, "has 1025 bytes"},
		{"long owner", &eventv1.Event{Id: "a", EventType: "k8s.pod.created", Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{
			ResourceType: "pod", ResourceName: "p", Namespace: "n", Owners: []*eventv1.ObjectReference{{Kind: "replicaset", Uid: long}},
		}}}, "has 1025 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := transform.Event(tt.e)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestTakesTheLongestName(t *testing.T) {
	id := strings.Repeat("x", transform.MaxNameLen)
	out, err := transform.Event(&eventv1.Event{Id: "a", EventType: event.KindContainerOOMKill, Metadata: map[string]string{event.ContainerID: id}})
	require.NoError(t, err)
	assert.Equal(t, id, out.GetEntities()[0].GetId())
}

// A trace id that another system cannot look up is worse than none.
func TestTraceIDs(t *testing.T) {
	const trace, span = "0AF7651916CD43DD8448EB211C80319C", "b7ad6b7169203331"
	for _, tt := range []struct{ trace, span, wantTrace, wantSpan string }{
		{trace, span, strings.ToLower(trace), span},
		{trace[1:], span + "0", "", ""},
		{"g" + trace[1:], "-" + span[1:], "", ""},
		{strings.Repeat("0", 32), strings.Repeat("0", 16), "", ""},
	} {
		out, err := transform.Event(&eventv1.Event{Id: "a", EventType: "agent.gap", Metadata: map[string]string{"trace_id": tt.trace, "span_id": tt.span}})
		require.NoError(t, err)
		assert.Equal(t, tt.wantTrace, out.GetTraceId())
		assert.Equal(t, tt.wantSpan, out.GetSpanId())
	}
}

func TestDuration(t *testing.T) {
	for _, tt := range []struct {
		elapsed string
		latency float64
		want    uint64
	}{
		{"1.500", 7, 1500},
		{"", 0.25, 250},
		{"-1", 7, 0},
		{"NaN", 0, 0},
		{"1e300", 0, 0},
		{"soon", 2, 2000},
	} {
		m := map[string]string{}
		if tt.elapsed != "" {
			m[event.TapioNetworkElapsedMs] = tt.elapsed
		}
		out, err := transform.Event(&eventv1.Event{
			Id: "a", EventType: event.KindNetworkConnectionRefused, Metadata: m,
			Data: &eventv1.Event_Network{Network: &eventv1.NetworkEventData{LatencyMs: tt.latency}},
		})
		require.NoError(t, err)
		assert.Equal(t, tt.want, out.GetDurationUs(), "%+v", tt)
	}
}

// AHTI refuses an event that names more than it takes. What is too much is left
// out and counted, so that the rest is known.
func TestSurplusLinksAreLeftOutAndCounted(t *testing.T) {
	long := strings.Repeat("x", transform.MaxNameLen-8)
	for _, tt := range []struct {
		name    string
		pods    int
		id      string
		dropped string
	}{
		{"the most that one slice has", 1000, "", ""},
		{"more than AHTI takes", 5000, "", "3985"},
		{"long names", 120, long, "58"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := &eventv1.K8SEventData{
				Object: &eventv1.ObjectReference{Kind: "EndpointSlice", Namespace: "shop", Name: "api-x", Uid: "slice"},
				Owners: []*eventv1.ObjectReference{{Kind: "Service", Namespace: "shop", Name: "api", Uid: "service"}},
			}
			for i := range tt.pods {
				pod := &eventv1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: tt.id, Uid: tt.id + "pod-" + strconv.Itoa(i)}
				k.Links = append(k.Links, &eventv1.ObjectLink{Type: "exposes", Target: pod})
			}
			metadata := map[string]string{event.K8sClusterName: "prod"}
			out, err := transform.Event(&eventv1.Event{Id: "a", EventType: "k8s.endpointslice.updated", Metadata: metadata, Data: &eventv1.Event_K8S{K8S: k}})
			require.NoError(t, err)
			require.LessOrEqual(t, len(out.GetEntities()), transform.MaxEntities)
			require.LessOrEqual(t, proto.Size(out), transform.MaxSize)
			require.Equal(t, tt.dropped, out.GetLabels()["tapio.transform.dropped_links"])
			require.Len(t, metadata, 1, "the event is as it was")
			dropped, _ := strconv.Atoi(tt.dropped)
			require.Equal(t, tt.pods-dropped+3, len(out.GetEntities()), "the slice, its Service, the namespace and the pods, each once") //nolint:testifylint // Len prints them all
			last := out.GetRelationships()[len(out.GetRelationships())-1]
			require.Equal(t, "service", last.GetSource().GetId(), "the Service exposes its pods, not the slice")
		})
	}
}

// A ConfigMap may hold more than AHTI takes of a value; people are shown its
// beginning only.
func TestLongValuesAreCutAndCounted(t *testing.T) {
	k := &eventv1.K8SEventData{
		Object: &eventv1.ObjectReference{Kind: "ConfigMap", Namespace: "shop", Name: "settings", Uid: "u"},
		Changes: []*eventv1.FieldChange{
			{Path: "data[page.html]", Old: strings.Repeat("ä", 40<<10), New: "short"},
			{Path: strings.Repeat("x", 2<<10), New: "a"},
			{Path: "data[mode]", Old: "a", New: "b"},
		},
	}
	before := proto.CloneOf(k)
	out, err := transform.Event(&eventv1.Event{Id: "a", EventType: "k8s.configmap.updated", Data: &eventv1.Event_K8S{K8S: k}})
	require.NoError(t, err)
	require.True(t, proto.Equal(before, k), "the event is as it was")
	require.Equal(t, "2", out.GetLabels()["tapio.transform.cut_changes"])
	changes := out.GetK8S().GetChanges()
	require.Len(t, changes, 2)
	require.Equal(t, 64<<10, len(changes[0].GetOld())) //nolint:testifylint // Len prints it
	require.Equal(t, "b", changes[1].GetNew())
}

// The API server names the Service behind a webhook in the address that it called.
func TestWebhookIsTiedToItsService(t *testing.T) {
	for message, want := range map[string]string{
		`failed calling webhook "a.b": failed to call webhook: Post "https://istiod.istio-system.svc:443/inject?timeout=10s": refused`: "istio-system/istiod",
		`failed calling webhook "a.b": failed to call webhook: Post "https://hook.ops.svc": refused`:                                   "ops/hook",
		`failed calling webhook "a.b": failed to call webhook: Post "https://hook.example.com/x": refused`:                             "",
		`failed calling webhook "a.b": Post "https://`:                                                                                 "",
		`Get "https://hook.ops.svc:443/": refused`:                                                                                     "",
	} {
		out, err := transform.Event(&eventv1.Event{Id: "a", EventType: "k8s.event.FailedCreate", Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{
			Object: &eventv1.ObjectReference{Kind: "ReplicaSet", Namespace: "shop", Name: "api-1", Uid: "u"}, Message: message,
		}}})
		require.NoError(t, err)
		got := ""
		for _, r := range out.GetRelationships() {
			got = r.GetTarget().GetId()
		}
		require.Equal(t, want, got, message)
	}
}

// Whatever a client may send is refused or becomes an event that can be sent,
// with every tie between entities of the event.
func FuzzEvent(f *testing.F) {
	for _, name := range inputs(f) {
		wire, err := proto.Marshal(load(f, name))
		require.NoError(f, err)
		f.Add(wire)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var e eventv1.Event
		if proto.Unmarshal(wire, &e) != nil {
			return
		}
		out, err := transform.Event(&e)
		if err != nil {
			return
		}
		if _, err := proto.Marshal(out); err != nil {
			t.Fatalf("cannot be sent: %v", err)
		}
		if out.GetId() != e.GetId() || out.GetSubtype() != e.GetEventType() {
			t.Fatal("another event came out")
		}
		type key struct {
			kind ahtiv1.EntityType
			id   string
		}
		if len(wire) <= event.MaxSize && (len(out.GetEntities()) > transform.MaxEntities || proto.Size(out) > transform.MaxSize) {
			t.Fatalf("AHTI refuses %d entities or %d bytes", len(out.GetEntities()), proto.Size(out))
		}
		known := map[key]bool{}
		for _, entity := range out.GetEntities() {
			k := key{entity.GetType(), entity.GetId()}
			if entity.GetId() == "" || len(entity.GetId()) > transform.MaxNameLen || known[k] {
				t.Fatalf("entity %v is nameless, too long or there twice", k)
			}
			known[k] = true
		}
		for _, r := range out.GetRelationships() {
			source := key{r.GetSource().GetType(), r.GetSource().GetId()}
			target := key{r.GetTarget().GetType(), r.GetTarget().GetId()}
			if !known[source] || !known[target] || source == target {
				t.Fatalf("%v is tied to %v", source, target)
			}
		}
	})
}

func BenchmarkEvent(b *testing.B) {
	for _, name := range []string{"network_refused_pod", "container_oom_kill", "k8s_deployment_updated"} {
		b.Run(name, func(b *testing.B) {
			e := load(b, name)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := transform.Event(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Every network namespace has a loopback address of its own, and every link its
// local ones: what one pod's containers say of theirs has nothing to do with the
// next pod's.
func TestLocalAddressesBelongToTheirNamespace(t *testing.T) {
	for _, tt := range []struct {
		name string
		more map[string]string
		want string
	}{
		{"pod", map[string]string{event.K8sPodUID: "uid-1", event.ContainerID: "c1", event.HostName: "n1"}, "uid-1/127.0.0.1:15001"},
		{"container", map[string]string{event.ContainerID: "c1", event.HostName: "n1"}, "c1/127.0.0.1:15001"},
		{"node", map[string]string{event.HostName: "n1"}, "n1/127.0.0.1:15001"},
		{"name server of the node", map[string]string{event.K8sPodUID: "uid-1", event.HostName: "n1", event.NetworkPeerAddress: "169.254.20.10", event.NetworkPeerPort: "53"}, "n1/169.254.20.10:53"},
		{"link", map[string]string{event.K8sPodUID: "uid-1", event.HostName: "n1", event.NetworkPeerAddress: "fe80::1"}, "n1/[fe80::1]:15001"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := &eventv1.Event{
				Id: "1", TimestampUnixNs: 1772546400e9, Source: "tapio", EventType: event.KindNetworkConnectionRefused,
				Severity: eventv1.Severity_SEVERITY_ERROR,
				Metadata: map[string]string{event.NetworkPeerAddress: "127.0.0.1", event.NetworkPeerPort: "15001", event.ErrorType: "ECONNREFUSED"},
			}
			maps.Copy(e.Metadata, tt.more)
			out, err := transform.Event(e)
			require.NoError(t, err)
			var ids []string
			for _, en := range out.GetEntities() {
				ids = append(ids, en.GetId())
			}
			require.Contains(t, ids, tt.want)
		})
	}
}
