// Package scraper runs the scheduler-scraper: it reads the metrics of the
// schedulers again and again, and sends what is to be told.
package scraper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/scraper/internal/detect"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/scraper/internal/target"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/shared/polku"
	"github.com/yairfalse/tapio/shared/telemetry"
)

// Source is the source of every event of the scraper.
const Source = "scheduler-scraper"

// Config says what to scrape and where to send what is found.
type Config struct {
	Targets  []target.Config
	Interval time.Duration
	// ExpectLeader tells that Targets are all schedulers of the cluster: that none
	// of them leads is then a fault. Else another one may lead that cannot be seen.
	ExpectLeader bool

	Output  humanoutput.Output
	Style   humanoutput.Style // of Text
	Listen  string            // HOST:PORT of health and metrics; empty for none
	Node    string            // k8s.node.name; empty if not known
	Cluster string            // k8s.cluster.name; empty if not known
	// Where else to send: each if its Endpoint is not empty. The scraper fills in
	// who it is.
	Polku polku.Config
	OTLP  otlp.Config // metrics only

	Stdout io.Writer
	Log    *slog.Logger
}

// flushWithin is how long the end may wait for the gateway and the collector.
const flushWithin = 2 * time.Second

// scraper is the state of one run.
type scraper struct {
	config Config
	log    *slog.Logger
	schedulers
	detector *detect.Detector
	events   *event.Factory
	identity map[string]string // metadata of every event
	client   *polku.Client     // nil without a gateway
	metrics  *metrics
}

// Run scrapes until ctx is done. The error is about the configuration, or an
// address that cannot be listened on.
func Run(ctx context.Context, config Config) error {
	s := &scraper{
		config: config, log: config.Log, detector: detect.New(), events: event.NewFactory(), identity: map[string]string{},
		schedulers: schedulers{expectLeader: config.ExpectLeader},
	}
	for _, c := range config.Targets {
		t, err := target.New(c)
		if err != nil {
			return err
		}
		s.all = append(s.all, &scheduler{target: t})
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read the host's name: %w", err)
	}
	// In a pod the kernel's name for the host is that of the pod.
	s.identity[event.HostName] = cmp.Or(config.Node, host)
	for key, value := range map[string]string{event.K8sNodeName: config.Node, event.K8sClusterName: config.Cluster} {
		if value != "" {
			s.identity[key] = value
		}
	}
	s.metrics = newMetrics()
	return s.run(ctx)
}

func (s *scraper) run(ctx context.Context) error {
	registry := prometheus.NewRegistry()
	if err := registry.Register(s.metrics); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	// Delivery outlives the scrapes: what they found last is still to be sent.
	delivery, stopDelivery := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDelivery()
	var background sync.WaitGroup
	defer background.Wait()
	if err := s.openGateway(delivery, registry, &background); err != nil {
		return err
	}
	defer stopDelivery() // before the wait
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the server, if anything below fails
	if err := s.serve(ctx, registry, &background); err != nil {
		return err
	}
	var exported *otlp.Metrics
	if s.config.OTLP.Endpoint != "" {
		var err error
		if exported, err = otlp.OpenMetrics(ctx, s.config.OTLP, Source, maps.Clone(s.identity), registry, s.log); err != nil {
			return fmt.Errorf("send metrics by OTLP: %w", err)
		}
	}
	err := s.scrapeOften(ctx)
	flush, stop := context.WithTimeout(delivery, flushWithin)
	defer stop()
	if exported != nil {
		if err := exported.Close(flush); err != nil {
			s.log.Warn("end of the metrics", "error", err)
		}
	}
	if s.client != nil {
		if err := s.client.Flush(flush); err != nil {
			s.log.Warn("not everything was delivered", "error", err)
		}
	}
	return err
}

func (s *scraper) openGateway(ctx context.Context, registry *prometheus.Registry, background *sync.WaitGroup) error {
	if s.config.Polku.Endpoint == "" {
		return nil
	}
	config := s.config.Polku
	config.Source, config.Identity, config.Cluster, config.Log = Source, s.identity, s.config.Cluster, s.log
	client, err := polku.New(config)
	if err != nil {
		return fmt.Errorf("send events to the gateway: %w", err)
	}
	if err := registry.Register(client); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	s.client = client
	background.Go(func() {
		if err := client.Run(ctx); err != nil {
			s.log.Error("send events to the gateway", "error", err)
		}
	})
	return nil
}

