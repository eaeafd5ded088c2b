// Package humanoutput writes events and tables for people at a terminal.
package humanoutput

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Style says how to write.
type Style struct {
	Color bool           // ANSI colors, for a terminal
	Zone  *time.Location // nil is UTC
}

// Line describes an event in one line without its end: when, how bad, what,
// who, and the evidence. It never holds control characters, whatever a process
// called itself.
func (s Style) Line(e *eventv1.Event) string {
	zone := s.Zone
	if zone == nil {
		zone = time.UTC
	}
	_, kind, found := strings.Cut(e.GetEventType(), ".")
	if !found {
		kind = e.GetEventType()
	}
	name, color := severity(e.GetSeverity())
	name = fmt.Sprintf("%-8s", name)
	if s.Color && color != "" {
		name = color + name + reset
	}
	story := fmt.Sprintf("%-22s  %-22s  %s", kind, who(e), what(e))
	if held := e.GetMetadata()[event.TapioSuppressed]; held != "" {
		story += " (+" + held + " held back)"
	}
	return time.Unix(0, e.GetTimestampUnixNs()).In(zone).Format("15:04:05.000") + "  " + name + "  " + clean(story)
}

// Sentence says in one line what happened to whom, without time and severity.
// Like Line it never holds control characters.
func Sentence(e *eventv1.Event) string {
	_, kind, found := strings.Cut(e.GetEventType(), ".")
	if !found {
		kind = e.GetEventType()
	}
	parts := []string{strings.ReplaceAll(kind, "_", " ") + ":"}
	if name := who(e); name != "-" {
		parts = append(parts, name)
	}
	if story := what(e); story != "" {
		parts = append(parts, story)
	}
	if len(parts) == 1 {
		parts[0] = strings.TrimSuffix(parts[0], ":")
	}
	return clean(strings.Join(strings.Fields(strings.Join(parts, " ")), " "))
}

const reset = "\x1b[0m"

func severity(s eventv1.Severity) (name, color string) {
	switch s {
	case eventv1.Severity_SEVERITY_CRITICAL:
		return "CRITICAL", "\x1b[1;31m"
	case eventv1.Severity_SEVERITY_ERROR:
		return "ERROR", "\x1b[31m"
	case eventv1.Severity_SEVERITY_WARNING:
		return "WARNING", "\x1b[33m"
	case eventv1.Severity_SEVERITY_INFO:
		return "INFO", "\x1b[32m"
	case eventv1.Severity_SEVERITY_DEBUG:
		return "DEBUG", ""
	}
	return "-", ""
}

// clean replaces what a terminal might obey instead of showing it.
func clean(s string) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s), " ")
}

func who(e *eventv1.Event) string {
	m := e.GetMetadata()
	name, pid := m[event.ProcessExecutableName], m[event.ProcessPID]
	switch {
	case name == "" && pid == "" && e.GetK8S().GetResourceType() == "Scheduler":
		return e.GetK8S().GetResourceName()
	case name == "" && pid == "":
		return "-"
	case pid == "":
		return name
	}
	return name + "[" + pid + "]"
}

// what tells the evidence, then the place.
func what(e *eventv1.Event) string {
	m := metadata(e.GetMetadata())
	var parts []string
	switch e.GetEventType() {
	case event.KindNetworkConnectionRefused, event.KindNetworkConnectionTimeout,
		event.KindNetworkConnectionUnreachable, event.KindNetworkConnectionReset, event.KindNetworkPortExhausted:
		text := m.peer() + " " + m[event.ErrorType]
		if ms := m.number(event.TapioNetworkElapsedMs); ms > 0 {
			text += " after " + Duration(time.Duration(ms*float64(time.Millisecond)))
		}
		if state := e.GetNetwork().GetTcpState(); state != "" && state != "SYN_SENT" {
			text += " in " + state
		}
		parts = append(parts, text)
	case event.KindNetworkRTTSpike:
		parts = append(parts, m.peer()+" "+m.rtt())
	case event.KindNetworkRetransmitSpike:
		parts = append(parts, fmt.Sprintf("%s %s segments sent again in %s", m.peer(), m[event.TapioRetransmitCount],
			Duration(time.Duration(m.number(event.TapioRetransmitWindowMs)*float64(time.Millisecond)))))
	case event.KindContainerExitError:
		parts = append(parts, m.exit())
	case event.KindContainerOOMKill:
		parts = append(parts, m.oom())
	case event.KindAgentSignalUnavailable:
		parts = append(parts, m[event.TapioSignal]+": "+m[event.TapioReason])
	default:
		if reason := cmp.Or(m[event.TapioReason], e.GetK8S().GetMessage()); reason != "" {
			parts = append(parts, reason)
		}
	}
	if place := m.place(); place != "" {
		parts = append(parts, place)
	}
	return strings.Join(parts, "  ")
}

