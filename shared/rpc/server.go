// Package rpc is the gRPC server that every binary with an API sets up the same
// way: limits that keep one client from taking the others' memory, health,
// reflection, logs, metrics, and a stop that ends.
package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/logging"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // clients may compress what they send
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/yairfalse/tapio/shared/endpoint"
)

// Limits that no deployment has a reason to change.
const (
	// handshakeTimeout ends a connection that opens and says nothing.
	handshakeTimeout = 20 * time.Second
	// idleTimeout ends connections without any call; clients connect again by
	// themselves when they have one. Open streams are calls.
	idleTimeout = 10 * time.Minute
	// pingEvery finds peers that vanished without closing.
	pingEvery   = time.Minute
	pingTimeout = 20 * time.Second
	// minPing is how often a client may ping; one that does so more often is
	// told to go away.
	minPing = 10 * time.Second
	// maxHeaderBytes is more than any client of ours sends.
	maxHeaderBytes = 16 << 10
	// readBuffer is held by each connection for its whole life, so 10,000 idle
	// ones have to be affordable. What is larger is read past the buffer.
	readBuffer = 4 << 10
)

// Defaults of the fields of Config that are zero.
const (
	DefaultMaxMessage     = 4 << 20
	DefaultMaxStreams     = 100
	DefaultMaxConnections = 20_000
	DefaultWindow         = 256 << 10
	DefaultStopTimeout    = 10 * time.Second
)

// Config says how a Server is to serve. Address, Name, Flag, Registry and Log
// have no default.
type Config struct {
	// Name tells the servers of one process apart in logs and metrics, such as
	// "gateway".
	Name string
	// Address is HOST:PORT to listen on; port 0 takes a free one.
	Address string
	// Flag is the name of the flag that sets Address, without dashes. Errors
	// name it.
	Flag string
	// TLS is how clients connect; nil means without encryption.
	TLS *tls.Config
	// MaxMessage is the largest message that is received, bytes. A larger one
	// ends its call with ResourceExhausted.
	MaxMessage int
	// MaxStreams is how many calls one connection may have at once.
	MaxStreams uint32
	// MaxConnections is how many clients may be connected at once; one more is
	// disconnected at once and counted. The process's limit of open files lowers
	// it.
	MaxConnections int
	// Window is how many bytes a call may send before the handler reads them.
	// It bounds the memory of streams that wait.
	Window int32
	// StopTimeout is how long Serve waits for running calls when it is told to
	// stop.
	StopTimeout time.Duration
	// Registry takes the server's metrics, labeled with its name.
	Registry prometheus.Registerer
	Log      *slog.Logger
	// Options are passed to grpc.NewServer after those of this package.
	Options []grpc.ServerOption
}

func (c Config) withDefaults() Config {
	c.MaxMessage = cmp.Or(c.MaxMessage, DefaultMaxMessage)
	c.MaxStreams = cmp.Or(c.MaxStreams, DefaultMaxStreams)
	c.MaxConnections = cmp.Or(c.MaxConnections, DefaultMaxConnections)
	c.Window = cmp.Or(c.Window, DefaultWindow)
	c.StopTimeout = cmp.Or(c.StopTimeout, DefaultStopTimeout)
	return c
}

// Server is a gRPC server with health and reflection. Register the services,
// then Listen, then Serve. A server serves once.
type Server struct {
	// Health answers grpc.health.v1; it starts with the whole server serving.
	Health *health.Server

	config   Config
	grpc     *grpc.Server
	listener net.Listener
	metrics  *metrics
}

