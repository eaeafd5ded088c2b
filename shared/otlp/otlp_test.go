package otlp_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collogpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	colmetricpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logpb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/certs/certstest"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/otlp"
)

// collector is a server of OTLP, written from its protocol.
type collector struct {
	collogpb.UnimplementedLogsServiceServer
	address string
	metrics metricsService

	mu      sync.Mutex
	request *collogpb.ExportLogsServiceRequest // the last
	headers metadata.MD
	answer  *collogpb.ExportLogsPartialSuccess
	fail    error
}

type metricsService struct {
	colmetricpb.UnimplementedMetricsServiceServer
	requests chan *colmetricpb.ExportMetricsServiceRequest
}

// Export implements the protocol.
func (m *metricsService) Export(_ context.Context, r *colmetricpb.ExportMetricsServiceRequest) (*colmetricpb.ExportMetricsServiceResponse, error) {
	m.requests <- r
	return &colmetricpb.ExportMetricsServiceResponse{}, nil
}

// Export implements the protocol.
func (c *collector) Export(ctx context.Context, r *collogpb.ExportLogsServiceRequest) (*collogpb.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.request = r
	c.headers, _ = metadata.FromIncomingContext(ctx)
	return &collogpb.ExportLogsServiceResponse{PartialSuccess: c.answer}, c.fail
}

func startCollector(t *testing.T, options ...grpc.ServerOption) *collector {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c := &collector{address: l.Addr().String(), metrics: metricsService{requests: make(chan *colmetricpb.ExportMetricsServiceRequest, 10)}}
	server := grpc.NewServer(options...)
	collogpb.RegisterLogsServiceServer(server, c)
	colmetricpb.RegisterMetricsServiceServer(server, &c.metrics)
	served := make(chan struct{})
	go func() {
		defer close(served)
		assert.NoError(t, server.Serve(l))
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return c
}

func open(t *testing.T, config otlp.Config) *otlp.Exporter {
	x, err := otlp.Open(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, x.Close(context.Background())) })
	return x
}

func refused(host string) *eventv1.Event {
	at := time.Date(2026, time.March, 4, 5, 6, 7, 8, time.UTC)
	e := event.NewFactory().New(event.KindNetworkConnectionRefused, at, "tapio")
	e.Metadata = map[string]string{
		event.HostName: host, event.K8sNodeName: "n-" + host,
		event.NetworkPeerAddress: "10.0.0.1", event.NetworkPeerPort: "5432", event.ErrorType: "ECONNREFUSED",
		event.ProcessExecutableName: "api", event.ProcessPID: "12", event.TapioNetworkElapsedMs: "0.5",
		event.TapioSuppressed: "many", "custom": "value",
	}
	return e
}

func attributes(list []*commonpb.KeyValue) map[string]any {
	m := map[string]any{}
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			m[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			m[a.GetKey()] = v.IntValue
		case *commonpb.AnyValue_DoubleValue:
			m[a.GetKey()] = v.DoubleValue
		default:
			m[a.GetKey()] = v
		}
	}
	return m
}

func TestEventsBecomeLogRecords(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.name=other")
	c := startCollector(t)
	x := open(t, otlp.Config{Endpoint: "http://" + c.address, Cluster: "prod"})
	first, second := refused("a"), refused("b")
	second.Severity = eventv1.Severity_SEVERITY_CRITICAL
	second.Metadata[event.K8sClusterName] = "elsewhere"
	require.NoError(t, x.Export(t.Context(), []*eventv1.Event{first, second, refused("a")}))

	require.Equal(t, []string{"secret"}, c.headers.Get("x-token"))
	resources := map[string]*logpb.ResourceLogs{}
	for _, r := range c.request.GetResourceLogs() {
		host, ok := attributes(r.GetResource().GetAttributes())[event.HostName].(string)
		require.True(t, ok)
		resources[host] = r
	}
	require.Len(t, resources, 2)
	got := attributes(resources["a"].GetResource().GetAttributes())
	for key, want := range map[string]string{
		"service.name": "tapio", event.HostName: "a", event.K8sNodeName: "n-a", event.K8sClusterName: "prod",
		"deployment.environment.name": "test", "telemetry.sdk.name": "opentelemetry",
	} {
		require.Equal(t, want, got[key])
	}
	require.Equal(t, "elsewhere", attributes(resources["b"].GetResource().GetAttributes())[event.K8sClusterName])

	records := resources["a"].GetScopeLogs()[0].GetLogRecords()
	require.Len(t, records, 2)
	r := records[0]
	require.Equal(t, event.KindNetworkConnectionRefused, r.GetEventName())
	require.EqualValues(t, first.GetTimestampUnixNs(), r.GetTimeUnixNano())
	require.Equal(t, logpb.SeverityNumber_SEVERITY_NUMBER_ERROR, r.GetSeverityNumber())
	require.Equal(t, "ERROR", r.GetSeverityText())
	require.Equal(t, "connection refused: api[12] → 10.0.0.1:5432 ECONNREFUSED after 500 µs", r.GetBody().GetStringValue())
	require.Equal(t, map[string]any{
		event.TapioEventID: first.GetId(), event.NetworkPeerAddress: "10.0.0.1", event.NetworkPeerPort: int64(5432),
		event.ErrorType: "ECONNREFUSED", event.ProcessExecutableName: "api", event.ProcessPID: int64(12),
		event.TapioNetworkElapsedMs: 0.5, event.TapioSuppressed: "many", "custom": "value",
	}, attributes(r.GetAttributes()))
	require.Equal(t, logpb.SeverityNumber_SEVERITY_NUMBER_FATAL, resources["b"].GetScopeLogs()[0].GetLogRecords()[0].GetSeverityNumber())
}

