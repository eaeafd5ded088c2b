// Package exposition reads what kube-scheduler shows on /metrics. It knows the
// names of the series, which differ by version, so that nobody else has to.
package exposition

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
)

// Families of kube-scheduler 1.31 to 1.35 that are read. A scheduler has a family
// only after it had something to count there.
const (
	PendingPods        = "scheduler_pending_pods"                               // by queue
	UnschedulablePods  = "scheduler_unschedulable_pods"                         // by plugin, profile
	ScheduleAttempts   = "scheduler_schedule_attempts_total"                    // by result, profile
	IncomingPods       = "scheduler_queue_incoming_pods_total"                  // by queue, event
	PreemptionAttempts = "scheduler_preemption_attempts_total"                  //
	PreemptionVictims  = "scheduler_preemption_victims"                         // of one preemption
	PodScheduling      = "scheduler_pod_scheduling_sli_duration_seconds"        // by attempts
	AttemptDuration    = "scheduler_scheduling_attempt_duration_seconds"        // by result, profile
	ExtensionPoint     = "scheduler_framework_extension_point_duration_seconds" // by extension_point, status, profile
	PluginExecution    = "scheduler_plugin_execution_duration_seconds"          // by plugin, extension_point, status; one pod in ten

	leaderStatus = "leader_election_master_status"
	processStart = "process_start_time_seconds"
	buildInfo    = "kubernetes_build_info"

	// What PodScheduling was called before it left out the time that pods are
	// gated.
	podSchedulingOld = "scheduler_pod_scheduling_duration_seconds"
)

// prefix is what all of the scheduler's own families begin with.
const prefix = "scheduler_"

// maxSeries is many times what a large cluster has. A page with more is not worth
// the memory.
const maxSeries = 200_000

// ErrForeign is the error of metrics that are not a kube-scheduler's.
var ErrForeign = errors.New("there is no scheduler_* series in it: this is not the /metrics of a kube-scheduler")

// Series is one series and its value.
type Series struct {
	Labels labels.Labels // with the name
	Value  float64
}

// Page is one exposition.
type Page struct {
	series map[string][]Series // by name
}

// Parse reads an exposition in any format that Prometheus scrapes: its text,
// OpenMetrics or protobuf. An unknown content type counts as text. Only what this
// package names is kept.
func Parse(body []byte, contentType string) (*Page, error) {
	parser, err := textparse.New(body, contentType, labels.NewSymbolTable(), textparse.ParserOptions{
		// Classic buckets are what quantiles are made of.
		IgnoreNativeHistograms: true, OpenMetricsSkipSTSeries: true,
		FallbackContentType: "text/plain",
	})
	if parser == nil {
		return nil, fmt.Errorf("read metrics of type %.80q: %w", contentType, err)
	}
	p := &Page{series: map[string][]Series{}}
	kept, ours := 0, false
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read metrics: %w", err)
		}
		if entry != textparse.EntrySeries {
			continue
		}
		_, _, value := parser.Series()
		var l labels.Labels
		parser.Labels(&l)
		if !readable(l) {
			continue
		}
		name := canonical(l.Get(model.MetricNameLabel))
		ours = ours || strings.HasPrefix(name, prefix)
		if !wanted(name) {
			continue
		}
		if kept++; kept > maxSeries {
			return nil, fmt.Errorf("read metrics: there are more than %d series", maxSeries)
		}
		p.series[name] = append(p.series[name], Series{Labels: l, Value: value})
	}
	if !ours {
		return nil, ErrForeign
	}
	return p, nil
}

// readable tells whether all labels are text: others fit no event and no metric.
func readable(l labels.Labels) bool {
	valid := true
	l.Range(func(one labels.Label) { valid = valid && utf8.ValidString(one.Value) })
	return valid
}

// canonical gives a series of an older version the name that it has now.
func canonical(name string) string {
	if rest, old := strings.CutPrefix(name, podSchedulingOld); old {
		return PodScheduling + rest
	}
	return name
}

// wanted tells whether the series of a name are kept.
func wanted(name string) bool {
	for _, suffix := range [...]string{"_bucket", "_sum", "_count"} {
		if family, cut := strings.CutSuffix(name, suffix); cut {
			name = family
			break
		}
	}
	switch name {
	case PendingPods, UnschedulablePods, ScheduleAttempts, IncomingPods, PreemptionAttempts, PreemptionVictims,
		PodScheduling, AttemptDuration, ExtensionPoint, PluginExecution, leaderStatus, processStart, buildInfo:
		return true
	}
	return false
}

// Series returns all series of a name. Nobody may change them.
func (p *Page) Series(name string) []Series { return p.series[name] }

// Names calls visit for each name that has series.
func (p *Page) Names(visit func(name string)) {
	for name := range p.series {
		visit(name)
	}
}

// SumBy adds up the values of a name by a label. Values that are no finite number
// are left out. Without any series the map is empty.
func (p *Page) SumBy(name, label string) map[string]float64 {
	sums := map[string]float64{}
	for _, s := range p.series[name] {
		if finite(s.Value) {
			sums[s.Labels.Get(label)] += s.Value
		}
	}
	return sums
}

// Leads tells whether this scheduler is the one that schedules. One that runs
// without leader election has no series about it, and schedules.
func (p *Page) Leads() bool {
	for _, s := range p.series[leaderStatus] {
		if s.Labels.Get("name") == "kube-scheduler" || len(p.series[leaderStatus]) == 1 {
			return s.Value == 1
		}
	}
	return true
}

// Started is when the process began, in seconds since the epoch; 0 when it does
// not say.
func (p *Page) Started() float64 {
	for _, s := range p.series[processStart] {
		if finite(s.Value) {
			return s.Value
		}
	}
	return 0
}

// Version is the version of Kubernetes, such as v1.34.4; empty when it does not
// say.
func (p *Page) Version() string {
	for _, s := range p.series[buildInfo] {
		return s.Labels.Get("git_version")
	}
	return ""
}

func finite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }
