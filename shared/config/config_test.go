package config

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type settings struct {
	config, polku, scope string
	interval             time.Duration
	budget               int
	retries              uint
	ratio                float64
	dryRun, version      bool
	signals, args        []string
	ports                []int
}

func newFlags() (*pflag.FlagSet, *settings) {
	s := new(settings)
	f := pflag.NewFlagSet("tapio", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&s.config, FileFlag, "", "")
	f.StringVar(&s.polku, "polku", "default:1", "")
	f.StringVar(&s.scope, "exit-scope", "pods", "")
	f.DurationVar(&s.interval, "report.interval", time.Minute, "")
	f.IntVar(&s.budget, "budget", 1, "")
	f.UintVar(&s.retries, "retries", 1, "")
	f.Float64Var(&s.ratio, "ratio", 0.5, "")
	f.BoolVar(&s.dryRun, "dry-run", false, "")
	f.BoolVar(&s.version, "version", false, "")
	f.StringSliceVar(&s.signals, "signals", []string{"oom"}, "")
	f.StringArrayVar(&s.args, "args", nil, "")
	f.IntSliceVar(&s.ports, "ports", []int{1}, "")
	return f, s
}

var aliases = map[string]string{"POLKU_ENDPOINT": "polku", "POLKU_ADDRESS": "polku"}

// load runs Load as a binary would. In args and env FILE stands for a file with
// the given content.
func load(t *testing.T, args, env []string, file string) (*settings, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tapio.yaml")
	require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
	replace := func(in []string) (out []string) {
		for _, s := range in {
			out = append(out, strings.ReplaceAll(s, "FILE", path))
		}
		return out
	}
	flags, s := newFlags()
	require.NoError(t, flags.Parse(replace(args)))
	return s, path, Load(flags, "TAPIO", replace(env), aliases)
}

