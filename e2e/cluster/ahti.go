package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// Sizes of pages.
const (
	incidentPage = "1000"
	eventPage    = "1000"
)

// ask asks AHTI something.
func (s *system) ask(ctx context.Context, path string, parameters url.Values, into proto.Message) error {
	body, err := get(ctx, s.ahti+path+"?"+parameters.Encode())
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(body, into); err != nil {
		return fmt.Errorf("read what AHTI answers at %s: %w", path, err)
	}
	return nil
}

// incidents returns everything that AHTI told since the system was deployed.
func (s *system) incidents(ctx context.Context) ([]*ahtiv1.Incident, error) {
	var answer ahtiv1.ListIncidentsResponse
	err := s.ask(ctx, "/v1/incidents", url.Values{"page_size": {incidentPage}, "since": {stampOf(s.since)}}, &answer)
	return answer.GetIncidents(), err
}

// timeline returns all events since the system was deployed.
func (s *system) timeline(ctx context.Context) ([]*ahtiv1.AhtiEvent, error) {
	var all []*ahtiv1.AhtiEvent
	parameters := url.Values{"page_size": {eventPage}, "since": {stampOf(s.since)}, "until": {stampOf(time.Now())}}
	for {
		var answer ahtiv1.TimelineResponse
		if err := s.ask(ctx, "/v1/timeline", parameters, &answer); err != nil {
			return nil, err
		}
		all = append(all, answer.GetEvents()...)
		if answer.GetNextPageToken() == "" {
			return all, nil
		}
		parameters.Set("page_token", answer.GetNextPageToken())
	}
}

// why returns what AHTI says is wrong with something.
func (s *system) why(ctx context.Context, entity string) ([]*ahtiv1.Incident, error) {
	var answer ahtiv1.WhyResponse
	err := s.ask(ctx, "/v1/why", url.Values{"entity": {entity}}, &answer)
	return answer.GetIncidents(), err
}

// topology returns what is around something.
func (s *system) topology(ctx context.Context, entity string) (*ahtiv1.TopologyResponse, error) {
	answer := &ahtiv1.TopologyResponse{}
	return answer, s.ask(ctx, "/v1/topology", url.Values{"entity": {entity}, "depth": {"3"}}, answer)
}

// owners returns what owns something at last, by the ties that AHTI knows.
func owners(graph *ahtiv1.TopologyResponse, entity *ahtiv1.Entity) []string {
	byID := map[string]*ahtiv1.Entity{}
	for _, e := range graph.GetEntities() {
		byID[e.GetId()] = e
	}
	var names []string
	for id := entity.GetId(); id != ""; {
		next := ""
		for _, r := range graph.GetRelationships() {
			if r.GetType() == ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS && r.GetTarget().GetId() == id && byID[r.GetSource().GetId()] != nil {
				next = r.GetSource().GetId()
				names = append(names, nameOf(byID[next]))
			}
		}
		if id = next; len(names) > maxOwners {
			break
		}
	}
	return names
}

// maxOwners is more than anything in Kubernetes has.
const maxOwners = 6

func stampOf(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// kindOf writes the type of an entity as people do: deployment.
func kindOf(e *ahtiv1.Entity) string {
	return strings.ToLower(strings.TrimPrefix(e.GetType().String(), "ENTITY_TYPE_"))
}

// nameOf is kind/name.
func nameOf(e *ahtiv1.Entity) string { return kindOf(e) + "/" + e.GetName() }

// touches says whether an incident is about something in a namespace.
func touches(in *ahtiv1.Incident, namespace string) bool {
	return slices.ContainsFunc(append([]*ahtiv1.Entity{in.GetRoot()}, sufferers(in)...), func(e *ahtiv1.Entity) bool {
		return e.GetNamespace() == namespace || e.GetType() == ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE && e.GetName() == namespace
	})
}

func sufferers(in *ahtiv1.Incident) []*ahtiv1.Entity {
	var all []*ahtiv1.Entity
	for _, s := range in.GetSymptoms() {
		all = append(all, s.GetEntity())
	}
	return all
}

// firstSymptom is when the first thing suffered that counts.
func firstSymptom(in *ahtiv1.Incident, wants []want) time.Time {
	first := time.Time{}
	for _, s := range in.GetSymptoms() {
		if slices.ContainsFunc(wants, func(w want) bool {
			return w.first != "" && !matches(w.first, s.GetKind()+" "+nameOf(s.GetEntity()))
		}) {
			continue
		}
		if at := s.GetFirstAt().AsTime(); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// steps writes the chain of an incident, one "kind object" a step.
func steps(in *ahtiv1.Incident) []string {
	var all []string
	for _, l := range in.GetChain() {
		all = append(all, l.GetKind()+" "+nameOf(l.GetEntity()))
	}
	return all
}
