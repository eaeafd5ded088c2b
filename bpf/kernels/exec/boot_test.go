package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bootTimeout is generous: an emulated machine has no pace to rely on.
const bootTimeout = 3 * time.Minute

// kernels returns the folders that fetch has made. Without any, and with -short, the
// test is skipped.
func kernels(t *testing.T) []string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots virtual machines")
	}
	cache := os.Getenv("KERNEL_CACHE")
	if cache == "" {
		cache = filepath.Join("..", "..", "..", ".cache", "kernels")
	}
	marks, err := filepath.Glob(filepath.Join(cache, "*", "release"))
	require.NoError(t, err)
	if len(marks) == 0 {
		t.Skipf("no kernel in %s: run bpf/kernels/fetch, or set KERNEL_CACHE", cache)
	}
	var folders []string
	for _, mark := range marks {
		folder, err := filepath.Abs(filepath.Dir(mark))
		require.NoError(t, err)
		folders = append(folders, folder)
	}
	return folders
}

// build runs go with its arguments, and the path of the static result.
func build(t *testing.T, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", append(args[:1:1], append([]string{"-o", path}, args[1:]...)...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%v: %s", cmd, out)
	return path
}

func TestOutcomes(t *testing.T) {
	folders := kernels(t)
	initPath := build(t, "kernel-init", "build", "../init")
	test := build(t, "outcomes.test", "test", "-c", "./testdata/outcomes")
	tests := []struct {
		test    string
		timeout time.Duration
		status  int
		stdout  []string
		stderr  string
		err     string
	}{
		{test: "TestPass", status: 0, stdout: []string{"a line of a test\n", "--- PASS: TestPass", "\nPASS\n"}},
		{test: "TestFail", status: 1, stdout: []string{"outcomes_test.go", "wanted\n", "--- FAIL: TestFail"}},
		{test: "TestExit", status: 7, stdout: []string{"no line end\n"}},
		{test: "TestKilled", status: 137, stdout: []string{"killed by a signal"}},
		{test: "TestOrphan", status: 0, stdout: []string{"--- PASS: TestOrphan"}},
		{
			test: "TestKernelPanic", status: exitNoResult,
			stdout: []string{"before the panic\n", "Kernel panic - not syncing"},
			stderr: "running it once more", err: "without a result",
		},
		// Long enough to boot; should it not be, the outcome is the same.
		{test: "TestHang", timeout: 6 * time.Second, status: exitTimeout, err: "no end after 6s"},
	}
	for _, tt := range tests {
		t.Run(tt.test, func(t *testing.T) {
			cfg := config{
				kernel: folders[0], init: initPath, memory: 768, timeout: bootTimeout,
				test: test, args: []string{"-test.v=true", "-test.run=^" + tt.test + "$"},
			}
			if tt.timeout != 0 {
				cfg.timeout = tt.timeout
			}
			var stdout, stderr bytes.Buffer
			status, err := run(context.Background(), cfg, &stdout, &stderr)
			if tt.err == "" {
				require.NoError(t, err, "%s%s", &stdout, &stderr)
			} else {
				require.ErrorContains(t, err, tt.err)
			}
			require.Equal(t, tt.status, status, "%s%s", &stdout, &stderr)
			for _, want := range tt.stdout {
				require.Contains(t, stdout.String(), want)
			}
			require.NotContains(t, stdout.String(), "\r")
			require.NotContains(t, stdout.String(), "\x1e")
			require.Contains(t, stderr.String(), tt.stderr)
		})
	}
}

// The machine must end without a result, and say why, when it does not come as
// far as the test.
func TestBrokenInit(t *testing.T) {
	folders := kernels(t)
	test := build(t, "outcomes.test", "test", "-c", "./testdata/outcomes")
	cfg := config{
		kernel: folders[0], init: filepath.Join(folders[0], "release"), memory: 768,
		timeout: bootTimeout, test: test,
	}
	var stdout, stderr bytes.Buffer
	status, err := run(context.Background(), cfg, &stdout, &stderr)
	require.ErrorIs(t, err, errNoResult)
	require.Equal(t, exitNoResult, status)
	require.Empty(t, stdout.String())
	require.Contains(t, stderr.String(), "Kernel panic")
}

