package humanoutput_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

var at = time.Date(2026, time.March, 1, 12, 34, 56, 789_000_000, time.UTC)

const containerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// newEvent returns an event with metadata given as key, value, key, value.
func newEvent(kind string, metadata ...string) *eventv1.Event {
	e := event.NewFactory().New(kind, at, "tapio")
	for i := 0; i < len(metadata); i += 2 {
		e.Metadata[metadata[i]] = metadata[i+1]
	}
	return e
}

func process(e *eventv1.Event) *eventv1.Event {
	e.Metadata[event.ProcessExecutableName] = "api"
	e.Metadata[event.ProcessPID] = "4711"
	return e
}

func connection(kind, errno string, more ...string) *eventv1.Event {
	return process(newEvent(kind, append([]string{
		event.NetworkPeerAddress, "10.0.0.7", event.NetworkPeerPort, "5432",
		event.NetworkLocalPort, "8080", event.TapioNetworkRole, event.RoleClient, event.ErrorType, errno,
	}, more...)...))
}

// about makes an event one of the scheduler.
func about(e *eventv1.Event, message string) *eventv1.Event {
	e.Data = &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{ResourceType: "Scheduler", ResourceName: "kube-scheduler", Message: message}}
	return e
}

func inState(e *eventv1.Event, state string) *eventv1.Event {
	e.Data = &eventv1.Event_Network{Network: &eventv1.NetworkEventData{TcpState: state}}
	return e
}

func TestLine(t *testing.T) {
	const head = "12:34:56.789  "
	tests := []struct {
		name string
		e    *eventv1.Event
		want string
	}{
		{
			"refused", inState(connection(event.KindNetworkConnectionRefused, "ECONNREFUSED", event.TapioNetworkElapsedMs, "1.500", event.ContainerID, containerID), "SYN_SENT"),
			"ERROR     connection_refused      api[4711]               → 10.0.0.7:5432 ECONNREFUSED after 1.5 ms  container 0123456789ab",
		},
		{
			"timeout", connection(event.KindNetworkConnectionTimeout, "timeout", event.TapioNetworkElapsedMs, "130000", event.K8sPodName, "web-0", event.K8sNamespaceName, "shop"),
			"ERROR     connection_timeout      api[4711]               → 10.0.0.7:5432 timeout after 2m10s  pod shop/web-0",
		},
		{
			"unreachable over IPv6", connection(event.KindNetworkConnectionUnreachable, "EHOSTUNREACH", event.NetworkPeerAddress, "fd00::7", event.ProcessLinuxCgroup, "/user.slice"),
			"ERROR     connection_unreachable  api[4711]               → [fd00::7]:5432 EHOSTUNREACH  cgroup /user.slice",
		},
		{
			"reset as a server", inState(connection(event.KindNetworkConnectionReset, "ECONNRESET", event.TapioNetworkRole, event.RoleServer, event.NetworkPeerPort, "51234", event.TapioServiceUnit, "nginx.service"), "ESTABLISHED"),
			"WARNING   connection_reset        api[4711]               ← 10.0.0.7:51234 (on port 8080) ECONNRESET in ESTABLISHED  nginx.service",
		},
		{
			"scheduler", about(newEvent(event.KindSchedulerUnschedulable), "1 pod finds no node, refused by NodeAffinity (1)"),
			"WARNING   unschedulable           kube-scheduler          1 pod finds no node, refused by NodeAffinity (1)",
		},
		{
			"no port", connection(event.KindNetworkPortExhausted, "EADDRNOTAVAIL", event.ProcessLinuxCgroup, "/"),
			"CRITICAL  port_exhausted          api[4711]               → 10.0.0.7:5432 EADDRNOTAVAIL",
		},
		{
			"held back", connection(event.KindNetworkConnectionRefused, "ECONNREFUSED", event.TapioSuppressed, "12"),
			"ERROR     connection_refused      api[4711]               → 10.0.0.7:5432 ECONNREFUSED (+12 held back)",
		},
		{
			"spike starts", connection(event.KindNetworkRTTSpike, "", event.TapioRTTPhase, event.RTTPhaseStart, event.TapioRTTCurrentMs, "61.500", event.TapioRTTBaselineMs, "1.200"),
			"WARNING   rtt_spike               api[4711]               → 10.0.0.7:5432 round trip takes 61.500 ms, normal is 1.200 ms",
		},
		{
			"spike of a peer that is not known yet", connection(event.KindNetworkRTTSpike, "", event.TapioRTTPhase, event.RTTPhaseStart, event.TapioRTTCurrentMs, "750.000"),
			"WARNING   rtt_spike               api[4711]               → 10.0.0.7:5432 round trip takes 750.000 ms",
		},
		{
			"spike ends", connection(event.KindNetworkRTTSpike, "", event.TapioRTTPhase, event.RTTPhaseEnd, event.TapioRTTCurrentMs, "1.300", event.TapioRTTWorstMs, "98.765",
				event.TapioRTTDurationS, "12.345", event.TapioRTTEndedBy, event.RTTEndedByRecovered),
			"WARNING   rtt_spike               api[4711]               → 10.0.0.7:5432 round trip was slow for 12.345 s, worst 98.765 ms, now 1.300 ms (recovered)",
		},
		{
			"retransmits", connection(event.KindNetworkRetransmitSpike, "", event.TapioRetransmitCount, "12", event.TapioRetransmitWindowMs, "4200.000"),
			"WARNING   retransmit_spike        api[4711]               → 10.0.0.7:5432 12 segments sent again in 4.2 s",
		},
		{
			"exit", process(newEvent(event.KindContainerExitError, event.ProcessExitCode, "3", event.TapioProcessRuntimeS, "1.234", event.TapioProcessParentName, "sh", event.ProcessParentPID, "4000")),
			"ERROR     exit_error              api[4711]               exit code 3 after 1.234 s, child of sh[4000]",
		},
		{
			"crash of a container", process(newEvent(event.KindContainerExitError, event.ProcessExitCode, "0", event.TapioProcessSignal, "SIGSEGV", event.TapioProcessCoreDumped, "true",
				event.TapioProcessContainerInit, "true", event.TapioProcessRuntimeS, "0.010")),
			"ERROR     exit_error              api[4711]               killed by SIGSEGV (core dumped) after 0.010 s, its container ended",
		},
		{
			"OOM at a limit", process(newEvent(event.KindContainerOOMKill, event.TapioOOMConstraint, event.OOMConstraintMemcg, event.TapioOOMLimitBytes, "67108864", event.TapioOOMUsageBytes, "67104768",
				event.TapioOOMCgroup, "/kubepods/x", event.TapioOOMAnonBytes, "62914560", event.TapioOOMFileBytes, "1048576", event.TapioOOMShmemBytes, "0",
				event.TapioOOMTriggerName, "helper", event.TapioOOMTriggerPID, "4712")),
			"CRITICAL  oom_kill                api[4711]               killed at the memory limit of 64 MiB, used 64 MiB in /kubepods/x; held anon 60 MiB, file 1 MiB, shmem 0 B; helper[4712] asked for the last page",
		},
		{
			"OOM of the node", process(newEvent(event.KindContainerOOMKill, event.TapioOOMConstraint, event.OOMConstraintSystem, event.TapioOOMTriggerName, "api", event.TapioOOMTriggerPID, "4711")),
			"CRITICAL  oom_kill                api[4711]               killed: the node is out of memory",
		},
		{
			"OOM of nobody knows what", newEvent(event.KindContainerOOMKill, event.ProcessPID, "4711"),
			"CRITICAL  oom_kill                [4711]                  killed for want of memory",
		},
		{
			"signal", newEvent(event.KindAgentSignalUnavailable, event.TapioSignal, "oom", event.TapioReason, "no such tracepoint"),
			"WARNING   signal_unavailable      -                       oom: no such tracepoint",
		},
		{
			"name without a number", newEvent(event.KindAgentGap, event.ProcessExecutableName, "tapio", event.TapioReason, "restarted"),
			"WARNING   gap                     tapio                   restarted",
		},
		{
			"nothing known", &eventv1.Event{TimestampUnixNs: at.UnixNano(), EventType: "odd"},
			"-         odd                     -",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			assert.Equal(t, head+test.want, humanoutput.Style{}.Line(test.e))
		})
	}
}

