package causality_test

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

// One snapshot of a cluster: the caller turns what the objects say into events.
// Two ReplicaSets of one Deployment tell a rollout and what it changed, a
// container's last state tells how it ended.
func Example_snapshot() {
	engine, err := causality.New(causality.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	rollout := time.Date(2026, time.March, 3, 14, 2, 10, 0, time.UTC)
	api := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT, Id: "uid-1", Name: "api", Namespace: "shop"}
	set := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_REPLICASET, Id: "uid-2", Name: "api-64", Namespace: "shop"}
	pod := &ahtiv1.Entity{Type: ahtiv1.EntityType_ENTITY_TYPE_POD, Id: "uid-3", Name: "api-64-x", Namespace: "shop"}
	owns := func(owner, owned *ahtiv1.Entity) *ahtiv1.Relationship {
		return &ahtiv1.Relationship{
			Type:   ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS,
			Source: &ahtiv1.EntityReference{Type: owner.GetType(), Id: owner.GetId()},
			Target: &ahtiv1.EntityReference{Type: owned.GetType(), Id: owned.GetId()},
		}
	}

	engine.Apply(&ahtiv1.AhtiEvent{
		Id: "rollout", Timestamp: timestamppb.New(rollout), Subtype: "k8s.deployment.updated",
		Entities: []*ahtiv1.Entity{api, set, pod}, Relationships: []*ahtiv1.Relationship{owns(api, set), owns(set, pod)},
		Data: &ahtiv1.AhtiEvent_K8S{K8S: &eventv1.K8SEventData{Changes: []*eventv1.FieldChange{
			{Path: "spec.template.spec.containers[api].resources.limits.memory", Old: "512Mi", New: "64Mi"},
		}}},
	})
	engine.Apply(&ahtiv1.AhtiEvent{
		Id: "last-state", Timestamp: timestamppb.New(rollout.Add(41 * time.Second)), Subtype: "k8s.pod.updated",
		Severity: eventv1.Severity_SEVERITY_ERROR, Entities: []*ahtiv1.Entity{pod},
		Data: &ahtiv1.AhtiEvent_K8S{K8S: &eventv1.K8SEventData{Changes: []*eventv1.FieldChange{
			{Path: "status.containerStatuses[api].lastState.terminated.reason", New: "OOMKilled"},
		}}},
	})
	for _, incident := range engine.Incidents(rollout.Add(5 * time.Minute)) {
		fmt.Println(incident.GetSummary())
		fmt.Println(incident.GetAdvice())
	}
	// Output:
	// Deployment shop/api was rolled out at 14:02:10 UTC (memory limit 512Mi → 64Mi); 41 s later its container api was OOM-killed.
	// Raise the memory limit again, or undo the rollout.
}