func TestWhatTheCollectorDoesNotTakeIsAnError(t *testing.T) {
	c := startCollector(t)
	x := open(t, otlp.Config{Endpoint: c.address})
	events := []*eventv1.Event{refused("a"), refused("a")}

	var rejected *otlp.Rejected
	c.answer = &collogpb.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "too old"}
	require.ErrorAs(t, x.Export(t.Context(), events), &rejected)
	require.Equal(t, otlp.Rejected{Events: 1, Message: "too old"}, *rejected)

	c.answer = &collogpb.ExportLogsPartialSuccess{ErrorMessage: "only a warning"}
	require.NoError(t, x.Export(t.Context(), events))

	c.fail = status.Error(codes.InvalidArgument, "malformed")
	require.ErrorAs(t, x.Export(t.Context(), events), &rejected)
	require.Equal(t, otlp.Rejected{Events: 2, Message: "malformed"}, *rejected)

	for _, code := range []codes.Code{codes.Unavailable, codes.Unauthenticated, codes.ResourceExhausted} {
		c.fail = status.Error(code, "not now")
		err := x.Export(t.Context(), events)
		require.ErrorContains(t, err, "not now")
		require.NotErrorAs(t, err, &rejected)
	}
	c.fail = nil
	c.answer = nil
	require.NoError(t, x.Export(t.Context(), events), "the next try")
}

func TestTLS(t *testing.T) {
	a := certstest.NewAuthority(t, "a")
	files := a.Side(t, "collector")
	server, err := files.Server()
	require.NoError(t, err)
	c := startCollector(t, grpc.Creds(credentials.NewTLS(server)))
	events := []*eventv1.Event{refused("a")}

	require.NoError(t, open(t, otlp.Config{Endpoint: c.address, TLS: files}).Export(t.Context(), events))
	err = open(t, otlp.Config{Endpoint: "https://" + c.address}).Export(t.Context(), events)
	require.ErrorContains(t, err, "unknown authority")

	t.Setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", files.CA)
	t.Setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", files.Cert)
	t.Setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", files.Key)
	require.NoError(t, open(t, otlp.Config{Endpoint: "https://" + c.address}).Export(t.Context(), events))
}

func TestBadConfiguration(t *testing.T) {
	_, err := otlp.Open(t.Context(), otlp.Config{Endpoint: "collector"})
	require.ErrorContains(t, err, "port is missing")
	_, err = otlp.Open(t.Context(), otlp.Config{Endpoint: "collector:1", TLS: certs.Files{Cert: "a"}})
	require.ErrorContains(t, err, "key")
	_, err = otlp.OpenMetrics(t.Context(), otlp.Config{}, "tapio", nil, nil, nil)
	require.ErrorContains(t, err, "host is missing")
}

func TestMetrics(t *testing.T) {
	c := startCollector(t)
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "tapio_test_total"})
	registry.MustRegister(counter)
	m, err := otlp.OpenMetrics(t.Context(), otlp.Config{Endpoint: c.address, Cluster: "prod"}, "tapio",
		map[string]string{event.HostName: "a"}, registry, slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	counter.Add(3)
	require.NoError(t, m.Close(t.Context()), "sends what there is")
	r := (<-c.metrics.requests).GetResourceMetrics()[0]
	got := attributes(r.GetResource().GetAttributes())
	require.Equal(t, "tapio", got["service.name"])
	require.Equal(t, "a", got[event.HostName])
	require.Equal(t, "prod", got[event.K8sClusterName])
	metric := r.GetScopeMetrics()[0].GetMetrics()[0]
	require.Equal(t, "tapio_test_total", metric.GetName())
	require.InDelta(t, 3, metric.GetSum().GetDataPoints()[0].GetAsDouble(), 0)
}
