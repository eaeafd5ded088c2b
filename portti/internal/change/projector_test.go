package change_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/yairfalse/tapio/portti/internal/change"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

func version(t testing.TB, p *change.Projector, text string) (change.Kind, *change.Version) {
	t.Helper()
	o := parse(t, text)[0]
	k := kindOf(t, o)
	v, err := p.Version(k, o)
	require.NoError(t, err)
	return k, v
}

// An event of each kind has a type that the registry knows.
func TestKindsAreThoseOfTheRegistry(t *testing.T) {
	var words []string
	for _, k := range change.Kinds() {
		got, ok := change.LookupKind(k.Word)
		require.True(t, ok)
		require.Equal(t, k, got)
		if k.Word != "event" {
			words = append(words, k.Word)
		}
	}
	slices.Sort(words)
	require.Equal(t, event.K8sWords(), words)
	_, ok := change.LookupKind("pods")
	require.False(t, ok)
}

const aPod = `
kind: Pod
metadata: {name: p, namespace: ns, uid: u, resourceVersion: "7", creationTimestamp: "2026-03-03T13:59:00Z"}
status: {phase: Running}
`

// Two replicas of the observer, and one that restarts, must tell one version once.
func TestIdsAreThoseOfTheVersion(t *testing.T) {
	p := newProjector(nil)
	k, v := version(t, p, aPod)
	_, newer := version(t, p, strings.Replace(aPod, `"7"`, `"8"`, 1))
	created := p.Created(k, v, change.Origin{SeenAt: seen(), Listed: true}).GetId()
	require.Equal(t, created, newProjector(nil).Updated(k, newer, v, change.Origin{Gap: true, SeenAt: seen().Add(time.Hour)}).GetId())
	require.Equal(t, p.Deleted(k, v, change.Origin{SeenAt: seen()}).GetId(), p.Deleted(k, newer, change.Origin{SeenAt: seen()}).GetId())
	other := change.NewProjector(change.Config{Cluster: "other", Source: "portti", DigestKey: []byte("k")})
	ids := map[string]bool{
		created: true, p.Updated(k, v, newer, change.Origin{SeenAt: seen()}).GetId(): true,
		p.Deleted(k, v, change.Origin{SeenAt: seen()}).GetId(): true, other.Created(k, v, change.Origin{SeenAt: seen()}).GetId(): true,
	}
	require.Len(t, ids, 4)
}

func TestAVersionInWhichNothingDiffersIsTold(t *testing.T) {
	p := newProjector(nil)
	k, v := version(t, p, aPod)
	_, newer := version(t, p, strings.Replace(aPod, `"7"`, `"8"`, 1))
	e := valid(t, p.Updated(k, v, newer, change.Origin{SeenAt: seen(), Gap: true}))
	require.Empty(t, e.GetK8S().GetChanges())
	require.Equal(t, "8", e.GetK8S().GetResourceVersion())
	require.True(t, e.GetK8S().GetGap())
}

func TestWhenAnObjectWasCreated(t *testing.T) {
	p := newProjector(nil)
	for name, test := range map[string]struct {
		created string
		origin  change.Origin
		want    time.Time
	}{
		"seen":              {"2026-03-03T13:59:59Z", change.Origin{}, seen().Truncate(time.Second).Add(-time.Second)},
		"during a gap":      {"2026-03-01T10:00:00Z", change.Origin{Gap: true}, time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)},
		"there before, new": {"2026-03-03T13:30:00Z", change.Origin{Listed: true}, time.Date(2026, 3, 3, 13, 30, 0, 0, time.UTC)},
		"there before, old": {"2026-03-01T10:00:00Z", change.Origin{Listed: true}, seen()},
		"older than events": {"2019-03-01T10:00:00Z", change.Origin{Gap: true}, seen()},
		"clock ahead":       {"2026-03-03T14:00:02Z", change.Origin{}, seen()},
		"not a time":        {"yesterday", change.Origin{}, seen()},
	} {
		t.Run(name, func(t *testing.T) {
			k, v := version(t, p, strings.Replace(aPod, "2026-03-03T13:59:00Z", test.created, 1))
			test.origin.SeenAt = seen()
			e := valid(t, p.Created(k, v, test.origin))
			require.Equal(t, test.want, time.Unix(0, e.GetTimestampUnixNs()).UTC())
		})
	}
}

