// Package cli is the command line of tapio.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/config"
	"github.com/yairfalse/tapio/shared/endpoint"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/kube"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/shared/polku"
	"github.com/yairfalse/tapio/shared/telemetry"
	"github.com/yairfalse/tapio/shared/version"
	"github.com/yairfalse/tapio/tapio/internal/agent"
	"github.com/yairfalse/tapio/tapio/internal/observer/container"
)

// prefix of the environment variables that are flags.
const prefix = "TAPIO"

// Run runs the command line and returns the exit status: 0, or 1 after an
// error that was written to stderr.
func Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := newAgent(environ)
	root.AddCommand(version.Command("tapio"), newProbe())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "tapio: %v\n", err)
		return 1
	}
	return 0
}

// options are the flags of the agent.
type options struct {
	observers []string
	exitScope []string
	output    string
	color     string
	listen    string
	logLevel  config.Level
	logFormat telemetry.Format
	cgroupFS  string
	procFS    string
	config    string
	node      string
	cluster   string
	kube      string
	api       kube.Config
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

func newAgent(environ []string) *cobra.Command {
	o := options{logFormat: telemetry.Text}
	cmd := &cobra.Command{
		Use:   "tapio",
		Short: "See what breaks on this node, straight from the kernel",
		Long: `tapio watches this node from inside the kernel and prints only anomalies:
connections that fail, slow and lossy peers, processes that fail, OOM kills.

Every flag is also an environment variable (--exit-scope is TAPIO_EXIT_SCOPE)
and a key of the YAML file that --config names. Flags win over the environment,
the environment over the file.`,
		Example: `  sudo tapio                     print anomalies for people
  sudo tapio --output json       one protojson event a line
  sudo tapio --observer network  only the network`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Text("tapio"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.Load(cmd.Flags(), prefix, environ, aliases()); err != nil {
				return err
			}
			c, err := o.agent(cmd, environ)
			if err != nil {
				return err
			}
			if o.polku.Endpoint != "" || o.otlp != "" {
				// A reader of standard output that goes away ends a program, as
				// in a pipe into head; not one that others rely on.
				signal.Ignore(syscall.SIGPIPE)
			}
			return agent.Run(cmd.Context(), c)
		},
	}
	cmd.SetVersionTemplate("{{.Version}}")
	f := cmd.Flags()
	f.StringSliceVar(&o.observers, "observer", agent.Observers(), "what to observe")
	f.StringSliceVar(&o.exitScope, "exit-scope", []string{"containers", "services"}, "whose failed processes to tell: all, containers, services")
	f.StringVar(&o.output, "output", string(humanoutput.Text), "how to write events to standard output: text, json or none")
	f.StringVar(&o.color, "color", "auto", "colors of the text output: auto, always or never")
	f.StringVar(&o.listen, "listen", "127.0.0.1:9465", "address of /healthz, /readyz and /metrics; empty for none")
	f.TextVar(&o.logLevel, "log-level", config.Level{Level: slog.LevelInfo}, "least severe log to write to standard error: debug, info, warn or error")
	f.TextVar(&o.logFormat, "log-format", telemetry.Text, "format of the logs: text or json")
	f.StringVar(&o.cgroupFS, "cgroup-root", "/sys/fs/cgroup", "where the control groups are mounted")
	f.StringVar(&o.procFS, "proc-root", "/proc", "where procfs is mounted")
	f.StringVar(&o.node, "node", "", "name of this node in Kubernetes (also NODE_NAME)")
	f.StringVar(&o.cluster, "cluster", "", "name of the cluster")
	f.StringVar(&o.kube, "kube", "auto", "whether to ask the Kubernetes API for the names of the node's pods: auto (if --kubeconfig is set or this runs in a pod that has an account) or off")
	f.StringVar(&o.api.Kubeconfig, "kubeconfig", "", "kubeconfig of the cluster that the node is in")
	f.StringVar(&o.api.Context, "context", "", "context of --kubeconfig; its current one without")
	o.polku.Flags(f)
	f.StringVar(&o.otlp, "otlp", "", "OpenTelemetry collector to send events and metrics to, OTLP over gRPC; written as --polku (also OTEL_EXPORTER_OTLP_ENDPOINT)")
	f.StringVar(&o.config, config.FileFlag, "", "YAML file with flags as keys")
	return cmd
}

// agent checks the flags and makes the agent's configuration of them.
func (o *options) agent(cmd *cobra.Command, environ []string) (agent.Config, error) {
	c := agent.Config{
		Observers: slices.Compact(slices.Sorted(slices.Values(o.observers))),
		Output:    humanoutput.Output(o.output),
		Listen:    o.listen,
		CgroupFS:  o.cgroupFS,
		ProcFS:    o.procFS,
		Node:      o.node,
		Cluster:   o.cluster,
		Polku:     o.polku,
		OTLP:      otlp.Config{Endpoint: o.otlp, Cluster: o.cluster},
		Stdout:    cmd.OutOrStdout(),
		Summary:   cmd.ErrOrStderr(),
		Log:       telemetry.NewLogger(cmd.ErrOrStderr(), o.logLevel.Level, o.logFormat),
	}
	var errs []error
	for _, name := range c.Observers {
		errs = append(errs, config.OneOf("observer", name, agent.Observers()...))
	}
	if len(c.Observers) == 0 {
		errs = append(errs, fmt.Errorf("--observer is empty: name at least one of %s", strings.Join(agent.Observers(), ", ")))
	}
	for _, scope := range o.exitScope {
		errs = append(errs, config.OneOf("exit-scope", scope, "all", "containers", "services"))
	}
	c.ExitScope = container.Scope{
		All:        slices.Contains(o.exitScope, "all"),
		Containers: slices.Contains(o.exitScope, "containers"),
		Services:   slices.Contains(o.exitScope, "services"),
	}
	errs = append(errs,
		config.OneOf("output", o.output, string(humanoutput.Text), string(humanoutput.JSON), string(humanoutput.None)),
		config.OneOf("color", o.color, "auto", "always", "never"))
	errs = append(errs, o.destinations())
	api, err := o.kubernetes(c.Log)
	errs = append(errs, err)
	c.Kubernetes = api
	c.Style = humanoutput.Style{
		Color: o.color == "always" || o.color == "auto" && humanoutput.WantsColor(c.Stdout, environ),
		Zone:  time.Local,
	}
	return c, errors.Join(errs...)
}

// kubernetes returns how to connect to the API server; nil where there is none.
func (o *options) kubernetes(log *slog.Logger) (*rest.Config, error) {
	named := o.api != kube.Config{}
	if err := config.OneOf("kube", o.kube, "auto", "off"); err != nil {
		return nil, err
	}
	if o.kube == "off" || !named && !inPod() {
		return nil, nil //nolint:nilnil // no cluster, which is as good as any
	}
	if o.node == "" {
		err := errors.New("the names of pods need the name of this node: set --node or NODE_NAME (in a pod from spec.nodeName)")
		if named {
			return nil, fmt.Errorf("--kubeconfig: %w", err)
		}
		log.Warn("pods will have ids and no names", "error", err)
		return nil, nil //nolint:nilnil // it was not asked for
	}
	api, err := o.api.Connect("tapio")
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return api, nil
}

// inPod reports whether this is a pod with an account for the API server.
func inPod() bool {
	if os.Getenv("KUBERNETES_SERVICE_HOST") == "" {
		return false
	}
	_, err := os.Stat("/var/run/secrets/kubernetes.io/serviceaccount/token")
	return err == nil
}

// destinations checks where events go.
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
