// Package watch follows the objects of one kind after the other through the API
// server's lists and watches, and sends every change of them once.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/deliver"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

const (
	// Waits before the next try double from the one to the other, with jitter, so
	// that an API server that comes back is not met by all at once.
	shortest = time.Second
	longest  = 30 * time.Second
	// healthy is how long a watch lasts that is begun again at once when the
	// server closes it, as it does from time to time.
	healthy = 10 * time.Second
	// A watch is asked for so long, spread over as much again.
	watchFor = 5 * time.Minute
	// heldUp is how long a gateway may hold up a change until it matters when those
	// that wait behind it happened.
	heldUp = 2 * time.Second
	// requestTimeout is for everything but watches. A dead connection is found by
	// the HTTP/2 pings of client-go.
	requestTimeout = time.Minute
)

// Config is what all watchers share.
type Config struct {
	Client    dynamic.Interface
	Projector *change.Projector
	Owners    *Owners
	Book      *deliver.Book
	Sender    deliver.Sender
	Metrics   *Metrics
	Log       *slog.Logger
}

// Known is where a watcher goes on.
type Known struct {
	// ResourceVersion up to which everything was sent; empty when the kind was
	// never listed to the end.
	ResourceVersion string
	Objects         map[string]*change.Version // by UID
}

// Watcher follows one kind. Only the goroutine of Run changes what it knows.
type Watcher struct {
	Config
	kind    change.Kind
	client  dynamic.NamespaceableResourceInterface
	objects map[string]*change.Version // last version that was sent, by UID
	at      string                     // resource version up to which all was sent
	// behind is the revision up to which the watch tells what happened while nobody
	// read it.
	behind uint64
	// resumed is set while it is open whether the server still has what at means.
	resumed bool
	expired *expiredError // why a list must come before the next watch
	tried   chan struct{} // closed when it was listed, or could not be

	// Of several kinds together:
	asking    chan struct{} // holds a token for each request for history
	revisions *revisions

	mu     sync.Mutex
	listed bool
	down   error // why the kind is not followed now
}

// New returns a watcher that goes on from what is known, which it owns from now on.
func New(c Config, kind change.Kind, known Known) *Watcher {
	w := &Watcher{
		Config: c, kind: kind, client: c.Client.Resource(kind.Resource), objects: known.Objects, at: known.ResourceVersion,
		resumed: true, tried: make(chan struct{}),
	}
	w.Log = c.Log.With("kind", kind.Word)
	if w.objects == nil {
		w.objects = map[string]*change.Version{}
	}
	for _, v := range w.objects {
		w.Owners.put(kind, v)
	}
	w.Metrics.objects.WithLabelValues(kind.Word).Set(float64(len(w.objects)))
	if w.at != "" { // for the metrics: the first news may be a minute away
		w.Book.Done(kind.Word, deliver.Step{ResourceVersion: w.at})
	}
	return w
}

var errStarting = errors.New("not listed yet")

// Ready says why the kind is not followed, or nil.
func (w *Watcher) Ready() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.down != nil:
		return fmt.Errorf("%s: %w", w.kind.Word, w.down)
	case !w.listed:
		return fmt.Errorf("%s: %w", w.kind.Word, errStarting)
	}
	return nil
}

// works notes that the server answers.
func (w *Watcher) works(listed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = nil
	if !w.listed && listed {
		w.tryDone()
	}
	w.listed = w.listed || listed
	w.Metrics.up.WithLabelValues(w.kind.Word).Set(1)
}

// tryDone lets those go on who wait for this kind. The caller holds the lock.
func (w *Watcher) tryDone() {
	select {
	case <-w.tried:
	default:
		close(w.tried)
	}
}

// fails notes why the kind is not followed and reports whether that is news.
func (w *Watcher) fails(err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := w.down == nil || w.down.Error() != err.Error()
	w.down = err
	w.tryDone()
	w.Metrics.up.WithLabelValues(w.kind.Word).Set(0)
	return news
}

