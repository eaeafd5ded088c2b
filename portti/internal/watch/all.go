package watch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

// RunAll runs watchers until ctx is done. Kinds that own others' owners go first,
// so that nobody has to ask for each owner at the start.
func RunAll(ctx context.Context, watchers []*Watcher) {
	var running sync.WaitGroup
	var owners []*Watcher
	share(watchers)
	for _, w := range watchers {
		before := owners
		if between(w.kind.Kind) {
			owners = append(owners, w)
			before = nil
		}
		running.Go(func() {
			for _, o := range before {
				select {
				case <-o.tried:
				case <-ctx.Done():
					return
				}
			}
			w.Run(ctx)
		})
	}
	running.Wait()
}

// share gives watchers what they have together. Large clusters keep Events in an etcd
// of their own, whose revisions say nothing about those of the others.
func share(watchers []*Watcher) {
	asking, all, ofEvents := make(chan struct{}, askAtOnce), &revisions{}, &revisions{}
	for _, w := range watchers {
		w.asking, w.revisions = asking, all
		if w.kind.Kind == "Event" {
			w.revisions = ofEvents
		}
	}
}

// ClusterID is the UID of the namespace kube-system, by which clusters are commonly
// told apart; empty if it may not be read. It tries until the API server answers or
// ctx is done, which is the error.
func ClusterID(ctx context.Context, client dynamic.Interface, log *slog.Logger) (string, error) {
	namespaces := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	for failures := 0; ; failures++ {
		ask, cancel := context.WithTimeout(ctx, requestTimeout)
		found, err := namespaces.Get(ask, metav1.NamespaceSystem, metav1.GetOptions{})
		cancel()
		switch {
		case err == nil:
			return string(found.GetUID()), nil
		case apierrors.IsForbidden(err):
			log.Warn("the state is not tied to the cluster: let the account get the namespace kube-system", "error", err)
			return "", nil
		case ctx.Err() != nil:
			return "", ctx.Err()
		}
		// Also when it is not there: an API server that has just started makes it.
		wait := backoff(failures)
		log.Warn("cannot ask the API server", "error", err, "next_try_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}
