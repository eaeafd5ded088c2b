package change

import (
	"cmp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// recent is how old an object may be and still be told at its creation when a
// watcher starts: the longest time after which a creation may explain a fault.
// What is older is told as of now, because that is how it is now.
const recent = time.Hour

// earliest is when the first events may be from.
var earliest = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)

// plausible keeps a time within what gateways take.
func plausible(at time.Time, o Origin) time.Time {
	if at.Before(earliest) {
		at = o.SeenAt
	}
	if at.Before(earliest) {
		at = earliest
	}
	return at
}

// createdAt is the time of the event of a created object.
func createdAt(v *Version, o Origin) time.Time {
	if v.Created.IsZero() || v.Created.After(o.SeenAt) || o.Listed && o.SeenAt.Sub(v.Created) > recent {
		return plausible(o.SeenAt, o)
	}
	return plausible(v.Created, o)
}

// happenedAt is the time of the event of a change of which the object tells when it
// was. It tells in seconds, so that it is asked only about what was seen late.
func happenedAt(told time.Time, o Origin) time.Time {
	if !o.Late || told.IsZero() || told.After(o.SeenAt) {
		told = o.SeenAt
	}
	return plausible(told, o)
}

// writtenAt is the latest of the times at which clients wrote to an object. Of the
// binding of a pod to its node only a condition tells.
func writtenAt(object map[string]any) time.Time {
	last := time.Time{}
	for _, path := range [...]string{"metadata.managedFields.*.time", "status.conditions.*.lastTransitionTime"} {
		each(object, path, func(value any) {
			text, _ := value.(string)
			if at, err := time.Parse(time.RFC3339, text); err == nil && at.After(last) {
				last = at.UTC()
			}
		})
	}
	return last
}

// metadata returns the keys that transformers and people look for.
func (p *Projector) metadata(k Kind, v *Version) map[string]string {
	m := make(map[string]string, 8)
	set := func(name, value string) {
		if value != "" && len(value) <= event.MaxNameLen {
			m[name] = value
		}
	}
	set(event.K8sClusterName, p.config.Cluster)
	set(event.K8sNamespaceName, v.Namespace)
	switch k.Kind {
	case "Pod":
		set(event.K8sPodName, v.Name)
		set(event.K8sPodUID, v.UID)
		set(event.K8sNodeName, v.Field("spec.nodeName"))
		// A pod in the network of its node has the node's address, as many have.
		if v.Field("spec.hostNetwork") != "true" {
			set(event.K8sPodIP, v.Field("status.podIP"))
		}
	case "Node":
		set(event.K8sNodeName, v.Name)
	case "Namespace":
		set(event.K8sNamespaceName, v.Name)
	case "Service":
		if ip := v.Field("spec.clusterIP"); ip != "None" {
			set(event.K8sServiceClusterIP, ip)
		}
	}
	return m
}

// describe sets what the data has names of its own for.
func describe(k Kind, data *eventv1.K8SEventData, v *Version) {
	number := func(path string) int32 {
		n, _ := strconv.ParseInt(v.Field(path), 10, 32)
		return int32(n)
	}
	switch k.Kind {
	case "Deployment", "StatefulSet", "ReplicaSet":
		data.Replicas, data.ReadyReplicas = number("spec.replicas"), number("status.readyReplicas")
		data.UpdatedReplicas = number("status.updatedReplicas")
	case "DaemonSet":
		data.Replicas, data.ReadyReplicas = number("status.desiredNumberScheduled"), number("status.numberReady")
		data.UpdatedReplicas = number("status.updatedNumberScheduled")
	case "Pod":
		data.Reason, data.Message = v.Field("status.reason"), v.Field("status.message")
	}
	data.RolloutStatus = rolloutStatus(k, data, v)
}

// rolloutStatus says how far a rollout is, by the rules of kubectl rollout status.
func rolloutStatus(k Kind, data *eventv1.K8SEventData, v *Version) string {
	const progressing, complete, failed = "progressing", "complete", "failed"
	observed, _ := strconv.ParseInt(v.Field(observedGeneration), 10, 64)
	updated := data.GetUpdatedReplicas() >= data.GetReplicas()
	var available string
	switch k.Kind {
	case "Deployment":
		if v.Field("status.conditions[Progressing].reason") == "ProgressDeadlineExceeded" {
			return failed
		}
		available = "status.availableReplicas"
		updated = updated && cmp.Or(v.Field("status.replicas"), "0") == strconv.Itoa(int(data.GetUpdatedReplicas()))
	case "StatefulSet":
		available = "status.availableReplicas"
		updated = v.Field("status.updateRevision") == v.Field("status.currentRevision")
	case "DaemonSet":
		available = "status.numberAvailable"
	default:
		return ""
	}
	ready, _ := strconv.ParseInt(v.Field(available), 10, 32)
	if observed >= v.Generation && updated && int32(ready) >= data.GetReplicas() {
		return complete
	}
	return progressing
}

const observedGeneration = "status.observedGeneration"