// Run follows the kind until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		began := time.Now()
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		reason := reasonOf(err)
		w.Metrics.restarts.WithLabelValues(w.kind.Word, reason).Inc()
		if time.Since(began) >= healthy {
			failures = 0
		}
		switch {
		case reason == reasonExpired && failures == 0:
			failures++   // a server that says so again at once must not be asked for ever
			w.fails(err) // until it has caught up
			w.Log.Debug("the watch ended", "reason", reason)
			continue
		case reason == reasonClosed && time.Since(began) >= healthy:
			w.Log.Debug("the watch ended", "reason", reason)
			continue
		}
		wait := backoff(failures)
		failures++
		level := slog.LevelDebug
		if reason == reasonClosed {
			w.Log.Debug("the watch ended", "reason", reason, "next_try_in", wait)
		} else if w.fails(err) { // not the same again and again
			level = slog.LevelWarn
		}
		w.Log.Log(ctx, level, "cannot follow "+w.kind.Resource.Resource, "reason", reason, "error", err, "next_try_in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

func backoff(failures int) time.Duration {
	const enough = 10 // doublings; many more would overflow
	limit := min(longest, shortest<<min(failures, enough))
	return limit/2 + rand.N(limit/2)
}

// follow lists if it must, and watches until the watch ends, which is the error.
func (w *Watcher) follow(ctx context.Context) error {
	if w.at != "" && w.resumed && w.expired == nil {
		if err := w.checkPast(ctx); err != nil {
			return err
		}
	}
	if w.at == "" || w.expired != nil {
		if err := w.list(ctx); err != nil {
			w.resumed = true
			return err
		}
		w.expired = nil
	}
	w.resumed = true
	err := w.watch(ctx)
	if errors.Is(err, errClosed) {
		w.resumed = false
	}
	return err
}

// checkPast tells when the server knows less than what was sent, as after a restore
// of etcd from a backup: a watch from a resource version of the future would be
// silent until that comes.
func (w *Watcher) checkPast(ctx context.Context) error {
	now, err := w.now(ctx)
	if err != nil {
		return err
	}
	current, currentErr := strconv.ParseUint(now, 10, 64)
	known, knownErr := strconv.ParseUint(w.at, 10, 64)
	w.behind = current
	if currentErr == nil && knownErr == nil && current < known {
		w.Log.Warn("the API server is behind what was sent, as after a restore: listing all", "at", now, "sent", w.at)
		w.expired = &expiredError{rewound: true}
		w.revisions.forget()
	}
	return nil
}

// now is the resource version of the kind's collection.
func (w *Watcher) now(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	list, err := w.client.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return "", fmt.Errorf("ask for the resource version: %w", err)
	}
	return list.GetResourceVersion(), nil
}

// errClosed is the end of a watch that nobody need worry about.
var errClosed = errors.New("the server closed the watch")

