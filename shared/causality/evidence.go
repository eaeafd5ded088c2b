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
	count   int64
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

// classify says what an event is to the engine. Both may be nil: most events
// only tell facts.
func (m *Modes) classify(ev *ahtiv1.AhtiEvent) (symptom *symptomRow, container string) {
	kind := ev.GetSubtype()
	try := func(rows []int) *symptomRow {
		for _, i := range rows {
			for j := range m.symptoms[i].On {
				if c, ok := m.symptoms[i].On[j].matches(ev); ok {
					container = c
					return &m.symptoms[i]
				}
			}
		}
		return nil
	}
	if symptom = try(m.byKind[kind]); symptom == nil {
		symptom = try(m.wild)
	}
	if symptom == nil && ev.GetSeverity() >= eventv1.Severity_SEVERITY_ERROR && !strings.HasPrefix(kind, "agent.") {
		symptom = &symptomRow{Name: otherSymptom, Opens: 1, Text: "{subject} reports " + kind}
	}
	if container == "" {
		container = ev.GetLabels()[event.K8sContainerName]
	}
	return symptom, container
}

// matches says whether the event shows the symptom, and in which container.
func (s *sighting) matches(ev *ahtiv1.AhtiEvent) (container string, ok bool) {
	if s.Kind != ev.GetSubtype() {
		if matched, err := path.Match(s.Kind, ev.GetSubtype()); err != nil || !matched {
			return "", false
		}
	}
	if s.Label != "" && !slices.Contains(s.Value, ev.GetLabels()[s.Label]) {
		return "", false
	}
	if len(s.Message) > 0 {
		message := strings.ToLower(ev.GetK8S().GetMessage())
		if !slices.ContainsFunc(s.Message, func(part string) bool { return strings.Contains(message, strings.ToLower(part)) }) {
			return "", false
		}
	}
	if s.Field == "" {
		return "", true
	}
	for _, c := range ev.GetK8S().GetChanges() {
		if !slices.Contains(s.New, c.GetNew()) {
			continue
		}
		if steps := splitPath(c.GetPath()); matchPath(s.steps, steps) {
			return entryIn(steps, containerLists()...), true
		}
	}
	return "", false
}

// changeOf returns the change that an event tells of; nil when it tells of
// none. A change of the status is what the cluster did, not what was done to it.
func (m *Modes) changeOf(ev *ahtiv1.AhtiEvent) *change {
	kind := ev.GetSubtype()
	if !strings.HasPrefix(kind, "k8s.") || strings.HasPrefix(kind, "k8s.event.") {
		return nil
	}
	c := &change{kind: kind, gap: ev.GetK8S().GetGap()}
	for _, fc := range ev.GetK8S().GetChanges() {
		steps := splitPath(fc.GetPath())
		if len(steps) == 0 {
			continue
		}
		f := field{FieldChange: fc, class: noField, name: fc.GetPath(), container: entryIn(steps, containerLists()...)}
		if row := m.field(steps); row != nil {
			f.class, f.name = row.Class, row.Name
		}
		if f.class == "status" || f.class == "condition" || f.class == noField {
			continue
		}
		c.fields = append(c.fields, f)
	}
	if strings.HasSuffix(kind, ".updated") && len(c.fields) == 0 {
		return nil
	}
	return c
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
		messageLabel,
	}
}

// messageLabel is under which a sentence finds the message of a Kubernetes
// event.
const messageLabel = "k8s.event.message"

// maxMessage is how much of a message is kept, bytes.
const maxMessage = 240

func newSighted(ev *ahtiv1.AhtiEvent, container string) sighted {
	s := sighted{stamp: stampOf(ev), kind: ev.GetSubtype(), container: container, labels: map[string]string{}}
	for _, name := range keptLabels() {
		if value := ev.GetLabels()[name]; value != "" {
			s.labels[name] = value
		}
	}
	if message := ev.GetK8S().GetMessage(); message != "" {
		s.labels[messageLabel] = strings.ToValidUTF8(message[:min(len(message), maxMessage)], "")
	}
	return s
}

func stampOf(ev *ahtiv1.AhtiEvent) stamp {
	return stamp{at: ev.GetTimestamp().AsTime().UnixNano(), id: ev.GetId()}
}

// aboutOf tells runs of one name about one thing apart.
func aboutOf(ev *ahtiv1.AhtiEvent, container string) string {
	labels := ev.GetLabels()
	return strings.Join([]string{container, labels[event.NetworkPeerAddress], labels[event.NetworkPeerPort], exitOf(labels)}, "|")
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

// add takes an event into the run.
func (r *run) add(s sighted, severity eventv1.Severity) (changed bool) {
	r.count++
	r.worst = max(r.worst, severity)
	if r.count == 1 || s.compare(r.first.stamp) < 0 {
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
	r.count += o.count
	r.worst = max(r.worst, o.worst)
	for _, s := range o.samples {
		r.sample(s)
	}
}

// addTo puts an event into the run of v that it belongs to, or begins one. It
// says whether anything but counts changed.
func addTo(v *vertex, name, about string, s sighted, severity eventv1.Severity) (*run, bool) {
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
		return addTo(v, name, "", s, severity)
	}
	if home == nil {
		home = &run{name: name, about: about, vertex: v}
		v.runs = append(v.runs, home)
		changed = true
	}
	return home, home.add(s, severity) || changed
}
