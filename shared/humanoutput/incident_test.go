package humanoutput_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

func after(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(at.Add(d)) }

// rollout is an incident with everything that one can have.
func rollout() *ahtiv1.Incident {
	deployment := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT, Id: "1", Name: "api", Namespace: "shop"}
	pod := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: "2", Name: "api-5d8f-x", Namespace: "shop"}
	return &ahtiv1.Incident{
		Id: "k3q9", Cluster: "prod", State: ahtiv1.IncidentState_INCIDENT_STATE_OPEN, Severity: eventv1.Severity_SEVERITY_CRITICAL,
		Summary:    "Pods of Deployment shop/api are OOM-killed since its memory limit was lowered.",
		Advice:     "Raise the memory limit of container api, or undo the rollout.",
		Confidence: 0.93, StartedAt: after(0), LastSeenAt: after(5 * time.Minute), Root: deployment,
		Causes: []*ahtiv1.Cause{
			{
				EventId: "e1", Text: "Deployment shop/api was rolled out", Entity: deployment, Confidence: 0.93,
				Changes: []*eventv1.FieldChange{{Path: "spec.template.spec.containers[api].resources.limits.memory", Old: "512Mi", New: "64Mi"}},
			},
			{Text: "node n1 was cordoned", Kind: "k8s.node.updated", Entity: &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_NODE, Name: "n1"}, Confidence: 0.04},
		},
		Chain: []*ahtiv1.ChainLink{
			{EventId: "e1", Timestamp: after(0), Text: "Deployment shop/api was rolled out", Entity: deployment},
			{EventId: "e2", Timestamp: after(12 * time.Second), Text: "its container was OOM-killed", Entity: pod},
		},
		Symptoms: []*ahtiv1.Symptom{
			{Kind: "container.oom_kill", Entity: pod, Count: 7, FirstAt: after(12 * time.Second), LastAt: after(5 * time.Minute), Text: "its container was OOM-killed"},
			{Kind: "network.connection_refused", Entity: pod, Count: 1, FirstAt: after(20 * time.Second), LastAt: after(20 * time.Second)},
		},
	}
}

func TestIncident(t *testing.T) {
	unexplained := &ahtiv1.Incident{
		Id: "x", State: ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED, Severity: eventv1.Severity_SEVERITY_ERROR,
		Summary: "Nobody knows.", StartedAt: after(0), LastSeenAt: after(90 * time.Second), Confidence: 0.2,
	}
	for n := range 7 {
		unexplained.Symptoms = append(unexplained.Symptoms, &ahtiv1.Symptom{
			Kind: "container.exit_error", FirstAt: after(24 * time.Hour), LastAt: after(24 * time.Hour), Count: 1,
			Entity: &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, Id: fmt.Sprintf("c%d", n)},
		})
	}
	// The engine suspects a change and is not sure enough to believe it.
	suspected := rollout()
	suspected.Summary = "Container api of Pod shop/api-5d8f-x failed. Not sure why: perhaps because Deployment shop/api was rolled out (41 %)."
	suspected.Advice, suspected.Confidence, suspected.Root = "", 0, suspected.GetSymptoms()[0].GetEntity()
	suspected.Causes[0].Confidence = 0.41
	suspected.Chain, suspected.Symptoms = suspected.GetChain()[1:], suspected.GetSymptoms()[:1]
	tests := []struct {
		name  string
		style humanoutput.Style
		in    *ahtiv1.Incident
		want  string
	}{
		{"with everything", humanoutput.Style{}, rollout(), `
CRITICAL  Pods of Deployment shop/api are OOM-killed since its memory limit was lowered.
  what to do   Raise the memory limit of container api, or undo the rollout.
  how sure     almost certain (93 %)
  since        2026-03-01 12:34:56 UTC, seen last 12:39:56
  where        deployment shop/api in cluster prod
  incident     k3q9

  how it came about
  12:34:56  Deployment shop/api was rolled out
            spec.template.spec.containers[api].resources.limits.memory: 512Mi → 64Mi
  12:35:08  → pod shop/api-5d8f-x: its container was OOM-killed

  what suffers
  12:35:08  pod shop/api-5d8f-x: its container was OOM-killed (7 times in 4m48s)
  12:35:16  pod shop/api-5d8f-x: network.connection_refused

  what else it could be
    4 %     node n1 was cordoned
`},
		{"with a suspect", humanoutput.Style{}, suspected, `
CRITICAL  Container api of Pod shop/api-5d8f-x failed. Not sure why: perhaps because Deployment shop/api was rolled out (41 %).
  how sure     possible (41 %)
  since        2026-03-01 12:34:56 UTC, seen last 12:39:56
  where        pod shop/api-5d8f-x in cluster prod
  incident     k3q9

  how it came about
  12:35:08  pod shop/api-5d8f-x: its container was OOM-killed

  what suffers
  12:35:08  pod shop/api-5d8f-x: its container was OOM-killed (7 times in 4m48s)

  what it could be
   41 %     Deployment shop/api was rolled out
            spec.template.spec.containers[api].resources.limits.memory: 512Mi → 64Mi
    4 %     node n1 was cordoned
`},
		{"without an explanation", humanoutput.Style{Zone: time.FixedZone("EET", 2*60*60)}, unexplained, `
ERROR  Nobody knows.
  how sure     no change that was seen explains the first symptom
  since        2026-03-01 14:34:56 EET, over since 14:36:26 (1m30s)
  incident     x

  what suffers
  Mar  2 14:34:56  container c0: container.exit_error
  Mar  2 14:34:56  container c1: container.exit_error
  Mar  2 14:34:56  container c2: container.exit_error
  Mar  2 14:34:56  container c3: container.exit_error
  Mar  2 14:34:56  container c4: container.exit_error
            and 2 more
`},
		{"nothing at all", humanoutput.Style{}, &ahtiv1.Incident{}, `
-
  how sure     no change that was seen explains the first symptom
  since        1970-01-01 00:00:00 UTC, seen last 00:00:00
  incident
`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, strings.TrimPrefix(test.want, "\n"), test.style.Incident(test.in))
		})
	}
}

