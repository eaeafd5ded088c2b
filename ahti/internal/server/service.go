// Package server is ahti as a whole: the gRPC service, and the process around
// it.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/ahti/internal/brain"
	"github.com/yairfalse/tapio/ahti/internal/ingest"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

const (
	// maxAnswer is where a page ends, bytes: clients take 4 MiB by default, and
	// one more item may come on top.
	maxAnswer = 2 << 20

	defaultEvents, maxEvents       = 1000, 10_000
	defaultIncidents, maxIncidents = 100, 1000
	defaultDepth, maxDepth         = 2, 10
	maxTopology                    = 5000 // entities
	defaultLookback                = time.Hour
	maxLookback                    = 24 * time.Hour
	// after is how much later than the symptom its incident may begin, as clocks
	// differ.
	after = 5 * time.Second
	// maxPast is how many engines of the past may be built at a time: each may
	// hold as much as the running one.
	maxPast = 1
)

// ServiceConfig says what answers.
type ServiceConfig struct {
	Store  *store.Store
	Engine *causality.Engine
	Writer *ingest.Writer
	Brain  *brain.Brain
	// Stop ends the endless streams when it is closed.
	Stop <-chan struct{}
}

// Service implements ahtiv1.AhtiServiceServer.
type Service struct {
	ahtiv1.UnimplementedAhtiServiceServer
	config   ServiceConfig
	metrics  *metrics
	inFlight *semaphore.Weighted
	building *semaphore.Weighted
}

func newService(config ServiceConfig, m *metrics) *Service {
	return &Service{
		config: config, metrics: m,
		inFlight: semaphore.NewWeighted(maxInFlight), building: semaphore.NewWeighted(maxPast),
	}
}

// problem makes a status of an error of the store.
func problem(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}

