package scraper_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/scraper/internal/scraper"
	"github.com/yairfalse/tapio/scraper/internal/target"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/certs/certstest"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/polku"
)

const patience = 60 * time.Second

// scheduler is an HTTPS server that answers as a kube-scheduler does.
type scheduler struct {
	url string
	ca  string

	mu      sync.Mutex
	status  int
	leads   string // "1", "0", or nothing without leader election
	started int
	waiting int // unschedulable pods
	scrapes int
}

func startScheduler(t *testing.T) *scheduler {
	side := certstest.NewAuthority(t, "cluster").Side(t, "scheduler")
	config, err := certs.Files{Cert: side.Cert, Key: side.Key}.Server()
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &scheduler{url: "https://" + listener.Addr().String(), ca: side.CA, status: http.StatusOK, started: 1}
	server := &http.Server{Handler: s, TLSConfig: config, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: patience}
	go func() { _ = server.ServeTLS(listener, "", "") }() // until Close
	t.Cleanup(func() { _ = server.Close() })
	return s
}

// ServeHTTP implements http.Handler.
func (s *scheduler) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scrapes++
	w.WriteHeader(s.status)
	if s.leads != "" {
		fmt.Fprintf(w, "leader_election_master_status{name=\"kube-scheduler\"} %s\n", s.leads)
	}
	fmt.Fprintf(w, "process_start_time_seconds %d\n", s.started)
	fmt.Fprintf(w, "scheduler_pending_pods{queue=\"unschedulable\"} %d\n", s.waiting)
	fmt.Fprintf(w, "scheduler_unschedulable_pods{plugin=\"NodeResourcesFit\",profile=\"default-scheduler\"} %d\n", s.waiting)
}

func (s *scheduler) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// scraped waits for some more scrapes.
func (s *scheduler) scraped(t *testing.T, n int) {
	t.Helper()
	count := func() (n int) {
		s.set(func() { n = s.scrapes })
		return n
	}
	want := count() + n
	require.Eventually(t, func() bool { return count() >= want }, patience, time.Millisecond)
}

// gateway keeps what it gets.
type gateway struct {
	polkuv1.UnimplementedGatewayServer
	address string

	mu     sync.Mutex
	events []*eventv1.Event
}

func startGateway(t *testing.T) *gateway {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := &gateway{address: listener.Addr().String()}
	server := grpc.NewServer()
	polkuv1.RegisterGatewayServer(server, g)
	go func() { _ = server.Serve(listener) }() // until Stop
	t.Cleanup(server.Stop)
	return g
}

// StreamEvents implements the contract.
func (g *gateway) StreamEvents(s grpc.BidiStreamingServer[polkuv1.IngestBatch, polkuv1.Ack]) error {
	for {
		b, err := s.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client went away
		}
		ack := &polkuv1.Ack{}
		g.mu.Lock()
		for _, e := range b.GetEvents().GetEvents() {
			ack.EventIds = append(ack.EventIds, e.GetId())
			g.events = append(g.events, e)
		}
		g.mu.Unlock()
		if err := s.Send(ack); err != nil {
			return err
		}
	}
}

// told writes what came as "kind phase error.type".
func (g *gateway) told() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	words := []string{}
	for _, e := range g.events {
		m := e.GetMetadata()
		words = append(words, strings.TrimSpace(strings.TrimPrefix(e.GetEventType(), "scheduler.")+" "+m[event.TapioSchedulerPhase]+" "+m[event.ErrorType]))
	}
	return words
}

func (g *gateway) tells(t *testing.T, want ...string) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Equal(c, want, g.told()) }, patience, 5*time.Millisecond)
}

