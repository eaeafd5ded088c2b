package causality

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// stamp orders events: by time, then by id, so that no two are equal.
type stamp struct {
	at int64 // nanoseconds since the Unix epoch
	id string
}

func (s stamp) compare(o stamp) int {
	return cmp.Or(cmp.Compare(s.at, o.at), strings.Compare(s.id, o.id))
}

// change is something that was done to an entity, and may be why others suffer.
type change struct {
	stamp
	kind   string
	vertex *vertex
	fields []field
	// gap says that the change happened at some time before at.
	gap bool
	// learned says that the lessons count it already.
	learned bool
}

// field is one changed field with what the table says of it.
type field struct {
	*eventv1.FieldChange
	class     string
	name      string
	container string // that the path goes through
	pattern   string // of the path, in the table
}

// inTemplate says whether the field is one of what a workload's pods are to be like.
// Pods that exist do not follow a change of it.
func (f field) inTemplate() bool {
	return strings.HasPrefix(f.GetPath(), "spec.template.") || strings.HasPrefix(f.GetPath(), "spec.jobTemplate.")
}

// run is a symptom that goes on: events of one name about one thing, none of
// them long after the one before.
type run struct {
	name    string
	about   string // what tells runs of one name about one thing apart
	vertex  *vertex
	peer    *vertex // the other end of a connection; nil when nobody told
	peerBy  stamp   // the event that told it
	first   sighted // event that began it
	last    stamp
	count   int64 // of events, those aside that only tell again
	again   int64 // of events that tell again
	series  int64 // the most that one Kubernetes Event said it was seen
	worst   eventv1.Severity
	samples []stamp // the earliest events, by time
	learned bool

	cached explanation
}

// sighted is what is kept of an event that shows a symptom.
type sighted struct {
	stamp
	kind      string
	container string            // by its name in the pod
	labels    map[string]string // only what sentences and the scores need
}

// maxSamples is how many events of a run are told by id, the last one aside.
const maxSamples = 3

// maxRuns is how many runs of one thing are told apart. A port scan would make
// one for each port.
const maxRuns = 1024

// noField is the class of a change of which no field is known, such as the
// creation of an object.
const noField = ""

// showing is what an event shows of a symptom.
type showing struct {
	row       *symptomRow
	container string // by its name in the pod
	// again is set when the API tells what it told before: a container's lastState
	// was its state.
	again bool
}

// classify says which symptom an event shows; the row is nil when it shows none:
// most events only tell facts.
func (m *Modes) classify(ev *ahtiv1.AhtiEvent) showing {
	kind := ev.GetSubtype()
	s := m.firstOf(m.byKind[kind], ev)
	if s.row == nil {
		s = m.firstOf(m.wild, ev)
	}
	if s.row != nil && s.row.Normal {
		return showing{}
	}
	if s.row == nil && ev.GetSeverity() >= eventv1.Severity_SEVERITY_ERROR && !strings.HasPrefix(kind, "agent.") {
		s.row = &symptomRow{Name: otherSymptom, Opens: 1, Text: "{subject} reports " + kind}
	}
	if s.container == "" {
		s.container = ev.GetLabels()[event.K8sContainerName]
	}
	return s
}

// firstOf returns what the first of some rows says that matches the event.
func (m *Modes) firstOf(rows []int, ev *ahtiv1.AhtiEvent) showing {
	for _, i := range rows {
		for j := range m.symptoms[i].On {
			if path, ok := m.symptoms[i].On[j].matches(ev); ok {
				return showing{&m.symptoms[i], entryIn(path, containerLists()...), slices.Contains(path, "lastState")}
			}
		}
	}
	return showing{}
}

// endedBy returns the names of the symptoms that an event says are over.
func (m *Modes) endedBy(ev *ahtiv1.AhtiEvent) []string {
	var names []string
	for _, i := range m.overBy[ev.GetSubtype()] {
		for j := range m.symptoms[i].Over {
			if _, ok := m.symptoms[i].Over[j].matches(ev); ok {
				names = append(names, m.symptoms[i].Name)
				break
			}
		}
	}
	return names
}

// matches says whether the event is one that the row looks for, and which changed
// field makes it one.
func (s *sighting) matches(ev *ahtiv1.AhtiEvent) (field []string, ok bool) {
	if s.Kind != ev.GetSubtype() {
		if matched, err := path.Match(s.Kind, ev.GetSubtype()); err != nil || !matched {
			return nil, false
		}
	}
	for label, values := range s.Labels {
		if !slices.Contains(values, ev.GetLabels()[label]) {
			return nil, false
		}
	}
	if len(s.Message) > 0 {
		message := strings.ToLower(ev.GetK8S().GetMessage())
		if !slices.ContainsFunc(s.Message, func(part string) bool { return strings.Contains(message, strings.ToLower(part)) }) {
			return nil, false
		}
	}
	if s.Field == "" {
		return nil, true
	}
	for _, c := range ev.GetK8S().GetChanges() {
		if !slices.Contains(s.New, c.GetNew()) {
			continue
		}
		if steps := splitPath(c.GetPath()); matchPath(s.steps, steps) {
			return steps, true
		}
	}
	return nil, false
}