// A kind that has no words of its own gives its reason.
func TestLineOfEveryKind(t *testing.T) {
	for _, k := range event.Kinds() {
		e := newEvent(k.Type, event.TapioReason, "because")
		line := humanoutput.Style{}.Line(e)
		_, name, _ := strings.Cut(k.Type, ".")
		severity := strings.TrimPrefix(k.Severity.String(), "SEVERITY_")
		assert.True(t, strings.HasPrefix(line, fmt.Sprintf("12:34:56.789  %-8s  %-22s  ", severity, name)), line)
		if k.Data == event.DataResource || k.Data == event.DataK8s || k.Type == event.KindAgentGap {
			assert.True(t, strings.HasSuffix(line, "  because"), line)
		}
	}
}

func TestColor(t *testing.T) {
	tests := map[eventv1.Severity]string{
		eventv1.Severity_SEVERITY_CRITICAL:    "\x1b[1;31mCRITICAL\x1b[0m",
		eventv1.Severity_SEVERITY_ERROR:       "\x1b[31mERROR   \x1b[0m",
		eventv1.Severity_SEVERITY_WARNING:     "\x1b[33mWARNING \x1b[0m",
		eventv1.Severity_SEVERITY_INFO:        "\x1b[32mINFO    \x1b[0m",
		eventv1.Severity_SEVERITY_DEBUG:       "DEBUG   ",
		eventv1.Severity_SEVERITY_UNSPECIFIED: "-       ",
	}
	for severity, want := range tests {
		e := newEvent(event.KindAgentGap)
		e.Severity = severity
		colored, plain := humanoutput.Style{Color: true}.Line(e), humanoutput.Style{}.Line(e)
		assert.Equal(t, "12:34:56.789  "+want+"  gap                     -", colored)
		assert.Equal(t, plain, strings.NewReplacer("\x1b[1;31m", "", "\x1b[31m", "", "\x1b[33m", "", "\x1b[32m", "", "\x1b[0m", "").Replace(colored))
		assert.NotContains(t, plain, "\x1b")
	}
}