// A cause that is told late must not seem to have come after its effects.
func TestWhenAnObjectWasChanged(t *testing.T) {
	p := newProjector(nil)
	k, older := version(t, p, aPod)
	_, newer := version(t, p, `
kind: Pod
metadata: {name: p, namespace: ns, uid: u, resourceVersion: "8", deletionTimestamp: "2026-03-03T13:50:00Z",
  managedFields: [{time: "2026-03-03T13:40:00Z"}, {time: "2026-03-03T13:44:00Z"}, {time: yesterday}, {}]}
status: {conditions: [{type: PodScheduled, lastTransitionTime: "2026-03-03T13:45:00Z"}]}
`)
	at := func(e *eventv1.Event) time.Time { return time.Unix(0, valid(t, e).GetTimestampUnixNs()).UTC() }
	live, late := change.Origin{SeenAt: seen()}, change.Origin{SeenAt: seen(), Late: true}
	require.Equal(t, seen(), at(p.Updated(k, older, newer, live)))
	require.Equal(t, time.Date(2026, 3, 3, 13, 45, 0, 0, time.UTC), at(p.Updated(k, older, newer, late)))
	require.Equal(t, seen(), at(p.Updated(k, newer, older, late)), "nobody wrote when")
	require.Equal(t, seen(), at(p.Deleted(k, newer, live)))
	require.Equal(t, time.Date(2026, 3, 3, 13, 50, 0, 0, time.UTC), at(p.Deleted(k, newer, late)))
	ahead := change.Origin{SeenAt: time.Date(2026, 3, 3, 13, 42, 0, 0, time.UTC), Late: true}
	require.Equal(t, ahead.SeenAt, at(p.Updated(k, older, newer, ahead)), "the clock of the server is ahead")
}

func TestOwnersAreAChain(t *testing.T) {
	const owned = `
kind: Pod
metadata:
  name: api-8e1f-a
  namespace: ns
  uid: u
  resourceVersion: "1"
  labels: {pod-template-hash: 8e1f}
  ownerReferences: [{kind: X, name: other, uid: x}, {kind: ReplicaSet, name: api-8e1f, uid: rs, controller: true}]
`
	ref := func(kind, name, uid string) *eventv1.ObjectReference {
		return &eventv1.ObjectReference{Kind: kind, Namespace: "ns", Name: name, Uid: uid}
	}
	for name, test := range map[string]struct {
		owners change.OwnerFunc
		want   []string
	}{
		"by name":     {nil, []string{"ReplicaSet ns/api-8e1f (rs)", "Deployment ns/api"}},
		"not known":   {func(*eventv1.ObjectReference) (*eventv1.ObjectReference, bool) { return nil, false }, []string{"ReplicaSet ns/api-8e1f (rs)", "Deployment ns/api"}},
		"nil, though": {func(*eventv1.ObjectReference) (*eventv1.ObjectReference, bool) { return nil, true }, []string{"ReplicaSet ns/api-8e1f (rs)", "Deployment ns/api"}},
		"by the index": {func(o *eventv1.ObjectReference) (*eventv1.ObjectReference, bool) {
			switch o.GetUid() {
			case "rs":
				return ref("Deployment", "api", "d"), true
			case "d":
				return ref("Rollout", "shop", "r"), true
			}
			return nil, false
		}, []string{"ReplicaSet ns/api-8e1f (rs)", "Deployment ns/api (d)", "Rollout ns/shop (r)"}},
		"in a circle": {func(o *eventv1.ObjectReference) (*eventv1.ObjectReference, bool) {
			if o.GetUid() == "rs" {
				return ref("Deployment", "api", "d"), true
			}
			return ref("ReplicaSet", "api-8e1f", "rs"), true
		}, []string{"ReplicaSet ns/api-8e1f (rs)", "Deployment ns/api (d)"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProjector(test.owners)
			k, v := version(t, p, owned)
			var got []string
			for _, o := range p.Updated(k, v, v, change.Origin{SeenAt: seen()}).GetK8S().GetOwners() {
				got = append(got, nameOf(o))
			}
			require.Equal(t, test.want, got)
			owner, ok := v.Owner()
			require.True(t, ok)
			require.Equal(t, "rs", owner.GetUid())
		})
	}
}