func (s *scraper) serve(ctx context.Context, registry *prometheus.Registry, background *sync.WaitGroup) error {
	if s.config.Listen == "" {
		return nil
	}
	server, err := telemetry.NewServer(telemetry.Config{
		Address: s.config.Listen, Flag: "listen", Registry: registry, StopTimeout: time.Second, Log: s.log,
	})
	if err != nil {
		return err
	}
	server.ReadyWhen("scheduler", s.metrics.ready)
	if s.client != nil {
		server.ReadyWhen("polku", s.client.Ready)
	}
	if err := server.Listen(ctx); err != nil {
		return err
	}
	s.log.Info("serving health and metrics", "address", server.Addr().String())
	background.Go(func() {
		if err := server.Serve(ctx); err != nil {
			s.log.Error("health and metrics", "error", err)
		}
	})
	return nil
}

// scrapeOften scrapes now and at each interval until ctx is done.
func (s *scraper) scrapeOften(ctx context.Context) error {
	ticker := time.NewTicker(s.config.Interval)
	defer ticker.Stop()
	for {
		if err := s.tick(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// tick scrapes all schedulers once and tells what is to be told. The error means
// that nobody reads standard output.
func (s *scraper) tick(ctx context.Context) error {
	s.scrape(ctx)
	if ctx.Err() != nil {
		return nil //nolint:nilerr // what was cut off by the end says nothing
	}
	for _, one := range s.all {
		s.metrics.scraped(one)
		if one.news {
			s.log.Warn("cannot read the scheduler's metrics", "scheduler", one.target.Name(), "error", one.err)
		}
	}
	now := time.Now()
	var found []detect.Finding
	switch who, leader, cause := s.judge(); who {
	case leads:
		found = s.detector.Observe(leader.target.Name(), leader.last, leader.interval)
	case standsBy:
		found = s.detector.Standby(now, leader.target.Name())
	case nobody:
		found = s.detector.Unavailable(now, cause)
	case unknown:
	}
	s.metrics.observed(s.leader, s.detector.Active())
	for _, f := range found {
		if err := s.tell(f); err != nil {
			return err
		}
	}
	return nil
}

// tell sends a finding as an event.
func (s *scraper) tell(f detect.Finding) error {
	e := s.events.New(f.Kind, f.At, Source)
	maps.Copy(e.GetMetadata(), f.Metadata)
	maps.Copy(e.GetMetadata(), s.identity)
	if f.Severity != eventv1.Severity_SEVERITY_UNSPECIFIED {
		e.Severity = f.Severity
	}
	if f.Outcome != eventv1.Outcome_OUTCOME_UNSPECIFIED {
		e.Outcome = f.Outcome
	}
	e.Data = &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{
		ResourceType: "Scheduler", ResourceName: "kube-scheduler", Reason: f.Reason, Message: f.Message,
	}}
	if err := event.Validate(e); err != nil {
		s.metrics.dropped()
		s.log.Error("an event is not valid and was not sent", "event_type", f.Kind, "error", err)
		return nil
	}
	s.metrics.told(f.Kind)
	if s.client != nil {
		s.client.Offer(e) // what it cannot keep it counts and tells
	}
	var line []byte
	switch s.config.Output {
	case humanoutput.Text:
		line = []byte(s.config.Style.Line(e))
	case humanoutput.JSON:
		var err error
		if line, err = event.AppendJSON(nil, e); err != nil {
			return fmt.Errorf("write an event: %w", err)
		}
	case humanoutput.None:
		return nil
	}
	if _, err := s.config.Stdout.Write(append(line, '\n')); err != nil {
		if s.client == nil {
			return fmt.Errorf("write an event to standard output: %w", err)
		}
		s.log.Warn("cannot write to standard output", "error", err)
	}
	return nil
}

// Once scrapes all schedulers once and returns the one that leads, or a standby
// when another one may lead that is not named. The error says why nobody is known
// to lead.
func Once(ctx context.Context, configs []target.Config, expectLeader bool) (name string, s interval.Scrape, err error) {
	all := schedulers{expectLeader: expectLeader}
	for _, c := range configs {
		t, err := target.New(c)
		if err != nil {
			return "", interval.Scrape{}, err
		}
		all.all = append(all.all, &scheduler{target: t})
	}
	all.scrape(ctx)
	_, who, cause := all.judge()
	if who == nil {
		return "", interval.Scrape{}, errors.New(cause.Message)
	}
	return who.target.Name(), who.last, nil
}