// start runs a scraper of some schedulers until the test ends.
func start(t *testing.T, g *gateway, change func(*scraper.Config), all ...*scheduler) *bytes.Buffer {
	stdout := &bytes.Buffer{}
	c := scraper.Config{
		Interval: 20 * time.Millisecond, Output: humanoutput.JSON, Stdout: stdout, Node: "cp-1", Cluster: "prod",
		Polku: polku.Config{Endpoint: "http://" + g.address}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, s := range all {
		c.Targets = append(c.Targets, target.Config{URL: s.url, TLS: certs.Files{CA: s.ca}, Timeout: patience})
	}
	if change != nil {
		change(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- scraper.Run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
		for line := range strings.Lines(stdout.String()) {
			assert.Contains(t, line, `"event_type":"scheduler.`)
		}
	})
	return stdout
}

func TestEventsReachTheGateway(t *testing.T) {
	s, g := startScheduler(t), startGateway(t)
	s.waiting = 2
	start(t, g, nil, s)
	g.tells(t, "unschedulable start")
	g.mu.Lock()
	e := g.events[0]
	g.mu.Unlock()
	require.NoError(t, event.Validate(e))
	assert.Equal(t, "Scheduler", e.GetK8S().GetResourceType())
	assert.Equal(t, "kube-scheduler", e.GetK8S().GetResourceName())
	assert.Equal(t, "2 pods find no node, refused by NodeResourcesFit (2)", e.GetK8S().GetMessage())
	assert.Equal(t, "cp-1", e.GetMetadata()[event.K8sNodeName])
	assert.Equal(t, "prod", e.GetMetadata()[event.K8sClusterName])
	assert.Equal(t, "cp-1", e.GetMetadata()[event.HostName], "as the agent of the node says")
	s.set(func() { s.waiting = 0 })
	g.tells(t, "unschedulable start", "unschedulable end")
}

func TestOutageAndRestart(t *testing.T) {
	s, g := startScheduler(t), startGateway(t)
	start(t, g, nil, s)
	s.scraped(t, 5)
	s.set(func() { s.status = http.StatusForbidden })
	g.tells(t, "unavailable start forbidden")
	s.set(func() { s.status = http.StatusOK })
	g.tells(t, "unavailable start forbidden", "unavailable end forbidden")
	s.set(func() { s.started++ })
	g.tells(t, "unavailable start forbidden", "unavailable end forbidden", "unavailable end restarted")
}

// Each replica beside its own scheduler: only the one beside the leader speaks.
func TestOnlyTheOneBesideTheLeaderSpeaks(t *testing.T) {
	s, g := startScheduler(t), startGateway(t)
	s.leads, s.waiting = "0", 3
	start(t, g, nil, s)
	s.scraped(t, 5)
	s.set(func() { s.status = http.StatusInternalServerError })
	s.scraped(t, 5)
	require.Empty(t, g.told())
	s.set(func() { s.leads, s.status = "1", http.StatusOK })
	g.tells(t, "unschedulable start")
}

func TestNobodyLeads(t *testing.T) {
	a, b, g := startScheduler(t), startScheduler(t), startGateway(t)
	a.leads, b.leads, b.waiting = "0", "1", 1
	start(t, g, func(c *scraper.Config) { c.ExpectLeader = true }, a, b)
	g.tells(t, "unschedulable start")
	b.set(func() { b.leads = "0" })
	g.tells(t, "unschedulable start", "unavailable start no_leader")
	a.set(func() { a.leads = "1" })
	g.tells(t, "unschedulable start", "unavailable start no_leader", "unavailable end no_leader", "unschedulable end")
}

func TestOnce(t *testing.T) {
	a, b := startScheduler(t), startScheduler(t)
	targets := func(all ...*scheduler) (configs []target.Config) {
		for _, s := range all {
			configs = append(configs, target.Config{URL: s.url, TLS: certs.Files{CA: s.ca}, Timeout: patience})
		}
		return configs
	}
	a.leads, b.leads = "0", "1"
	name, _, err := scraper.Once(t.Context(), targets(a, b), true)
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(b.url, "https://"), name)
	b.status = http.StatusInternalServerError
	_, _, err = scraper.Once(t.Context(), targets(a, b), true)
	require.ErrorContains(t, err, "500", "the one that leads is not known, which is not well")
	name, _, err = scraper.Once(t.Context(), targets(a, b), false)
	require.NoError(t, err)
	require.Equal(t, strings.TrimPrefix(a.url, "https://"), name, "another one may lead")
	b.status, b.leads = http.StatusOK, "0"
	_, _, err = scraper.Once(t.Context(), targets(a, b), true)
	require.ErrorContains(t, err, "no kube-scheduler leads")
}

// That a standby is away is no outage while the leader answers.
func TestAStandbyIsAway(t *testing.T) {
	a, b, g := startScheduler(t), startScheduler(t), startGateway(t)
	a.status = http.StatusInternalServerError
	start(t, g, func(c *scraper.Config) { c.ExpectLeader = true }, a, b)
	b.scraped(t, 5)
	require.Empty(t, g.told())
}

func TestMetricsAndHealth(t *testing.T) {
	s, g := startScheduler(t), startGateway(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	s.waiting = 4
	start(t, g, func(c *scraper.Config) { c.Listen = address }, s)
	s.scraped(t, 3)
	get := func(path string) (int, string) {
		response, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(body)
	}
	require.Eventually(t, func() bool { status, _ := get("/readyz"); return status == http.StatusOK }, patience, time.Millisecond)
	_, body := get("/metrics")
	name := strings.TrimPrefix(s.url, "https://")
	for _, want := range []string{
		`tapio_scheduler_up{scheduler="` + name + `"} 1`, `tapio_scheduler_leader{scheduler="` + name + `"} 1`,
		`tapio_scheduler_last_scrape_age_seconds{`, `tapio_scheduler_pending_pods{queue="unschedulable"} 4`,
		`tapio_scheduler_unschedulable_pods{plugin="NodeResourcesFit"} 4`, `tapio_scheduler_events_total{event_type="scheduler.unschedulable"} 1`,
		`tapio_scheduler_condition{event_type="scheduler.unschedulable"} 1`, `tapio_scheduler_preemption_attempts_per_second 0`,
	} {
		assert.Contains(t, body, want)
	}
	s.set(func() { s.status = http.StatusUnauthorized })
	require.Eventually(t, func() bool { status, _ := get("/readyz"); return status == http.StatusServiceUnavailable }, patience, time.Millisecond)
	_, body = get("/readyz")
	assert.Contains(t, body, "401")
	status, _ := get("/healthz")
	assert.Equal(t, http.StatusOK, status)
	_, body = get("/metrics")
	assert.Contains(t, body, `tapio_scheduler_up{scheduler="`+name+`"} 0`)
	assert.NotContains(t, body, "tapio_scheduler_pending_pods{", "what is not known is not shown")
}