func TestLoad(t *testing.T) {
	for name, tt := range map[string]struct {
		args, env []string
		file      string
		want      func(*settings) // what differs from the defaults
	}{
		"defaults": {want: func(*settings) {}},
		"flag before environment before file": {
			args: []string{"--config=FILE", "--polku=flag"},
			env:  []string{"TAPIO_POLKU=env", "TAPIO_EXIT_SCOPE=env"},
			file: "polku: file\nexit-scope: file\nbudget: 7\n",
			want: func(s *settings) { s.polku, s.scope, s.budget = "flag", "env", 7 },
		},
		"a flag set to its default is set": {
			args: []string{"--polku=default:1"},
			env:  []string{"TAPIO_POLKU=env"},
			want: func(*settings) {},
		},
		"file named by the environment": {
			env:  []string{"TAPIO_CONFIG=FILE"},
			file: "budget: 0x10",
			want: func(s *settings) { s.budget = 16 },
		},
		"file named by both": {
			args: []string{"--config=FILE"},
			env:  []string{"TAPIO_CONFIG=/nonexistent"},
			file: "budget: 2",
			want: func(s *settings) { s.budget = 2 },
		},
		"dots and dashes": {
			env:  []string{"TAPIO_REPORT_INTERVAL=5s", "TAPIO_DRY_RUN=true"},
			want: func(s *settings) { s.interval, s.dryRun = 5*time.Second, true },
		},
		"alias":                       {env: []string{"POLKU_ENDPOINT=a:1"}, want: func(s *settings) { s.polku = "a:1" }},
		"prefixed name before alias":  {env: []string{"POLKU_ENDPOINT=a:1", "TAPIO_POLKU=b:2"}, want: func(s *settings) { s.polku = "b:2" }},
		"two aliases, the first":      {env: []string{"POLKU_ENDPOINT=a:1", "POLKU_ADDRESS=b:2"}, want: func(s *settings) { s.polku = "b:2" }},
		"empty variable is not set":   {env: []string{"TAPIO_POLKU=", "POLKU_ENDPOINT=a:1", "TAPIO_BUDGET="}, want: func(s *settings) { s.polku = "a:1" }},
		"repeated variable, first":    {env: []string{"TAPIO_BUDGET=2", "TAPIO_BUDGET=3"}, want: func(s *settings) { s.budget = 2 }},
		"equals sign in a value":      {env: []string{"TAPIO_POLKU=a=b"}, want: func(s *settings) { s.polku = "a=b" }},
		"variables of others":         {env: []string{"TAPIOCA=1", "PATH=/bin", "POLKU_TIMEOUT=3", "broken", ""}, want: func(*settings) {}},
		"list in the environment":     {env: []string{"TAPIO_SIGNALS=rtt,dns", "TAPIO_PORTS=2,3"}, want: func(s *settings) { s.signals, s.ports = []string{"rtt", "dns"}, []int{2, 3} }},
		"a comma in an array's value": {env: []string{"TAPIO_ARGS=a,b"}, want: func(s *settings) { s.args = []string{"a,b"} }},
		"service links": {
			env: []string{
				"TAPIO_SERVICE_HOST=10.0.0.1", "TAPIO_SERVICE_PORT=9465", "TAPIO_SERVICE_PORT_METRICS=9465",
				"TAPIO_PORT=tcp://10.0.0.1:9465", "TAPIO_PORT_9465_TCP=tcp://10.0.0.1:9465",
				"TAPIO_PORT_9465_TCP_PROTO=tcp", "TAPIO_PORT_9465_TCP_PORT=9465", "TAPIO_PORT_9465_TCP_ADDR=10.0.0.1",
				"TAPIO_PORT_53_UDP=udp://10.0.0.1:53",
				"TAPIO_NODE_AGENT_SERVICE_HOST=10.0.0.2", "TAPIO_NODE_AGENT_PORT=tcp://10.0.0.2:1", "TAPIO_NODE_AGENT_PORT_1_TCP_ADDR=10.0.0.2",
			},
			want: func(*settings) {},
		},
		"image label": {env: []string{"TAPIO_VERSION=1.2.3"}, want: func(*settings) {}},
		"every type in a file": {
			args: []string{"--config=FILE"},
			file: `# all of it
polku: "a:1"
exit-scope: yes
report.interval: 90s
budget: -3
retries: 4
ratio: 1e-3
dry-run: true
signals: [rtt, "d,ns", 'oom']
args:
  - a,b
  - "c"
ports: [2, 3]
`,
			want: func(s *settings) {
				*s = settings{
					config: s.config, polku: "a:1", scope: "yes", interval: 90 * time.Second, budget: -3, retries: 4,
					ratio: 0.001, dryRun: true, signals: []string{"rtt", "d,ns", "oom"}, args: []string{"a,b", "c"}, ports: []int{2, 3},
				}
			},
		},
		"scalar for a list":     {args: []string{"--config=FILE"}, file: "signals: rtt,dns", want: func(s *settings) { s.signals = []string{"rtt", "dns"} }},
		"empty list":            {args: []string{"--config=FILE"}, file: "signals: []", want: func(s *settings) { s.signals = []string{} }},
		"list set before":       {args: []string{"--config=FILE", "--signals=a"}, file: "signals: [b]", want: func(s *settings) { s.signals = []string{"a"} }},
		"YAML anchors":          {args: []string{"--config=FILE"}, file: "polku: &a x\nexit-scope: *a\nargs: &l [*a]\nsignals: *l", want: func(s *settings) { s.polku, s.scope, s.args, s.signals = "x", "x", []string{"x"}, []string{"x"} }},
		"empty text":            {args: []string{"--config=FILE"}, file: `polku: ""`, want: func(s *settings) { s.polku = "" }},
		"empty file":            {args: []string{"--config=FILE"}, want: func(*settings) {}},
		"only comments":         {args: []string{"--config=FILE"}, file: "# polku: x\n", want: func(*settings) {}},
		"an empty document":     {args: []string{"--config=FILE"}, file: "---\n", want: func(*settings) {}},
		"an unused bad setting": {args: []string{"--budget=2"}, env: []string{"TAPIO_BUDGET=x"}, want: func(s *settings) { s.budget = 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			got, _, err := load(t, tt.args, tt.env, tt.file)
			require.NoError(t, err)
			_, want := newFlags()
			want.config = got.config
			tt.want(want)
			assert.Equal(t, want, got)
		})
	}
}

func TestLoadErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		args, env []string
		file      string
		want      []string // one for each line; FILE stands for the path
	}{
		"unknown variable": {
			env:  []string{"TAPIO_EXITSCOPE=pods"},
			want: []string{`environment variable "TAPIO_EXITSCOPE" sets nothing; the nearest that is known is TAPIO_EXIT_SCOPE`},
		},
		"a port that is no service link": {
			env:  []string{"TAPIO_PORT=8080"},
			want: []string{`environment variable "TAPIO_PORT" sets nothing; the nearest that is known is TAPIO_PORTS`},
		},
		"action in the environment": {
			env:  []string{"TAPIO_HELP=1"},
			want: []string{`environment variable "TAPIO_HELP" sets nothing; the nearest that is known is TAPIO_ARGS`},
		},
		"bad value in a variable": {
			env:  []string{"TAPIO_REPORT_INTERVAL=5"},
			want: []string{`environment variable TAPIO_REPORT_INTERVAL: --report.interval is "5", want a duration such as 500ms, 30s or 5m: time: missing unit in duration "5"`},
		},
		"all mistakes at once": {
			args: []string{"--config=FILE"},
			env:  []string{"TAPIO_BUDGET=much", "TAPIO_RETRIES=-1"},
			file: "ratio: half\n\ndry-run: perhaps\n",
			want: []string{
				`environment variable TAPIO_BUDGET: --budget is "much", want a whole number: strconv.ParseInt: parsing "much": invalid syntax`,
				`environment variable TAPIO_RETRIES: --retries is "-1", want a whole number, not negative: strconv.ParseUint: parsing "-1": invalid syntax`,
				`FILE:1: --ratio is "half", want a number: strconv.ParseFloat: parsing "half": invalid syntax`,
				`FILE:3: --dry-run is "perhaps", want true or false: strconv.ParseBool: parsing "perhaps": invalid syntax`,
			},
		},
		"no such file": {
			args: []string{"--config=/nonexistent/x.yaml"},
			want: []string{`read the file that --config names: open /nonexistent/x.yaml: no such file or directory`},
		},
		"unknown key": {
			args: []string{"--config=FILE"},
			file: "budget: 1\nexit_scope: pods\n",
			want: []string{`FILE:2: unknown key "exit_scope"; the nearest that is known is exit-scope`},
		},
		"action in the file": {
			args: []string{"--config=FILE"},
			file: "version: true",
			want: []string{`FILE:1: unknown key "version"; the nearest that is known is ratio`},
		},
		"file in the file": {
			args: []string{"--config=FILE"},
			file: "config: other.yaml",
			want: []string{`FILE:1: unknown key "config"; the nearest that is known is polku`},
		},
		"a key of any length": {
			args: []string{"--config=FILE"},
			file: strings.Repeat("k", 1000) + ": 1",
			want: []string{`FILE:1: unknown key "` + strings.Repeat("k", 80) + `"…`},
		},
		"key that is a list": {
			args: []string{"--config=FILE"},
			file: "? [polku]\n: 1",
			want: []string{`FILE:1: unknown key ""; the nearest that is known is args`},
		},
		"key twice": {
			args: []string{"--config=FILE"},
			file: "polku: a\npolku: b\n",
			want: []string{`FILE:2: polku stands on line 1 already`},
		},
		"no value": {
			args: []string{"--config=FILE"},
			file: "polku:\n",
			want: []string{`FILE:1: polku has no value: give one, or leave the key out for the default`},
		},
		"list for a scalar": {
			args: []string{"--config=FILE"},
			file: "polku: [a, b]",
			want: []string{`FILE:1: --polku is a list, want a text`},
		},
		"mapping": {
			args: []string{"--config=FILE"},
			file: "polku:\n  endpoint: a",
			want: []string{`FILE:1: --polku is a mapping, want a text`},
		},
		"bad item": {
			args: []string{"--config=FILE"},
			file: "ports: [1, x]",
			want: []string{`FILE:1: --ports is "[1 x]", want a list, each item a whole number: strconv.Atoi: parsing "x": invalid syntax`},
		},
		"nested list": {
			args: []string{"--config=FILE"},
			file: "signals:\n- a\n- [b]\n",
			want: []string{`FILE:3: --signals: want a scalar for each item of the list`},
		},
		"null in a list": {
			args: []string{"--config=FILE"},
			file: "signals:\n- a\n-\n",
			want: []string{`FILE:3: --signals: want a scalar for each item of the list`},
		},
		"list that contains itself": {
			args: []string{"--config=FILE"},
			file: "signals: &a [*a]",
			want: []string{`FILE:1: --signals: want a scalar for each item of the list`},
		},
		"not a mapping": {
			args: []string{"--config=FILE"},
			file: "- polku",
			want: []string{`FILE:1: want a mapping from flag names to values`},
		},
		"two documents": {
			args: []string{"--config=FILE"},
			file: "polku: a\n---\npolku: b\n",
			want: []string{`FILE: more than one YAML document`},
		},
		"not YAML": {
			args: []string{"--config=FILE"},
			file: "polku: [a",
			want: []string{`FILE: yaml: line 1: did not find expected ',' or ']'`},
		},
		"too large": {
			args: []string{"--config=FILE"},
			file: strings.Repeat("#", maxFileSize+1),
			want: []string{`read the file that --config names: FILE is larger than 1048576 bytes`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, path, err := load(t, tt.args, tt.env, tt.file)
			require.Error(t, err)
			want := strings.ReplaceAll(strings.Join(tt.want, "\n"), "FILE", path)
			assert.Equal(t, want, err.Error())
		})
	}
}