func bad(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// moment reads a time of a request; otherwise when it is not set.
func moment(name string, t *timestamppb.Timestamp, otherwise time.Time) (time.Time, error) {
	if t == nil {
		return otherwise, nil
	}
	if t.CheckValid() != nil || t.AsTime().Before(earliest) || t.AsTime().After(latest) {
		return time.Time{}, bad("%s is no time from %d to %d", name, earliest.Year(), latest.Year())
	}
	return t.AsTime(), nil
}

// word checks a name in a request. No name that is stored is longer or has a
// control character.
func word(name, text string, most int) error {
	if !isWord(text, most) {
		return bad("%s has %d bytes or a control character: use at most %d bytes without", name, len(text), most)
	}
	return nil
}

// size reads a number of a request.
func size[T int32 | int64](name string, n, otherwise, most T) (T, error) {
	if n < 0 {
		return 0, bad("%s is %d: use 0 for %d, or more", name, n, otherwise)
	}
	return min(cmp.Or(n, otherwise), most), nil
}

// resolve finds what a request names among what an engine knows.
func (s *Service) resolve(engine *causality.Engine, name, cluster string) ([]*ahtiv1.EntityReference, error) {
	if err := cmp.Or(word("entity", name, maxName), word("cluster", cluster, maxWord)); err != nil {
		return nil, err
	}
	refs := engine.Resolve(name, cluster)
	if len(refs) == 0 {
		where := ""
		if cluster != "" {
			where = fmt.Sprintf(" in cluster %q", cluster)
		}
		return nil, status.Errorf(codes.NotFound, "nothing is known of %q%s: name it as namespace/name, kind/namespace/name or by its id", name, where)
	}
	type key struct {
		kind        ahtiv1.EntityType
		cluster, id string
	}
	found := make(map[key]bool, len(refs))
	for _, r := range refs {
		found[key{r.GetType(), r.GetClusterId(), r.GetId()}] = true
	}
	// What the same things are called elsewhere may come along.
	entities, _, _ := engine.Topology(refs, time.Now(), 0, math.MaxInt)
	entities = slices.DeleteFunc(entities, func(e *ahtiv1.Entity) bool { return !found[key{e.GetType(), e.GetClusterId(), e.GetId()}] })
	entities, homes := meant(name, entities)
	if len(homes) > 1 {
		return nil, bad("%q may be %s", name, choices(name, homes))
	}
	refs = refs[:0]
	for _, e := range entities {
		refs = append(refs, &ahtiv1.EntityReference{Type: e.GetType(), Id: e.GetId(), ClusterId: e.GetClusterId()})
	}
	return refs, nil
}

// Why implements ahtiv1.AhtiServiceServer.
func (s *Service) Why(ctx context.Context, request *ahtiv1.WhyRequest) (*ahtiv1.WhyResponse, error) {
	now := time.Now()
	lookback, err := size("lookback_seconds", request.GetLookbackSeconds(), int64(defaultLookback/time.Second), int64(maxLookback/time.Second))
	if err != nil {
		return nil, err
	}
	at, err := moment("at", request.GetAt(), now)
	if err != nil {
		return nil, err
	}
	engine, name := s.config.Engine, request.GetEntity()
	var refs []*ahtiv1.EntityReference
	switch {
	case request.GetEventId() != "" && name != "":
		return nil, bad("event_id and entity are both set: set one")
	case request.GetEventId() != "":
		if err := word("event_id", request.GetEventId(), maxID); err != nil {
			return nil, err
		}
		event, err := s.config.Store.Event(ctx, request.GetEventId())
		if err != nil {
			return nil, problem(ctx, err)
		}
		at = event.GetTimestamp().AsTime()
		if refs, name = subject(event); refs == nil {
			return &ahtiv1.WhyResponse{Answer: "The event names nothing that it is about."}, nil
		}
	case name == "":
		return nil, bad("set entity or event_id")
	}
	from := at.Add(-time.Duration(lookback) * time.Second)
	if !s.config.Brain.Remembers(from, now) {
		if engine, err = s.past(ctx, func() (*causality.Engine, error) { return s.config.Brain.Past(ctx, from, at) }); err != nil {
			return nil, err
		}
	}
	if refs == nil {
		if refs, err = s.resolve(engine, name, request.GetCluster()); err != nil {
			return nil, err
		}
	}
	incidents := engine.Why(refs, from, at.Add(after), now)
	response := &ahtiv1.WhyResponse{Answer: answer(name, incidents, from, at)}
	bytes := 0
	for _, i := range incidents {
		if bytes += proto.Size(i); bytes > maxAnswer && len(response.GetIncidents()) > 0 {
			break
		}
		response.Incidents = append(response.Incidents, i)
	}
	return response, nil
}

// past makes an engine of what is stored.
func (s *Service) past(ctx context.Context, build func() (*causality.Engine, error)) (*causality.Engine, error) {
	if err := s.building.Acquire(ctx, 1); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer s.building.Release(1)
	engine, err := build()
	if err != nil {
		return nil, problem(ctx, err)
	}
	return engine, nil
}

// subject is what an event is about, and its name.
func subject(e *ahtiv1.AhtiEvent) ([]*ahtiv1.EntityReference, string) {
	if len(e.GetEntities()) == 0 {
		return nil, ""
	}
	x := e.GetEntities()[0]
	name := cmp.Or(x.GetName(), x.GetId())
	if x.GetNamespace() != "" {
		name = x.GetNamespace() + "/" + name
	}
	return []*ahtiv1.EntityReference{{Type: x.GetType(), Id: x.GetId(), ClusterId: cmp.Or(x.GetClusterId(), e.GetCluster())}}, name
}

// answer tells the worst incident, or that there is none.
func answer(name string, incidents []*ahtiv1.Incident, from, to time.Time) string {
	if len(incidents) == 0 {
		return fmt.Sprintf("Nothing that was seen of %s from %s to %s is a symptom.",
			name, from.UTC().Format(time.DateTime), to.UTC().Format(time.DateTime+" MST"))
	}
	text := incidents[0].GetSummary()
	switch more := len(incidents) - 1; more {
	case 0:
	case 1:
		text += " One more incident touches it."
	default:
		text += fmt.Sprintf(" %d more incidents touch it.", more)
	}
	return text
}

// ListIncidents implements ahtiv1.AhtiServiceServer.
func (s *Service) ListIncidents(ctx context.Context, request *ahtiv1.ListIncidentsRequest) (*ahtiv1.ListIncidentsResponse, error) {
	most, err := size("page_size", request.GetPageSize(), defaultIncidents, maxIncidents)
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(word("cluster", request.GetCluster(), maxWord), word("namespace", request.GetNamespace(), maxWord)); err != nil {
		return nil, err
	}
	filter := store.IncidentFilter{Cluster: request.GetCluster(), State: request.GetState()}
	if filter.SeenSince, err = moment("since", request.GetSince(), time.Time{}); err != nil {
		return nil, err
	}
	if filter.BeganBefore, err = moment("until", request.GetUntil(), time.Time{}); err != nil {
		return nil, err
	}
	if _, known := ahtiv1.IncidentState_name[int32(request.GetState())]; !known {
		return nil, bad("state is %d: use one that the protocol names", request.GetState())
	}
	if token := request.GetPageToken(); token != "" {
		if filter.After, err = readIncidentToken(token); err != nil {
			return nil, err
		}
	} else if err := s.config.Brain.Fresh(ctx, time.Now()); err != nil {
		return nil, problem(ctx, err)
	}
	response := &ahtiv1.ListIncidentsResponse{}
	bytes := 0
	err = s.config.Store.Incidents(ctx, filter, func(i *ahtiv1.Incident) bool {
		if request.GetNamespace() != "" && !touches(i, request.GetNamespace()) {
			return true
		}
		if n := len(response.GetIncidents()); n == int(most) || n > 0 && bytes > maxAnswer {
			last := response.GetIncidents()[n-1]
			response.NextPageToken = incidentToken(&store.IncidentPlace{StartedAt: last.GetStartedAt().AsTime().UnixNano(), ID: last.GetId()})
			return false
		}
		bytes += proto.Size(i)
		response.Incidents = append(response.Incidents, i)
		return true
	})
	if err != nil {
		return nil, problem(ctx, err)
	}
	return response, nil
}

// touches says whether something of an incident is in a namespace.
func touches(i *ahtiv1.Incident, namespace string) bool {
	in := func(e *ahtiv1.Entity) bool { return e.GetNamespace() == namespace }
	return in(i.GetRoot()) ||
		slices.ContainsFunc(i.GetSymptoms(), func(s *ahtiv1.Symptom) bool { return in(s.GetEntity()) }) ||
		slices.ContainsFunc(i.GetChain(), func(l *ahtiv1.ChainLink) bool { return in(l.GetEntity()) })
}

// GetIncident implements ahtiv1.AhtiServiceServer.
func (s *Service) GetIncident(ctx context.Context, request *ahtiv1.GetIncidentRequest) (*ahtiv1.GetIncidentResponse, error) {
	if request.GetId() == "" {
		return nil, bad("id is empty: use one that ListIncidents told")
	}
	if err := word("id", request.GetId(), maxName); err != nil {
		return nil, err
	}
	if err := s.config.Brain.Fresh(ctx, time.Now()); err != nil {
		return nil, problem(ctx, err)
	}
	incident, err := s.config.Store.Incident(ctx, request.GetId())
	if err != nil {
		return nil, problem(ctx, err)
	}
	return &ahtiv1.GetIncidentResponse{Incident: incident}, nil
}

// Timeline implements ahtiv1.AhtiServiceServer.
func (s *Service) Timeline(ctx context.Context, request *ahtiv1.TimelineRequest) (*ahtiv1.TimelineResponse, error) {
	most, err := size("page_size", request.GetPageSize(), defaultEvents, maxEvents)
	if err != nil {
		return nil, err
	}
	if err := word("cluster", request.GetCluster(), maxWord); err != nil {
		return nil, err
	}
	span := store.Span{Limit: int(most), Bytes: maxAnswer}
	// An event of a clock that is ahead is part of the present.
	if span.Until, err = moment("until", request.GetUntil(), time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	if span.Since, err = moment("since", request.GetSince(), span.Until.Add(-time.Hour)); err != nil {
		return nil, err
	}
	if token := request.GetPageToken(); token != "" {
		// The first page said what "now" is.
		if span, err = readTimelineToken(token, span); err != nil {
			return nil, err
		}
	}
	if !span.Since.Before(span.Until) {
		return nil, bad("since is not before until")
	}
	var records []*store.Record
	var next *store.Place
	if request.GetEntity() == "" {
		records, next, err = s.config.Store.Timeline(ctx, request.GetCluster(), span)
	} else {
		var refs []*ahtiv1.EntityReference
		refs, err = s.resolve(s.config.Engine, request.GetEntity(), request.GetCluster())
		if status.Code(err) == codes.NotFound {
			// It ended so long ago that only the store knows it, or it never was.
			var known *causality.Engine
			if known, err = s.past(ctx, func() (*causality.Engine, error) { return s.config.Brain.Known(ctx) }); err == nil {
				refs, err = s.resolve(known, request.GetEntity(), request.GetCluster())
			}
		}
		if err != nil {
			return nil, err
		}
		records, next, err = s.config.Store.EntityTimeline(ctx, refs, span)
	}
	if err != nil {
		return nil, problem(ctx, err)
	}
	response := &ahtiv1.TimelineResponse{}
	for _, r := range records {
		response.Events = append(response.Events, r.Event)
	}
	if next != nil {
		response.NextPageToken = timelineToken(span, *next)
	}
	return response, nil
}

// Topology implements ahtiv1.AhtiServiceServer.
func (s *Service) Topology(ctx context.Context, request *ahtiv1.TopologyRequest) (*ahtiv1.TopologyResponse, error) {
	now := time.Now()
	depth, err := size("depth", request.GetDepth(), defaultDepth, maxDepth)
	if err != nil {
		return nil, err
	}
	at, err := moment("at", request.GetAt(), now)
	if err != nil {
		return nil, err
	}
	engine := s.config.Engine
	if !s.config.Brain.Remembers(at, now) {
		if engine, err = s.past(ctx, func() (*causality.Engine, error) { return s.config.Brain.Known(ctx) }); err != nil {
			return nil, err
		}
	}
	var refs []*ahtiv1.EntityReference
	if request.GetEntity() != "" {
		if refs, err = s.resolve(engine, request.GetEntity(), request.GetCluster()); err != nil {
			return nil, err
		}
	}
	entities, relationships, truncated := engine.Topology(refs, at, int(depth), maxTopology)
	if request.GetEntity() == "" && request.GetCluster() != "" {
		entities = slices.DeleteFunc(entities, func(e *ahtiv1.Entity) bool { return e.GetClusterId() != request.GetCluster() })
		relationships = slices.DeleteFunc(relationships, func(r *ahtiv1.Relationship) bool {
			return r.GetSource().GetClusterId() != request.GetCluster() || r.GetTarget().GetClusterId() != request.GetCluster()
		})
	}
	return &ahtiv1.TopologyResponse{Entities: entities, Relationships: relationships, Truncated: truncated}, nil
}