// changeOf returns the change that an event tells of; nil when it tells of
// none. A change of the status is what the cluster did, not what was done to it.
func (m *Modes) changeOf(ev *ahtiv1.AhtiEvent) *change {
	kind := ev.GetSubtype()
	if !strings.HasPrefix(kind, "k8s.") || strings.HasPrefix(kind, "k8s.event.") {
		return nil
	}
	c := &change{kind: kind, gap: ev.GetK8S().GetGap()}
	if !strings.HasSuffix(kind, ".updated") {
		// What an object was made with is told beside its making; none of it was
		// changed.
		return c
	}
	consequence := systemTaints(ev)
	for _, fc := range ev.GetK8S().GetChanges() {
		steps := splitPath(fc.GetPath())
		if len(steps) == 0 {
			continue
		}
		f := field{FieldChange: fc, class: noField, name: fc.GetPath(), container: entryIn(steps, containerLists()...)}
		if row := m.field(steps); row != nil {
			f.class, f.name, f.pattern = row.Class, row.Name, row.Path
		}
		if f.class == "status" || f.class == "condition" || f.class == noField || f.class == "taint" && consequence {
			continue
		}
		c.fields = append(c.fields, f)
	}
	if len(c.fields) == 0 {
		return nil
	}
	return c
}

// systemTaints says whether an update tells of taints that the cluster itself sets
// and takes away: they follow from a cordon, or from the condition of the node.
func systemTaints(ev *ahtiv1.AhtiEvent) bool {
	return slices.ContainsFunc(ev.GetK8S().GetChanges(), func(c *eventv1.FieldChange) bool {
		// List entries are written by key or by number.
		return strings.HasPrefix(c.GetPath(), "spec.taints[") &&
			slices.ContainsFunc([]string{c.GetPath(), c.GetOld(), c.GetNew()}, isSystemTaint)
	})
}

// isSystemTaint says whether a text names a taint of the cluster.
func isSystemTaint(text string) bool {
	return strings.Contains(text, "node.kubernetes.io/") || strings.Contains(text, "node.cloudprovider.kubernetes.io/")
}

// class names what was changed, for the lessons: the kind with the classes of
// its fields.
func (c *change) class() string {
	var classes []string
	for _, f := range c.fields {
		classes = append(classes, f.class)
	}
	slices.Sort(classes)
	return c.kind + ":" + strings.Join(slices.Compact(classes), ",")
}

// onlyTemplate says whether nothing but what new pods are like was changed.
func (c *change) onlyTemplate() bool {
	return len(c.fields) > 0 && !slices.ContainsFunc(c.fields, func(f field) bool { return !f.inTemplate() })
}

// onlyReplicas says whether nothing but how many pods there are was changed.
func (c *change) onlyReplicas() bool {
	return len(c.fields) > 0 && !slices.ContainsFunc(c.fields, func(f field) bool { return f.class != "replicas" })
}

// direction says whether a quantity grew (1) or shrank (-1); 0 when that cannot
// be told. A limit that goes away is one that grew.
func (f field) direction() int {
	older, errOld := resource.ParseQuantity(f.GetOld())
	newer, errNew := resource.ParseQuantity(f.GetNew())
	switch {
	case errOld == nil && errNew == nil:
		return newer.Cmp(older)
	case errOld == nil && f.GetNew() == "":
		return 1
	case errNew == nil && f.GetOld() == "":
		return -1
	default:
		return 0
	}
}

// keptLabels are those that sentences and scores use.
func keptLabels() []string {
	return []string{
		event.TapioOOMLimitBytes, event.TapioOOMUsageBytes, event.TapioOOMConstraint,
		event.ProcessExecutableName, event.ProcessExitCode, event.TapioProcessSignal,
		event.NetworkPeerAddress, event.NetworkPeerPort, event.TapioRTTCurrentMs,
	}
}

// Names under which a sentence finds what is no label: the message of a Kubernetes
// event, the name of the webhook that it is about, and the name that DNS was asked
// for.
const (
	messageLabel = "k8s.event.message"
	webhookLabel = "k8s.webhook.name"
	dnsLabel     = "dns.question.name"
)

// maxMessage is how much of a message is kept, bytes.
const maxMessage = 240

