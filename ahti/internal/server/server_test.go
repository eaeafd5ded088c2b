package server_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/ahti/internal/ahtitest"
	"github.com/yairfalse/tapio/ahti/internal/server"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// recent is a workload of the last minutes, so that its incidents are open.
func recent() ahtitest.Workload {
	return ahtitest.Workload{Pods: 20, Start: time.Now().Add(-10 * time.Minute).Truncate(time.Second), Step: time.Second, Cluster: "prod"}
}

func ids(events []*ahtiv1.AhtiEvent) []string {
	var all []string
	for _, e := range events {
		all = append(all, e.GetId())
	}
	return all
}

func get(t *testing.T, r *running, path string, into proto.Message) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.http+path, nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, "application/json", response.Header.Get("Content-Type"))
	if into != nil {
		require.NoError(t, protojson.Unmarshal(body, into), "%s", body)
	}
	return response.StatusCode, string(body)
}

// What was stored is told the same over gRPC and JSON, before and after a
// restart.
func TestIngestAndAsk(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		w := recent()
		r := run(t, server.Config{Store: config})
		events := w.Events(0, 500)
		for _, response := range r.ingest(t, events, 100) {
			require.Len(t, response.GetEventIds(), 100)
			require.Empty(t, response.GetErrors())
			require.Zero(t, response.GetDuplicates())
		}
		again := r.ingest(t, append(events[490:500:500], w.Event(500)), 100)[0]
		require.Equal(t, ids(w.Events(490, 11)), again.GetEventIds(), "in the order of the request")
		require.EqualValues(t, 10, again.GetDuplicates())

		pod := w.Event(7).GetEntities()[0] // it was OOM-killed
		name := pod.GetNamespace() + "/" + pod.GetName()
		var before [2]proto.Message
		for round := range 2 {
			timeline, err := r.Timeline(t.Context(), &ahtiv1.TimelineRequest{})
			require.NoError(t, err)
			require.Equal(t, ids(w.Events(0, 501)), ids(timeline.GetEvents()))
			require.True(t, proto.Equal(events[3], timeline.GetEvents()[3]))

			// The engine follows the commits.
			var why *ahtiv1.WhyResponse
			require.Eventually(t, func() bool {
				why, err = r.Why(t.Context(), &ahtiv1.WhyRequest{Entity: name})
				return err == nil && len(why.GetIncidents()) > 0
			}, 30*time.Second, 20*time.Millisecond)
			require.Equal(t, why.GetIncidents()[0].GetSummary(), why.GetAnswer()[:len(why.GetIncidents()[0].GetSummary())])
			byEvent, err := r.Why(t.Context(), &ahtiv1.WhyRequest{EventId: w.Event(7).GetId()})
			require.NoError(t, err)
			require.NotEmpty(t, byEvent.GetIncidents())

			var list *ahtiv1.ListIncidentsResponse
			require.Eventually(t, func() bool {
				list, err = r.ListIncidents(t.Context(), &ahtiv1.ListIncidentsRequest{Cluster: "prod", Namespace: pod.GetNamespace()})
				return err == nil && len(list.GetIncidents()) > 0
			}, 30*time.Second, 20*time.Millisecond)
			one, err := r.GetIncident(t.Context(), &ahtiv1.GetIncidentRequest{Id: list.GetIncidents()[0].GetId()})
			require.NoError(t, err)
			require.Equal(t, list.GetIncidents()[0].GetSummary(), one.GetIncident().GetSummary())

			topology, err := r.Topology(t.Context(), &ahtiv1.TopologyRequest{Entity: name})
			require.NoError(t, err)
			require.NotEmpty(t, topology.GetRelationships())

			viaHTTP := &ahtiv1.TimelineResponse{}
			code, _ := get(t, r, "/v1/timeline?cluster=prod", viaHTTP)
			require.Equal(t, http.StatusOK, code)
			require.Equal(t, ids(timeline.GetEvents()), ids(viaHTTP.GetEvents()))
			incidentViaHTTP := &ahtiv1.GetIncidentResponse{}
			code, _ = get(t, r, "/v1/incidents/"+url.PathEscape(one.GetIncident().GetId()), incidentViaHTTP)
			require.Equal(t, http.StatusOK, code)
			require.Equal(t, one.GetIncident().GetId(), incidentViaHTTP.GetIncident().GetId())
			whyViaHTTP := &ahtiv1.WhyResponse{}
			code, body := get(t, r, "/v1/why?entity="+url.QueryEscape(name), whyViaHTTP)
			require.Equal(t, http.StatusOK, code)
			require.Contains(t, body, `"last_seen_at"`, "the names of the protocol")
			require.Equal(t, why.GetAnswer(), whyViaHTTP.GetAnswer())
			code, _ = get(t, r, "/v1/topology?entity="+url.QueryEscape(name)+"&depth=1", &ahtiv1.TopologyResponse{})
			require.Equal(t, http.StatusOK, code)
			code, _ = get(t, r, "/v1/incidents?state=open&namespace="+pod.GetNamespace(), &ahtiv1.ListIncidentsResponse{})
			require.Equal(t, http.StatusOK, code)

			if round == 0 {
				before = [2]proto.Message{why, topology}
				require.NoError(t, r.stop())
				r = run(t, server.Config{Store: config})
				continue
			}
			requireSame(t, before[0], why)
			requireSame(t, before[1], topology)
		}
	})
}

