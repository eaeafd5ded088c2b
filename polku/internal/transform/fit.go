package transform

import (
	"maps"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// AHTI refuses an event that exceeds these, and a refused event helps nobody: what
// is too much is left out, and a label of the event says how much that was.
const (
	// MaxEntities is the most entities of one event.
	MaxEntities = 1024
	// MaxSize is the most that one event may take, bytes.
	MaxSize = 512 << 10
	// maxPath and maxValue are the longest path and value of a changed field, bytes.
	maxPath  = 1 << 10
	maxValue = 64 << 10
)

// Labels of an event of which something was left out: how many owners, links and
// container states, and how many changed fields or ends of their values.
const (
	droppedLinks = "tapio.transform.dropped_links"
	cutChanges   = "tapio.transform.cut_changes"
)

const (
	// ownThings is how many entities an event has beside its owners, links and
	// container states: the subject, its namespace and its addresses.
	ownThings = 8
	maxLinks  = MaxEntities - ownThings
	// fewThings can be named without exceeding MaxSize, as a gateway takes events
	// of half of it only: most events need no measuring.
	fewThings = 16
)

// tooLarge says whether the event's names make it larger than AHTI takes.
func tooLarge(e *ahtiv1.AhtiEvent) bool {
	return len(e.GetEntities()) > fewThings && proto.Size(e) > MaxSize
}

// room says whether the event may name one more owner, link or container state.
func (g *graph) room() bool {
	if g.links == 0 {
		g.dropped++
		return false
	}
	g.links--
	return true
}

// note says in a label how much of the event was left out.
func note(out *ahtiv1.AhtiEvent, name string, count int) {
	if count == 0 {
		return
	}
	labels := make(map[string]string, len(out.GetLabels())+1)
	maps.Copy(labels, out.GetLabels()) // which the source event has too
	labels[name] = strconv.Itoa(count)
	out.Labels = labels
}

// fitChanges returns the data with values of changed fields cut, and fields left
// out whose path is too long, and how many those were. People are shown the
// beginning of a value only. The data itself stays as it is.
func fitChanges(k *eventv1.K8SEventData) (fitting *eventv1.K8SEventData, cut int) {
	for _, c := range k.GetChanges() {
		if !fits(c) {
			cut++
		}
	}
	if cut == 0 {
		return k, 0
	}
	fitting = proto.CloneOf(k)
	kept := fitting.GetChanges()[:0]
	for _, c := range fitting.GetChanges() {
		c.Old, c.New = beginning(c.GetOld()), beginning(c.GetNew())
		if fits(c) {
			kept = append(kept, c)
		}
	}
	fitting.Changes = kept
	return fitting, cut
}

func fits(c *eventv1.FieldChange) bool {
	return len(c.GetPath()) <= maxPath && len(c.GetOld()) <= maxValue && len(c.GetNew()) <= maxValue
}

func beginning(value string) string {
	return strings.ToValidUTF8(value[:min(len(value), maxValue)], "")
}
