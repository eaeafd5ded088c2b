package rpc_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/yairfalse/tapio/shared/rpc"
	"github.com/yairfalse/tapio/shared/telemetry"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

// log collects what a server logs.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// running is a server that serves until the test ends or stop is called.
type running struct {
	*rpc.Server
	log      *log
	registry *prometheus.Registry
	stop     func() error
}

func start(t *testing.T, edit func(*rpc.Config)) *running {
	t.Helper()
	r := &running{log: new(log), registry: prometheus.NewRegistry()}
	config := rpc.Config{
		Name: "test", Address: "127.0.0.1:0", Flag: "listen", StopTimeout: patience,
		Registry: r.registry, Log: telemetry.NewLogger(r.log, slog.LevelDebug, telemetry.Text),
	}
	if edit != nil {
		edit(&config)
	}
	var err error
	r.Server, err = rpc.NewServer(config)
	require.NoError(t, err)
	r.RegisterService(&parrot, nil)
	require.NoError(t, r.Listen(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Serve(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { assert.NoError(t, r.stop()) })
	return r
}

// parrot answers with what it is told, and panics when told to.
var parrot = grpc.ServiceDesc{
	ServiceName: "test.Parrot",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Say", Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: "/test.Parrot/Say"}, func(_ context.Context, _ any) (any, error) {
			if in.GetValue() == "panic" {
				panic("as told")
			}
			return in, nil
		})
	}}},
}

func (r *running) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(r.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return conn
}

func say(t *testing.T, conn *grpc.ClientConn, what string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out := new(wrapperspb.StringValue)
	err := conn.Invoke(ctx, "/test.Parrot/Say", wrapperspb.String(what), out, grpc.WaitForReady(true))
	return out.GetValue(), err
}

func (r *running) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := r.registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			require.Len(t, f.GetMetric(), 1)
			m := f.GetMetric()[0]
			require.Equal(t, "test", m.GetLabel()[0].GetValue())
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestAPanicFailsOneCall(t *testing.T) {
	r := start(t, nil)
	conn := r.dial(t)
	_, err := say(t, conn, "panic")
	require.Equal(t, codes.Internal, status.Code(err))
	require.NotContains(t, err.Error(), "as told", "internals are for the log")
	require.InDelta(t, 1, r.metric(t, "grpc_server_panics_total"), 0)
	require.Contains(t, r.log.String(), "as told")

	got, err := say(t, conn, "hello")
	require.NoError(t, err)
	require.Equal(t, "hello", got)
}

func TestATooLargeMessageFailsOneCall(t *testing.T) {
	r := start(t, func(c *rpc.Config) { c.MaxMessage = 1000 })
	conn := r.dial(t)
	_, err := say(t, conn, strings.Repeat("x", 1001))
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	_, err = say(t, conn, "hello")
	require.NoError(t, err)
}

func TestHealthAndReflection(t *testing.T) {
	r := start(t, nil)
	conn := r.dial(t)
	health := healthv1.NewHealthClient(conn)
	answer, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, healthv1.HealthCheckResponse_SERVING, answer.GetStatus())
	r.Health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	answer, err = health.Check(t.Context(), &healthv1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, healthv1.HealthCheckResponse_NOT_SERVING, answer.GetStatus())

	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{ListServices: "*"},
	}))
	listed, err := stream.Recv()
	require.NoError(t, err)
	var names []string
	for _, s := range listed.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	require.Contains(t, names, "test.Parrot")
}

func TestOneClientTooManyIsToldAtOnce(t *testing.T) {
	r := start(t, func(c *rpc.Config) { c.MaxConnections = 2 })
	first, second := r.raw(t), r.raw(t)
	require.Eventually(t, func() bool { return r.metric(t, "grpc_server_connections") == 2 }, patience, time.Millisecond)

	third := r.raw(t)
	require.NoError(t, third.SetReadDeadline(time.Now().Add(patience)))
	_, err := third.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.InDelta(t, 1, r.metric(t, "grpc_server_connections_refused_total"), 0)

	require.NoError(t, first.Close())
	require.NoError(t, second.Close())
	got, err := say(t, r.dial(t), "hello")
	require.NoError(t, err, "whoever leaves makes room")
	require.Equal(t, "hello", got)
}

func (r *running) raw(t *testing.T) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", r.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // some are closed by the test
	return conn
}

// Connections that say nothing, or nothing after the greeting, cost little and
// keep nobody out. Both ends are in this process, so each takes two files.
func TestIdleConnectionsKeepNobodyOut(t *testing.T) {
	idle := 9_000
	if testing.Short() {
		idle = 1_000
	}
	r := start(t, nil)
	greeting := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00") // and empty settings
	for i := range idle {
		conn := r.raw(t)
		if i%2 == 0 {
			_, err := conn.Write(greeting)
			require.NoError(t, err)
		}
	}
	got, err := say(t, r.dial(t), "hello")
	require.NoError(t, err)
	require.Equal(t, "hello", got)
	require.GreaterOrEqual(t, r.metric(t, "grpc_server_connections"), float64(idle/2))
}

func TestStopEndsThoughAStreamDoesNot(t *testing.T) {
	r := start(t, func(c *rpc.Config) { c.StopTimeout = 100 * time.Millisecond })
	r.leaveOpen(t)
	require.NoError(t, r.stop())
	require.Contains(t, r.log.String(), "cut off calls that outlast the stop")
}

// leaveOpen opens a stream that only its client would end.
func (r *running) leaveOpen(t *testing.T) {
	t.Helper()
	stream, err := reflectionv1.NewServerReflectionClient(r.dial(t)).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{ListServices: "*"},
	}))
	_, err = stream.Recv()
	require.NoError(t, err)
}

func TestErrorsNameTheFlag(t *testing.T) {
	r := start(t, nil)
	second, err := rpc.NewServer(rpc.Config{
		Name: "second", Address: r.Addr().String(), Flag: "listen",
		Registry: r.registry, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err, "two servers of one process share a registry")
	require.ErrorContains(t, second.Listen(t.Context()), "set --listen to a free one")
	require.ErrorContains(t, second.Serve(t.Context()), "call Listen first")
}
