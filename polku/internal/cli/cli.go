// Package cli is the command line of polku.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/yairfalse/tapio/polku/internal/journal"
	"github.com/yairfalse/tapio/polku/internal/serve"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/config"
	"github.com/yairfalse/tapio/shared/rpc"
	"github.com/yairfalse/tapio/shared/telemetry"
	"github.com/yairfalse/tapio/shared/version"
)

// prefix of the environment variables that are flags.
const prefix = "POLKU"

// Where a gateway listens unless it is told otherwise.
const (
	defaultListen   = ":50051"
	defaultOperator = "127.0.0.1:50061"
	defaultHTTP     = ":9466"
)

// defaultMaxMessage is twice what our agents send at most. The bytes of a message
// take memory before it is complete, and of each stream there may be one.
const defaultMaxMessage = 1 << 20

// maxRate is more events a second than any source sends.
const maxRate = 1_000_000_000

// leastLog is the smallest log that works: a few of its largest messages.
const leastLog = 16 << 20

// Run runs the command line and returns the exit status: 0, or 1 after an error
// that was written to stderr.
func Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := newServe(environ, stdout)
	root.AddCommand(newStatus(environ), newTail(environ), newReplay(environ), newDeadLetters(environ), version.Command("polku"))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "polku: %v\n", err)
		return 1
	}
	return 0
}

// options are the flags of the gateway.
type options struct {
	listen         string
	operatorListen string
	httpListen     string
	tls            certs.Files
	maxMessage     config.Size
	maxConnections int
	rateLimit      float64

	dataDir      string
	natsURL      string
	natsCreds    string
	natsReplicas int
	logMaxBytes  config.Size
	logRetention time.Duration

	routes routes

	logLevel  config.Level
	logFormat telemetry.Format
	config    string
}

func newServe(environ []string, stdout io.Writer) *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "polku",
		Short: "Take events, keep them safe, route them on",
		Long: `polku takes events from agents (polku.v1.Gateway), keeps them in a durable log
and delivers them to each route at its own pace. What is acknowledged is on disk.

Every flag is also an environment variable (--data-dir is POLKU_DATA_DIR) and a
key of the YAML file that --config names. Flags win over the environment, the
environment over the file.`,
		Example: `  polku --stdout                            print what arrives, one JSON object a line
  polku --ahti ahti:50052                   deliver to AHTI
  polku --nats-url nats://nats:4222 --nats-replicas 3 --ahti ahti:50052
  polku status                              how the log and the routes stand`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Text("polku"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			aliases := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": flagOTLP}
			if err := config.Load(cmd.Flags(), prefix, environ, aliases); err != nil {
				return err
			}
			c, err := o.serve(cmd, stdout)
			if err != nil {
				return err
			}
			return serve.Run(cmd.Context(), c)
		},
	}
	cmd.SetVersionTemplate("{{.Version}}")
	o.maxMessage, o.logMaxBytes, o.logFormat = defaultMaxMessage, 4<<30, telemetry.Text
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", defaultListen, "address that takes events")
	f.StringVar(&o.operatorListen, "operator-listen", defaultOperator, "address for the other commands of polku, on loopback")
	f.StringVar(&o.httpListen, "http-listen", defaultHTTP, "address of /healthz, /readyz and /metrics; empty for none")
	f.StringVar(&o.tls.Cert, "tls-cert", "", "PEM file with the certificate of this gateway; empty for no encryption")
	f.StringVar(&o.tls.Key, "tls-key", "", "PEM file with the key of --tls-cert")
	f.StringVar(&o.tls.CA, "tls-client-ca", "", "PEM file with the authorities that clients must have certificates of")
	f.TextVar(&o.maxMessage, "max-message", o.maxMessage, "largest batch, such as 1MiB")
	f.IntVar(&o.maxConnections, "max-connections", rpc.DefaultMaxConnections, "how many clients may be connected at once")
	f.Float64Var(&o.rateLimit, "rate-limit", 0, "events a second that one source may send; 0 for any")
	f.StringVar(&o.dataDir, "data-dir", "/var/lib/polku", "directory of the log")
	f.StringVar(&o.natsURL, "nats-url", "", "servers of a NATS cluster to keep the log in, separated by commas; empty keeps it in --data-dir")
	f.StringVar(&o.natsCreds, "nats-creds", "", "NATS credentials file for --nats-url")
	f.IntVar(&o.natsReplicas, "nats-replicas", 1, "how many servers of --nats-url hold each message")
	f.TextVar(&o.logMaxBytes, "log-max-bytes", o.logMaxBytes, "size at which the log is full and takes nothing more")
	f.DurationVar(&o.logRetention, "log-retention", 24*time.Hour, "how long delivered events are kept for replay, as far as there is room")
	o.routes.flags(f)
	f.TextVar(&o.logLevel, "log-level", config.Level{Level: slog.LevelInfo}, "least severe log to write to standard error: debug, info, warn or error")
	f.TextVar(&o.logFormat, "log-format", telemetry.Text, "format of the logs: text or json")
	f.StringVar(&o.config, config.FileFlag, "", "YAML file with flags as keys")
	return cmd
}

// serve checks the flags and makes the gateway's configuration of them.
func (o *options) serve(cmd *cobra.Command, stdout io.Writer) (serve.Config, error) {
	var errs []error
	problem := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	problem(!onLoopback(o.operatorListen), "--operator-listen is %q: use an address of loopback such as %s, because it needs no credentials", o.operatorListen, defaultOperator)
	problem(o.tls.Cert == "" && (o.tls.Key != "" || o.tls.CA != ""), "--tls-key and --tls-client-ca need --tls-cert")
	problem(o.maxMessage < 64<<10 || o.maxMessage > 64<<20, "--max-message is %s: use 64KiB to 64MiB", o.maxMessage)
	problem(o.maxConnections < 1, "--max-connections is %d: use 1 or more", o.maxConnections)
	problem(!(o.rateLimit >= 0 && o.rateLimit <= maxRate), "--rate-limit is %g: use 0 for any, or at most %d events a second", o.rateLimit, maxRate)
	problem(o.natsURL == "" && o.dataDir == "", "--data-dir is empty: name a directory for the log, or set --nats-url")
	problem(o.natsURL == "" && (o.natsCreds != "" || o.natsReplicas != 1), "--nats-creds and --nats-replicas need --nats-url")
	problem(!slices.Contains([]int{1, 3, 5}, o.natsReplicas), "--nats-replicas is %d: use 1, 3 or 5", o.natsReplicas)
	problem(o.logMaxBytes < leastLog, "--log-max-bytes is %s: use %s or more", o.logMaxBytes, config.Size(leastLog))
	problem(o.logRetention < 0, "--log-retention is %s: use 0 or more", o.logRetention)
	errs = append(errs, o.routes.check())
	return serve.Config{
		Listen: o.listen, OperatorListen: o.operatorListen, HTTPListen: o.httpListen,
		TLS: o.tls, MaxMessage: int(o.maxMessage), MaxConnections: o.maxConnections, RateLimit: o.rateLimit,
		Journal: journal.Config{
			Dir: o.dataDir, URL: o.natsURL, Credentials: o.natsCreds, Replicas: o.natsReplicas,
			MaxBytes: int64(o.logMaxBytes), Retention: o.logRetention,
		},
		Routes:  o.routes.destinations(stdout),
		Version: version.Number(),
		Log:     telemetry.NewLogger(cmd.ErrOrStderr(), o.logLevel.Level, o.logFormat),
	}, errors.Join(errs...)
}

// onLoopback reports whether only this machine can reach an address.
func onLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
