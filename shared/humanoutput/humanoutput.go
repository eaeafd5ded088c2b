// Package humanoutput writes events and tables for people at a terminal.
package humanoutput

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Style says how to write.
type Style struct {
	Color bool           // ANSI colours, for a terminal
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
	head := fmt.Sprintf("%-8s", name)
	if s.Color && color != "" {
		head = color + head + reset
	}
	line := fmt.Sprintf("%s  %s  %-22s  %-22s  %s",
		time.Unix(0, e.GetTimestampUnixNs()).In(zone).Format("15:04:05.000"), head, kind, who(e), what(e))
	if held := e.GetMetadata()[event.TapioSuppressed]; held != "" {
		line += " (+" + held + " held back)"
	}
	return strings.Map(printable, strings.TrimRight(line, " "))
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

// printable keeps the escape that starts our own colours and nothing else.
func printable(r rune) rune {
	if r == '\x1b' || unicode.IsPrint(r) {
		return r
	}
	return unicode.ReplacementChar
}

func clean(s string) string { return strings.ReplaceAll(s, "\x1b", string(unicode.ReplacementChar)) }

func who(e *eventv1.Event) string {
	m := e.GetMetadata()
	name, pid := m[event.ProcessExecutableName], m[event.ProcessPID]
	switch {
	case name == "" && pid == "":
		return "-"
	case pid == "":
		return clean(name)
	}
	return clean(name) + "[" + clean(pid) + "]"
}

// what tells the evidence, then the place.
func what(e *eventv1.Event) string {
	m := metadata(e.GetMetadata())
	var parts []string
	switch e.GetEventType() {
	case event.KindNetworkConnectionRefused, event.KindNetworkConnectionTimeout,
		event.KindNetworkConnectionUnreachable, event.KindNetworkConnectionReset, event.KindNetworkPortExhausted:
		text := m.peer() + " " + m.get(event.ErrorType)
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
		parts = append(parts, fmt.Sprintf("%s %s segments sent again in %s", m.peer(), m.get(event.TapioRetransmitCount),
			Duration(time.Duration(m.number(event.TapioRetransmitWindowMs)*float64(time.Millisecond)))))
	case event.KindContainerExitError:
		parts = append(parts, m.exit())
	case event.KindContainerOOMKill:
		parts = append(parts, m.oom())
	case event.KindAgentSignalUnavailable:
		parts = append(parts, m.get(event.TapioSignal)+": "+m.get(event.TapioReason))
	default:
		if reason := m.get(event.TapioReason); reason != "" {
			parts = append(parts, reason)
		}
	}
	if place := m.place(); place != "" {
		parts = append(parts, place)
	}
	return strings.Join(parts, "  ")
}

type metadata map[string]string

func (m metadata) get(key string) string { return clean(m[key]) }

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
	address := m.get(event.NetworkPeerAddress)
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	peer := arrow + address + ":" + m.get(event.NetworkPeerPort)
	if m[event.TapioNetworkRole] == event.RoleServer {
		peer += " (on port " + m.get(event.NetworkLocalPort) + ")"
	}
	return peer
}

func (m metadata) rtt() string {
	if m[event.TapioRTTPhase] == event.RTTPhaseEnd {
		return fmt.Sprintf("round trip was slow for %s s, worst %s ms, now %s ms (%s)",
			m.get(event.TapioRTTDurationS), m.get(event.TapioRTTWorstMs), m.get(event.TapioRTTCurrentMs), m.get(event.TapioRTTEndedBy))
	}
	text := "round trip takes " + m.get(event.TapioRTTCurrentMs) + " ms"
	if base := m.get(event.TapioRTTBaselineMs); base != "" {
		text += ", normal is " + base + " ms"
	}
	return text
}

func (m metadata) exit() string {
	text := "exit code " + m.get(event.ProcessExitCode)
	if signal := m.get(event.TapioProcessSignal); signal != "" {
		text = "killed by " + signal
		if m[event.TapioProcessCoreDumped] == "true" {
			text += " (core dumped)"
		}
	}
	text += " after " + m.get(event.TapioProcessRuntimeS) + " s"
	if parent := m.get(event.TapioProcessParentName); parent != "" {
		text += ", child of " + parent + "[" + m.get(event.ProcessParentPID) + "]"
	}
	if m[event.TapioProcessContainerInit] == "true" {
		text += ", its container ended"
	}
	return text
}

func (m metadata) oom() string {
	text := "killed: the node is out of memory"
	if m[event.TapioOOMConstraint] == event.OOMConstraintMemcg {
		text = "killed at the memory limit"
		if limit := m.get(event.TapioOOMLimitBytes); limit != "" {
			text += " of " + Bytes(m.number(event.TapioOOMLimitBytes)) + ", used " + Bytes(m.number(event.TapioOOMUsageBytes))
		}
		if group := m.get(event.TapioOOMCgroup); group != "" {
			text += " in " + group
		}
	}
	if m[event.TapioOOMAnonBytes] != "" {
		text += fmt.Sprintf("; held anon %s, file %s, shmem %s", Bytes(m.number(event.TapioOOMAnonBytes)),
			Bytes(m.number(event.TapioOOMFileBytes)), Bytes(m.number(event.TapioOOMShmemBytes)))
	}
	if trigger := m.get(event.TapioOOMTriggerPID); trigger != "" && trigger != m.get(event.ProcessPID) {
		text += "; " + m.get(event.TapioOOMTriggerName) + "[" + trigger + "] asked for the last page"
	}
	return text
}

// place names the most specific owner that is known.
func (m metadata) place() string {
	switch {
	case m[event.K8sPodName] != "":
		return "pod " + m.get(event.K8sNamespaceName) + "/" + m.get(event.K8sPodName)
	case m[event.ContainerID] != "":
		id := m.get(event.ContainerID)
		return "container " + id[:min(12, len(id))]
	case m[event.TapioServiceUnit] != "":
		return m.get(event.TapioServiceUnit)
	case m[event.ProcessLinuxCgroup] != "" && m[event.ProcessLinuxCgroup] != "/":
		return "cgroup " + m.get(event.ProcessLinuxCgroup)
	}
	return ""
}

// Bytes writes a size with the largest binary unit that leaves a figure of at
// least one, and exactly when that is possible.
func Bytes(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for n >= 1024 && i < len(units)-1 {
		n /= 1024
		i++
	}
	return strconv.FormatFloat(roundTo(n, 10), 'f', -1, 64) + " " + units[i]
}

// Duration writes a duration with three significant digits at the most.
func Duration(d time.Duration) string {
	switch {
	case d < time.Microsecond:
		return strconv.FormatInt(int64(d), 10) + " ns"
	case d < time.Millisecond:
		return figure(float64(d)/float64(time.Microsecond)) + " µs"
	case d < time.Second:
		return figure(float64(d)/float64(time.Millisecond)) + " ms"
	case d < 2*time.Minute:
		return figure(d.Seconds()) + " s"
	}
	return d.Round(time.Second).String()
}

func figure(f float64) string {
	per := 100.0
	if f >= 10 {
		per = 10
	}
	if f >= 100 {
		per = 1
	}
	return strconv.FormatFloat(roundTo(f, per), 'f', -1, 64)
}

func roundTo(f, per float64) float64 { return float64(int64(f*per+0.5)) / per }