// isTold says whether a field is told as a change.
//
// Of what is gone only what it was like in the end is: the rest was told before. Of
// a new pod that a controller made, its specification is that of the controller but
// for where it runs and what admission may set.
func isTold(action, path string, controlledPod bool) bool {
	switch {
	case path == observedGeneration:
		return false // follows each change of the specification
	case action == event.K8sDeleted:
		return strings.HasPrefix(path, "status.") || strings.HasPrefix(path, "metadata.deletion") || path == "metadata.creationTimestamp"
	case action == event.K8sCreated && controlledPod:
		return !strings.HasPrefix(path, "spec.") || path == "spec.nodeName" || path == "spec.hostNetwork" ||
			strings.HasSuffix(path, ".image") || strings.Contains(path, ".resources.")
	}
	return true
}

// kubernetesEvent returns the event of a version of a Kubernetes Event: what a
// component of the cluster tells about an object.
func (p *Projector) kubernetesEvent(v *Version, o Origin) *eventv1.Event {
	about := reference{
		v.Field("involvedObject.kind"), v.Field("involvedObject.namespace"),
		v.Field("involvedObject.name"), v.Field("involvedObject.uid"),
	}
	reason := v.Field("reason")
	e := &eventv1.Event{
		Id: p.id(v.UID, v.ResourceVersion), TimestampUnixNs: plausible(toldAt(v, o), o).UnixNano(), Source: p.config.Source,
		EventType: event.K8sEventPrefix + kindOfReason(reason), Severity: eventv1.Severity_SEVERITY_INFO,
		Metadata: make(map[string]string, 8),
		Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{
			ResourceType: about.kind, ResourceName: about.name, Namespace: about.namespace, Object: about.proto(),
			ResourceVersion: v.ResourceVersion, Reason: reason, Message: v.Field("message"), Gap: o.Gap,
		}},
	}
	if v.Field("type") == "Warning" {
		e.Severity = eventv1.Severity_SEVERITY_WARNING
	}
	for _, path := range [...]string{"series.count", "count"} {
		if n, err := strconv.ParseInt(v.Field(path), 10, 32); err == nil && n > 0 {
			e.GetK8S().Count = int32(n)
			break
		}
	}
	set := func(name, value string) {
		if value != "" && len(value) <= event.MaxNameLen {
			e.Metadata[name] = value
		}
	}
	set(event.K8sClusterName, p.config.Cluster)
	set(event.K8sNamespaceName, about.namespace)
	switch about.kind {
	case "Pod":
		set(event.K8sPodName, about.name)
		set(event.K8sPodUID, about.uid)
		set(event.K8sContainerName, containerIn(v.Field("involvedObject.fieldPath")))
		if v.Field("source.component") == "kubelet" || v.Field("reportingComponent") == "kubelet" {
			set(event.K8sNodeName, cmp.Or(v.Field("source.host"), v.Field("reportingInstance")))
		}
	case "Node":
		set(event.K8sNodeName, about.name)
	case "Namespace":
		set(event.K8sNamespaceName, about.name)
	}
	fit(e)
	return e
}

// kindOfReason returns the reason as it may stand in an event type.
func kindOfReason(reason string) string {
	const longest = 128 // what the API takes
	word := strings.Map(func(c rune) rune {
		if c <= ' ' || c >= 0x7f {
			return '_'
		}
		return c
	}, reason)
	return cmp.Or(word[:min(len(word), longest)], "Unknown")
}

// containerIn returns the container of a field path: spec.containers{api}.
func containerIn(path string) string {
	_, rest, ok := strings.Cut(path, "{")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(rest, "}")
}

// toldAt is when a Kubernetes Event happened last. Old components write seconds,
// and leave eventTime out; new ones write microseconds, and leave the others out.
func toldAt(v *Version, o Origin) time.Time {
	last := time.Time{}
	for _, path := range [...]string{"series.lastObservedTime", "lastTimestamp", "eventTime"} {
		if at, err := time.Parse(time.RFC3339Nano, v.Field(path)); err == nil && at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		last = v.Created
	}
	if last.IsZero() || last.Sub(o.SeenAt) > event.MaxAhead {
		return o.SeenAt
	}
	return last
}

// fit takes changes, and then links, from an event that is larger than a gateway
// takes, and says in its metadata how many.
func fit(e *eventv1.Event) {
	const spare = 1 << 10 // for what a gateway or a client adds
	size := proto.Size(e)
	if size <= event.MaxSize-spare {
		return
	}
	data := e.GetK8S()
	changes, links := len(data.GetChanges()), len(data.GetLinks())
	for size > event.MaxSize-spare && len(data.GetChanges()) > 0 {
		data.Changes = data.GetChanges()[:len(data.GetChanges())/2]
		size = proto.Size(e)
	}
	for size > event.MaxSize-spare && len(data.GetLinks()) > 0 {
		data.Links = data.GetLinks()[:len(data.GetLinks())/2]
		size = proto.Size(e)
	}
	if n := changes - len(data.GetChanges()); n > 0 {
		e.Metadata[event.TapioK8sDroppedChanges] = strconv.Itoa(n)
	}
	if n := links - len(data.GetLinks()); n > 0 {
		e.Metadata[event.TapioK8sDroppedLinks] = strconv.Itoa(n)
	}
}

// clean returns a name as it may stand in an event: short, and valid UTF-8. Those
// of the API always are.
func clean(name string) string {
	const longest = 512
	if len(name) > longest || !utf8.ValidString(name) {
		return strings.ToValidUTF8(name[:min(len(name), longest)], "\uFFFD")
	}
	return name
}
