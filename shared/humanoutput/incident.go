package humanoutput

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

const (
	bold = "\x1b[1m"
	dim  = "\x1b[2m"
)

// maxSymptoms is how many symptoms an incident shows: fourteen pods of one bad
// Deployment tell no more than five.
const maxSymptoms = 5

// Incident tells an incident to somebody who was just woken up: what happened,
// how sure that is, what to do, then the evidence, in lines with their ends.
func (s Style) Incident(i *ahtiv1.Incident) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(strings.TrimRight(fmt.Sprintf(format, args...), " ") + "\n")
	}
	changes := func(c *ahtiv1.Cause) {
		for _, change := range c.GetChanges() {
			line("            %s: %s → %s", Clean(change.GetPath()), value(change.GetOld()), value(change.GetNew()))
		}
	}
	name, color := severity(i.GetSeverity())
	line("%s  %s", s.paint(color, name), s.paint(bold, Clean(i.GetSummary())))
	if i.GetAdvice() != "" {
		line("  what to do   %s", Clean(i.GetAdvice()))
	}
	line("  how sure     %s", confidence(i))
	line("  since        %s", s.period(i))
	if where := place(i); where != "" {
		line("  where        %s", where)
	}
	line("  incident     %s", Clean(i.GetId()))

	if len(i.GetChain()) > 0 {
		line("")
		line("  %s", s.paint(bold, "how it came about"))
		for n, l := range i.GetChain() {
			line("  %s  %s%s", s.clock(l.GetTimestamp().AsTime(), i), arrow(n), told(l.GetText(), l.GetKind(), l.GetEntity()))
			if explains(i, l) {
				changes(i.GetCauses()[0])
			}
		}
	}
	if len(i.GetSymptoms()) > 0 {
		line("")
		line("  %s", s.paint(bold, "what suffers"))
		for _, symptom := range i.GetSymptoms()[:min(maxSymptoms, len(i.GetSymptoms()))] {
			line("  %s  %s%s", s.clock(symptom.GetFirstAt().AsTime(), i), told(symptom.GetText(), symptom.GetKind(), symptom.GetEntity()), times(symptom))
		}
		if more := len(i.GetSymptoms()) - maxSymptoms; more > 0 {
			line("            and %d more", more)
		}
	}
	// A suspect that is not sure enough to be believed is in no chain.
	suspects, title := i.GetCauses(), "what it could be"
	if slices.ContainsFunc(i.GetChain(), func(l *ahtiv1.ChainLink) bool { return explains(i, l) }) {
		suspects, title = suspects[1:], "what else it could be"
	}
	if len(suspects) > 0 {
		line("")
		line("  %s", s.paint(bold, title))
		for _, c := range suspects {
			line("  %3.0f %%     %s", 100*c.GetConfidence(), told(c.GetText(), c.GetKind(), c.GetEntity()))
			changes(c)
		}
	}
	return b.String()
}

// explains says whether a step of the chain is the first cause.
func explains(i *ahtiv1.Incident, l *ahtiv1.ChainLink) bool {
	return len(i.GetCauses()) > 0 && i.GetCauses()[0].GetEventId() == l.GetEventId()
}

// Incidents lists incidents, a line each with its end.
func (s Style) Incidents(incidents []*ahtiv1.Incident) string {
	var b strings.Builder
	for _, i := range incidents {
		name, color := severity(i.GetSeverity())
		state := "open"
		if i.GetState() == ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED {
			state = "over"
		}
		fmt.Fprintf(&b, "%s  %s  %s  %-16s  %s\n", i.GetStartedAt().AsTime().In(s.zone()).Format("2006-01-02 15:04"),
			s.paint(color, fmt.Sprintf("%-8s", name)), state, Clean(i.GetId()), Clean(i.GetSummary()))
	}
	return b.String()
}