// requireSame compares messages and shows where they differ.
func requireSame(t *testing.T, want, got proto.Message) {
	t.Helper()
	require.True(t, proto.Equal(want, got), "want %s\ngot  %s", protojson.Format(want), protojson.Format(got))
}

// The same events by many streams at once are stored once and acknowledged to
// all.
func TestManyStreams(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		const streams, events = 6, 600
		w := recent()
		r := run(t, server.Config{Store: config})
		var all sync.WaitGroup
		duplicates, acknowledged := make([]int64, streams), make([]int, streams)
		for s := range streams {
			all.Go(func() {
				for _, response := range r.ingest(t, w.Events(0, events), 40) {
					duplicates[s] += response.GetDuplicates()
					acknowledged[s] += len(response.GetEventIds())
				}
			})
		}
		all.Wait()
		var sum int64
		for s := range streams {
			require.Equal(t, events, acknowledged[s])
			sum += duplicates[s]
		}
		require.EqualValues(t, (streams-1)*events, sum)
		timeline, err := r.Timeline(t.Context(), &ahtiv1.TimelineRequest{})
		require.NoError(t, err)
		require.Equal(t, ids(w.Events(0, events)), ids(timeline.GetEvents()))
	})
}

// changed is the data of an object of which a field changed.
func changed(path, before, after string) *ahtiv1.AhtiEvent_K8S {
	return &ahtiv1.AhtiEvent_K8S{K8S: &eventv1.K8SEventData{Changes: []*eventv1.FieldChange{{Path: path, Old: before, New: after}}}}
}