func TestLoadAliasOfNoFlag(t *testing.T) {
	flags, _ := newFlags()
	err := Load(flags, "TAPIO", nil, map[string]string{"KUBECONFIG": "kubeconfig"})
	require.EqualError(t, err, "environment variable KUBECONFIG is meant for --kubeconfig, which is no flag")
}

func TestLoadWithoutFileFlag(t *testing.T) {
	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	require.NoError(t, Load(flags, "X", []string{"PATH=/bin"}, nil))
	require.EqualError(t, Load(flags, "X", []string{"X_CONFIG=a"}, nil), `environment variable "X_CONFIG" sets nothing`)
}

func TestLoadMarksFlagsAsChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tapio.yaml")
	require.NoError(t, os.WriteFile(path, []byte("signals: [a]\nbudget: 2"), 0o600))
	flags, _ := newFlags()
	require.NoError(t, Load(flags, "TAPIO", []string{"TAPIO_CONFIG=" + path, "TAPIO_POLKU=a"}, nil))
	for name, want := range map[string]bool{"signals": true, "budget": true, "polku": true, "ratio": false} {
		assert.Equal(t, want, flags.Changed(name), name)
	}
}

func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"a", "", 1},
		{"", "ab", 2},
		{"same", "same", 0},
		{"kitten", "sitting", 3},
		{"exitscope", "exit-scope", 1},
		{"flaw", "lawn", 2},
	} {
		assert.Equal(t, tt.want, distance(tt.a, tt.b), "%s %s", tt.a, tt.b)
		assert.Equal(t, tt.want, distance(tt.b, tt.a), "%s %s", tt.b, tt.a)
	}
}

func FuzzLoadYAML(f *testing.F) {
	for _, file := range []string{
		"", "polku: a", "polku: [a", "signals: &a [*a]", "? [x]\n: y", "ports: [1, 2]\n---\n", "<<: {budget: 1}",
		"exit-scope: !!binary aGk=", "budget: 1\nbudget: 2", "args: [~]", "\xff", "a: &b\n  c: *b", "%YAML 1.1\n---\n",
	} {
		f.Add([]byte(file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		flags, _ := newFlags()
		errs := loadYAML(flags, map[string]bool{}, "tapio.yaml", data)
		for _, err := range errs {
			assert.Contains(t, err.Error(), "tapio.yaml")
		}
		if len(errs) > 0 {
			return
		}
		// The same file again, when everything is set, changes nothing.
		set := map[string]bool{}
		before := map[string]string{}
		flags.VisitAll(func(f *pflag.Flag) { set[f.Name], before[f.Name] = true, f.Value.String() })
		assert.Empty(t, loadYAML(flags, set, "tapio.yaml", data))
		flags.VisitAll(func(f *pflag.Flag) { assert.Equal(t, before[f.Name], f.Value.String()) })
	})
}
