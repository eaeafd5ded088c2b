package causality_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/causality"
	"github.com/yairfalse/tapio/shared/event"
)

// That the scheduler is well again, or was restarted, is no symptom; that it does
// not answer is one until then.
func TestTheEndOfWhatTheSchedulerSufferedIsNoSymptom(t *testing.T) {
	began := time.Date(2026, time.March, 3, 14, 0, 0, 0, time.UTC)
	apply := func(e *causality.Engine, id, phase string, severity eventv1.Severity, at time.Time) {
		e.Apply(&ahtiv1.AhtiEvent{
			Id: id, Timestamp: timestamppb.New(at), Subtype: event.KindSchedulerUnavailable, Severity: severity,
			Labels:   map[string]string{event.TapioSchedulerPhase: phase},
			Entities: []*ahtiv1.Entity{{Type: ahtiv1.EntityType_ENTITY_TYPE_SCHEDULER, Id: "kube-scheduler", Name: "kube-scheduler"}},
		})
	}
	engine, err := causality.New(causality.Options{})
	require.NoError(t, err)
	apply(engine, "restarted", event.SchedulerPhaseEnd, eventv1.Severity_SEVERITY_INFO, began)
	require.Empty(t, engine.Incidents(began.Add(time.Minute)))

	apply(engine, "down", event.SchedulerPhaseStart, eventv1.Severity_SEVERITY_CRITICAL, began.Add(time.Hour))
	apply(engine, "still", event.SchedulerPhaseOngoing, eventv1.Severity_SEVERITY_CRITICAL, began.Add(time.Hour+time.Minute))
	incidents := engine.Incidents(began.Add(time.Hour + 2*time.Minute))
	require.Len(t, incidents, 1)
	open := incidents[0].GetState()
	apply(engine, "up", event.SchedulerPhaseEnd, eventv1.Severity_SEVERITY_INFO, began.Add(time.Hour+3*time.Minute))
	incidents = engine.Incidents(began.Add(time.Hour + 4*time.Minute))
	require.Len(t, incidents, 1)
	assert.NotEqual(t, open, incidents[0].GetState(), "it is over at once")
}
