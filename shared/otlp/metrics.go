package otlp

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/yairfalse/tapio/shared/event"
)

// Metrics sends a process's own Prometheus metrics to the collector, every
// OTEL_METRIC_EXPORT_INTERVAL (60 s), and once more at the end.
type Metrics struct {
	provider *metric.MeterProvider
}

// OpenMetrics starts to send what metrics gathers. service and identity, by
// semantic conventions such as host.name, say whose they are. Failures are
// logged; the next export has newer figures.
func OpenMetrics(ctx context.Context, config Config, service string, identity map[string]string, metrics prometheus.Gatherer, log *slog.Logger) (*Metrics, error) {
	e, transport, err := parse(config)
	if err != nil {
		return nil, err
	}
	base, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	options := []otlpmetricgrpc.Option{
		otlpmetricgrpc.WithEndpoint(e.Address),
		otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{Enabled: false}),
	}
	if transport != nil {
		options = append(options, otlpmetricgrpc.WithTLSCredentials(transport))
	}
	exporter, err := otlpmetricgrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("prepare OTLP metrics to %s: %w", config.Endpoint, err)
	}
	cluster := identity[event.K8sClusterName]
	if cluster == "" {
		cluster = config.Cluster
	}
	reader := metric.NewPeriodicReader(logged{exporter, log},
		metric.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(metrics))))
	return &Metrics{provider: metric.NewMeterProvider(
		metric.WithReader(reader),
		metric.WithResource(newResource(base, origin{service, identity[event.HostName], identity[event.K8sNodeName], cluster})),
	)}, nil
}

// Close sends the last figures and ends the connection.
func (m *Metrics) Close(ctx context.Context) error { return m.provider.Shutdown(ctx) }

// logged reports failures to our log instead of the SDK's global one.
type logged struct {
	metric.Exporter
	log *slog.Logger
}

// Export implements metric.Exporter.
func (l logged) Export(ctx context.Context, m *metricdata.ResourceMetrics) error {
	if err := l.Exporter.Export(ctx, m); err != nil {
		l.log.Warn("metrics not exported by OTLP", "error", err)
	}
	return nil
}
