// Package otlp sends events and metrics to an OpenTelemetry collector.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	collogpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/endpoint"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

// Config says where the collector is. What it does not say comes from the
// OTEL_EXPORTER_OTLP_* variables (headers, certificates, compression, timeout)
// and from OTEL_RESOURCE_ATTRIBUTES.
type Config struct {
	// Endpoint is the collector's OTLP/gRPC address, in a form that
	// endpoint.Parse takes.
	Endpoint string
	TLS      certs.Files
	// Cluster is the k8s.cluster.name of events that do not say theirs. It may
	// be empty.
	Cluster string
}

// scope is the instrumentation scope of the log records.
const scope = "github.com/yairfalse/tapio"

// Rejected is the error of events that the collector will never take: sending
// them again is in vain. Any other error may pass.
type Rejected struct {
	Events  int64 // of those that were exported
	Message string
}

// Error implements error.
func (r *Rejected) Error() string {
	return fmt.Sprintf("the collector rejected %d log records for good: %s", r.Events, r.Message)
}

// Exporter sends events as log records. It is safe for concurrent use; one
// export goes on at a time.
type Exporter struct {
	cluster string
	logs    *otlploggrpc.Exporter
	base    *resource.Resource

	mu      sync.Mutex
	records collected
	loggers map[origin]log.Logger
}

// origin is who an event is from; each has a resource of its own.
type origin struct{ service, host, node, cluster string }

// maxOrigins bounds the loggers that are kept: the nodes of a large cluster.
const maxOrigins = 10_000

// Open prepares an exporter. It connects when there is something to send; the
// error is about the configuration.
func Open(ctx context.Context, config Config) (*Exporter, error) {
	e, transport, err := parse(config)
	if err != nil {
		return nil, err
	}
	base, err := resource.New(ctx, resource.WithFromEnv(), resource.WithTelemetrySDK())
	if err != nil {
		return nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	options := []otlploggrpc.Option{
		otlploggrpc.WithEndpoint(e.Address),
		// Whoever exports decides what an error means and when to try again.
		otlploggrpc.WithRetry(otlploggrpc.RetryConfig{Enabled: false}),
		otlploggrpc.WithDialOption(grpc.WithChainUnaryInterceptor(partialSuccess)),
	}
	if transport != nil {
		options = append(options, otlploggrpc.WithTLSCredentials(transport))
	}
	logs, err := otlploggrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("prepare OTLP logs to %s: %w", config.Endpoint, err)
	}
	return &Exporter{cluster: config.Cluster, logs: logs, base: base, loggers: map[origin]log.Logger{}}, nil
}

// parse returns the endpoint and its credentials; nil leaves TLS without files
// to the OTEL_EXPORTER_OTLP_CERTIFICATE variables.
func parse(config Config) (endpoint.Endpoint, credentials.TransportCredentials, error) {
	e, err := endpoint.Parse(config.Endpoint, config.TLS)
	if err != nil || e.TLS != nil && config.TLS.Empty() {
		return e, nil, err
	}
	return e, e.Credentials(), nil
}

// partialSuccess makes an error of records that the collector rejected while it
// said OK. Without any, what it says is a mere warning, all was accepted.
func partialSuccess(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if err := invoke(ctx, method, request, reply, conn, options...); err != nil {
		return err
	}
	r, ok := reply.(*collogpb.ExportLogsServiceResponse)
	if !ok || r.GetPartialSuccess() == nil {
		return nil
	}
	partial := r.GetPartialSuccess()
	r.PartialSuccess = nil // the SDK would make an error of the warning
	if partial.GetRejectedLogRecords() == 0 {
		return nil
	}
	return &Rejected{Events: partial.GetRejectedLogRecords(), Message: partial.GetErrorMessage()}
}

// Export sends events and returns nil when the collector has accepted all of
// them. Of a *Rejected error the other events have been accepted; after any
// other one none may have.
func (x *Exporter) Export(ctx context.Context, events []*eventv1.Event) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.records = x.records[:0]
	for _, e := range events {
		x.logger(e).Emit(ctx, record(e))
	}
	err := x.logs.Export(ctx, x.records)
	clear(x.records)
	var answer interface{ GRPCStatus() *status.Status }
	if errors.As(err, &answer) && answer.GRPCStatus().Code() == codes.InvalidArgument {
		return &Rejected{Events: int64(len(events)), Message: answer.GRPCStatus().Message()}
	}
	if err != nil {
		return fmt.Errorf("export %d events by OTLP: %w", len(events), err)
	}
	return nil
}

