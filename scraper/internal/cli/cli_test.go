package cli_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/scraper/internal/cli"
)

// run runs the command line; it must end by itself.
func run(t *testing.T, environ []string, args ...string) (status int, stdout, stderr string) {
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
		{"--color green", []string{"--color", `"green"`}},
		{"--scheduler=", []string{"--scheduler is empty"}},
		{"--scheduler 127.0.0.1:10259", []string{"--scheduler", "https://host:port"}},
		{"--interval 1ms", []string{"--interval", "1ms", "100ms"}},
		{"--timeout 0", []string{"--timeout"}},
		{"--ca /does/not/exist.pem", []string{"--scheduler", "/does/not/exist.pem"}},
		{"--cert /does/not/exist.pem", []string{"/does/not/exist.pem", "key"}},
		{"--ca a.pem --insecure-skip-verify", []string{"--ca", "--insecure-skip-verify"}},
		{"--polku gateway", []string{"--polku", `"gateway"`}},
		{"--polku-ca a.pem", []string{"--polku, which is empty"}},
		{"--otlp ftp://collector:1", []string{"--otlp", `"ftp"`}},
		{"--from /does/not/exist", []string{"--from", "/does/not/exist"}},
		{"--verbose", []string{"--verbose"}},
		{"now", []string{`"now"`}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			status, stdout, stderr := run(t, nil, strings.Fields(test.args)...)
			assert.Equal(t, 1, status)
			assert.Empty(t, stdout)
			assert.True(t, strings.HasPrefix(stderr, "scheduler-scraper: "), stderr)
			for _, want := range test.want {
				assert.Contains(t, stderr, want)
			}
		})
	}
}

func TestBadEnvironment(t *testing.T) {
	status, _, stderr := run(t, []string{"SCHEDULER_SCRAPER_OUTPTU=json"})
	assert.Equal(t, 1, status)
	assert.Contains(t, stderr, "SCHEDULER_SCRAPER_OUTPUT")
}

func TestVersion(t *testing.T) {
	status, stdout, _ := run(t, nil, "version")
	assert.Zero(t, status)
	assert.Contains(t, stdout, "built with "+runtime.Version())
}

// figures is what machines read of a report.
type figures struct {
	Verdict  string             `json:"verdict"`
	Version  string             `json:"version"`
	Leader   bool               `json:"leader"`
	Pending  map[string]float64 `json:"pending_pods"`
	Refused  map[string]float64 `json:"unschedulable_pods_by_plugin"`
	Attempts map[string]float64 `json:"attempts_by_result"`
	Pod      struct {
		Count float64  `json:"count"`
		P99   *float64 `json:"p99"`
	} `json:"pod_scheduling_seconds"`
}

func TestFromFile(t *testing.T) {
	file := filepath.Join("..", "exposition", "testdata", "1_34.prom")
	status, stdout, stderr := run(t, nil, "--from", file)
	assert.Equal(t, 1, status, "somebody has to do something")
	assert.Empty(t, stderr)
	for _, want := range []string{
		"scheduler   1_34.prom  v1.34.0", "role        leads", "pending     gated 4, unschedulable 3, backoff 2, active 1",
		"refused by  NodeResourcesFit 5, TaintToleration 1", "attempts    scheduled 42, unschedulable 6, error 1",
		"preemption  attempts 7, victims 5", "pod, first attempt", "Bind", "DefaultBinder",
	} {
		assert.Contains(t, stdout, want)
	}
	assert.True(t, strings.HasSuffix(stdout, "\nWARNING: unschedulable pods: 5, refused by NodeResourcesFit 5, TaintToleration 1; 1 of 49 attempts ended with an error\n"), stdout)

	status, stdout, _ = run(t, nil, "--from", file, "--output", "json")
	assert.Equal(t, 1, status)
	var r figures
	require.NoError(t, json.Unmarshal([]byte(stdout), &r))
	assert.Equal(t, "WARNING", r.Verdict)
	assert.InDelta(t, 3, r.Pending["unschedulable"], 0)
	assert.InDelta(t, 42, r.Pod.Count, 0)
	require.NotNil(t, r.Pod.P99)
}

func TestVerdicts(t *testing.T) {
	tests := map[string]struct {
		body   string
		status int
		want   string
	}{
		"well":    {"scheduler_pending_pods{queue=\"unschedulable\"} 0\n", 0, "\nHEALTHY\n"},
		"standby": {"scheduler_pending_pods{queue=\"unschedulable\"} 9\nleader_election_master_status{name=\"kube-scheduler\"} 0\n", 0, "\nSTANDBY: another kube-scheduler leads"},
		"errors":  {"scheduler_schedule_attempts_total{result=\"error\"} 4\nscheduler_schedule_attempts_total{result=\"scheduled\"} 6\n", 1, "WARNING: 4 of 10 attempts ended with an error"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "metrics")
			require.NoError(t, os.WriteFile(file, []byte(test.body), 0o600))
			status, stdout, _ := run(t, nil, "--from", file)
			assert.Equal(t, test.status, status)
			assert.Contains(t, stdout, test.want)
		})
	}
}

func TestFilesThatAreNoMetrics(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"page.html": "<html>", "other.prom": "up 1\n", "bad.gz": "no gzip"} {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
		status, stdout, stderr := run(t, nil, "--from", file)
		assert.Equal(t, 1, status)
		assert.Empty(t, stdout)
		assert.Contains(t, stderr, name)
	}
}

func TestOnceWithoutAScheduler(t *testing.T) {
	status, stdout, stderr := run(t, nil, "--once", "--scheduler", "https://127.0.0.1:1")
	assert.Equal(t, 1, status)
	assert.Empty(t, stderr)
	assert.Contains(t, stdout, "UNAVAILABLE: ")
	assert.Contains(t, stdout, "connection refused")
}

// What real schedulers answered lies beside the project.
func TestRealSchedulers(t *testing.T) {
	for _, version := range []string{"1_31", "1_32", "1_33", "1_34", "1_35"} {
		t.Run(version, func(t *testing.T) {
			file := filepath.Join("..", "..", "..", "..", "shared", "data", "kube-scheduler-metrics", version+".prom.gz")
			if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
				t.Skipf("needs %s, metrics of a real scheduler", file)
			}
			status, stdout, stderr := run(t, nil, "--from", file, "--output", "json")
			assert.Equal(t, 1, status)
			assert.Empty(t, stderr)
			var r figures
			require.NoError(t, json.Unmarshal([]byte(stdout), &r))
			assert.Equal(t, "WARNING", r.Verdict, "one pod waits")
			assert.True(t, strings.HasPrefix(r.Version, "v1."+version[2:]), r.Version)
			assert.Equal(t, map[string]float64{"NodeAffinity": 1}, r.Refused)
			assert.GreaterOrEqual(t, r.Attempts["scheduled"], 19.0)
			assert.InDelta(t, r.Attempts["scheduled"], r.Pod.Count, 0)
			assert.NotNil(t, r.Pod.P99)
		})
	}
}
