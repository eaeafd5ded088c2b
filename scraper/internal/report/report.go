// Package report tells a person how a scheduler does, from one scrape.
package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/yairfalse/tapio/scraper/internal/detect"
	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

// Verdict says how a scheduler does.
type Verdict string

// The verdicts.
const (
	Healthy     Verdict = "HEALTHY"
	Warning     Verdict = "WARNING"
	Standby     Verdict = "STANDBY"     // another one schedules; this one can say no more
	Unavailable Verdict = "UNAVAILABLE" // nothing is known
)

// Good tells whether nobody needs to do anything.
func (v Verdict) Good() bool { return v == Healthy || v == Standby }

// Report is what one scrape tells. Counters are since the start of the scheduler's
// process. Latencies are in seconds.
type Report struct {
	Source        string             `json:"source"` // host and port, or the file
	Verdict       Verdict            `json:"verdict"`
	Reasons       []string           `json:"reasons,omitempty"`
	Leader        bool               `json:"leader"`
	Version       string             `json:"version,omitempty"`
	Started       *time.Time         `json:"started,omitempty"`
	Pending       map[string]float64 `json:"pending_pods"`
	Unschedulable map[string]float64 `json:"unschedulable_pods_by_plugin"`
	Attempts      map[string]float64 `json:"attempts_by_result"`
	Preemptions   float64            `json:"preemption_attempts"`
	Victims       float64            `json:"preemption_victims"`
	PodScheduling Latency            `json:"pod_scheduling_seconds"`
	FirstAttempt  Latency            `json:"pod_scheduling_first_attempt_seconds"`
	Attempt       Latency            `json:"attempt_seconds"`
	Points        []Point            `json:"slowest_extension_points"`
	Plugins       []Point            `json:"slowest_plugins"`
}

// Latency are quantiles; absent without observations.
type Latency struct {
	Count float64  `json:"count"`
	P50   *float64 `json:"p50,omitempty"`
	P90   *float64 `json:"p90,omitempty"`
	P99   *float64 `json:"p99,omitempty"`
}

// Point is how long a part of the scheduler takes.
type Point struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"` // in all
	Count   float64 `json:"count"`
	Mean    float64 `json:"mean_seconds"`
	P99     float64 `json:"p99_seconds,omitempty"`
}

const (
	// slow is the pod start-up objective of Kubernetes, of which scheduling is
	// the first part: 99 of 100 pods within 5 s.
	slow = 5 * time.Second
	// mostErrors is the share of attempts that may end with an error: a conflict
	// now and then is normal.
	mostErrors = 0.01
	// shown is how many slow parts are shown.
	shown = 5
)

// New reads a scrape.
func New(source string, s interval.Scrape) Report {
	p, all := s.Page, interval.SinceStart(s)
	r := Report{
		Source: source, Leader: p.Leads(), Version: p.Version(),
		Pending:       p.SumBy(exposition.PendingPods, "queue"),
		Attempts:      all.IncreaseBy(exposition.ScheduleAttempts, "result"),
		Preemptions:   all.Increase(exposition.PreemptionAttempts, nil),
		Victims:       all.Increase(exposition.PreemptionVictims+"_sum", nil),
		PodScheduling: latency(all.Histogram(exposition.PodScheduling, nil)),
		FirstAttempt:  latency(all.Histogram(exposition.PodScheduling, interval.Match{"attempts": "1"})),
		Attempt:       latency(all.Histogram(exposition.AttemptDuration, nil)),
		Points:        slowest(all, exposition.ExtensionPoint, "extension_point"),
		Plugins:       slowest(all, exposition.PluginExecution, "plugin"),
	}
	if started := p.Started(); started > 0 && started < 1e11 {
		at := time.UnixMilli(int64(started * 1000)).UTC()
		r.Started = &at
	}
	var waiting float64
	waiting, r.Unschedulable = new(detect.Refusals).Count(p)
	r.judge(waiting)
	return r
}

// Failed is the report of a scheduler that could not be read.
func Failed(source string, err error) Report {
	return Report{Source: source, Verdict: Unavailable, Reasons: strings.Split(err.Error(), "\n")}
}

func (r *Report) judge(waiting float64) {
	if !r.Leader {
		r.Verdict = Standby
		r.Reasons = []string{"another kube-scheduler leads; ask that one"}
		return
	}
	warn := func(format string, args ...any) { r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...)) }
	if waiting > 0 {
		text := fmt.Sprintf("unschedulable pods: %g", waiting)
		if len(r.Unschedulable) > 0 {
			text += ", refused by " + strings.Join(ordered(r.Unschedulable), ", ")
		}
		warn("%s", text)
	}
	total := 0.0
	for _, n := range r.Attempts {
		total += n
	}
	if failed := r.Attempts["error"]; failed > mostErrors*total {
		warn("%g of %g attempts ended with an error", failed, total)
	}
	if p99 := r.FirstAttempt.P99; p99 != nil && *p99 > slow.Seconds() {
		warn("the slowest of 100 pods takes %s to schedule", text(*p99))
	}
	r.Verdict = Healthy
	if len(r.Reasons) > 0 {
		r.Verdict = Warning
	}
}