func TestWrongEventsAreRefusedAndOthersStored(t *testing.T) {
	w := recent()
	long := strings.Repeat("x", 2000)
	tests := map[string]struct {
		spoil func(*ahtiv1.AhtiEvent)
		code  string
	}{
		"no id":              {func(e *ahtiv1.AhtiEvent) { e.Id = "" }, "invalid"},
		"long id":            {func(e *ahtiv1.AhtiEvent) { e.Id = long }, "invalid"},
		"id with a space":    {func(e *ahtiv1.AhtiEvent) { e.Id = "a b" }, "invalid"},
		"id beyond ASCII":    {func(e *ahtiv1.AhtiEvent) { e.Id = "ä" }, "invalid"},
		"no time":            {func(e *ahtiv1.AhtiEvent) { e.Timestamp = nil }, "invalid"},
		"impossible time":    {func(e *ahtiv1.AhtiEvent) { e.Timestamp = &timestamppb.Timestamp{Seconds: 1 << 60} }, "invalid"},
		"the epoch":          {func(e *ahtiv1.AhtiEvent) { e.Timestamp = &timestamppb.Timestamp{} }, "invalid"},
		"the day after":      {func(e *ahtiv1.AhtiEvent) { e.Timestamp = timestamppb.New(time.Now().Add(25 * time.Hour)) }, "invalid"},
		"no kind":            {func(e *ahtiv1.AhtiEvent) { e.Subtype = "" }, "invalid"},
		"NUL in the kind":    {func(e *ahtiv1.AhtiEvent) { e.Subtype = "a\x00b" }, "invalid"},
		"NUL in the source":  {func(e *ahtiv1.AhtiEvent) { e.Source = "\x00" }, "invalid"},
		"NUL in the cluster": {func(e *ahtiv1.AhtiEvent) { e.Cluster = "\x00" }, "invalid"},
		"long source":        {func(e *ahtiv1.AhtiEvent) { e.Source = long }, "invalid"},
		"entity without id":  {func(e *ahtiv1.AhtiEvent) { e.Entities[1].Id = "" }, "invalid"},
		"entity, long id":    {func(e *ahtiv1.AhtiEvent) { e.Entities[1].Id = long }, "invalid"},
		"tie without source": {func(e *ahtiv1.AhtiEvent) { e.Relationships[0].Source = nil }, "invalid"},
		"too many entities":  {func(e *ahtiv1.AhtiEvent) { e.Entities = make([]*ahtiv1.Entity, 1025) }, "invalid"},
		"too many ties":      {func(e *ahtiv1.AhtiEvent) { e.Relationships = make([]*ahtiv1.Relationship, 4097) }, "invalid"},
		"NUL in an entity":   {func(e *ahtiv1.AhtiEvent) { e.Entities[0].Id = "a\x00b" }, "invalid"},
		"NUL in its name":    {func(e *ahtiv1.AhtiEvent) { e.Entities[0].Name = "\x00" }, "invalid"},
		"NUL in its cluster": {func(e *ahtiv1.AhtiEvent) { e.Entities[0].ClusterId = "\x00" }, "invalid"},
		"NUL in namespace":   {func(e *ahtiv1.AhtiEvent) { e.Entities[0].Namespace = "\x00" }, "invalid"},
		"NUL in the reason":  {func(e *ahtiv1.AhtiEvent) { e.Entities[0].DeleteReason = "\x00" }, "invalid"},
		"NUL in a tie":       {func(e *ahtiv1.AhtiEvent) { e.Relationships[0].Target.ClusterId = "\x00" }, "invalid"},
		"NUL in tie reason":  {func(e *ahtiv1.AhtiEvent) { e.Relationships[0].DeleteReason = "\x00" }, "invalid"},
		"a rune on the cut":  {func(e *ahtiv1.AhtiEvent) { e.Id = "a" + strings.Repeat("\u00e9", 100) }, "invalid"},
		"deleted in 2050":    {func(e *ahtiv1.AhtiEvent) { e.Entities[0].DeletedAt = &timestamppb.Timestamp{Seconds: 2_524_608_000} }, "invalid"},
		"deleted in 2300":    {func(e *ahtiv1.AhtiEvent) { e.Entities[0].DeletedAt = &timestamppb.Timestamp{Seconds: 10_413_792_000} }, "invalid"},
		"tie made in 2050": {func(e *ahtiv1.AhtiEvent) {
			e.Relationships[0].CreatedAt = &timestamppb.Timestamp{Seconds: 2_524_608_000}
		}, "invalid"},
		"tie ended, no time": {func(e *ahtiv1.AhtiEvent) { e.Relationships[0].DeletedAt = &timestamppb.Timestamp{Nanos: -1} }, "invalid"},
		"long path":          {func(e *ahtiv1.AhtiEvent) { e.Data = changed(long, "1", "2") }, "invalid"},
		"long value":         {func(e *ahtiv1.AhtiEvent) { e.Data = changed("spec.replicas", "1", strings.Repeat("x", 65<<10)) }, "invalid"},
		"long label":         {func(e *ahtiv1.AhtiEvent) { e.Entities[0].Labels["x"] = strings.Repeat("x", 17<<10) }, "invalid"},
		"more than it may":   {func(e *ahtiv1.AhtiEvent) { e.Payload = make([]byte, 513<<10) }, "too_large"},
	}
	each(t, func(t *testing.T, config store.Config) {
		r := run(t, server.Config{Store: config})
		n := 0
		for name, test := range tests {
			good, wrong := w.Events(2*n, 2), w.Event(1000+n)
			test.spoil(wrong)
			for i, x := range wrong.GetEntities() {
				if x == nil {
					wrong.Entities[i] = &ahtiv1.Entity{}
				}
			}
			for i, x := range wrong.GetRelationships() {
				if x == nil {
					wrong.Relationships[i] = &ahtiv1.Relationship{}
				}
			}
			response := r.ingest(t, []*ahtiv1.AhtiEvent{good[0], wrong, good[1]}, 3)[0]
			require.Equal(t, ids(good), response.GetEventIds(), name)
			require.Len(t, response.GetErrors(), 1, name)
			require.Equal(t, test.code, response.GetErrors()[0].GetCode(), name)
			require.NotEmpty(t, response.GetErrors()[0].GetMessage(), name)
			require.LessOrEqual(t, len(response.GetErrors()[0].GetEventId()), 128, name)
			require.True(t, strings.HasPrefix(wrong.GetId(), response.GetErrors()[0].GetEventId()), name)
			n++
		}
		timeline, err := r.Timeline(t.Context(), &ahtiv1.TimelineRequest{PageSize: 10_000})
		require.NoError(t, err)
		require.Len(t, timeline.GetEvents(), 2*len(tests))
	})
}

