package change

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/kube"
)

// OwnerFunc returns the controller of an owner: of a ReplicaSet its Deployment, of
// a Job its CronJob; false when it has none, or is not known.
type OwnerFunc func(owner *eventv1.ObjectReference) (next *eventv1.ObjectReference, ok bool)

// Config says how a Projector makes events.
type Config struct {
	// Cluster is the name of the cluster; it may be empty. Ids of events depend
	// on it.
	Cluster string
	// Source is who observed: the source of all events.
	Source string
	// DigestKey is the key of digests of what may not be told: random bytes, the
	// same for ever where values are to be compared, and known to nobody else.
	DigestKey []byte
	// Owners finds the owners of owners; nil knows none.
	Owners OwnerFunc
}

// Projector makes versions of objects, and events of versions. It is safe for
// concurrent use if Config.Owners is.
type Projector struct {
	config Config
	redact *kube.Redactor
}

// NewProjector returns a Projector.
func NewProjector(c Config) *Projector {
	return &Projector{config: c, redact: kube.NewRedactor(c.DigestKey)}
}

// Origin is how an observer came to know of a change.
type Origin struct {
	// Gap is set when two lists were compared after an absence: the change
	// happened some time before.
	Gap bool
	// Listed is set when the object was there before anybody watched.
	Listed bool
	// Late is set when the observer was away, or held up: the change happened some
	// time before SeenAt.
	Late bool
	// SeenAt is when the observer heard of it.
	SeenAt time.Time
}

// ErrNoIdentity tells that an object cannot be told from others.
var ErrNoIdentity = errors.New("it has no metadata.uid or no metadata.resourceVersion")

// Version returns what is kept of a version of an object. The object is not
// changed. It fails with ErrNoIdentity when the object is not one of an API server;
// any other error is a mistake of this package.
func (p *Projector) Version(k Kind, o *unstructured.Unstructured) (*Version, error) {
	metadata, _ := o.Object["metadata"].(map[string]any)
	of := func(name string) string {
		s, _ := metadata[name].(string)
		return clean(s)
	}
	head := Version{UID: of("uid"), Namespace: of("namespace"), Name: of("name"), ResourceVersion: of("resourceVersion")}
	if head.UID == "" || head.ResourceVersion == "" {
		return nil, fmt.Errorf("read %s %q: %w", k.Kind, head.Namespace+"/"+head.Name, ErrNoIdentity)
	}
	if at, err := time.Parse(time.RFC3339, of("creationTimestamp")); err == nil {
		head.Created = at
	}
	head.Written = writtenAt(o.Object)
	head.Generation, _ = strconv.ParseInt(text(metadata["generation"]), 10, 64)

	f := &flattener{redact: p.redact, kind: k.Kind, fields: make([]Field, 0, 128)}
	root := make(map[string]any, len(o.Object))
	for name, value := range o.Object {
		if name != "apiVersion" && name != "kind" {
			root[name] = value
		}
	}
	f.object("", "", root)
	v, err := newVersion(head, ownersOf(k, head, metadata), linksOf(k, head, o.Object), sortFields(f.fields))
	if err != nil {
		return nil, fmt.Errorf("encode what is kept of %s %q: %w", k.Kind, head.Namespace+"/"+head.Name, err)
	}
	return v, nil
}

// Created returns the event of an object that is new, or that was there before.
func (p *Projector) Created(k Kind, v *Version, o Origin) *eventv1.Event {
	if k.Word == eventWord {
		return p.kubernetesEvent(v, o)
	}
	e := p.newEvent(k, v, event.K8sCreated, o)
	e.TimestampUnixNs = createdAt(v, o).UnixNano()
	tell(e, event.K8sCreated, nil, v)
	return e
}

// Updated returns the event of an object that has a new version. It has no changes
// when nothing differs that is told.
func (p *Projector) Updated(k Kind, older, newer *Version, o Origin) *eventv1.Event {
	if k.Word == eventWord {
		return p.kubernetesEvent(newer, o)
	}
	e := p.newEvent(k, newer, event.K8sUpdated, o)
	e.TimestampUnixNs = happenedAt(newer.Written, o).UnixNano()
	tell(e, event.K8sUpdated, older, newer)
	return e
}

// Deleted returns the event of an object that is gone; nil for a Kubernetes Event,
// whose end tells nothing.
func (p *Projector) Deleted(k Kind, last *Version, o Origin) *eventv1.Event {
	if k.Word == eventWord {
		return nil
	}
	e := p.newEvent(k, last, event.K8sDeleted, o)
	ended, _ := time.Parse(time.RFC3339, last.Field("metadata.deletionTimestamp"))
	e.TimestampUnixNs = happenedAt(ended, o).UnixNano()
	tell(e, event.K8sDeleted, last, nil)
	return e
}

// id names what happened alike for all who saw it.
func (p *Projector) id(uid, what string) string {
	h := sha256.New()
	for _, part := range [...]string{p.config.Cluster, uid, what} {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(part)))
		h.Write(size[:])
		h.Write([]byte(part))
	}
	var sum [sha256.Size]byte
	return hex.EncodeToString(h.Sum(sum[:0])[:16])
}

func (p *Projector) newEvent(k Kind, v *Version, action string, o Origin) *eventv1.Event {
	what := v.ResourceVersion
	if action == event.K8sDeleted {
		what = action
	}
	ref := reference{k.Kind, v.Namespace, v.Name, v.UID}
	e := &eventv1.Event{
		Id: p.id(v.UID, what), TimestampUnixNs: plausible(o.SeenAt, o).UnixNano(), Source: p.config.Source,
		EventType: "k8s." + k.Word + "." + action, Severity: eventv1.Severity_SEVERITY_INFO, Metadata: p.metadata(k, v),
		Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{
			ResourceType: k.Kind, ResourceName: v.Name, Namespace: v.Namespace, Object: ref.proto(),
			ResourceVersion: v.ResourceVersion, Generation: v.Generation, Gap: o.Gap, Owners: p.owners(v),
		}},
	}
	describe(k, e.GetK8S(), v)
	return e
}

// tell adds what changed; nil is what is not there.
func tell(e *eventv1.Event, action string, older, newer *Version) {
	data := e.GetK8S()
	controlledPod := data.GetResourceType() == "Pod" && len(data.GetOwners()) > 0 && data.GetOwners()[0].GetKind() != "Node"
	diff(older, newer, func(path, was, is string) {
		if was != is && isTold(action, path, controlledPod) {
			data.Changes = append(data.Changes, &eventv1.FieldChange{Path: path, Old: was, New: is})
		}
	})
	var was, is []link
	if older != nil {
		was = older.links()
	}
	if newer != nil {
		is = newer.links()
	} else {
		is, was = was, nil // of what is gone they are told as they were
	}
	for _, l := range is {
		data.Links = append(data.Links, &eventv1.ObjectLink{Type: l.kind, Target: l.target.proto()})
	}
	for _, l := range was {
		if _, still := slices.BinarySearchFunc(is, l, link.compare); !still {
			data.Links = append(data.Links, &eventv1.ObjectLink{Type: l.kind, Target: l.target.proto(), Removed: true})
		}
	}
	fit(e)
}
