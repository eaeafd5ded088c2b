// Package serve runs the gateway: the log, the service that fills it, the routes
// that empty it, and what operators ask.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/yairfalse/tapio/polku/internal/gateway"
	"github.com/yairfalse/tapio/polku/internal/journal"
	"github.com/yairfalse/tapio/polku/internal/operator"
	"github.com/yairfalse/tapio/polku/internal/route"
	operatorv1 "github.com/yairfalse/tapio/proto/polku/operator/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/rpc"
	"github.com/yairfalse/tapio/shared/telemetry"
)

const (
	// stopWithin is how long running calls and scrapes have when a stop is asked
	// for. Kubernetes kills after 30 s.
	stopWithin = 8 * time.Second
	// window is how much a stream may send before it is read: little, because
	// there are many streams and a full log reads none. Batches that are larger
	// widen it while they are read.
	window = 64 << 10
)

// Config says how to run.
type Config struct {
	Listen         string // HOST:PORT of polku.v1.Gateway
	OperatorListen string // HOST:PORT of the operator's service, on loopback
	HTTPListen     string // HOST:PORT of health and metrics; empty for none
	TLS            certs.Files
	MaxMessage     int // bytes
	MaxConnections int
	RateLimit      float64 // events a second and source; 0 for any

	Journal journal.Config // without Registry and Log
	// Routes makes the destinations by the names of their routes.
	Routes func(ctx context.Context, registry prometheus.Registerer, log *slog.Logger) (map[string]route.Destination, error)

	Version string
	Log     *slog.Logger
	// Ready is called with the addresses when calls are taken. It may be nil.
	Ready func(Addresses)
}

// Addresses are where a running gateway listens.
type Addresses struct {
	Gateway, Operator net.Addr
	HTTP              net.Addr // nil for none
}

// Run runs the gateway until ctx ends.
func Run(ctx context.Context, config Config) error {
	registry := prometheus.NewRegistry()
	s := &service{config: config, registry: registry, log: config.Log, started: time.Now()}
	return s.run(ctx)
}

// service is one run.
type service struct {
	config   Config
	registry *prometheus.Registry
	log      *slog.Logger
	started  time.Time
	opened   atomic.Bool // the log

	journal  *journal.Journal
	gateway  *gateway.Gateway
	routes   *route.Runner
	ingest   *rpc.Server
	operator *rpc.Server
	http     *telemetry.Server
}

func (s *service) run(ctx context.Context) error {
	// The addresses first: a mistake in them is found before a log is made.
	if err := s.listen(ctx); err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	if s.http != nil { // it answers while the log is opened, which may take long
		s.http.ReadyWhen("log", s.logWorks)
		parts.Go(func() error { return s.http.Serve(ctx) })
	}
	parts.Go(func() (err error) {
		c := s.config.Journal
		c.Registry, c.Log = s.registry, s.log
		if s.journal, err = journal.Open(ctx, c); err != nil {
			if errors.Is(err, context.Canceled) {
				return nil // a stop was asked for while NATS was away
			}
			return err
		}
		defer func() { err = errors.Join(err, s.journal.Close()) }()
		s.opened.Store(true)
		if err := s.assemble(ctx); err != nil {
			return err
		}
		return s.serve(ctx)
	})
	return parts.Wait()
}

// logWorks says why the log takes nothing now.
func (s *service) logWorks() error {
	if !s.opened.Load() {
		return errOpening
	}
	return s.journal.Blocked()
}

var errOpening = errors.New("being opened")