// Odd but allowed: it must be stored, told, and not hurt the engine.
func TestOddEventsAreStored(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		r := run(t, server.Config{Store: config})
		at := timestamppb.New(time.Now().Add(-time.Minute))
		self := &ahtiv1.EntityReference{Type: 7777, Id: "\u202eodd\u2028"}
		odd := []*ahtiv1.AhtiEvent{
			{Id: "bare", Subtype: "x", Timestamp: at},
			{Id: "unknown-numbers", Subtype: "container.oom_kill", Timestamp: at, Type: 999, Severity: -5, Outcome: 99, Entities: []*ahtiv1.Entity{{Type: 7777, Id: "\u202eodd\u2028", State: 9}}},
			{Id: "owns-itself", Subtype: "container.oom_kill", Timestamp: at, Entities: []*ahtiv1.Entity{{Type: 7777, Id: "\u202eodd\u2028"}}, Relationships: []*ahtiv1.Relationship{
				{Type: ahtiv1.RelationshipType_RELATIONSHIP_TYPE_OWNS, Source: self, Target: self},
				{Type: 555, Source: self, Target: self, CreatedAt: &timestamppb.Timestamp{}},
			}},
		}
		require.Equal(t, ids(odd), r.ingest(t, odd, 10)[0].GetEventIds())
		timeline, err := r.Timeline(t.Context(), &ahtiv1.TimelineRequest{})
		require.NoError(t, err)
		require.Equal(t, ids(odd), ids(timeline.GetEvents()))
		for _, id := range ids(odd) {
			_, err := r.Why(t.Context(), &ahtiv1.WhyRequest{EventId: id})
			require.NoError(t, err)
		}
		_, err = r.ListIncidents(t.Context(), &ahtiv1.ListIncidentsRequest{})
		require.NoError(t, err)
		require.NoError(t, r.stop())
		run(t, server.Config{Store: config})
	})
}