func TestObjectsWithoutIdentityAreRefused(t *testing.T) {
	p := newProjector(nil)
	k, _ := change.LookupKind("pod")
	for _, text := range []string{`{}`, `{"metadata":null}`, `{"metadata":[]}`, `{"metadata":{"uid":"u"}}`, `{"metadata":{"resourceVersion":"1"}}`, `{"metadata":{"uid":1,"resourceVersion":2}}`} {
		o := &unstructured.Unstructured{}
		require.NoError(t, json.Unmarshal([]byte(text), &o.Object))
		_, err := p.Version(k, o)
		require.ErrorIs(t, err, change.ErrNoIdentity, text)
	}
}

// The lists of large clusters must not cost the event.
func TestLargeObjectsFitIntoAnEvent(t *testing.T) {
	p := newProjector(nil)
	endpoints := make([]any, 1000)
	for i := range endpoints {
		endpoints[i] = map[string]any{
			"addresses": []any{fmt.Sprintf("10.0.%d.%d", i/256, i%256)}, "nodeName": fmt.Sprintf("node-%d", i), "conditions": map[string]any{"ready": true},
			"targetRef": map[string]any{"kind": "Pod", "namespace": "a-namespace", "name": fmt.Sprintf("api-5d567cc74c-%05d", i), "uid": fmt.Sprintf("18eddc1d-87e8-4f02-8a13-%012d", i)},
		}
	}
	lines := map[string]any{}
	for i := range 3000 {
		lines[fmt.Sprintf("key-%04d.%s", i, strings.Repeat("x", 200))] = strings.Repeat("12345678 ", 40)
	}
	metadata := func(uid string) map[string]any {
		return map[string]any{"uid": uid, "name": "n", "namespace": "a-namespace", "resourceVersion": "1"}
	}
	for word, object := range map[string]map[string]any{
		"endpointslice": {"metadata": metadata("1"), "endpoints": endpoints},
		"configmap":     {"metadata": metadata("2"), "data": lines},
		"event": {
			"metadata": metadata("3"), "message": strings.Repeat("words ", 1<<18), "reason": strings.Repeat("Reason", 1<<10),
			"involvedObject": map[string]any{"kind": "Pod", "name": strings.Repeat("p", 1<<16)},
		},
	} {
		t.Run(word, func(t *testing.T) {
			k, _ := change.LookupKind(word)
			v, err := p.Version(k, &unstructured.Unstructured{Object: object})
			require.NoError(t, err)
			e := valid(t, p.Created(k, v, change.Origin{SeenAt: seen()}))
			require.LessOrEqual(t, proto.Size(e), event.MaxSize)
			if word != "event" {
				require.NotEmpty(t, e.GetMetadata()[event.TapioK8sDroppedChanges])
				require.NotEmpty(t, e.GetK8S().GetChanges())
			}
			if word == "endpointslice" {
				require.Len(t, e.GetK8S().GetLinks(), 1000, "what is behind a Service matters more than its fields")
			}
		})
	}
}

func TestKeptVersionsOfOtherFormatsAreRefused(t *testing.T) {
	_, v := version(t, newProjector(nil), aPod)
	kept, err := v.AppendBinary([]byte("x"))
	require.NoError(t, err)
	kept = kept[1:]
	require.NoError(t, new(change.Version).UnmarshalBinary(kept))
	newer := slices.Clone(kept)
	newer[0]++
	require.ErrorContains(t, new(change.Version).UnmarshalBinary(newer), "format 3")
	require.Error(t, new(change.Version).UnmarshalBinary(nil))
	for i := range kept {
		_ = new(change.Version).UnmarshalBinary(kept[:i]) // never a panic
	}
}

