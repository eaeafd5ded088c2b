// Package cli is the command line of scheduler-scraper.
package cli

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/scraper/internal/report"
	"github.com/yairfalse/tapio/scraper/internal/scraper"
	"github.com/yairfalse/tapio/scraper/internal/target"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/config"
	"github.com/yairfalse/tapio/shared/endpoint"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/shared/polku"
	"github.com/yairfalse/tapio/shared/telemetry"
	"github.com/yairfalse/tapio/shared/version"
)

// prefix of the environment variables that are flags.
const prefix = "SCHEDULER_SCRAPER"

// podToken is where a pod finds the token of its service account.
const podToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// shortest is the shortest interval between scrapes: each costs the scheduler
// some milliseconds.
const shortest = 100 * time.Millisecond

// errUnwell ends --once with status 1; its report has said why.
var errUnwell = errors.New("the scheduler is not well")

// Run runs the command line and returns the exit status: 0, or 1 after an error
// that was written to stderr, or a report that is not good.
func Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := newScraper(environ)
	root.AddCommand(version.Command("scheduler-scraper"))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		if !errors.Is(err, errUnwell) {
			fmt.Fprintf(stderr, "scheduler-scraper: %v\n", err)
		}
		return 1
	}
	return 0
}

// options are the flags.
type options struct {
	schedulers   []string
	expectLeader bool
	interval     time.Duration
	timeout      time.Duration
	tokenFile    string
	tls          certs.Files
	insecure     bool
	once         bool
	from         string

	output    string
	color     string
	listen    string
	logLevel  config.Level
	logFormat telemetry.Format
	config    string
	node      string
	cluster   string
	polku     polku.Config
	otlp      string
}

// aliases are environment variables that users know from elsewhere.
func aliases() map[string]string {
	return map[string]string{
		"POLKU_ENDPOINT":              "polku",
		"OTEL_EXPORTER_OTLP_ENDPOINT": "otlp",
		"NODE_NAME":                   "node",
	}
}

func newScraper(environ []string) *cobra.Command {
	o := options{logFormat: telemetry.Text}
	cmd := &cobra.Command{
		Use:   "scheduler-scraper",
		Short: "Tell when kube-scheduler does worse than it normally does",
		Long: `scheduler-scraper reads the metrics of kube-scheduler and tells of pods that find
no node and which plugins refuse them, growing queues, slow scheduling, errors,
preemption storms, and a scheduler that does not answer.

Every flag is also an environment variable (--token-file is
SCHEDULER_SCRAPER_TOKEN_FILE) and a key of the YAML file that --config names.
Flags win over the environment, the environment over the file.`,
		Example: `  scheduler-scraper --once --insecure-skip-verify  how is the scheduler of this node?
  scheduler-scraper --from metrics.prom.gz         the same of metrics in a file
  scheduler-scraper --polku https://polku:50051    send events to the gateway`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Text("scheduler-scraper"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.Load(cmd.Flags(), prefix, environ, aliases()); err != nil {
				return err
			}
			c, err := o.scraper(cmd, environ)
			if err != nil {
				return err
			}
			if o.once || o.from != "" {
				return o.look(cmd.Context(), c)
			}
			if o.polku.Endpoint != "" || o.otlp != "" {
				// A reader of standard output that goes away ends a program, as
				// in a pipe into head; not one that others rely on.
				signal.Ignore(syscall.SIGPIPE)
			}
			return scraper.Run(cmd.Context(), c)
		},
	}
	cmd.SetVersionTemplate("{{.Version}}")
	f := cmd.Flags()
	f.StringSliceVar(&o.schedulers, "scheduler", []string{"https://127.0.0.1:10259"}, "where kube-scheduler serves /metrics; several for several instances")
	f.BoolVar(&o.expectLeader, "expect-leader", false, "the schedulers named are all there are: tell when none of them leads (the default with several)")
	f.DurationVar(&o.interval, "interval", 15*time.Second, "time between scrapes")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long a scrape may take, at most the interval")
	f.StringVar(&o.tokenFile, "token-file", "", "file with the bearer token, read at each scrape; in a pod that of its service account")
	f.StringVar(&o.tls.CA, "ca", "", "PEM file with the authority of the scheduler's certificate; the system's without")
	f.StringVar(&o.tls.Cert, "cert", "", "PEM file with the certificate to show to the scheduler")
	f.StringVar(&o.tls.Key, "key", "", "PEM file with the key of --cert")
	f.BoolVar(&o.insecure, "insecure-skip-verify", false, "accept any certificate of the scheduler: for kubeadm's, which signs its own, and only on loopback")
	f.BoolVar(&o.once, "once", false, "print how the scheduler does and end: status 0 if it is well")
	f.StringVar(&o.from, "from", "", "as --once, of metrics in a file (.gz too) or - for standard input")
	f.StringVar(&o.output, "output", string(humanoutput.Text), "how to write events to standard output: text, json or none")
	f.StringVar(&o.color, "color", "auto", "colors of the text output: auto, always or never")
	f.StringVar(&o.listen, "listen", "127.0.0.1:9469", "address of /healthz, /readyz and /metrics; empty for none")
	f.TextVar(&o.logLevel, "log-level", config.Level{Level: slog.LevelInfo}, "least severe log to write to standard error: debug, info, warn or error")
	f.TextVar(&o.logFormat, "log-format", telemetry.Text, "format of the logs: text or json")
	f.StringVar(&o.node, "node", "", "name of this node in Kubernetes (also NODE_NAME)")
	f.StringVar(&o.cluster, "cluster", "", "name of the cluster")
	o.polku.Flags(f)
	f.StringVar(&o.otlp, "otlp", "", "OpenTelemetry collector to send the derived metrics to, OTLP over gRPC; written as --polku (also OTEL_EXPORTER_OTLP_ENDPOINT)")
	f.StringVar(&o.config, config.FileFlag, "", "YAML file with flags as keys")
	return cmd
}