func TestPages(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		w := recent()
		r := run(t, server.Config{Store: config})
		r.ingest(t, w.Events(0, 300), 300)
		var timeline []string
		request := &ahtiv1.TimelineRequest{PageSize: 70}
		for {
			page, err := r.Timeline(t.Context(), request)
			require.NoError(t, err)
			timeline = append(timeline, ids(page.GetEvents())...)
			if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
				break
			}
			// What comes in between two pages does not shift them.
			r.ingest(t, w.Events(300+len(timeline), 1), 1)
		}
		require.Subset(t, timeline, ids(w.Events(0, 300)))
		require.Len(t, uniq(timeline), len(timeline), "nothing twice")

		var whole *ahtiv1.ListIncidentsResponse
		require.Eventually(t, func() bool {
			var err error
			whole, err = r.ListIncidents(t.Context(), &ahtiv1.ListIncidentsRequest{})
			return err == nil && len(whole.GetIncidents()) > 1
		}, 30*time.Second, 50*time.Millisecond)
		// No more comes in: what is stored stays as it is but for the clock.
		require.Eventually(t, func() bool {
			var all, paged []string
			whole, err := r.ListIncidents(t.Context(), &ahtiv1.ListIncidentsRequest{})
			require.NoError(t, err)
			for _, i := range whole.GetIncidents() {
				all = append(all, i.GetId())
			}
			list := &ahtiv1.ListIncidentsRequest{PageSize: 1}
			for {
				page, err := r.ListIncidents(t.Context(), list)
				require.NoError(t, err)
				for _, i := range page.GetIncidents() {
					paged = append(paged, i.GetId())
				}
				if list.PageToken = page.GetNextPageToken(); list.GetPageToken() == "" {
					break
				}
			}
			return fmt.Sprint(all) == fmt.Sprint(paged)
		}, 30*time.Second, 100*time.Millisecond)
	})
}

func uniq(all []string) map[string]bool {
	set := map[string]bool{}
	for _, s := range all {
		set[s] = true
	}
	return set
}