func FuzzUnmarshalBinary(f *testing.F) {
	_, v := version(f, newProjector(nil), aPod)
	kept, err := v.MarshalBinary()
	require.NoError(f, err)
	f.Add(kept)
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		v := &change.Version{}
		if v.UnmarshalBinary(data) != nil {
			return
		}
		again, err := v.MarshalBinary()
		require.NoError(t, err)
		require.Equal(t, data, again)
		p := newProjector(nil)
		for _, k := range change.Kinds() {
			p.Created(k, v, change.Origin{SeenAt: seen()})
			require.Empty(t, p.Updated(k, v, v, change.Origin{SeenAt: seen()}).GetK8S().GetChanges())
			p.Deleted(k, v, change.Origin{SeenAt: seen()})
		}
		for range v.Fields() {
			v.Field("status.phase")
		}
	})
}

// Whatever an API server sends, the event is one that a gateway takes.
func FuzzVersion(f *testing.F) {
	for _, text := range []string{objectsWithSecrets, aPod} {
		for _, o := range parse(f, text) {
			data, err := o.MarshalJSON()
			require.NoError(f, err)
			f.Add(data)
		}
	}
	f.Add([]byte(`{"metadata":{"uid":"u","resourceVersion":"1","ownerReferences":[1,{"kind":2}],"annotations":[],"labels":7},"spec":[[[{}]]],"data":{"a":{"b":[null]}},"status":"x"}`))
	f.Add([]byte(`{"metadata":{"uid":"u","resourceVersion":"1"},"spec":{"containers":[{"name":"c]","env":[{"name":1,"value":2},"x",[1]],"command":"x","args":[{},1]}],"selector":{"a":"b"}},"involvedObject":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o := &unstructured.Unstructured{}
		if json.Unmarshal(data, &o.Object) != nil {
			return
		}
		p := newProjector(nil)
		for _, k := range change.Kinds() {
			v, err := p.Version(k, o)
			if err != nil {
				return
			}
			kept, err := v.MarshalBinary()
			require.NoError(t, err)
			require.NoError(t, new(change.Version).UnmarshalBinary(kept))
			valid(t, p.Created(k, v, change.Origin{SeenAt: seen()}))
			if e := p.Deleted(k, v, change.Origin{SeenAt: seen()}); e != nil {
				valid(t, e)
			}
		}
	})
}

func BenchmarkVersion(b *testing.B) {
	p := newProjector(nil)
	o := benchmarkPod(b)
	k := kindOf(b, o)
	b.ReportAllocs()
	for b.Loop() {
		v, err := p.Version(k, o)
		if err != nil {
			b.Fatal(err)
		}
		kept, _ := v.MarshalBinary()
		b.ReportMetric(float64(len(kept)), "bytes/version")
	}
}

func BenchmarkCreated(b *testing.B) {
	p := newProjector(nil)
	o := benchmarkPod(b)
	k := kindOf(b, o)
	v, err := p.Version(k, o)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		b.ReportMetric(float64(proto.Size(p.Created(k, v, change.Origin{SeenAt: seen()}))), "bytes/event")
	}
}

func BenchmarkUpdated(b *testing.B) {
	p := newProjector(nil)
	o := benchmarkPod(b)
	k := kindOf(b, o)
	v, err := p.Version(k, o)
	require.NoError(b, err)
	next := o.DeepCopy()
	next.SetResourceVersion("9")
	require.NoError(b, unstructured.SetNestedField(next.Object, "Failed", "status", "phase"))
	newer, err := p.Version(k, next)
	require.NoError(b, err)
	b.ReportAllocs()
	for b.Loop() {
		b.ReportMetric(float64(proto.Size(p.Updated(k, v, newer, change.Origin{SeenAt: seen()}))), "bytes/event")
	}
}

// A path that is cut within a letter could not be encoded, and no ack would come.
func TestALongKeyIsCutBetweenLetters(t *testing.T) {
	p := newProjector(nil)
	for spaces := range 2 {
		mountPath := "/" + strings.Repeat("x", spaces) + strings.Repeat("ä", 200)
		k, v := version(t, p, `
kind: Pod
metadata: {name: p, namespace: ns, uid: u, resourceVersion: "7"}
spec: {containers: [{name: c, volumeMounts: [{name: v, mountPath: `+mountPath+`, readOnly: true}]}]}
`)
		_, err := proto.Marshal(p.Created(k, v, change.Origin{SeenAt: seen()}))
		require.NoError(t, err)
	}
}