// ordered writes names and numbers, the greatest first.
func ordered(values map[string]float64) []string {
	var words []string
	for _, name := range slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		return cmp.Or(cmp.Compare(values[b], values[a]), strings.Compare(a, b))
	}) {
		words = append(words, fmt.Sprintf("%s %g", humanoutput.Clean(name), values[name]))
	}
	return words
}

func latency(h interval.Histogram) Latency {
	q := func(quantile float64) *float64 {
		v := h.Quantile(quantile)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil
		}
		return &v
	}
	return Latency{Count: h.Count(), P50: q(0.5), P90: q(0.9), P99: q(0.99)}
}

// slowest returns the parts in which most time was spent.
func slowest(all *interval.Interval, family, label string) []Point {
	seconds, counts := all.IncreaseBy(family+"_sum", label), all.IncreaseBy(family+"_count", label)
	points := []Point{}
	for name, spent := range seconds {
		if counts[name] == 0 {
			continue
		}
		point := Point{Name: name, Seconds: spent, Count: counts[name], Mean: spent / counts[name]}
		if v := all.Histogram(family, interval.Match{label: name}).Quantile(0.99); !math.IsNaN(v) && !math.IsInf(v, 0) {
			point.P99 = v
		}
		points = append(points, point)
	}
	slices.SortFunc(points, func(a, b Point) int {
		return cmp.Or(cmp.Compare(b.Seconds, a.Seconds), strings.Compare(a.Name, b.Name))
	})
	return points[:min(len(points), shown)]
}

// WriteJSON writes the report as one JSON object.
func (r Report) WriteJSON(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// WriteText writes the report for people; the last line is the verdict.
func (r Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "scheduler   %s", humanoutput.Clean(r.Source))
	if r.Version != "" {
		fmt.Fprintf(&b, "  %s", humanoutput.Clean(r.Version))
	}
	b.WriteByte('\n')
	if r.Verdict != Unavailable {
		r.writeFigures(&b)
	}
	fmt.Fprintf(&b, "\n%s", r.Verdict)
	for i, reason := range r.Reasons {
		separator := ": "
		if i > 0 {
			separator = "; "
		}
		b.WriteString(separator + humanoutput.Clean(reason))
	}
	b.WriteByte('\n')
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

func (r Report) writeFigures(b *strings.Builder) {
	role := "leads"
	if !r.Leader {
		role = "standby"
	}
	fmt.Fprintf(b, "role        %s\n", role)
	since := "since its start"
	if r.Started != nil {
		since += " at " + r.Started.Format(time.RFC3339)
	}
	fmt.Fprintf(b, "pending     %s\n", orNone(ordered(r.Pending)))
	fmt.Fprintf(b, "refused by  %s\n", orNone(ordered(r.Unschedulable)))
	fmt.Fprintf(b, "\n%s\n", since)
	fmt.Fprintf(b, "attempts    %s\n", orNone(ordered(r.Attempts)))
	fmt.Fprintf(b, "preemption  attempts %g, victims %g\n\n", r.Preemptions, r.Victims)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "latency\tcount\tp50\tp90\tp99\t")
	for _, l := range []struct {
		name string
		Latency
	}{{"pod", r.PodScheduling}, {"pod, first attempt", r.FirstAttempt}, {"attempt", r.Attempt}} {
		fmt.Fprintf(t, "%s\t%g\t%s\t%s\t%s\t\n", l.name, l.Count, optional(l.P50), optional(l.P90), optional(l.P99))
	}
	for _, part := range []struct {
		name   string
		points []Point
	}{{"extension point", r.Points}, {"plugin (one pod in ten)", r.Plugins}} {
		if len(part.points) == 0 {
			continue
		}
		fmt.Fprintf(t, "\n%s\tcount\ttotal\tmean\tp99\t\n", part.name)
		for _, p := range part.points {
			fmt.Fprintf(t, "%s\t%g\t%s\t%s\t%s\t\n", humanoutput.Clean(p.Name), p.Count, text(p.Seconds), text(p.Mean), text(p.P99))
		}
	}
	_ = t.Flush() // into memory
}

func orNone(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func optional(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return text(*seconds)
}

func text(seconds float64) string {
	return humanoutput.Duration(time.Duration(seconds * float64(time.Second)))
}