// A client that reads no responses gets no further, and holds up nobody.
func TestAClientThatReadsNothing(t *testing.T) {
	w := recent()
	r := run(t, server.Config{Store: store.Config{Dir: t.TempDir()}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	silent, err := r.Ingest(ctx)
	require.NoError(t, err)
	sent := make(chan int, 1)
	go func() {
		// Ids are most of a response: windows fill up fast.
		n := 0
		for ; n < 10_000; n++ {
			batch := w.Events(1_000_000+200*n, 200)
			for _, e := range batch {
				e.Entities, e.Relationships, e.Id = nil, nil, strings.Repeat("x", 100)+e.GetId()
			}
			if silent.Send(&ahtiv1.IngestRequest{Events: batch}) != nil {
				break
			}
		}
		sent <- n
	}()
	for i := range 20 {
		r.ingest(t, w.Events(100*i, 100), 50)
	}
	select {
	case n := <-sent:
		require.Fail(t, "a client that reads nothing sent everything", "%d requests", n)
	default:
	}
	cancel()
	require.Less(t, <-sent, 10_000)
}

func TestBadQuestions(t *testing.T) {
	each(t, badQuestions)
}

func badQuestions(t *testing.T, config store.Config) {
	r := run(t, server.Config{Store: config})
	long := strings.Repeat("x", 1100)
	tests := []struct {
		path string
		code int
		want string
	}{
		{"/v1/why", 400, "set entity or event_id"},
		{"/v1/why?entity=a&event_id=b", 400, "set one"},
		{"/v1/why?entity=nobody", 404, `nothing is known of "nobody"`},
		{"/v1/why?entity=" + long, 400, "at most 1024"},
		{"/v1/why?event_id=nobody", 404, "nobody"},
		{"/v1/why?entity=a&at=yesterday", 400, "2026-03-01T12:30:00Z"},
		{"/v1/why?entity=a&at=1970-01-01T00:00:00Z", 400, "from 2020 to 2100"},
		{"/v1/why?entity=a&lookback_seconds=-1", 400, "lookback_seconds is -1"},
		{"/v1/why?entity=a&entity=b", 400, "use it once"},
		{"/v1/why?entity=%ff", 400, "UTF-8"},
		{"/v1/why?entity=%00", 400, "control character"},
		{"/v1/why?event_id=%00", 400, "control character"},
		{"/v1/why?entity=a&cluster=%00", 400, "control character"},
		{"/v1/timeline?cluster=%00", 400, "control character"},
		{"/v1/incidents?cluster=%00", 400, "control character"},
		{"/v1/incidents?namespace=%00", 400, "control character"},
		{"/v1/incidents/%00", 400, "control character"},
		{"/v1/incidents?page_token=" + base64.RawURLEncoding.EncodeToString([]byte(`{"i":"\u0000"}`)), 400, "control character"},
		{"/v1/why?entty=a", 400, `parameter "entty" is not known`},
		{"/v1/timeline?page_size=many", 400, "whole number"},
		{"/v1/timeline?page_size=-1", 400, "page_size is -1"},
		{"/v1/timeline?page_token=zzz", 400, "next_page_token"},
		{"/v1/timeline?entity=nobody", 404, "nobody"},
		{"/v1/timeline?since=2026-03-01T12:00:00Z&until=2026-03-01T11:00:00Z", 400, "since is not before until"},
		{"/v1/incidents?state=bad", 400, "open or resolved"},
		{"/v1/incidents?page_token=%21", 400, "next_page_token"},
		{"/v1/incidents/nobody", 404, "nobody"},
		{"/v1/topology?depth=-3", 400, "depth is -3"},
		{"/v1/topology?entity=nobody", 404, "nobody"},
		{"/v1/timeline?a=%zz", 400, "cannot be read"},
		{"/v2/why", 404, "no such path"},
		{"/", 404, "/v1/incidents"},
	}
	for _, test := range tests {
		t.Run(test.path[:min(60, len(test.path))], func(t *testing.T) {
			code, body := get(t, r, test.path, nil)
			require.Equal(t, test.code, code, body)
			require.Contains(t, body, `{"error":`)
			require.Contains(t, strings.ReplaceAll(body, `\"`, `"`), test.want)
		})
	}
	response, err := http.Post("http://"+r.http+"/v1/incidents", "application/json", nil) //nolint:noctx // the test ends it
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusMethodNotAllowed, response.StatusCode)

	_, err = r.ListIncidents(t.Context(), &ahtiv1.ListIncidentsRequest{State: 77})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	stream, err := r.Ingest(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&ahtiv1.IngestRequest{Events: make([]*ahtiv1.AhtiEvent, 20_001)}))
	_, err = stream.Recv()
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	// A request of nothing is answered.
	stream, err = r.Ingest(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&ahtiv1.IngestRequest{}))
	empty, err := stream.Recv()
	require.NoError(t, err)
	require.Empty(t, empty.GetEventIds())
}

