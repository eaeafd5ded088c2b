package cli_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/yairfalse/tapio/ahti/internal/ahtitest"
	"github.com/yairfalse/tapio/ahti/internal/cli"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// ahti runs the command line; it must end by itself.
func ahti(t *testing.T, environ []string, args ...string) (status int, stdout, stderr string) {
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
		{"--store mysql://db", []string{"--store", "postgres://"}},
		{"--store postgres://db/ahti --max-bytes 1GiB", []string{"--max-bytes", "--retention"}},
		{"--data-dir=", []string{"--data-dir is empty"}},
		{"--max-bytes much", []string{"--max-bytes", `"much"`, "GiB"}},
		{"--max-bytes -1", []string{"--max-bytes", "GiB"}},
		{"--retention -1h", []string{"--retention", "0"}},
		{"--tls-cert /does/not/exist", []string{"exist"}},
		{"--log-level loud", []string{"--log-level", "debug, info, warn or error"}},
		{"--config /does/not/exist.yaml", []string{"/does/not/exist.yaml"}},
		{"serve", []string{`unknown command "serve"`}},
		{"why", []string{"ENTITY or --event"}},
		{"why a --event b", []string{"ENTITY or --event"}},
		{"why a -o xml", []string{"--output", "text, json"}},
		{"why a --at noon", []string{"--at", "2026-03-01T12:30:00Z"}},
		{"why a --server 127.0.0.1:1", []string{"ask 127.0.0.1:1", "--server"}},
		{"incidents --server 127.0.0.1:1", []string{"ask 127.0.0.1:1"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			status, stdout, stderr := ahti(t, nil, strings.Fields(test.args)...)
			assert.Equal(t, 1, status)
			assert.Empty(t, stdout)
			assert.True(t, strings.HasPrefix(stderr, "ahti: "), stderr)
			for _, want := range test.want {
				assert.Contains(t, stderr, want)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	_, _, stderr := ahti(t, []string{"AHTI_RETENTION=-1h"})
	require.Contains(t, stderr, "--retention is -1h")
	_, _, stderr = ahti(t, []string{"AHTI_RETENTON=1h"})
	require.Contains(t, stderr, "AHTI_RETENTION")
	_, _, stderr = ahti(t, []string{"AHTI_CLIENT_SERVER=127.0.0.1:1", "AHTI_DATA_DIR=/x"}, "incidents")
	require.Contains(t, stderr, "ask 127.0.0.1:1", "in the environment of the server")
	file := filepath.Join(t.TempDir(), "ahti.yaml")
	require.NoError(t, os.WriteFile(file, []byte("max-bytes: much\n"), 0o600))
	_, _, stderr = ahti(t, nil, "--config", file)
	require.Contains(t, stderr, "ahti.yaml:1")
}

func TestSizeIsForSQLite(t *testing.T) {
	_, _, stderr := ahti(t, nil, "--store", "postgres://db/ahti", "--max-bytes", "10GiB")
	require.Contains(t, stderr, "PostgreSQL does not tell")
	_, _, stderr = ahti(t, nil, "--max-bytes", "1.5GiB")
	require.Contains(t, stderr, "want bytes or a unit")
}

func TestVersion(t *testing.T) {
	status, stdout, _ := ahti(t, nil, "version")
	require.Zero(t, status)
	require.Regexp(t, `^ahti \S+\ncommit `, stdout)
	_, byFlag, _ := ahti(t, nil, "--version")
	require.Equal(t, stdout, byFlag)
}

func TestHelp(t *testing.T) {
	for _, args := range []string{"", "why", "incidents", "timeline"} {
		status, stdout, stderr := ahti(t, nil, append(strings.Fields(args), "--help")...)
		require.Zero(t, status)
		require.Empty(t, stderr)
		for line := range strings.Lines(stdout) {
			if strings.HasPrefix(line, "      --") {
				require.Greater(t, len(strings.Fields(line)), 2, "what is it for? %s", line)
			}
		}
	}
}

// A person asks a running ahti.
func TestAsk(t *testing.T) {
	p := start(t, store.Config{Dir: t.TempDir()}, nil)
	w := ahtitest.Workload{Pods: 20, Start: time.Now().Add(-5 * time.Minute), Step: time.Second, Cluster: "prod"}
	l := &ledger{acknowledged: map[string]bool{}}
	require.NoError(t, l.send(p, w, 0, 200))
	ask := func(args ...string) string {
		t.Helper()
		status, stdout, stderr := ahti(t, []string{"AHTI_CLIENT_SERVER=" + p.grpc}, args...)
		require.Zero(t, status, stderr)
		return stdout
	}
	pod := w.Event(7).GetEntities()[0]
	name := pod.GetNamespace() + "/" + pod.GetName()
	require.Eventually(t, func() bool { return strings.Contains(ask("why", name), "what suffers") }, 30*time.Second, 50*time.Millisecond)
	require.Contains(t, ask("why", "--event", w.Event(7).GetId()), "how sure")
	require.Contains(t, ask("why", "--at", "2025-01-01T00:00:00Z", name), "Nothing that was seen of "+name)

	var list string
	require.Eventually(t, func() bool { list = ask("incidents"); return strings.Contains(list, "open") }, 30*time.Second, 50*time.Millisecond)
	var incidents ahtiv1.ListIncidentsResponse
	require.NoError(t, protojson.Unmarshal([]byte(ask("incidents", "-a", "-o", "json")), &incidents))
	id := incidents.GetIncidents()[0].GetId()
	require.Contains(t, ask("incidents", id), "incident     "+id)
	require.Contains(t, ask("incidents", "--limit", "1"), "--limit shows more")
	require.Equal(t, "No open incidents. --all lists those that are over.\n", ask("incidents", "-n", "nobody"))

	require.Len(t, strings.Split(strings.TrimSpace(ask("timeline")), "\n"), 200)
	require.Len(t, strings.Split(strings.TrimSpace(ask("timeline", "--limit", "30")), "\n"), 30)
	lines := strings.Split(strings.TrimSpace(ask("timeline", name, "-o", "json")), "\n")
	require.Len(t, lines, 10, "one of twenty")
	var e ahtiv1.AhtiEvent
	require.NoError(t, protojson.Unmarshal([]byte(lines[0]), &e))

	refused := func(name string) string {
		status, stdout, stderr := ahti(t, []string{"AHTI_CLIENT_SERVER=" + p.grpc}, "why", name)
		require.Equal(t, 1, status)
		require.Empty(t, stdout)
		return stderr
	}
	require.Contains(t, refused("nobody"), `nothing is known of "nobody"`)
	require.Equal(t, "ahti: \"app\" may be team-0/app, team-1/app, team-2/app or team-3/app: name one of them\n", refused("app"))
}
