package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/yairfalse/tapio/polku/internal/destination/ahti"
	"github.com/yairfalse/tapio/polku/internal/destination/otlp"
	"github.com/yairfalse/tapio/polku/internal/destination/stdout"
	"github.com/yairfalse/tapio/polku/internal/destination/webhook"
	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/certs"
	collector "github.com/yairfalse/tapio/shared/otlp"
)

// Names of the routes. Events name them in route_to, and their cursors are kept
// by them.
const (
	routeAHTI    = "ahti"
	routeOTLP    = "otlp"
	routeWebhook = "webhook"
	routeStdout  = "stdout"
)

const flagOTLP = "otlp"

// routes are the flags that say where events go. A route is there when its flag
// is set; its name is the flag's.
type routes struct {
	ahti    string
	ahtiTLS certs.Files

	otlp    string
	otlpTLS certs.Files

	webhook            string
	webhookSecret      string
	webhookMinSeverity string
	webhookTLS         certs.Files

	stdout bool
}

func (r *routes) flags(f *pflag.FlagSet) {
	f.StringVar(&r.ahti, "ahti", "", "route ahti: AHTI's address, HOST:PORT or https://HOST:PORT")
	f.StringVar(&r.ahtiTLS.CA, "ahti-tls-ca", "", "PEM file with the authorities of AHTI's certificate")
	f.StringVar(&r.ahtiTLS.Cert, "ahti-tls-cert", "", "PEM file with the certificate to show to AHTI")
	f.StringVar(&r.ahtiTLS.Key, "ahti-tls-key", "", "PEM file with the key of --ahti-tls-cert")
	f.StringVar(&r.otlp, flagOTLP, "", "route otlp: address of an OpenTelemetry collector's gRPC receiver, HOST:PORT or https://HOST:PORT; also OTEL_EXPORTER_OTLP_ENDPOINT")
	f.StringVar(&r.otlpTLS.CA, "otlp-tls-ca", "", "PEM file with the authorities of the collector's certificate")
	f.StringVar(&r.otlpTLS.Cert, "otlp-tls-cert", "", "PEM file with the certificate to show to the collector")
	f.StringVar(&r.otlpTLS.Key, "otlp-tls-key", "", "PEM file with the key of --otlp-tls-cert")
	f.StringVar(&r.webhook, "webhook", "", "route webhook: URL to post events to")
	f.StringVar(&r.webhookSecret, "webhook-secret", "", "base64 secret that signs what is posted; better set as POLKU_WEBHOOK_SECRET")
	f.StringVar(&r.webhookMinSeverity, "webhook-min-severity", "", "least severe event to post: debug, info, warning, error or critical")
	f.StringVar(&r.webhookTLS.CA, "webhook-tls-ca", "", "PEM file with the authorities of the webhook's certificate; empty for the system's")
	f.BoolVar(&r.stdout, "stdout", false, "route stdout: print events as JSON, one a line")
}

func (r *routes) check() error {
	_, err := severity("webhook-min-severity", r.webhookMinSeverity)
	errs := []error{err}
	needs := func(route, value string, settings bool) {
		if value == "" && settings {
			errs = append(errs, fmt.Errorf("there are --%s-* settings but no such route: set --%[1]s, or leave them out", route))
		}
	}
	needs(routeAHTI, r.ahti, !r.ahtiTLS.Empty())
	needs(flagOTLP, r.otlp, !r.otlpTLS.Empty())
	needs(routeWebhook, r.webhook, !r.webhookTLS.Empty() || r.webhookSecret != "" || r.webhookMinSeverity != "")
	return errors.Join(errs...)
}

// severity reads the name of one; empty is none.
func severity(flag, name string) (eventv1.Severity, error) {
	if name == "" {
		return eventv1.Severity_SEVERITY_UNSPECIFIED, nil
	}
	if s, ok := eventv1.Severity_value["SEVERITY_"+strings.ToUpper(name)]; ok && s > 0 {
		return eventv1.Severity(s), nil
	}
	return 0, fmt.Errorf("--%s: %q is none of debug, info, warning, error, critical", flag, name)
}

// destinations makes what the flags name.
func (r *routes) destinations(out io.Writer) func(context.Context, prometheus.Registerer, *slog.Logger) (map[string]route.Destination, error) {
	return func(ctx context.Context, registry prometheus.Registerer, log *slog.Logger) (map[string]route.Destination, error) {
		found := make(map[string]route.Destination)
		var errs []error
		add := func(name string, d route.Destination, err error) {
			if err != nil {
				errs = append(errs, fmt.Errorf("route %s: %w", name, err))
				return
			}
			found[name] = d
		}
		labeled := func(name string) prometheus.Registerer {
			return prometheus.WrapRegistererWith(prometheus.Labels{"route": name}, registry)
		}
		if r.ahti != "" {
			d, err := ahti.New(ahti.Config{Endpoint: r.ahti, TLS: r.ahtiTLS, Log: log, Registry: labeled(routeAHTI)})
			add(routeAHTI, d, err)
		}
		if r.otlp != "" {
			d, err := otlp.New(ctx, otlp.Config{Collector: collector.Config{Endpoint: r.otlp, TLS: r.otlpTLS}})
			add(routeOTLP, d, err)
		}
		if r.webhook != "" {
			least, _ := severity("", r.webhookMinSeverity) // check has seen it
			d, err := webhook.New(webhook.Config{
				URL: r.webhook, Secret: r.webhookSecret, MinSeverity: least, TLS: r.webhookTLS, Registry: labeled(routeWebhook),
			})
			add(routeWebhook, d, err)
		}
		if r.stdout {
			found[routeStdout] = stdout.New(out)
		}
		return found, errors.Join(errs...)
	}
}
