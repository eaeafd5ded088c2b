// Package cli is the command line of ahti.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/yairfalse/tapio/ahti/internal/server"
	"github.com/yairfalse/tapio/ahti/internal/store"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/config"
	"github.com/yairfalse/tapio/shared/telemetry"
	"github.com/yairfalse/tapio/shared/version"
)

// prefix of the environment variables that are flags.
const prefix = "AHTI"

// Run runs the command line and returns the exit status: 0, or 1 after an error
// that was written to stderr.
func Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := newServe(environ)
	root.AddCommand(newIncidents(environ), newWhy(environ), newTimeline(environ), newFailureModes(), version.Command("ahti"))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "ahti: %v\n", err)
		return 1
	}
	return 0
}

// options are the flags of the server.
type options struct {
	listen, httpListen, telemetryListen string
	dataDir, store                      string
	retention                           time.Duration
	failureModes                        string
	maxBytes                            config.Size
	tls                                 certs.Files
	logLevel                            config.Level
	logFormat                           telemetry.Format
	config                              string
}

func newServe(environ []string) *cobra.Command {
	o := options{logFormat: telemetry.Text}
	cmd := &cobra.Command{
		Use:   "ahti",
		Short: "Keep what happened in a cluster, and tell what broke and why",
		Long: `ahti receives events over gRPC, stores them, and finds out which change or fault
is behind what fails. It never opens a connection to a cluster or a node.

Every flag is also an environment variable (--data-dir is AHTI_DATA_DIR) and a
key of the YAML file that --config names. Flags win over the environment, the
environment over the file.`,
		Example: `  ahti --data-dir /var/lib/ahti         keep everything in SQLite
  ahti --store postgres://ahti@db/ahti  keep it in PostgreSQL
  ahti why shop/api                     ask a running one what is wrong with shop/api`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Text("ahti"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.Load(cmd.Flags(), prefix, environ, nil); err != nil {
				return err
			}
			c, err := o.server(cmd)
			if err != nil {
				return err
			}
			return server.Run(cmd.Context(), c)
		},
	}
	cmd.SetVersionTemplate("{{.Version}}")
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", ":50052", "address of the gRPC service")
	f.StringVar(&o.httpListen, "http-listen", "127.0.0.1:8090", "address of the same answers as JSON over HTTP, which is neither encrypted nor guarded; empty for none")
	f.StringVar(&o.telemetryListen, "telemetry-listen", "127.0.0.1:9467", "address of /healthz, /readyz and /metrics; empty for none")
	f.StringVar(&o.dataDir, "data-dir", "ahti-data", "directory of the SQLite database")
	f.StringVar(&o.store, "store", "", "URL of a PostgreSQL database to use instead, postgres://USER@HOST/DATABASE")
	f.StringVar(&o.failureModes, "failure-modes", "", "YAML file with the table to reason by, such as \"ahti failure-modes\" prints; empty for the built-in one")
	f.DurationVar(&o.retention, "retention", 7*24*time.Hour, "how long to keep events; 0 for ever")
	f.TextVar(&o.maxBytes, "max-bytes", o.maxBytes, "how large the SQLite database may get before the oldest events go, such as 10GiB; 0 for no limit")
	tlsFlags(f, &o.tls, "certificate of the gRPC service; without one it is not encrypted", "authorities whose certificates clients must show (mutual TLS)")
	f.TextVar(&o.logLevel, "log-level", config.Level{Level: slog.LevelInfo}, "least severe log to write to standard error: debug, info, warn or error")
	f.TextVar(&o.logFormat, "log-format", telemetry.Text, "format of the logs: text or json")
	f.StringVar(&o.config, config.FileFlag, "", "YAML file with flags as keys")
	return cmd
}

func tlsFlags(f *pflag.FlagSet, files *certs.Files, cert, ca string) {
	f.StringVar(&files.Cert, "tls-cert", "", "PEM file with the "+cert)
	f.StringVar(&files.Key, "tls-key", "", "PEM file with its key")
	f.StringVar(&files.CA, "tls-ca", "", "PEM file with the "+ca)
}

// server checks the flags and makes the server's configuration of them.
func (o *options) server(cmd *cobra.Command) (server.Config, error) {
	c := server.Config{
		Listen: o.listen, HTTPListen: o.httpListen, TelemetryListen: o.telemetryListen,
		Store: store.Config{Dir: o.dataDir, URL: o.store}, Retention: o.retention, MaxBytes: int64(o.maxBytes),
		FailureModes: o.failureModes,
		Log:          telemetry.NewLogger(cmd.ErrOrStderr(), o.logLevel.Level, o.logFormat),
	}
	var errs []error
	if o.store != "" {
		if u, err := url.Parse(o.store); err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
			errs = append(errs, errors.New("--store: want postgres://USER@HOST/DATABASE, or leave it empty for SQLite"))
		}
		if o.maxBytes != 0 {
			errs = append(errs, errors.New("--max-bytes: PostgreSQL does not tell what a row takes; use --retention"))
		}
	} else if o.dataDir == "" {
		errs = append(errs, errors.New("--data-dir is empty: name a directory, or a PostgreSQL database by --store"))
	}
	if o.retention < 0 {
		errs = append(errs, fmt.Errorf("--retention is %s: use 0 to keep events for ever", o.retention))
	}
	if !o.tls.Empty() {
		var err error
		if c.TLS, err = o.tls.Server(); err != nil {
			errs = append(errs, err)
		}
	}
	return c, errors.Join(errs...)
}