// A name that means several things is refused with the choices, each of which is
// answered. What has one name in one namespace is one story.
func TestAmbiguousNames(t *testing.T) {
	const (
		pod, container, service  = ahtiv1.EntityType_ENTITY_TYPE_POD, ahtiv1.EntityType_ENTITY_TYPE_CONTAINER, ahtiv1.EntityType_ENTITY_TYPE_SERVICE
		deployment, node, volume = ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT, ahtiv1.EntityType_ENTITY_TYPE_NODE, ahtiv1.EntityType_ENTITY_TYPE_PV
		namespace, unit          = ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE, ahtiv1.EntityType_ENTITY_TYPE_SERVICE_UNIT
	)
	n := 0
	tell := func(kind ahtiv1.EntityType, cluster, namespace, name string) *ahtiv1.AhtiEvent {
		n++
		id := fmt.Sprintf("uid-%d", n)
		if namespace == "" && kind != volume {
			id = name
		}
		last := name
		if kind == unit {
			_, last, _ = strings.Cut(name, "/")
		}
		return &ahtiv1.AhtiEvent{
			Id: fmt.Sprintf("event-%d", n), Subtype: "container.oom_kill", Cluster: cluster, Timestamp: timestamppb.New(time.Now().Add(-time.Minute)),
			Entities: []*ahtiv1.Entity{{Type: kind, Id: id, Name: last, Namespace: namespace, ClusterId: cluster}},
		}
	}
	named := tell(deployment, "prod", "", "shop/api") // as others name it, without its uid
	named.Entities[0].Name = ""
	events := []*ahtiv1.AhtiEvent{
		tell(deployment, "prod", "shop", "api"), tell(service, "prod", "shop", "api"), tell(pod, "prod", "shop", "api-1"), named,
		tell(deployment, "prod", "test", "api"), tell(container, "prod", "other", "api"),
		tell(deployment, "prod", "shop", "db"), tell(deployment, "stage", "shop", "db"),
		tell(node, "prod", "", "edge"), tell(namespace, "prod", "", "edge"), tell(deployment, "prod", "shop", "edge"),
		tell(unit, "prod", "", "n1/sshd.service"), tell(unit, "prod", "", "n2/sshd.service"),
		tell(container, "prod", "shop", "sidecar"), tell(container, "prod", "shop", "sidecar"),
		tell(volume, "prod", "", "disk"), tell(pod, "prod", "shop", "web-0"), tell(pod, "prod", "shop", "web-0"),
	}
	for i := range 13 {
		events = append(events, tell(pod, "prod", fmt.Sprintf("team-%02d", i), "many"))
	}
	tests := []struct {
		name, cluster string
		choices       []string // none when it is answered
		want          string   // of the message
	}{
		{name: "api", choices: []string{"shop/api", "test/api"}, want: `"api" may be shop/api or test/api: name one of them`},
		{name: "shop/api"},
		{name: "other/api"},
		{name: "api-1"},
		{name: "web-0"},
		{name: "uid-2"},
		{name: "disk"},
		{name: "sidecar"},
		{name: "deployment/api", choices: []string{"deployment/shop/api", "deployment/test/api"}},
		{name: "shop/db", want: `shop/db in cluster "prod" or shop/db in cluster "stage": name one of them and its cluster`},
		{name: "shop/db", cluster: "stage"},
		{name: "edge", choices: []string{"node/edge", "namespace/edge", "shop/edge"}},
		{name: "sshd.service", choices: []string{"n1/sshd.service", "n2/sshd.service"}},
		{name: "many", choices: []string{"team-00/many", "team-09/many"}, want: "or one of 3 more"},
	}
	each(t, func(t *testing.T, config store.Config) {
		r := run(t, server.Config{Store: config})
		r.ingest(t, events, 100)
		require.Eventually(t, func() bool { // the engine follows the commits
			_, err := r.Why(t.Context(), &ahtiv1.WhyRequest{Entity: "team-12/many"})
			return err == nil
		}, 30*time.Second, 20*time.Millisecond)
		for _, test := range tests {
			_, why := r.Why(t.Context(), &ahtiv1.WhyRequest{Entity: test.name, Cluster: test.cluster})
			_, timeline := r.Timeline(t.Context(), &ahtiv1.TimelineRequest{Entity: test.name, Cluster: test.cluster})
			_, topology := r.Topology(t.Context(), &ahtiv1.TopologyRequest{Entity: test.name, Cluster: test.cluster})
			if test.choices == nil && test.want == "" {
				require.NoError(t, why, test.name)
				require.NoError(t, timeline, test.name)
				require.NoError(t, topology, test.name)
				continue
			}
			for _, err := range []error{why, timeline, topology} {
				require.Equal(t, codes.InvalidArgument, status.Code(err), test.name)
				require.Contains(t, err.Error(), test.want)
				for _, choice := range test.choices {
					require.Contains(t, err.Error(), choice)
				}
			}
			code, body := get(t, r, "/v1/why?entity="+url.QueryEscape(test.name), nil)
			require.Equal(t, http.StatusBadRequest, code, body)
			for _, choice := range test.choices {
				require.Contains(t, body, choice)
				answer, err := r.Why(t.Context(), &ahtiv1.WhyRequest{Entity: choice})
				require.NoError(t, err, choice)
				require.NotEmpty(t, answer.GetIncidents(), choice)
			}
		}
	})
}