func (w *Watcher) watch(ctx context.Context) error {
	seconds := int64((watchFor + rand.N(watchFor)).Seconds())
	stream, err := w.client.Watch(ctx, metav1.ListOptions{ResourceVersion: w.at, AllowWatchBookmarks: true, TimeoutSeconds: &seconds})
	if err != nil {
		return w.failure(fmt.Errorf("watch: %w", err))
	}
	defer stream.Stop()
	w.works(true)
	for {
		select {
		case e, more := <-stream.ResultChan():
			if !more {
				return errClosed
			}
			if err := w.take(ctx, e); err != nil {
				return w.failure(err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failure remembers that the server has forgotten where to go on.
func (w *Watcher) failure(err error) error {
	if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
		w.expired = expired(err)
	}
	return err
}

// take handles one event of the watch.
func (w *Watcher) take(ctx context.Context, e apiwatch.Event) error {
	if e.Type == apiwatch.Error {
		return fmt.Errorf("watch: %w", apierrors.FromObject(e.Object))
	}
	o, ok := e.Object.(*unstructured.Unstructured)
	if !ok {
		return fmt.Errorf("watch: the server sent a %T", e.Object)
	}
	at := o.GetResourceVersion()
	if e.Type == apiwatch.Bookmark {
		w.at = at
		w.Book.Done(w.kind.Word, deliver.Step{ResourceVersion: at})
		return nil
	}
	v, err := w.Projector.Version(w.kind, o)
	if err != nil {
		w.refuse(err)
		return nil
	}
	number, _ := revision(at)
	origin := change.Origin{SeenAt: time.Now(), Late: number <= w.behind}
	known := w.objects[v.UID]
	switch {
	case e.Type == apiwatch.Deleted:
		err = w.send(ctx, piece{older: known, deleted: v, origin: origin}, at)
	case known != nil && !newer(v, known):
		w.Book.Done(w.kind.Word, deliver.Step{ResourceVersion: at}) // it was listed
	default:
		err = w.send(ctx, piece{older: known, newer: v, origin: origin}, at)
	}
	if err != nil {
		return err
	}
	w.at = at
	if number > 0 {
		w.revisions.add(number)
	}
	if time.Since(origin.SeenAt) > heldUp {
		w.catchUp(ctx)
	}
	return nil
}

// catchUp notes that the watch was not read for a while.
func (w *Watcher) catchUp(ctx context.Context) {
	if now, err := w.now(ctx); err == nil { // else times are only less exact
		w.behind, _ = revision(now)
	}
}

// newer reports whether a version of an object is not the one that is known, or
// one before.
func newer(v, known *change.Version) bool {
	if v.ResourceVersion == known.ResourceVersion {
		return false
	}
	a, aErr := strconv.ParseUint(v.ResourceVersion, 10, 64)
	b, bErr := strconv.ParseUint(known.ResourceVersion, 10, 64)
	return aErr != nil || bErr != nil || a > b
}

func (w *Watcher) refuse(err error) {
	reason := "not_encoded"
	if errors.Is(err, change.ErrNoIdentity) {
		reason = "no_identity"
	}
	w.Metrics.refused.WithLabelValues(w.kind.Word, reason).Inc()
	w.Log.Error("an object cannot be told", "error", err)
}

// piece is one change to be sent.
type piece struct {
	older, newer *change.Version // newer is nil for a deletion
	deleted      *change.Version // the last version, for a deletion
	origin       change.Origin
}

// send sends a change and remembers it. When the change is in the gateway's log
// the kind is known up to the resource version; empty in a list.
func (w *Watcher) send(ctx context.Context, p piece, at string) error {
	kind := w.kind.Word
	if n := p.revision(); n > 0 && !p.origin.Gap {
		w.revisions.add(n)
	}
	step := deliver.Step{Version: p.newer, ResourceVersion: at}
	var e *eventv1.Event
	var action string
	switch {
	case p.deleted != nil:
		step.UID = p.deleted.UID
		e, action = w.Projector.Deleted(w.kind, p.deleted, p.origin), "deleted"
		delete(w.objects, step.UID)
		w.Owners.drop(step.UID)
	case p.older == nil:
		step.UID = p.newer.UID
		w.Owners.put(w.kind, p.newer)
		e, action = w.Projector.Created(w.kind, p.newer, p.origin), "created"
	default:
		step.UID = p.newer.UID
		w.Owners.put(w.kind, p.newer)
		e, action = w.Projector.Updated(w.kind, p.older, p.newer, p.origin), "updated"
	}
	if p.newer != nil {
		w.objects[step.UID] = p.newer
	}
	w.Metrics.objects.WithLabelValues(kind).Set(float64(len(w.objects)))
	if e == nil {
		w.Metrics.untold.WithLabelValues(kind, action).Inc()
		w.Book.Done(kind, step)
		return nil
	}
	if err := w.Book.Send(ctx, w.Sender, kind, e, step); err != nil {
		return err
	}
	w.Metrics.sent(kind, action, p.origin)
	return nil
}

// Reasons why a watch is begun again.
const (
	reasonClosed     = "closed"
	reasonExpired    = "expired"
	reasonForbidden  = "forbidden"
	reasonNotServed  = "not_served"
	reasonConnection = "connection"
	reasonError      = "error"
)

func reasonOf(err error) string {
	switch {
	case errors.Is(err, errClosed):
		return reasonClosed
	case apierrors.IsGone(err) || apierrors.IsResourceExpired(err):
		return reasonExpired
	case apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err):
		return reasonForbidden
	case apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err):
		return reasonNotServed
	case utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) || utilnet.IsHTTP2ConnectionLost(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return reasonConnection
	}
	return reasonError
}