type metadata map[string]string

func (m metadata) number(key string) float64 {
	f, err := strconv.ParseFloat(m[key], 64)
	if err != nil {
		return 0
	}
	return f
}

func (m metadata) peer() string {
	arrow := "→ "
	if m[event.TapioNetworkRole] == event.RoleServer {
		arrow = "← "
	}
	address := m[event.NetworkPeerAddress]
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	peer := arrow + address + ":" + m[event.NetworkPeerPort]
	if m[event.TapioNetworkRole] == event.RoleServer {
		peer += " (on port " + m[event.NetworkLocalPort] + ")"
	}
	return peer
}

func (m metadata) rtt() string {
	if m[event.TapioRTTPhase] == event.RTTPhaseEnd {
		return fmt.Sprintf("round trip was slow for %s s, worst %s ms, now %s ms (%s)",
			m[event.TapioRTTDurationS], m[event.TapioRTTWorstMs], m[event.TapioRTTCurrentMs], m[event.TapioRTTEndedBy])
	}
	text := "round trip takes " + m[event.TapioRTTCurrentMs] + " ms"
	if base := m[event.TapioRTTBaselineMs]; base != "" {
		text += ", normal is " + base + " ms"
	}
	return text
}

func (m metadata) exit() string {
	text := "exit code " + m[event.ProcessExitCode]
	if signal := m[event.TapioProcessSignal]; signal != "" {
		text = "killed by " + signal
		if m[event.TapioProcessCoreDumped] == "true" {
			text += " (core dumped)"
		}
	}
	text += " after " + m[event.TapioProcessRuntimeS] + " s"
	if parent := m[event.TapioProcessParentName]; parent != "" {
		text += ", child of " + parent + "[" + m[event.ProcessParentPID] + "]"
	}
	if m[event.TapioProcessContainerInit] == "true" {
		text += ", its container ended"
	}
	return text
}

func (m metadata) oom() string {
	text := "killed for want of memory"
	switch m[event.TapioOOMConstraint] {
	case event.OOMConstraintSystem:
		text = "killed: the node is out of memory"
	case event.OOMConstraintMemcg:
		text = "killed at the memory limit"
		if limit := m[event.TapioOOMLimitBytes]; limit != "" {
			text += " of " + Bytes(m.number(event.TapioOOMLimitBytes)) + ", used " + Bytes(m.number(event.TapioOOMUsageBytes))
		}
		if group := m[event.TapioOOMCgroup]; group != "" {
			text += " in " + group
		}
	}
	if m[event.TapioOOMAnonBytes] != "" {
		text += fmt.Sprintf("; held anon %s, file %s, shmem %s", Bytes(m.number(event.TapioOOMAnonBytes)),
			Bytes(m.number(event.TapioOOMFileBytes)), Bytes(m.number(event.TapioOOMShmemBytes)))
	}
	if trigger := m[event.TapioOOMTriggerPID]; trigger != "" && trigger != m[event.ProcessPID] {
		text += "; " + m[event.TapioOOMTriggerName] + "[" + trigger + "] asked for the last page"
	}
	return text
}

// place names the most specific owner that is known.
func (m metadata) place() string {
	switch {
	case m[event.K8sPodName] != "":
		return "pod " + m[event.K8sNamespaceName] + "/" + m[event.K8sPodName]
	case m[event.ContainerID] != "":
		id := m[event.ContainerID]
		return "container " + id[:min(12, len(id))]
	case m[event.TapioServiceUnit] != "":
		return m[event.TapioServiceUnit]
	case m[event.ProcessLinuxCgroup] != "" && m[event.ProcessLinuxCgroup] != "/":
		return "cgroup " + m[event.ProcessLinuxCgroup]
	}
	return ""
}

// Bytes writes a size with one decimal at the most, in the largest binary unit
// of which it is at least one.
func Bytes(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for round(n) >= 1024 && i < len(units)-1 {
		n /= 1024
		i++
	}
	return strconv.FormatFloat(round(n), 'f', -1, 64) + " " + units[i]
}

func round(f float64) float64 { return math.Round(f*10) / 10 }

// Duration writes a duration with three significant digits, and to the second
// from two minutes on.
func Duration(d time.Duration) string {
	for step := time.Duration(1); step <= time.Second; step *= 10 {
		if d.Abs() < 1000*step {
			d = d.Round(step)
			break
		}
	}
	switch size := d.Abs(); {
	case size < time.Microsecond:
		return in(d, time.Nanosecond) + " ns"
	case size < time.Millisecond:
		return in(d, time.Microsecond) + " µs"
	case size < time.Second:
		return in(d, time.Millisecond) + " ms"
	case size < 2*time.Minute:
		return in(d, time.Second) + " s"
	}
	return d.Round(time.Second).String()
}

func in(d, unit time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(unit), 'f', -1, 64)
}