// A thing that ended so long ago that the engine has forgotten it is found by its
// name all the same.
func TestWhatEndedLongAgo(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		w := recent()
		w.Start = time.Now().Add(-4 * 24 * time.Hour)
		events := w.Events(0, 200)
		killed := events[7]
		pod := killed.GetEntities()[0]
		end := w.Event(200)
		end.Entities, end.Relationships, end.Data = []*ahtiv1.Entity{proto.CloneOf(pod)}, nil, nil
		end.Subtype, end.Entities[0].State = "k8s.pod.deleted", ahtiv1.EntityState_ENTITY_STATE_DELETED
		r := run(t, server.Config{Store: config})
		r.ingest(t, append(events, end), 300)
		require.NoError(t, r.stop())
		r = run(t, server.Config{Store: config})

		name := pod.GetNamespace() + "/" + pod.GetName()
		for _, hours := range []time.Duration{1, 11, 24} {
			why, err := r.Why(t.Context(), &ahtiv1.WhyRequest{
				Entity: name, At: timestamppb.New(w.Start.Add(hours * time.Hour)), LookbackSeconds: int64(hours * 3600),
			})
			require.NoError(t, err)
			require.NotEmpty(t, why.GetIncidents(), "%d hours back", hours)
		}
		timeline, err := r.Timeline(t.Context(), &ahtiv1.TimelineRequest{Entity: name, Since: timestamppb.New(w.Start)})
		require.NoError(t, err)
		require.Contains(t, ids(timeline.GetEvents()), killed.GetId())
		topology, err := r.Topology(t.Context(), &ahtiv1.TopologyRequest{Entity: name, At: timestamppb.New(w.Start.Add(time.Minute))})
		require.NoError(t, err)
		require.NotEmpty(t, topology.GetRelationships())
		_, err = r.Topology(t.Context(), &ahtiv1.TopologyRequest{Entity: name})
		require.Equal(t, codes.NotFound, status.Code(err), "it is not there now")
	})
}

// A question about a time that the engine has forgotten is answered from the
// store, by an engine of that time.
func TestWhyLongAgo(t *testing.T) {
	each(t, func(t *testing.T, config store.Config) {
		w := recent()
		w.Start = time.Now().Add(-3 * 24 * time.Hour)
		r := run(t, server.Config{Store: config})
		r.ingest(t, w.Events(0, 200), 200)
		require.NoError(t, r.stop())
		r = run(t, server.Config{Store: config}) // it reads only what is recent
		answer, err := r.Why(t.Context(), &ahtiv1.WhyRequest{EventId: w.Event(7).GetId()})
		require.NoError(t, err)
		require.NotEmpty(t, answer.GetIncidents())
		pod := w.Event(7).GetEntities()[0]
		answer, err = r.Why(t.Context(), &ahtiv1.WhyRequest{Entity: pod.GetNamespace() + "/" + pod.GetName(), At: timestamppb.New(w.Start.Add(time.Minute))})
		require.NoError(t, err)
		require.NotEmpty(t, answer.GetIncidents())
		answer, err = r.Why(t.Context(), &ahtiv1.WhyRequest{Entity: pod.GetNamespace() + "/" + pod.GetName()})
		require.NoError(t, err)
		require.Empty(t, answer.GetIncidents())
		require.Contains(t, answer.GetAnswer(), pod.GetName())
	})
}
