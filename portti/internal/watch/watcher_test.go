package watch

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/deliver"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

func newWatcher(t *testing.T, url, word string, owners *Owners) *Watcher {
	client, err := dynamic.NewForConfig(&rest.Config{Host: url, QPS: -1})
	require.NoError(t, err)
	kind, ok := change.LookupKind(word)
	require.True(t, ok)
	return New(Config{
		Client: client, Owners: owners, Book: deliver.NewBook(slog.New(slog.DiscardHandler)), Log: slog.New(slog.DiscardHandler),
		Metrics: NewMetrics(prometheus.NewRegistry()), Projector: change.NewProjector(change.Config{Source: "portti"}),
	}, kind, Known{})
}

// A revision of the etcd of Events must not pass for one of the others.
func TestEventsHaveRevisionsOfTheirOwn(t *testing.T) {
	pods, services, events := newWatcher(t, "", "pod", NewOwners(nil)), newWatcher(t, "", "service", NewOwners(nil)), newWatcher(t, "", "event", NewOwners(nil))
	share([]*Watcher{pods, services, events})
	events.revisions.add(7)
	services.revisions.add(8)
	open, few := pods.revisions.unknown(6, 8, mostCounted)
	require.True(t, few)
	require.Equal(t, []uint64{7}, open)
	pods.revisions.forget()
	open, _ = pods.revisions.unknown(6, 8, mostCounted)
	require.Equal(t, []uint64{7, 8}, open)
}

// A server whose watches expire as soon as they begin is not asked as fast as it
// answers.
func TestAWatchThatExpiresAgainAndAgain(t *testing.T) {
	var watches atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := map[string]any{"kind": "PodList", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": "10"}, "items": []any{}}
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Get("watch") != "" {
			watches.Add(1)
			answer = map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": http.StatusGone}
			w.WriteHeader(http.StatusGone)
		}
		_ = json.NewEncoder(w).Encode(answer) // the client is gone
	}))
	defer server.Close()
	w := newWatcher(t, server.URL, "pod", NewOwners(nil))
	share([]*Watcher{w})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	w.Run(ctx)
	require.Positive(t, watches.Load())
	require.LessOrEqual(t, watches.Load(), int64(10))
}

// A ReplicaSet that nobody owned is adopted by the Deployment that selects it.
func TestOwnersKnowWhoAdopted(t *testing.T) {
	owners := NewOwners(nil)
	w := newWatcher(t, "", "replicaset", owners)
	seen := func(version string, owned ...any) {
		v, err := w.Projector.Version(w.kind, &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{
			"name": "web-1", "namespace": "ns", "uid": "u1", "resourceVersion": version, "ownerReferences": owned,
		}}})
		require.NoError(t, err)
		owners.put(w.kind, v)
	}
	ref := &eventv1.ObjectReference{Kind: "ReplicaSet", Namespace: "ns", Name: "web-1", Uid: "u1"}
	seen("1")
	_, ok := owners.Controller(ref)
	require.False(t, ok)
	seen("2", map[string]any{"kind": "Deployment", "name": "web", "uid": "u2", "controller": true})
	next, ok := owners.Controller(ref)
	require.True(t, ok)
	require.Equal(t, "web", next.GetName())
}