func (s *service) listen(ctx context.Context) (err error) {
	config := rpc.Config{
		Name: "gateway", Address: s.config.Listen, Flag: "listen",
		MaxMessage: s.config.MaxMessage, MaxConnections: s.config.MaxConnections,
		Window: window, StopTimeout: stopWithin, Registry: s.registry, Log: s.log,
		Options: []grpc.ServerOption{grpc.ForceServerCodecV2(gateway.NewCodec())},
	}
	if !s.config.TLS.Empty() {
		if config.TLS, err = s.config.TLS.Server(); err != nil {
			return fmt.Errorf("prepare TLS of --listen: %w", err)
		}
	}
	if s.ingest, err = rpc.NewServer(config); err != nil {
		return err
	}
	if err := s.ingest.Listen(ctx); err != nil {
		return err
	}
	s.operator, err = rpc.NewServer(rpc.Config{
		Name: "operator", Address: s.config.OperatorListen, Flag: "operator-listen",
		MaxConnections: 16, Window: window, StopTimeout: stopWithin, Registry: s.registry, Log: s.log,
	})
	if err != nil {
		return err
	}
	if err := s.operator.Listen(ctx); err != nil {
		return err
	}
	if s.config.HTTPListen == "" {
		return nil
	}
	s.http, err = telemetry.NewServer(telemetry.Config{
		Address: s.config.HTTPListen, Flag: "http-listen", Registry: s.registry, StopTimeout: stopWithin / 8, Log: s.log,
	})
	if err != nil {
		return err
	}
	return s.http.Listen(ctx)
}

func (s *service) assemble(ctx context.Context) error {
	destinations, err := s.config.Routes(ctx, s.registry, s.log)
	if err != nil {
		return err
	}
	s.routes, err = route.New(route.Config{Journal: s.journal, Destinations: destinations, Registry: s.registry, Log: s.log})
	if err != nil {
		return err
	}
	s.gateway, err = gateway.New(ctx, gateway.Config{
		Journal: s.journal, RateLimit: s.config.RateLimit, Registry: s.registry, Log: s.log, Components: s.components,
	})
	if err != nil {
		return err
	}
	polkuv1.RegisterGatewayServer(s.ingest, s.gateway)
	operatorv1.RegisterOperatorServiceServer(s.operator, &operator.Operator{
		Journal: s.journal, Routes: s.routes, Version: s.config.Version, Started: s.started,
		Streams: s.gateway.Streams, Stopping: ctx.Done(),
	})
	return nil
}

// components tells how the routes are, for Gateway.Health. A route that hangs
// makes the gateway no less able to take events.
func (s *service) components(context.Context) map[string]*polkuv1.ComponentHealth {
	parts := make(map[string]*polkuv1.ComponentHealth)
	for _, r := range s.routes.Status() {
		part := &polkuv1.ComponentHealth{Healthy: true, Message: fmt.Sprintf("delivered up to message %d", r.Cursor)}
		if r.Failure != nil {
			// What a destination answers may be no text, and protobuf takes only that.
			part = &polkuv1.ComponentHealth{Message: strings.ToValidUTF8(r.Failure.Error(), "\uFFFD")}
		}
		parts["route/"+r.Name] = part
	}
	return parts
}

// serve runs all parts until ctx ends or one of them fails. Sources are sent
// away first, then the routes stop where they are.
func (s *service) serve(ctx context.Context) error {
	routing, stopRouting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRouting()

	servers, ctx := errgroup.WithContext(ctx)
	go limitMemory(ctx)
	servers.Go(func() error { return s.ingest.Serve(ctx) })
	servers.Go(func() error { return s.operator.Serve(ctx) })
	routed := make(chan error, 1)
	go func() { routed <- s.routes.Run(routing) }()

	s.ready()
	<-ctx.Done()
	s.log.Info("stopping")
	s.gateway.Stop()
	err := servers.Wait()
	stopRouting()
	select {
	case routes := <-routed:
		return errors.Join(err, routes)
	case <-time.After(stopWithin):
		return errors.Join(err, fmt.Errorf("a route did not stop within %s: what it delivered since its cursor comes again", stopWithin))
	}
}

func (s *service) ready() {
	addresses := Addresses{Gateway: s.ingest.Addr(), Operator: s.operator.Addr()}
	if s.http != nil {
		addresses.HTTP = s.http.Addr()
	}
	s.log.Info("taking events", "address", addresses.Gateway.String(), "operator", addresses.Operator.String(), "http", addressOf(addresses.HTTP))
	if s.config.Ready != nil {
		s.config.Ready(addresses)
	}
}

func addressOf(a net.Addr) string {
	if a == nil {
		return "none"
	}
	return a.String()
}