func newSighted(ev *ahtiv1.AhtiEvent, shown showing) sighted {
	s := sighted{stamp: stampOf(ev), kind: ev.GetSubtype(), container: shown.container, labels: map[string]string{}}
	note := func(name, value string) {
		if value != "" {
			s.labels[name] = value
		}
	}
	for _, name := range keptLabels() {
		note(name, ev.GetLabels()[name])
	}
	note(dnsLabel, cmp.Or(ev.GetLabels()[dnsLabel], ev.GetNetwork().GetDnsQuery()))
	message := ev.GetK8S().GetMessage()
	note(messageLabel, strings.ToValidUTF8(message[:min(len(message), maxMessage)], ""))
	if _, call, ok := strings.Cut(message, `failed calling webhook "`); ok {
		name, _, _ := strings.Cut(call, `"`)
		note(webhookLabel, name)
	}
	if shown.row.Name == containerFailed && s.labels[event.ProcessExitCode] == "" {
		note(event.ProcessExitCode, exitCodeIn(ev, shown.container))
	}
	return s
}

// containerFailed is the symptom of which it matters how a process ended.
const containerFailed = "container_failed"

// exitCodeIn returns the exit code of a container that the status of its pod tells.
func exitCodeIn(ev *ahtiv1.AhtiEvent, container string) string {
	for _, c := range ev.GetK8S().GetChanges() {
		if c.GetNew() != "" && strings.HasPrefix(c.GetPath(), "status.") && strings.HasSuffix(c.GetPath(), ".terminated.exitCode") &&
			entryIn(splitPath(c.GetPath()), containerLists()...) == container {
			return c.GetNew()
		}
	}
	return ""
}

func stampOf(ev *ahtiv1.AhtiEvent) stamp {
	return stamp{at: ev.GetTimestamp().AsTime().UnixNano(), id: ev.GetId()}
}

// about tells runs of one name about one thing apart.
func (s *sighted) about() string {
	return strings.Join([]string{s.container, s.labels[event.NetworkPeerAddress], s.labels[event.NetworkPeerPort], exitOf(s.labels)}, "|")
}

// exitOf says how a process ended: by a signal or with a code.
func exitOf(labels map[string]string) string {
	if signal := labels[event.TapioProcessSignal]; signal != "" {
		return signal
	}
	if code := labels[event.ProcessExitCode]; code != "" {
		return "exit code " + code
	}
	return ""
}

// times is how often the symptom was seen. A series that a Kubernetes Event tells
// counts as that many, whether each of its events was told or only the last.
func (r *run) times() int64 { return max(r.count, r.again, r.series) }

// add takes an event into the run.
func (r *run) add(s sighted, ev *ahtiv1.AhtiEvent, again bool) (changed bool) {
	fresh := r.count+r.again == 0
	if again {
		r.again++
	} else {
		r.count++
	}
	r.series = max(r.series, int64(ev.GetK8S().GetCount()))
	r.worst = max(r.worst, ev.GetSeverity())
	if fresh || s.compare(r.first.stamp) < 0 {
		r.first, changed = s, true
	}
	if s.compare(r.last) > 0 {
		r.last = s.stamp
	}
	r.sample(s.stamp)
	return changed
}

func (r *run) sample(s stamp) {
	at, _ := slices.BinarySearchFunc(r.samples, s, stamp.compare)
	if at < maxSamples {
		r.samples = slices.Insert(r.samples, at, s)
		r.samples = r.samples[:min(len(r.samples), maxSamples)]
	}
}

// meet notes the other end of the connection. Of several events the earliest is
// believed.
func (r *run) meet(peer *vertex, by stamp) (changed bool) {
	if peer == nil || r.peer != nil && r.peerBy.compare(by) <= 0 {
		return false
	}
	changed = r.peer != peer
	r.peer, r.peerBy = peer, by
	return changed
}

// join takes another run of the same thing in, which an event between the two
// has shown to be the same one.
func (r *run) join(o *run) {
	if o.first.compare(r.first.stamp) < 0 {
		r.first = o.first
	}
	if o.last.compare(r.last) > 0 {
		r.last = o.last
	}
	r.meet(o.peer, o.peerBy)
	r.count, r.again, r.series = r.count+o.count, r.again+o.again, max(r.series, o.series)
	r.worst = max(r.worst, o.worst)
	for _, s := range o.samples {
		r.sample(s)
	}
}

// addTo puts an event into the run of v that it belongs to, or begins one. It
// says whether anything but counts changed.
func addTo(v *vertex, about string, s sighted, shown showing, ev *ahtiv1.AhtiEvent) (*run, bool) {
	name := shown.row.Name
	var home *run
	changed := false
	kept := v.runs[:0]
	for _, r := range v.runs {
		if r.name != name || r.about != about || s.at < r.first.at-int64(quiet) || s.at > r.last.at+int64(quiet) {
			kept = append(kept, r)
			continue
		}
		if home == nil {
			home = r
			kept = append(kept, r)
			continue
		}
		home.join(r)
		changed = true
	}
	clear(v.runs[len(kept):])
	v.runs = kept
	if home == nil && len(v.runs) >= maxRuns && about != "" {
		return addTo(v, "", s, shown, ev)
	}
	if home == nil {
		home = &run{name: name, about: about, vertex: v}
		v.runs = append(v.runs, home)
		changed = true
	}
	return home, home.add(s, ev, shown.again) || changed
}
