package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/tapio/internal/cli"
)

// child is set in the processes that tests start: such a one is the command line
// and no test.
const child = "TAPIO_TEST_CHILD="

func TestMain(m *testing.M) {
	for i, variable := range os.Environ() {
		if strings.HasPrefix(variable, child) {
			environ := append(os.Environ()[:i:i], os.Environ()[i+1:]...)
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
			defer stop()
			os.Exit(cli.Run(ctx, os.Args[1:], environ, os.Stdout, os.Stderr))
		}
	}
	os.Exit(m.Run())
}

// tapio runs the command line; it must end by itself.
func tapio(t *testing.T, environ []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = cli.Run(t.Context(), args, environ, &out, &errs)
	return status, out.String(), errs.String()
}

func TestBadFlags(t *testing.T) {
	tests := []struct {
		args string
		want []string
	}{
		{"--output xml", []string{"--output", `"xml"`, "text, json, none"}},
		{"--color green", []string{"--color", `"green"`, "auto, always, never"}},
		{"--observer disk", []string{"--observer", `"disk"`, "network, container"}},
		{"--observer network,disk", []string{"--observer", `"disk"`, "network, container"}},
		{"--observer=", []string{"--observer is empty", "network, container"}},
		{"--exit-scope pods", []string{"--exit-scope", `"pods"`, "all, containers, services"}},
		{"--log-level loud", []string{"--log-level", `"loud"`, "debug, info, warn or error"}},
		{"--log-format xml", []string{"--log-format", `"xml"`, "text or json"}},
		{"--verbose", []string{"--verbose"}},
		{"--output", []string{"--output", "needs an argument"}},
		{"--config /does/not/exist.yaml", []string{"--config", "/does/not/exist.yaml", "no such file"}},
		{"--polku gateway", []string{"--polku", `"gateway"`, "port is missing", "http://host:port"}},
		{"--polku gateway:1 --polku-ca /does/not/exist.pem", []string{"--polku", "CA file", "/does/not/exist.pem"}},
		{"--polku gateway:1 --polku-cert /does/not/exist.pem", []string{"--polku", "/does/not/exist.pem", "key"}},
		{"--polku-ca /does/not/exist.pem", []string{"--polku-ca", "--polku, which is empty"}},
		{"--otlp ftp://collector:1", []string{"--otlp", `"ftp"`}},
		{"watch", []string{`unknown command "watch"`}},
		{"probe --output json", []string{"--output"}},
		{"version now", []string{`"now"`}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			status, stdout, stderr := tapio(t, nil, strings.Fields(test.args)...)
			assert.Equal(t, 1, status)
			assert.Empty(t, stdout)
			assert.True(t, strings.HasPrefix(stderr, "tapio: "), stderr)
			assert.Equal(t, 1, strings.Count(stderr, "\n"), "one clear message: %s", stderr)
			for _, want := range test.want {
				assert.Contains(t, stderr, want)
			}
		})
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	status, _, stderr := tapio(t, nil, "--output", "xml", "--color", "green", "--exit-scope", "pods")
	assert.Equal(t, 1, status)
	for _, flag := range []string{"--output", "--color", "--exit-scope"} {
		assert.Contains(t, stderr, flag)
	}
}

func TestBadEnvironment(t *testing.T) {
	tests := []struct {
		variable string
		want     []string
	}{
		{"TAPIO_OUTPUT=xml", []string{"--output", `"xml"`, "text, json, none"}},
		{"TAPIO_OUTPTU=json", []string{"TAPIO_OUTPTU", "TAPIO_OUTPUT"}},
		{"TAPIO_LOG_LEVEL=loud", []string{"TAPIO_LOG_LEVEL", `"loud"`, "debug, info, warn or error"}},
		{"TAPIO_CONFIG=/does/not/exist.yaml", []string{"/does/not/exist.yaml"}},
		{"POLKU_ENDPOINT=gateway", []string{"--polku", `"gateway"`}},
		{"TAPIO_KUBE=on", []string{"--kube", `"on"`, "auto, off"}},
		{"TAPIO_KUBECONFIG=/does/not/exist", []string{"--kubeconfig", "--node", "NODE_NAME"}},
		{"OTEL_EXPORTER_OTLP_ENDPOINT=collector", []string{"--otlp", `"collector"`}},
	}
	for _, test := range tests {
		t.Run(test.variable, func(t *testing.T) {
			status, stdout, stderr := tapio(t, []string{"HOME=/", test.variable})
			assert.Equal(t, 1, status)
			assert.Empty(t, stdout)
			for _, want := range test.want {
				assert.Contains(t, stderr, want)
			}
		})
	}
}

func TestBadFile(t *testing.T) {
	tests := []struct {
		name, content string
		want          []string
	}{
		{"unknown key", "outptu: json\n", []string{"tapio.yaml:1", `"outptu"`, "output"}},
		{"bad value", "log-level: loud\n", []string{"tapio.yaml:1", "--log-level", `"loud"`, "debug, info, warn or error"}},
		{"bad choice", "listen: ''\noutput: xml\n", []string{"--output", `"xml"`, "text, json, none"}},
		{"no YAML", "{", []string{"tapio.yaml"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tapio.yaml")
			require.NoError(t, os.WriteFile(file, []byte(test.content), 0o600))
			status, stdout, stderr := tapio(t, nil, "--config", file)
			assert.Equal(t, 1, status)
			assert.Empty(t, stdout)
			for _, want := range test.want {
				assert.Contains(t, stderr, want)
			}
		})
	}
}

// Who names a cluster wants it; nobody else is asked for one.
func TestCluster(t *testing.T) {
	status, _, stderr := tapio(t, nil, "--kubeconfig", "/does/not/exist", "--node", "a")
	assert.Equal(t, 1, status)
	assert.Contains(t, stderr, "/does/not/exist")
	_, _, stderr = tapio(t, []string{"KUBECONFIG=/does/not/exist"}, "--output", "xml", "--node", "a")
	assert.NotContains(t, stderr, "kube")
	_, _, stderr = tapio(t, nil, "--kubeconfig", "/does/not/exist", "--kube", "off", "--output", "xml")
	assert.NotContains(t, stderr, "kube")
}

// A flag wins over the environment, so a mistake there does not matter.
func TestFlagWins(t *testing.T) {
	_, _, stderr := tapio(t, []string{"TAPIO_OUTPUT=xml"}, "--output", "json", "--color", "green")
	assert.NotContains(t, stderr, "--output")
	assert.Contains(t, stderr, "--color")
}

func TestVersion(t *testing.T) {
	status, byCommand, stderr := tapio(t, nil, "version")
	assert.Zero(t, status)
	assert.Empty(t, stderr)
	assert.Regexp(t, `^tapio \S+\ncommit \S+( \(modified\))?\nbuilt with go\S+ for `+runtime.GOOS+"/"+runtime.GOARCH+`\n$`, byCommand)

	status, byFlag, stderr := tapio(t, nil, "--version")
	assert.Zero(t, status)
	assert.Empty(t, stderr)
	assert.Equal(t, byCommand, byFlag)
}

func TestHelp(t *testing.T) {
	status, stdout, stderr := tapio(t, nil, "--help")
	assert.Zero(t, status)
	assert.Empty(t, stderr)
	for _, want := range []string{
		"prints only anomalies", "Usage:\n  tapio [flags]", "sudo tapio --output json",
		"probe ", "version ", "TAPIO_EXIT_SCOPE",
		"--observer strings", "(default [network,container])", "--exit-scope strings", "(default [containers,services])",
		"--output string", "text, json or none", "--color string", "--listen string", `"127.0.0.1:9465"`,
		"--log-level", "--log-format", "--polku string", "POLKU_ENDPOINT", "--polku-ca", "--polku-cert", "--polku-key",
		"--otlp string", "OTEL_EXPORTER_OTLP_ENDPOINT", "--node string", "--cluster string", "--cgroup-root string", `"/sys/fs/cgroup"`, "--proc-root string", "--config string",
	} {
		assert.Contains(t, stdout, want)
	}
	for line := range strings.Lines(stdout) {
		if strings.HasPrefix(line, "      --") {
			assert.Greater(t, len(strings.Fields(line)), 2, "what is it for? %s", line)
		}
	}

	status, stdout, _ = tapio(t, nil, "probe", "--help")
	assert.Zero(t, status)
	assert.Contains(t, stdout, "exits with 1 when the agent could observe nothing")
}

func TestProbe(t *testing.T) {
	bpftest.Open(t) // skips without privileges
	status, stdout, stderr := tapio(t, nil, "probe")
	assert.Zero(t, status, stdout)
	assert.Empty(t, stderr)
	answers := map[string]string{}
	for line := range strings.Lines(stdout) {
		verdict, rest, _ := strings.Cut(line, "  ")
		what, why, _ := strings.Cut(strings.TrimSpace(rest), "  ")
		answers[what] = verdict
		assert.NotEmpty(t, strings.TrimSpace(why), line)
	}
	for _, what := range []string{
		"kernel", "capabilities", "type information", "kernel maps",
		"TCP failures, slow and lossy peers", "failing processes", "OOM kills", "control groups as they are made",
	} {
		assert.Equal(t, "yes", answers[what], "%s in\n%s", what, stdout)
	}
	assert.Contains(t, answers, "OOM victim handed over", "yes or no, that depends on the kernel")
}

// asNobody runs the command line in a process without privileges.
func asNobody(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs to be root to become somebody else")
	}
	// Not by its path: it lies in a directory that only root may enter.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Dir = "/"
	cmd.Env = []string{child + "1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestWithoutPrivileges(t *testing.T) {
	status, stdout, stderr := asNobody(t)
	assert.Equal(t, 1, status)
	assert.Empty(t, stdout)
	assert.True(t, strings.HasPrefix(stderr, "tapio: cannot load kernel programs: user 65534 lacks CAP_BPF and CAP_PERFMON\n"), stderr)
	for _, want := range []string{"sudo ", "setcap cap_bpf,cap_perfmon+ep", "capabilities.add: [BPF, PERFMON]"} {
		assert.Contains(t, stderr, want)
	}

	status, stdout, _ = asNobody(t, "version")
	assert.Zero(t, status)
	assert.NotEmpty(t, stdout)
}

func TestProbeWithoutPrivileges(t *testing.T) {
	status, stdout, stderr := asNobody(t, "probe")
	assert.Equal(t, 1, status)
	assert.Regexp(t, `(?m)^yes +kernel `, stdout)
	assert.Regexp(t, `(?m)^no +capabilities +user 65534 lacks CAP_BPF and CAP_PERFMON$`, stdout)
	assert.Regexp(t, `(?m)^no +kernel maps .*not permitted`, stdout)
	assert.Equal(t, "tapio: the agent can observe nothing on this kernel\n", stderr)
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestNobodyReads(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"probe"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			var errs bytes.Buffer
			assert.Equal(t, 1, cli.Run(t.Context(), args, nil, brokenPipe{}, &errs))
			assert.Contains(t, errs.String(), "broken pipe")
		})
	}
}
