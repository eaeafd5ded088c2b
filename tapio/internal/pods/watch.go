package pods

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// newClient returns a client of the core group alone, which the scheme of all
// groups would make several times as large.
func newClient(config *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register the types of Kubernetes: %w", err)
	}
	c := rest.CopyConfig(config)
	c.APIPath = "/api"
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.WarningHandler = rest.NoWarnings{} // they are for those who write objects
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", config.Host, err)
	}
	return client, nil
}

// Pauses between tries to reach the API server. All nodes try at once when it
// comes back.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = 10 * time.Second
)

// answerWithin is how long the API server may take to begin its answer. One that
// hangs must not pass for one that is about to answer: events would wait for it.
const answerWithin = 30 * time.Second

var errNoAnswer = fmt.Errorf("the API server did not answer within %s", answerWithin)

// watcher keeps a table in line with what the API server says of one node.
type watcher struct {
	client *rest.RESTClient
	node   string
	table  *table
	log    *slog.Logger
	within time.Duration // answerWithin

	mu  sync.Mutex
	err error // why nothing comes at present; nil while it does
}

var errConnecting = errors.New("connecting")

func newWatcher(client *rest.RESTClient, node string, t *table, log *slog.Logger) *watcher {
	return &watcher{client: client, node: node, table: t, log: log, within: answerWithin, err: errConnecting}
}

// run watches until ctx is done. What breaks is tried again, with growing pauses.
func (w *watcher) run(ctx context.Context) {
	// What the reflector logs on every try is told once, by note.
	quiet := logr.Discard()
	ctx = klog.NewContext(ctx, quiet)
	r := cache.NewReflectorWithOptions(
		&cache.ListWatch{ListWithContextFunc: w.list, WatchFuncWithContext: w.watch},
		&corev1.Pod{}, w.table,
		cache.ReflectorOptions{Name: "pods of the node", Logger: &quiet, Backoff: &wait.Backoff{
			Duration: firstPause, Factor: 2, Jitter: 1, Steps: 10, Cap: longestPause,
		}})
	r.RunWithContext(ctx)
}

func (w *watcher) request(options metav1.ListOptions) *rest.Request {
	options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", w.node).String()
	return w.client.Get().Resource("pods").VersionedParams(&options, metav1.ParameterCodec)
}

func (w *watcher) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	limited, cancel := context.WithTimeout(ctx, w.within)
	defer cancel()
	var all corev1.PodList
	err := w.request(options).Do(limited).Into(&all)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = errNoAnswer
	}
	w.note(ctx, err)
	return &all, err
}

func (w *watcher) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	limited, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(w.within, cancel)
	events, err := w.request(options).Watch(limited)
	if !late.Stop() && ctx.Err() == nil {
		if err == nil {
			events.Stop()
		}
		err = errNoAnswer
	}
	w.note(ctx, err)
	if err != nil {
		cancel()
		return nil, err
	}
	return &stream{Interface: events, cancel: cancel}, nil
}

// stream is a watch with a context of its own.
type stream struct {
	watch.Interface
	cancel context.CancelFunc
}

// Stop implements watch.Interface.
func (s *stream) Stop() {
	s.Interface.Stop()
	s.cancel()
}

// note remembers whether the API server answers, and tells when that changes.
func (w *watcher) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	before := w.err
	w.err = err
	w.mu.Unlock()
	switch {
	case err != nil && (before == nil || errors.Is(before, errConnecting)):
		w.log.Warn("cannot watch the node's pods; going on with those that are known", "node", w.node, "error", err)
	case err == nil && before != nil:
		w.log.Info("watching the node's pods", "node", w.node)
	}
}

// ready says why the table may be behind.
func (w *watcher) ready() error {
	w.mu.Lock()
	err := w.err
	w.mu.Unlock()
	if err != nil {
		return fmt.Errorf("watch the pods of node %s: %w", w.node, err)
	}
	if _, _, synced := w.table.sizes(); !synced {
		return fmt.Errorf("watch the pods of node %s: %w", w.node, errConnecting)
	}
	return nil
}

// live says whether it is worth waiting for a pod to appear.
func (w *watcher) live() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err == nil || errors.Is(w.err, errConnecting)
}