func TestZone(t *testing.T) {
	e := newEvent(event.KindAgentGap)
	assert.True(t, strings.HasPrefix(humanoutput.Style{Zone: time.FixedZone("", 2*3600)}.Line(e), "14:34:56.789 "))
}

// hostile is what a process may call itself, and worse.
var hostile = []string{
	"\x1b[2J\x1b[H", "a\nb", "a\r\x08b", "\x9b31m", "\u009b31m", "\x1b]0;title\x07", "\xff\xfe", "\x00", "\x7f",
	"\u202egnp.exe", "a\u2028b", "\u0085", "\t",
}

// harmless says that a line is one line of characters that only show themselves.
func harmless(t *testing.T, line string) {
	t.Helper()
	require.True(t, utf8.ValidString(line), "%q", line)
	for _, r := range line {
		require.True(t, unicode.IsPrint(r), "%q has %U", line, r)
	}
	require.Equal(t, strings.TrimRight(line, " "), line)
}

func TestHostileNames(t *testing.T) {
	for _, k := range event.Kinds() {
		for _, bad := range hostile {
			e := newEvent(k.Type)
			for _, key := range event.Keys() {
				e.Metadata[key.Name] = bad
			}
			for _, role := range []string{event.RoleClient, event.RoleServer} {
				e.Metadata[event.TapioNetworkRole] = role
				inState(e, bad)
				harmless(t, humanoutput.Style{}.Line(e))
				colored := humanoutput.Style{Color: true}.Line(e)
				require.Equal(t, 2, strings.Count(colored, "\x1b"), "%q", colored)
			}
		}
	}
	harmless(t, humanoutput.Style{}.Line(newEvent("\x1b[2J.\x1b[2J\n")))
	harmless(t, humanoutput.Style{}.Line(nil))
}

func FuzzLine(f *testing.F) {
	for i, bad := range hostile {
		f.Add(uint8(i), bad, bad, bad)
	}
	keys, kinds := event.Keys(), event.Kinds()
	f.Fuzz(func(t *testing.T, n uint8, a, b, c string) {
		e := newEvent(kinds[int(n)%len(kinds)].Type)
		for i, key := range keys {
			e.Metadata[key.Name] = []string{a, b, c, ""}[(i+int(n))%4]
		}
		harmless(t, humanoutput.Style{}.Line(e))
	})
}

func TestBytes(t *testing.T) {
	tests := []struct {
		in   float64
		want string
	}{
		{0, "0 B"},
		{1, "1 B"},
		{1023, "1023 B"},
		{1024, "1 KiB"},
		{1536, "1.5 KiB"},
		{1100, "1.1 KiB"},
		{1<<20 - 1, "1 MiB"},
		{64 << 20, "64 MiB"},
		{1.25 * (1 << 30), "1.3 GiB"},
		{1 << 40, "1 TiB"},
		{1 << 54, "16384 TiB"},
		{-1, "-1 B"},
		{math.Inf(1), "+Inf TiB"},
		{math.NaN(), "NaN B"},
	}
	for _, test := range tests {
		assert.Equal(t, test.want, humanoutput.Bytes(test.in), "%v", test.in)
	}
}

func TestDuration(t *testing.T) {
	tests := []struct {
		in   time.Duration
		want string
	}{
		{0, "0 ns"},
		{999, "999 ns"},
		{1000, "1 µs"},
		{1234, "1.23 µs"},
		{12_345, "12.3 µs"},
		{123_456, "123 µs"},
		{999_499, "999 µs"},
		{999_500, "1 ms"},
		{1_500 * time.Microsecond, "1.5 ms"},
		{999_999 * time.Microsecond, "1 s"},
		{time.Second, "1 s"},
		{12_345 * time.Millisecond, "12.3 s"},
		{119_400 * time.Millisecond, "119 s"},
		{119_600 * time.Millisecond, "2m0s"},
		{2 * time.Minute, "2m0s"},
		{1000 * time.Second, "16m40s"},
		{90*time.Minute + 1500*time.Millisecond, "1h30m2s"},
		{-1500 * time.Microsecond, "-1.5 ms"},
	}
	for _, test := range tests {
		assert.Equal(t, test.want, humanoutput.Duration(test.in), "%d", test.in)
	}
}

func TestSentence(t *testing.T) {
	e := &eventv1.Event{EventType: event.KindContainerExitError, Metadata: map[string]string{
		event.ProcessExecutableName: "a\x1bb", event.ProcessPID: "7", event.ProcessExitCode: "3", event.TapioProcessRuntimeS: "2",
	}}
	require.Equal(t, "exit error: a\uFFFDb[7] exit code 3 after 2 s", humanoutput.Sentence(e))
	require.Equal(t, "gap", humanoutput.Sentence(&eventv1.Event{EventType: event.KindAgentGap}))
	require.Equal(t, "strange", humanoutput.Sentence(&eventv1.Event{EventType: "strange"}))
}