// On every kernel that was fetched: what the tests of the observers rely on,
// through go test, whose converter to JSON reads the output.
func TestGoTest(t *testing.T) {
	folders := kernels(t)
	initPath := build(t, "kernel-init", "build", "../init")
	program := build(t, "kernel-exec", "build", ".")
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			cmd := exec.Command("go", "test", "-json", "-count=1", "-run=^(TestNode|TestPass)$",
				"-exec", "'"+program+"' -init '"+initPath+"' -kernel '"+folder+"'", "./testdata/outcomes")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "TAPIO_OUTCOME=passed on", "USER=of the host")
			out, err := cmd.Output()
			require.NoError(t, err, "%s", out)

			release, err := os.ReadFile(filepath.Join(folder, "release"))
			require.NoError(t, err)
			actions := map[string]string{}
			var text strings.Builder
			for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
				var event struct{ Action, Test, Output string }
				require.NoError(t, json.Unmarshal(lines.Bytes(), &event), "%s", lines.Text())
				text.WriteString(event.Output)
				if event.Action != "output" {
					actions[event.Test] = event.Action
				}
			}
			require.Equal(t, map[string]string{"TestNode": "pass", "TestPass": "pass", "": "pass"}, actions)
			require.Contains(t, text.String(), "ran on Linux "+strings.TrimSpace(string(release))+"\n")
		})
	}
}

func TestMissingParts(t *testing.T) {
	present := filepath.Join(t.TempDir(), "present")
	require.NoError(t, os.WriteFile(present, nil, 0o755))
	test := build(t, "outcomes.test", "test", "-c", "./testdata/outcomes")
	complete := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(complete, "vmlinuz"), nil, 0o644))
	tests := []struct {
		name string
		cfg  config
		want string
	}{
		{"no kernel", config{kernel: t.TempDir(), init: present, test: test}, "run bpf/kernels/fetch"},
		{"no init", config{kernel: complete, init: present + "-not", test: test}, "present-not"},
		{"no test", config{kernel: complete, init: present, test: present + "-not"}, "present-not"},
		{"not a program", config{kernel: complete, init: present, test: present}, "read the test binary"},
		{"a dynamic test", config{kernel: complete, init: present, test: "/bin/sh"}, "CGO_ENABLED=0"},
		{"a profile", config{kernel: complete, init: present, test: test, args: []string{"-test.cpuprofile=x"}}, "-test.cpuprofile"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.cfg.timeout = bootTimeout
			status, err := run(context.Background(), tt.cfg, &bytes.Buffer{}, &bytes.Buffer{})
			require.ErrorContains(t, err, tt.want)
			require.Equal(t, exitNoResult, status)
		})
	}
}

func TestParse(t *testing.T) {
	cfg, err := parse([]string{"-kernel", "/k/6.1/", "-memory=512", "-timeout=90s", "/tmp/a.test", "-test.v=true", "-kernel=x"}, io.Discard)
	require.NoError(t, err)
	require.Equal(t, "/k/6.1", cfg.kernel)
	require.Equal(t, 512, cfg.memory)
	require.Equal(t, 90*time.Second, cfg.timeout)
	require.Equal(t, "/tmp/a.test", cfg.test)
	require.Equal(t, []string{"-test.v=true", "-kernel=x"}, cfg.args)
	require.Equal(t, "kernel-init", filepath.Base(cfg.init))

	for _, args := range [][]string{{}, {"-kernel", "/k"}, {"/tmp/a.test"}, {"-memory=x", "-kernel", "/k", "/tmp/a.test"}} {
		_, err := parse(args, io.Discard)
		require.Error(t, err)
	}
}