// Close ends the connection.
func (x *Exporter) Close(ctx context.Context) error { return x.logs.Shutdown(ctx) }

// logger returns the logger whose resource is the origin of an event. The
// caller holds the lock.
func (x *Exporter) logger(e *eventv1.Event) log.Logger {
	m := e.GetMetadata()
	o := origin{e.GetSource(), m[event.HostName], m[event.K8sNodeName], m[event.K8sClusterName]}
	if o.cluster == "" {
		o.cluster = x.cluster
	}
	if l, found := x.loggers[o]; found {
		return l
	}
	if len(x.loggers) >= maxOrigins {
		clear(x.loggers)
	}
	l := sdklog.NewLoggerProvider(
		sdklog.WithResource(newResource(x.base, o)), sdklog.WithProcessor(&x.records),
		sdklog.WithAttributeCountLimit(-1), sdklog.WithAllowKeyDuplication(), // an event has its own limits
	).Logger(scope)
	x.loggers[o] = l
	return l
}

func newResource(base *resource.Resource, o origin) *resource.Resource {
	attributes := append([]attribute.KeyValue{}, base.Attributes()...)
	for _, a := range []struct{ key, value string }{
		{"service.name", o.service}, {event.HostName, o.host}, {event.K8sNodeName, o.node}, {event.K8sClusterName, o.cluster},
	} {
		if a.value != "" {
			attributes = append(attributes, attribute.String(a.key, a.value))
		}
	}
	return resource.NewWithAttributes(base.SchemaURL(), attributes...)
}

// collected keeps the records of one export. The SDK has no other way to make
// them.
type collected []sdklog.Record

// OnEmit implements sdklog.Processor.
func (c *collected) OnEmit(_ context.Context, r *sdklog.Record) error {
	*c = append(*c, r.Clone())
	return nil
}

// Enabled implements sdklog.Processor.
func (*collected) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

// Shutdown implements sdklog.Processor.
func (*collected) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdklog.Processor.
func (*collected) ForceFlush(context.Context) error { return nil }

// record writes an event as a log record. What the resource says is not
// repeated.
func record(e *eventv1.Event) log.Record {
	var r log.Record
	r.SetEventName(e.GetEventType())
	r.SetTimestamp(time.Unix(0, e.GetTimestampUnixNs()))
	number, text := severity(e.GetSeverity())
	r.SetSeverity(number)
	r.SetSeverityText(text)
	r.SetBody(attribute.StringValue(humanoutput.Sentence(e)))
	attributes := make([]attribute.KeyValue, 0, len(e.GetMetadata())+1)
	attributes = append(attributes, attribute.String(event.TapioEventID, e.GetId()))
	for key, value := range e.GetMetadata() {
		switch key {
		case event.HostName, event.K8sNodeName, event.K8sClusterName:
		default:
			attributes = append(attributes, typed(key, value))
		}
	}
	r.AddAttributes(attributes...)
	return r
}

// typed gives a value the type that its key has in the semantic conventions or
// in our registry.
func typed(key, value string) attribute.KeyValue {
	switch key {
	case event.NetworkLocalPort, event.NetworkPeerPort, event.ProcessExitCode, event.ProcessPID, event.ProcessParentPID:
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return attribute.Int64(key, n)
		}
	}
	switch k, _ := event.LookupKey(key); k.Unit {
	case event.UnitNone:
	case event.UnitBytes, event.UnitCount:
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			return attribute.Int64(key, n)
		}
	default:
		if f, err := strconv.ParseFloat(value, 64); err == nil {
			return attribute.Float64(key, f)
		}
	}
	return attribute.String(key, value)
}

func severity(s eventv1.Severity) (log.Severity, string) {
	switch s {
	case eventv1.Severity_SEVERITY_DEBUG:
		return log.SeverityDebug, "DEBUG"
	case eventv1.Severity_SEVERITY_WARNING:
		return log.SeverityWarn, "WARNING"
	case eventv1.Severity_SEVERITY_ERROR:
		return log.SeverityError, "ERROR"
	case eventv1.Severity_SEVERITY_CRITICAL:
		return log.SeverityFatal, "CRITICAL"
	}
	return log.SeverityInfo, "INFO"
}
