package watch

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"

	"github.com/yairfalse/tapio/portti/internal/change"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

const (
	// mostGone is how many owners that are gone are remembered: what they owned
	// ends after them.
	mostGone = 4096
	// askTimeout is how long an owner may take to be found before an event goes
	// without its owner.
	askTimeout = 5 * time.Second
)

// Owners knows the controllers of what is itself a controller: the Deployment of a
// ReplicaSet, the CronJob of a Job.
type Owners struct {
	client dynamic.Interface

	mu   sync.Mutex
	of   map[string]*eventv1.ObjectReference // by UID; nil without a controller
	gone []string                            // the oldest first
}

// NewOwners returns an empty index, which asks the server for whom it does not
// know.
func NewOwners(client dynamic.Interface) *Owners {
	return &Owners{client: client, of: map[string]*eventv1.ObjectReference{}}
}

// between are the kinds that stand between others.
func between(kind string) bool { return kind == "ReplicaSet" || kind == "Job" }

func (o *Owners) put(kind change.Kind, v *change.Version) {
	if !between(kind.Kind) {
		return
	}
	controller, _ := v.Owner()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.of[v.UID] = controller // which changes when another adopts it
}

func (o *Owners) drop(uid string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.of[uid]; known {
		o.forgetLater(uid)
	}
}

func (o *Owners) forgetLater(uid string) {
	o.gone = append(o.gone, uid)
	if len(o.gone) > mostGone {
		delete(o.of, o.gone[0])
		o.gone = o.gone[1:]
	}
}

// Controller is a change.OwnerFunc. An owner that no watch has told of yet, or
// whose kind is not watched, is asked for once.
func (o *Owners) Controller(owner *eventv1.ObjectReference) (*eventv1.ObjectReference, bool) {
	if !between(owner.GetKind()) || owner.GetUid() == "" {
		return nil, false
	}
	o.mu.Lock()
	next, known := o.of[owner.GetUid()]
	o.mu.Unlock()
	if !known {
		var answered bool
		next, answered = o.ask(owner)
		o.mu.Lock()
		if _, now := o.of[owner.GetUid()]; answered && !now {
			o.of[owner.GetUid()] = next
			o.forgetLater(owner.GetUid())
		}
		o.mu.Unlock()
	}
	return next, next != nil
}

// ask asks the API server; answered is false when it should be asked again.
func (o *Owners) ask(owner *eventv1.ObjectReference) (controller *eventv1.ObjectReference, answered bool) {
	for _, k := range change.Kinds() {
		if k.Kind != owner.GetKind() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		found, err := o.client.Resource(k.Resource).Namespace(owner.GetNamespace()).Get(ctx, owner.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err) || apierrors.IsForbidden(err):
			return nil, true
		case err != nil:
			return nil, false
		case string(found.GetUID()) != owner.GetUid():
			return nil, true // another of the same name
		}
		c := metav1.GetControllerOf(found)
		if c == nil {
			return nil, true
		}
		return &eventv1.ObjectReference{Kind: c.Kind, Namespace: owner.GetNamespace(), Name: c.Name, Uid: string(c.UID)}, true
	}
	return nil, true
}