// scraper checks the flags and makes the configuration of them.
func (o *options) scraper(cmd *cobra.Command, environ []string) (scraper.Config, error) {
	c := scraper.Config{
		Interval:     o.interval,
		ExpectLeader: o.expectLeader || len(o.schedulers) > 1 && !cmd.Flags().Changed("expect-leader"),
		Output:       humanoutput.Output(o.output),
		Listen:       o.listen,
		Node:         o.node,
		Cluster:      o.cluster,
		Polku:        o.polku,
		OTLP:         otlp.Config{Endpoint: o.otlp, Cluster: o.cluster},
		Stdout:       cmd.OutOrStdout(),
		Log:          telemetry.NewLogger(cmd.ErrOrStderr(), o.logLevel.Level, o.logFormat),
	}
	errs := []error{
		config.OneOf("output", o.output, string(humanoutput.Text), string(humanoutput.JSON), string(humanoutput.None)),
		config.OneOf("color", o.color, "auto", "always", "never"),
	}
	if o.interval < shortest {
		errs = append(errs, fmt.Errorf("--interval %s is too short: %s at least", o.interval, shortest))
	}
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("--timeout %s is no time", o.timeout))
	}
	if o.insecure && o.tls.CA != "" {
		errs = append(errs, errors.New("--ca and --insecure-skip-verify exclude each other"))
	}
	if o.from == "" {
		var err error
		if c.Targets, err = o.targets(); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, o.destinations())
	c.Style = humanoutput.Style{
		Color: o.color == "always" || o.color == "auto" && humanoutput.WantsColor(c.Stdout, environ),
		Zone:  time.Local,
	}
	return c, errors.Join(errs...)
}

// targets makes configurations of the schedulers that are named, and checks them.
func (o *options) targets() ([]target.Config, error) {
	if len(o.schedulers) == 0 {
		return nil, errors.New("--scheduler is empty: name at least one, as https://host:port")
	}
	token := o.tokenFile
	if token == "" {
		if _, err := os.Stat(podToken); err == nil {
			token = podToken
		}
	}
	var configs []target.Config
	for _, url := range slices.Compact(slices.Sorted(slices.Values(o.schedulers))) {
		c := target.Config{URL: url, TLS: o.tls, Insecure: o.insecure, TokenFile: token, Timeout: min(o.timeout, o.interval)}
		if o.once {
			c.Timeout = o.timeout
		}
		if _, err := target.New(c); err != nil {
			return nil, fmt.Errorf("--scheduler: %w", err)
		}
		configs = append(configs, c)
	}
	return configs, nil
}

// destinations checks where events and metrics go.
func (o *options) destinations() error {
	err := o.polku.CheckFlags()
	if o.otlp == "" {
		return err
	}
	if _, wrong := endpoint.Parse(o.otlp, certs.Files{}); wrong != nil {
		err = errors.Join(err, fmt.Errorf("--otlp: %w", wrong))
	}
	return err
}

// look prints how the scheduler does.
func (o *options) look(ctx context.Context, c scraper.Config) error {
	var r report.Report
	if o.from != "" {
		page, err := readFile(o.from)
		if err != nil {
			return err
		}
		r = report.New(filepath.Base(o.from), interval.Scrape{Page: page, At: time.Now()})
	} else {
		name, s, err := scraper.Once(ctx, c.Targets, c.ExpectLeader)
		if err != nil {
			r = report.Failed(strings.Join(o.schedulers, ", "), err)
		} else {
			r = report.New(name, s)
		}
	}
	write := r.WriteText
	switch c.Output {
	case humanoutput.JSON:
		write = r.WriteJSON
	case humanoutput.None:
		write = func(io.Writer) error { return nil }
	case humanoutput.Text:
	}
	if err := write(c.Stdout); err != nil {
		return err
	}
	if !r.Verdict.Good() {
		return errUnwell
	}
	return nil
}

// maxFile bounds what is read of a file, after decompression.
const maxFile = 256 << 20

// readFile reads metrics that were saved, by curl for one.
func readFile(name string) (*exposition.Page, error) {
	var file io.Reader = os.Stdin
	if name != "-" {
		opened, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("--from: %w", err)
		}
		defer func() { _ = opened.Close() }() // it was only read
		file = opened
	}
	if strings.HasSuffix(name, ".gz") {
		unzipped, err := gzip.NewReader(file)
		if err != nil {
			return nil, fmt.Errorf("--from: read %s: %w", name, err)
		}
		file = unzipped
	}
	body, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(body) > maxFile {
		err = fmt.Errorf("it has more than %d MiB", maxFile>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("--from: read %s: %w", name, err)
	}
	page, err := exposition.Parse(body, "text/plain")
	if err != nil {
		return nil, fmt.Errorf("--from: %s: %w", name, err)
	}
	return page, nil
}