// StoredLine describes a stored event in one line without its end, as Line does.
func (s Style) StoredLine(e *ahtiv1.AhtiEvent) string {
	m := &eventv1.Event{
		Id: e.GetId(), TimestampUnixNs: e.GetTimestamp().AsTime().UnixNano(), Source: e.GetSource(),
		EventType: e.GetSubtype(), Metadata: e.GetLabels(), Severity: e.GetSeverity(), Outcome: e.GetOutcome(),
	}
	switch d := e.GetData().(type) {
	case *ahtiv1.AhtiEvent_Network:
		m.Data = &eventv1.Event_Network{Network: d.Network}
	case *ahtiv1.AhtiEvent_Kernel:
		m.Data = &eventv1.Event_Kernel{Kernel: d.Kernel}
	case *ahtiv1.AhtiEvent_Container:
		m.Data = &eventv1.Event_Container{Container: d.Container}
	case *ahtiv1.AhtiEvent_K8S:
		m.Data = &eventv1.Event_K8S{K8S: d.K8S}
	case *ahtiv1.AhtiEvent_Process:
		m.Data = &eventv1.Event_Process{Process: d.Process}
	case *ahtiv1.AhtiEvent_Resource:
		m.Data = &eventv1.Event_Resource{Resource: d.Resource}
	}
	return s.Line(m)
}

// Clean replaces what a terminal might obey instead of showing it.
func Clean(text string) string { return clean(text) }

func (s Style) zone() *time.Location {
	if s.Zone == nil {
		return time.UTC
	}
	return s.Zone
}

func (s Style) paint(color, text string) string {
	if !s.Color || color == "" {
		return text
	}
	return color + text + reset
}

// clock is the time of day, with the day where it is not that of the start.
func (s Style) clock(at time.Time, i *ahtiv1.Incident) string {
	at = at.In(s.zone())
	text := at.Format("15:04:05")
	if at.YearDay() != i.GetStartedAt().AsTime().In(s.zone()).YearDay() {
		text = at.Format("Jan _2 15:04:05")
	}
	return s.paint(dim, text)
}

func (s Style) period(i *ahtiv1.Incident) string {
	start, last := i.GetStartedAt().AsTime().In(s.zone()), i.GetLastSeenAt().AsTime().In(s.zone())
	text := start.Format("2006-01-02 15:04:05 MST")
	if i.GetState() == ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED {
		return text + ", over since " + last.Format("15:04:05") + " (" + last.Sub(start).Round(time.Second).String() + ")"
	}
	return text + ", seen last " + last.Format("15:04:05")
}

// confidence puts the number into words: a tired person reads 0.62 as certain. An
// incident whose cause is not believed has the number of its first suspect.
func confidence(i *ahtiv1.Incident) string {
	if len(i.GetCauses()) == 0 {
		return "no change that was seen explains the first symptom"
	}
	c := cmp.Or(i.GetConfidence(), i.GetCauses()[0].GetConfidence())
	word := "a guess"
	switch {
	case c >= 0.9:
		word = "almost certain"
	case c >= 0.7:
		word = "likely"
	case c >= 0.4:
		word = "possible"
	}
	return fmt.Sprintf("%s (%.0f %%)", word, 100*c)
}

func place(i *ahtiv1.Incident) string {
	root := i.GetRoot()
	if root == nil {
		return Clean(i.GetCluster())
	}
	text := entity(root)
	if i.GetCluster() != "" {
		text += " in cluster " + i.GetCluster()
	}
	return Clean(text)
}

func entity(e *ahtiv1.Entity) string {
	kind := strings.ToLower(strings.TrimPrefix(e.GetType().String(), "ENTITY_TYPE_"))
	name := e.GetName()
	if name == "" {
		name = e.GetId()
	}
	if e.GetNamespace() != "" {
		name = e.GetNamespace() + "/" + name
	}
	return kind + " " + name
}

// told is a clause, or what there is instead of one, with the thing that it is
// about unless it says so.
func told(text, kind string, e *ahtiv1.Entity) string {
	if text == "" {
		text = kind
	}
	if e != nil && (e.GetName() == "" || !strings.Contains(text, e.GetName())) {
		text = entity(e) + ": " + text
	}
	return Clean(text)
}

func arrow(n int) string {
	if n == 0 {
		return ""
	}
	return "→ "
}

func times(s *ahtiv1.Symptom) string {
	if s.GetCount() < 2 {
		return ""
	}
	return fmt.Sprintf(" (%d times in %s)", s.GetCount(), Duration(s.GetLastAt().AsTime().Sub(s.GetFirstAt().AsTime())))
}

// value shows a field that is not there, and cuts one that fills the screen.
func value(v string) string {
	const most = 60
	runes := []rune(Clean(v))
	switch {
	case v == "":
		return "(none)"
	case len(runes) > most:
		return string(slices.Concat(runes[:most], []rune("…")))
	}
	return string(runes)
}
