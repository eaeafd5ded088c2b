package exposition_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
)

func versions() []string { return []string{"1_31", "1_32", "1_33", "1_34", "1_35"} }

func synthetic(t testing.TB, version string) []byte {
	body, err := os.ReadFile(filepath.Join("testdata", version+".prom"))
	require.NoError(t, err)
	return body
}

// dump reads what a real scheduler of a version answered. It lies beside the
// project.
func dump(t testing.TB, version string) []byte {
	name := filepath.Join("..", "..", "..", "..", "shared", "data", "kube-scheduler-metrics", version+".prom.gz")
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("needs %s, metrics of a real scheduler", name)
	}
	require.NoError(t, err)
	defer func() { _ = file.Close() }()
	unzipped, err := gzip.NewReader(file)
	require.NoError(t, err)
	body, err := io.ReadAll(unzipped)
	require.NoError(t, err)
	return body
}

func TestEveryVersionsShape(t *testing.T) {
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			p, err := exposition.Parse(synthetic(t, version), "text/plain; version=0.0.4; charset=utf-8")
			require.NoError(t, err)
			assert.Equal(t, "v"+version[:1]+"."+version[2:]+".0", p.Version())
			assert.True(t, p.Leads())
			assert.InDelta(t, 1.75e9, p.Started(), 0)
			assert.Equal(t, map[string]float64{"active": 1, "backoff": 2, "gated": 4, "unschedulable": 3}, p.SumBy(exposition.PendingPods, "queue"))
			assert.Equal(t, map[string]float64{"error": 1, "scheduled": 42, "unschedulable": 6}, p.SumBy(exposition.ScheduleAttempts, "result"))
			assert.Len(t, p.Series(exposition.PodScheduling+"_bucket"), 8)
			assert.Len(t, p.Series(exposition.AttemptDuration+"_bucket"), 4)
			assert.Len(t, p.Series(exposition.ExtensionPoint+"_sum"), 2)
		})
	}
}

func TestRealSchedulers(t *testing.T) {
	for _, version := range versions() {
		t.Run(version, func(t *testing.T) {
			p, err := exposition.Parse(dump(t, version), "text/plain; version=0.0.4")
			require.NoError(t, err)
			assert.Equal(t, "v1."+version[2:], p.Version()[:len("v1.00")])
			assert.True(t, p.Leads(), "it runs without leader election")
			assert.Positive(t, p.Started())
			assert.Equal(t, map[string]float64{"active": 0, "backoff": 0, "gated": 0, "unschedulable": 1}, p.SumBy(exposition.PendingPods, "queue"))
			assert.InDelta(t, 1, p.SumBy(exposition.UnschedulablePods, "plugin")["NodeAffinity"], 0)
			for _, name := range []string{
				exposition.ScheduleAttempts, exposition.IncomingPods, exposition.PreemptionAttempts, exposition.PreemptionVictims + "_bucket",
				exposition.PodScheduling + "_bucket", exposition.AttemptDuration + "_bucket", exposition.ExtensionPoint + "_bucket",
				exposition.PluginExecution + "_bucket",
			} {
				assert.NotEmpty(t, p.Series(name), name)
			}
		})
	}
}

// encode writes an exposition in another format.
func encode(t *testing.T, body []byte, format expfmt.Format) []byte {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	require.NoError(t, err)
	var out bytes.Buffer
	encoder := expfmt.NewEncoder(&out, format)
	for _, family := range families {
		require.NoError(t, encoder.Encode(family))
	}
	if closer, ok := encoder.(expfmt.Closer); ok {
		require.NoError(t, closer.Close())
	}
	return out.Bytes()
}

func TestFormats(t *testing.T) {
	body := synthetic(t, "1_34")
	want, err := exposition.Parse(body, "")
	require.NoError(t, err)
	for _, format := range []expfmt.Format{
		expfmt.NewFormat(expfmt.TypeTextPlain), expfmt.NewFormat(expfmt.TypeOpenMetrics), expfmt.NewFormat(expfmt.TypeProtoDelim),
	} {
		t.Run(string(format), func(t *testing.T) {
			got, err := exposition.Parse(encode(t, body, format), string(format))
			require.NoError(t, err)
			want.Names(func(name string) {
				assert.Len(t, got.Series(name), len(want.Series(name)), name)
			})
			assert.Equal(t, want.SumBy(exposition.ScheduleAttempts, "result"), got.SumBy(exposition.ScheduleAttempts, "result"))
			assert.Equal(t, want.SumBy(exposition.AttemptDuration+"_bucket", "result"), got.SumBy(exposition.AttemptDuration+"_bucket", "result"))
		})
	}
}

func TestBadExpositions(t *testing.T) {
	tests := map[string]struct{ body, want string }{
		"empty":                     {"", "no scheduler_* series"},
		"a web page":                {"<html><body>Hello</body></html>\n", "read metrics"},
		"JSON":                      {`{"kind":"Status","code":200}`, "read metrics"},
		"another component":         {"apiserver_request_total 3\n", "no scheduler_* series"},
		"cut in a series":           {"scheduler_pending_pods{queue=\"active\"} 1\nscheduler_pending_pods{queue=\"ba", "read metrics"},
		"a value that is no number": {"scheduler_pending_pods{queue=\"active\"} many\n", "read metrics"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := exposition.Parse([]byte(test.body), "text/plain")
			require.ErrorContains(t, err, test.want)
		})
	}
}

func TestLeads(t *testing.T) {
	tests := map[string]struct {
		series string
		want   bool
	}{
		"without election":      {"", true},
		"leader":                {`leader_election_master_status{name="kube-scheduler"} 1`, true},
		"standby":               {`leader_election_master_status{name="kube-scheduler"} 0`, false},
		"of another lease too":  {"leader_election_master_status{name=\"other\"} 1\nleader_election_master_status{name=\"kube-scheduler\"} 0", false},
		"lease of another name": {`leader_election_master_status{name="second-scheduler"} 0`, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := exposition.Parse([]byte("scheduler_pending_pods{queue=\"active\"} 0\n"+test.series+"\n"), "text/plain")
			require.NoError(t, err)
			assert.Equal(t, test.want, p.Leads())
		})
	}
}

func TestOldNameOfTheLatency(t *testing.T) {
	p, err := exposition.Parse([]byte("scheduler_pod_scheduling_duration_seconds_bucket{attempts=\"1\",le=\"+Inf\"} 4\n"), "text/plain")
	require.NoError(t, err)
	assert.Len(t, p.Series(exposition.PodScheduling+"_bucket"), 1)
}

func FuzzParse(f *testing.F) {
	for _, version := range versions() {
		f.Add(synthetic(f, version), "text/plain; version=0.0.4")
	}
	f.Add([]byte("# TYPE scheduler_x counter\nscheduler_x_total 1 # {a=\"b\"} 1\n# EOF\n"), "application/openmetrics-text; version=1.0.0")
	f.Add([]byte{0x10, 0x0a, 0x0b}, "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited")
	f.Add([]byte("scheduler_pending_pods NaN\n"), "nonsense/;;")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		p, err := exposition.Parse(body, contentType)
		if err != nil {
			require.Nil(t, p)
			return
		}
		p.Leads()
		p.Started()
		p.Version()
		p.SumBy(exposition.PendingPods, "queue")
	})
}
