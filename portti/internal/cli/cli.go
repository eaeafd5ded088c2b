// Package cli is the command line of portti.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/serve"
	"github.com/yairfalse/tapio/shared/config"
	"github.com/yairfalse/tapio/shared/kube"
	"github.com/yairfalse/tapio/shared/polku"
	"github.com/yairfalse/tapio/shared/telemetry"
	"github.com/yairfalse/tapio/shared/version"
)

// prefix of the environment variables that are flags.
const prefix = "PORTTI"

// Run runs the command line and returns the exit status: 0, or 1 after an error
// that was written to stderr.
func Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	root := newPortti(environ)
	root.AddCommand(version.Command("portti"))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "portti: %v\n", err)
		return 1
	}
	return 0
}

// options are the flags.
type options struct {
	kinds     []string
	cluster   string
	kube      kube.Config
	polku     polku.Config
	stdout    bool
	stateDir  string
	listen    string
	logLevel  config.Level
	logFormat telemetry.Format
	config    string
}

// aliases are environment variables that users know from elsewhere. KUBECONFIG is
// one for client-go, which takes a list of files from it.
func aliases() map[string]string { return map[string]string{"POLKU_ENDPOINT": "polku"} }

func newPortti(environ []string) *cobra.Command {
	o := options{logFormat: telemetry.Text}
	cmd := &cobra.Command{
		Use:   "portti",
		Short: "Send every change of the Kubernetes API to the gateway, once",
		Long: `portti watches the objects of a cluster and sends each new version of each as an
event that says what changed, to whom it belongs and what it is tied to. Values of
secrets never leave. What was not acknowledged is sent again after a restart, and
dropped by the gateway if it was known, so any number of replicas may run.

Every flag is also an environment variable (--state-dir is PORTTI_STATE_DIR) and a
key of the YAML file that --config names. Flags win over the environment, the
environment over the file.`,
		Example: `  portti --polku https://polku:50051 --cluster prod   send all changes
  portti --stdout --kinds pod,event                   print them as JSON`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Text("portti"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := config.Load(cmd.Flags(), prefix, environ, aliases()); err != nil {
				return err
			}
			c, err := o.serve(cmd)
			if err != nil {
				return err
			}
			return serve.Run(cmd.Context(), c)
		},
	}
	cmd.SetVersionTemplate("{{.Version}}")
	f := cmd.Flags()
	f.StringSliceVar(&o.kinds, "kinds", words(), "what to watch")
	f.StringVar(&o.cluster, "cluster", "", "name of the cluster, the same for all replicas: ids of events depend on it")
	f.StringVar(&o.kube.Kubeconfig, "kubeconfig", "", "file that says how to reach the cluster; without, those of KUBECONFIG, else ~/.kube/config, else the account of the pod")
	f.StringVar(&o.kube.Context, "context", "", "context of the kubeconfig; without, its current one")
	o.polku.Flags(f)
	f.BoolVar(&o.stdout, "stdout", false, "write events to standard output, as JSON, instead of sending them")
	f.StringVar(&o.stateDir, "state-dir", "/var/lib/portti", "directory of what was sent; each replica has its own")
	f.StringVar(&o.listen, "listen", "127.0.0.1:9468", "address of /healthz, /readyz and /metrics; empty for none")
	f.TextVar(&o.logLevel, "log-level", config.Level{Level: slog.LevelInfo}, "least severe log to write to standard error: debug, info, warn or error")
	f.TextVar(&o.logFormat, "log-format", telemetry.Text, "format of the logs: text or json")
	f.StringVar(&o.config, config.FileFlag, "", "YAML file with flags as keys")
	return cmd
}

// words are the names of all kinds.
func words() []string {
	var all []string
	for _, k := range change.Kinds() {
		all = append(all, k.Word)
	}
	return all
}

// serve checks the flags and makes the configuration of them.
func (o *options) serve(cmd *cobra.Command) (serve.Config, error) {
	c := serve.Config{
		Cluster: o.cluster, StateDir: o.stateDir, Listen: o.listen, Polku: o.polku,
		Log: telemetry.NewLogger(cmd.ErrOrStderr(), o.logLevel.Level, o.logFormat),
	}
	var errs []error
	for _, word := range o.kinds {
		if !slices.Contains(words(), word) {
			errs = append(errs, fmt.Errorf("--kinds: %q is none of %s", word, strings.Join(words(), ", ")))
		}
	}
	for _, k := range change.Kinds() { // in their order, each once
		if slices.Contains(o.kinds, k.Word) {
			c.Kinds = append(c.Kinds, k)
		}
	}
	if len(o.kinds) == 0 {
		errs = append(errs, fmt.Errorf("--kinds is empty: name at least one of %s", strings.Join(words(), ", ")))
	}
	if o.stateDir == "" {
		errs = append(errs, errors.New("--state-dir is empty: name a directory that lasts"))
	}
	errs = append(errs, o.destination())
	if o.stdout {
		c.Stdout = cmd.OutOrStdout()
	}
	if err := errors.Join(errs...); err != nil {
		return c, err
	}
	var err error
	c.API, err = o.kube.Connect("portti")
	return c, err
}

// destination checks where events go.
func (o *options) destination() error {
	switch {
	case o.stdout && o.polku.Endpoint != "":
		return errors.New("--stdout and --polku exclude each other: what is written cannot be acknowledged by the gateway")
	case !o.stdout && o.polku.Endpoint == "":
		return errors.New("--polku is empty: name the gateway to send to (also POLKU_ENDPOINT), or print with --stdout")
	}
	return o.polku.CheckFlags()
}
