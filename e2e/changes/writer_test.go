package changes

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

const clusterName = "ledger"

// idOf is the id that the event of a change must have: docs/design/changes.md. what
// is a resource version, or "deleted".
func idOf(uid, what string) string {
	h := sha256.New()
	for _, part := range []string{clusterName, uid, what} {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write([]byte(part))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// resources are what is written to.
func resources() map[string]schema.GroupVersionResource {
	return map[string]schema.GroupVersionResource{
		"configmap":  {Version: "v1", Resource: "configmaps"},
		"pod":        {Version: "v1", Resource: "pods"},
		"deployment": {Group: "apps", Version: "v1", Resource: "deployments"},
		"event":      {Version: "v1", Resource: "events"},
		"service":    {Version: "v1", Resource: "services"},
	}
}

// writer writes as fast as it can, and keeps book of what the API server told it.
// Nobody else writes to its objects, so it can find out what became of a request
// whose answer it did not get.
type writer struct {
	name    string
	client  dynamic.Interface
	random  *rand.Rand
	until   int64         // changes of all writers
	changes *atomic.Int64 // of all writers
	objects []*object
	made    int
	want    map[string]string // id of each change, and what it was
}

type object struct {
	word string
	last *unstructured.Unstructured
}

// run writes until all writers together have made enough changes.
func (w *writer) run(ctx context.Context) error {
	const most = 60 // objects at once
	for w.changes.Load() < w.until && ctx.Err() == nil {
		var err error
		switch dice := w.random.IntN(100); {
		case len(w.objects) == 0 || dice < 15 && len(w.objects) < most:
			err = w.create(ctx)
		case dice < 28:
			err = w.delete(ctx, w.random.IntN(len(w.objects)))
		default:
			err = w.update(ctx, w.objects[w.random.IntN(len(w.objects))])
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return ctx.Err()
}

func (w *writer) in(word string) dynamic.ResourceInterface {
	return w.client.Resource(resources()[word]).Namespace("default")
}

// told notes a version that the API server told of.
func (w *writer) told(word string, o *unstructured.Unstructured) {
	w.note(idOf(string(o.GetUID()), o.GetResourceVersion()), fmt.Sprintf("%s %s uid %s version %s", word, o.GetName(), o.GetUID(), o.GetResourceVersion()))
}

func (w *writer) note(id, what string) {
	w.want[id] = what
	w.changes.Add(1)
}

func (w *writer) create(ctx context.Context) error {
	words := []string{"configmap", "pod", "deployment", "event", "pod", "configmap", "service"}
	word := words[w.random.IntN(len(words))]
	w.made++
	o := template(word, fmt.Sprintf("%s-%d", w.name, w.made))
	made, err := w.in(word).Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		if made, err = w.find(ctx, word, o.GetName(), err); err != nil || made == nil {
			return err
		}
	}
	w.told(word, made)
	w.objects = append(w.objects, &object{word, made})
	return nil
}

func (w *writer) update(ctx context.Context, o *object) error {
	next := o.last.DeepCopy()
	value := fmt.Sprint(w.random.Uint64())
	status := false
	var err error
	switch o.word {
	case "configmap":
		err = unstructured.SetNestedField(next.Object, value, "data", "key")
	case "event":
		count, _, _ := unstructured.NestedInt64(next.Object, "count")
		err = unstructured.SetNestedField(next.Object, count+1, "count")
	case "pod":
		if status = w.random.IntN(4) > 0; status {
			err = unstructured.SetNestedField(next.Object, value, "status", "message")
			break
		}
		fallthrough
	default:
		err = unstructured.SetNestedField(next.Object, value, "metadata", "annotations", "ledger")
	}
	if err != nil {
		return err
	}
	var done *unstructured.Unstructured
	if status {
		done, err = w.in(o.word).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	} else {
		done, err = w.in(o.word).Update(ctx, next, metav1.UpdateOptions{})
	}
	if err != nil {
		done, err = w.find(ctx, o.word, o.last.GetName(), err)
		if err != nil || done == nil {
			return err
		}
	}
	if done.GetResourceVersion() != o.last.GetResourceVersion() {
		w.told(o.word, done)
	}
	o.last = done
	return nil
}

func (w *writer) delete(ctx context.Context, i int) error {
	o := w.objects[i]
	now := int64(0)
	err := w.in(o.word).Delete(ctx, o.last.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now})
	if err != nil && !apierrors.IsNotFound(err) {
		still, err := w.find(ctx, o.word, o.last.GetName(), err)
		if err != nil || still != nil {
			return err
		}
	}
	w.objects[i] = w.objects[len(w.objects)-1]
	w.objects = w.objects[:len(w.objects)-1]
	if o.word != "event" { // whose end is not told
		w.note(idOf(string(o.last.GetUID()), "deleted"), fmt.Sprintf("%s %s uid %s deleted", o.word, o.last.GetName(), o.last.GetUID()))
	}
	return nil
}

// find asks what became of an object when a request failed; nil if it is not there.
func (w *writer) find(ctx context.Context, word, name string, why error) (*unstructured.Unstructured, error) {
	if apierrors.IsInvalid(why) || apierrors.IsBadRequest(why) || apierrors.IsForbidden(why) {
		return nil, why
	}
	const pause = 100 * time.Millisecond
	for {
		o, err := w.in(word).Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			return o, nil
		case apierrors.IsNotFound(err):
			return nil, nil //nolint:nilnil // not there is an answer
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		time.Sleep(pause) // the API server is down
	}
}

// template is an object with about as much in it as real ones have.
func template(word, name string) *unstructured.Unstructured {
	metadata := map[string]any{"name": name, "labels": map[string]any{"app": name}, "annotations": map[string]any{"ledger": ""}}
	o := map[string]any{"apiVersion": "v1", "metadata": metadata}
	env := []any{}
	for i := range 10 {
		env = append(env, map[string]any{"name": fmt.Sprintf("SETTING_%d", i), "value": strings.Repeat("x", 20)})
	}
	pod := map[string]any{
		"containers": []any{map[string]any{
			"name": "app", "image": "registry.local/app:1", "env": env,
			"resources": map[string]any{"limits": map[string]any{"memory": "128Mi"}, "requests": map[string]any{"cpu": "10m"}},
		}},
	}
	switch word {
	case "configmap":
		o["kind"], o["data"] = "ConfigMap", map[string]any{"key": "0"}
	case "service":
		o["kind"], o["spec"] = "Service", map[string]any{
			"clusterIP": "None", "selector": map[string]any{"app": name}, "ports": []any{map[string]any{"port": int64(80)}},
		}
	case "event":
		o["kind"], o["reason"], o["message"], o["type"], o["count"] = "Event", "BackOff", "Back-off restarting failed container", "Warning", int64(1)
		o["involvedObject"] = map[string]any{"kind": "Pod", "namespace": "default", "name": name}
	case "pod":
		o["kind"], o["spec"] = "Pod", pod
		pod["nodeName"] = "node-1"
	case "deployment":
		o["apiVersion"], o["kind"] = "apps/v1", "Deployment"
		o["spec"] = map[string]any{
			"selector": map[string]any{"matchLabels": map[string]any{"app": name}},
			"template": map[string]any{"metadata": map[string]any{"labels": map[string]any{"app": name}}, "spec": pod},
		}
	}
	return &unstructured.Unstructured{Object: o}
}