func TestIncidentColors(t *testing.T) {
	text := humanoutput.Style{Color: true}.Incident(rollout())
	require.Contains(t, text, "\x1b[1;31mCRITICAL\x1b[0m")
	require.Contains(t, text, "\x1b[1mhow it came about\x1b[0m")
}

func TestIncidents(t *testing.T) {
	over := rollout()
	over.State, over.Id, over.Summary = ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED, "a", "Short."
	require.Equal(t, strings.TrimPrefix(`
2026-03-01 12:34  CRITICAL  open  k3q9              Pods of Deployment shop/api are OOM-killed since its memory limit was lowered.
2026-03-01 12:34  CRITICAL  over  a                 Short.
`, "\n"), humanoutput.Style{}.Incidents([]*ahtiv1.Incident{rollout(), over}))
}

// An event reads the same from the store as from the agent.
func TestStoredLine(t *testing.T) {
	e := connection(event.KindNetworkConnectionRefused, "ECONNREFUSED", event.TapioNetworkElapsedMs, "1.5")
	stored := &ahtiv1.AhtiEvent{
		Id: e.GetId(), Timestamp: timestamppb.New(time.Unix(0, e.GetTimestampUnixNs())), Subtype: e.GetEventType(),
		Severity: e.GetSeverity(), Labels: e.GetMetadata(),
		Data: &ahtiv1.AhtiEvent_Network{Network: &eventv1.NetworkEventData{TcpState: "ESTABLISHED"}},
	}
	require.Equal(t, humanoutput.Style{}.Line(inState(e, "ESTABLISHED")), humanoutput.Style{}.StoredLine(stored))
}

// Whatever an object is called, a terminal shows it and obeys nothing.
func FuzzIncident(f *testing.F) {
	f.Add("api\x1b]0;owned\x07", "a\nb")
	f.Fuzz(func(t *testing.T, name, text string) {
		i := rollout()
		i.Summary, i.Advice, i.Id, i.Cluster = text, name, text, name
		i.Root.Name, i.Causes[0].Changes[0].Old, i.Chain[1].Text, i.Symptoms[0].Text = name, text, text, text
		for line := range strings.Lines(humanoutput.Style{}.Incident(i) + humanoutput.Style{}.Incidents([]*ahtiv1.Incident{i})) {
			for _, r := range strings.TrimSuffix(line, "\n") {
				if !unicode.IsPrint(r) {
					t.Fatalf("%q has %U", line, r)
				}
			}
		}
	})
}
