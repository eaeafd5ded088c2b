// Package transform turns the events of observers into the events of AHTI: the
// same facts, with the things that they are about and how those are tied to
// each other. It is pure: the same event gives the same answer, on every
// machine and at any time, so that a retry sends nothing new.
package transform

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Keys that W3C trace context has no OpenTelemetry attribute for: where spans
// are written as metadata, these are their usual names.
const (
	traceID = "trace_id"
	spanID  = "span_id"
)

// Event returns e as AHTI takes it. The answer shares metadata, payload and data
// with e: neither may be changed afterwards.
//
// It fails when e has no kind, has no id or one longer than event.MaxIDLen, or
// names a thing by more than MaxNameLen bytes. Such an event will never be taken;
// trying again is useless. Of one that names more things than AHTI takes, the
// surplus is left out and counted in a label.
func Event(e *eventv1.Event) (*ahtiv1.AhtiEvent, error) {
	switch {
	case e == nil:
		return nil, errors.New("transform event: it is nil")
	case e.GetId() == "":
		return nil, errors.New("transform event: it has no id: set a unique one")
	case len(e.GetId()) > event.MaxIDLen:
		return nil, fmt.Errorf("transform event %.40q: its id has %d bytes: use at most %d", e.GetId(), len(e.GetId()), event.MaxIDLen)
	case e.GetEventType() == "":
		return nil, errors.New("transform event: it has no event_type: set its kind")
	}
	for links := maxLinks; ; links /= 2 {
		out, err := build(e, links)
		if err != nil {
			return nil, err
		}
		if links == 0 || !tooLarge(out) {
			return out, nil
		}
	}
}

// build makes the event with at most so many owners, links and container states.
func build(e *eventv1.Event, links int) (*ahtiv1.AhtiEvent, error) {
	m := e.GetMetadata()
	out := &ahtiv1.AhtiEvent{
		Id:         e.GetId(),
		Timestamp:  timestamppb.New(time.Unix(0, e.GetTimestampUnixNs())),
		Type:       typeOf(e),
		Subtype:    e.GetEventType(),
		Severity:   e.GetSeverity(),
		Outcome:    e.GetOutcome(),
		Source:     e.GetSource(),
		TraceId:    hexID(m[traceID], 32),
		SpanId:     hexID(m[spanID], 16),
		DurationUs: durationUs(e),
		Cluster:    m[event.K8sClusterName],
		Labels:     m,
		Error:      errorOf(e),
		Payload:    e.GetPayload(),
	}
	copyData(out, e)
	g := newGraph(out, m, links)
	if object, ok := objectOf(e); ok {
		g.addObject(e, object)
	} else {
		g.addNodeEvent(e)
	}
	note(out, droppedLinks, g.dropped)
	return out, g.err
}

func copyData(out *ahtiv1.AhtiEvent, e *eventv1.Event) {
	switch d := e.GetData().(type) {
	case *eventv1.Event_Network:
		out.Data = &ahtiv1.AhtiEvent_Network{Network: d.Network}
	case *eventv1.Event_Kernel:
		out.Data = &ahtiv1.AhtiEvent_Kernel{Kernel: d.Kernel}
	case *eventv1.Event_Container:
		out.Data = &ahtiv1.AhtiEvent_Container{Container: d.Container}
	case *eventv1.Event_K8S:
		data, cut := fitChanges(d.K8S)
		out.Data = &ahtiv1.AhtiEvent_K8S{K8S: data}
		note(out, cutChanges, cut)
	case *eventv1.Event_Process:
		out.Data = &ahtiv1.AhtiEvent_Process{Process: d.Process}
	case *eventv1.Event_Resource:
		out.Data = &ahtiv1.AhtiEvent_Resource{Resource: d.Resource}
	}
}

// hexID returns a trace or span id in the spelling of W3C trace context, or
// nothing when it is none: all zeros is not an id.
func hexID(s string, digits int) string {
	if len(s) != digits || strings.Trim(s, "0") == "" || strings.Trim(s, "0123456789abcdefABCDEF") != "" {
		return ""
	}
	return strings.ToLower(s)
}

// durationUs returns how long the operation took, or 0 when nobody measured it.
func durationUs(e *eventv1.Event) uint64 {
	ms := e.GetNetwork().GetLatencyMs()
	if text, ok := e.GetMetadata()[event.TapioNetworkElapsedMs]; ok {
		if elapsed, err := strconv.ParseFloat(text, 64); err == nil {
			ms = elapsed
		}
	}
	// A century: what is longer, negative or no number was not measured.
	const longestMs = 100 * 365 * 24 * 3600 * 1000
	if !(ms > 0 && ms < longestMs) {
		return 0
	}
	return uint64(math.Round(ms * 1000))
}

// errorOf says what went wrong, or nil when nothing did.
func errorOf(e *eventv1.Event) *ahtiv1.EventError {
	m, k := e.GetMetadata(), e.GetK8S()
	if code := m[event.ErrorType]; code != "" {
		return &ahtiv1.EventError{Code: code, Message: m[event.TapioReason]}
	}
	failed := e.GetOutcome() == eventv1.Outcome_OUTCOME_FAILURE || e.GetOutcome() == eventv1.Outcome_OUTCOME_TIMEOUT
	// Kubernetes says "Warning" and not whether anything ended.
	warned := strings.HasPrefix(e.GetEventType(), kubernetesEvent) && e.GetSeverity() >= eventv1.Severity_SEVERITY_WARNING
	if !failed && !warned {
		return nil
	}
	code := cmp.Or(k.GetReason(), m[event.TapioProcessSignal], e.GetNetwork().GetDnsResponse())
	message := cmp.Or(k.GetMessage(), m[event.TapioReason])
	if code == "" && message == "" {
		return nil
	}
	return &ahtiv1.EventError{Code: code, Message: message}
}