// NewServer prepares a server. It fails if the registry refuses its metrics or
// if the process may not open enough files.
func NewServer(config Config) (*Server, error) {
	config = config.withDefaults()
	var err error
	if config.MaxConnections, err = affordable(config.MaxConnections, config.Log); err != nil {
		return nil, err
	}
	m, err := newMetrics(prometheus.WrapRegistererWith(prometheus.Labels{"server": config.Name}, config.Registry))
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, Health: health.NewServer(), metrics: m}

	logged := []logging.Option{logging.WithLogOnEvents(logging.FinishCall), logging.WithLevels(level)}
	recovered := recovery.WithRecoveryHandlerContext(s.recovered)
	options := []grpc.ServerOption{
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout, Time: pingEvery, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(config.MaxMessage),
		grpc.MaxConcurrentStreams(config.MaxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		// Fixed windows: those that grow with the bandwidth reach 16 MiB a stream.
		grpc.StaticStreamWindowSize(config.Window),
		grpc.StaticConnWindowSize(config.Window),
		grpc.ReadBufferSize(readBuffer),
		grpc.ChainUnaryInterceptor(
			m.calls.UnaryServerInterceptor(),
			logging.UnaryServerInterceptor(s.logger(), logged...),
			recovery.UnaryServerInterceptor(recovered),
		),
		grpc.ChainStreamInterceptor(
			m.calls.StreamServerInterceptor(),
			logging.StreamServerInterceptor(s.logger(), logged...),
			recovery.StreamServerInterceptor(recovered),
		),
	}
	if config.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config.TLS)))
	}
	s.grpc = grpc.NewServer(append(options, config.Options...)...)
	healthv1.RegisterHealthServer(s.grpc, s.Health)
	reflection.Register(s.grpc)
	return s, nil
}

// RegisterService adds a service before Serve; the generated Register functions
// call it.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, service any) {
	s.grpc.RegisterService(desc, service)
}

// Listen takes the address, so that a binary finds out at its start that it
// cannot. The error names the flag to change.
func (s *Server) Listen(ctx context.Context) error {
	l, err := endpoint.Listen(ctx, s.config.Name, s.config.Address, s.config.Flag)
	if err == nil {
		s.listener = &limited{Listener: l, most: int64(s.config.MaxConnections), metrics: s.metrics}
	}
	return err
}

// Addr is the address that Listen took; nil before.
func (s *Server) Addr() net.Addr {
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Serve answers calls from Listen on until ctx ends. Then health says so, no
// new call is taken, and those that run have Config.StopTimeout to end before
// they are cut off, which is no failure: handlers of endless streams should end
// them when the same ctx does.
func (s *Server) Serve(ctx context.Context) error {
	if s.listener == nil {
		return fmt.Errorf("serve %s: call Listen first", s.config.Name)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.grpc.Serve(s.listener) }()

	select {
	case err := <-ended:
		return fmt.Errorf("serve %s on %s: %w", s.config.Name, s.Addr(), err)
	case <-ctx.Done():
	}
	s.Health.Shutdown()
	graceful := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(graceful)
	}()
	select {
	case <-graceful:
	case <-time.After(s.config.StopTimeout):
		s.config.Log.Warn("cut off calls that outlast the stop", "server", s.config.Name, "waited", s.config.StopTimeout)
		s.grpc.Stop()
		<-graceful
	}
	if err := <-ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s on %s: %w", s.config.Name, s.Addr(), err)
	}
	return nil
}

// level makes failed calls visible and keeps the others out of the way: a call
// that its client gave up is not a failure.
func level(code codes.Code) logging.Level {
	switch code {
	case codes.OK, codes.Canceled:
		return logging.LevelDebug
	default:
		return logging.LevelWarn
	}
}

func (s *Server) logger() logging.Logger {
	log := s.config.Log.With("server", s.config.Name)
	return logging.LoggerFunc(func(ctx context.Context, level logging.Level, message string, fields ...any) {
		log.Log(ctx, slog.Level(level), message, fields...)
	})
}

// recovered answers a call whose handler panicked.
func (s *Server) recovered(ctx context.Context, panicked any) error {
	s.metrics.panics.Inc()
	method, _ := grpc.Method(ctx)
	s.config.Log.ErrorContext(ctx, "a call panicked", "server", s.config.Name, "method", method, "panic", panicked, "stack", string(debug.Stack()))
	return status.Error(codes.Internal, "the server has a bug that this call found; its log tells more")
}

// metrics are those of one server.
type metrics struct {
	calls       *grpcprom.ServerMetrics
	panics      prometheus.Counter
	connections prometheus.Gauge
	refused     prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: grpcprom.NewServerMetrics(),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "grpc_server_panics_total", Help: "Calls whose handler panicked.",
		}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "grpc_server_connections", Help: "Clients that are connected.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "grpc_server_connections_refused_total", Help: "Connections that were closed at once because there were too many.",
		}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.panics, m.connections, m.refused} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of a gRPC server: %w", err)
		}
	}
	return m, nil
}
