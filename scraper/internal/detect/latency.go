package detect

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

const (
	// enough is how many observations a quantile needs to say something, and
	// patience for how many scrapes they are collected.
	enough   = 10
	patience = 20
	// learned is how many quantiles must be known before one can be high.
	learned = 4
	// spikeFactor is how many times what is normal is high. Buckets double, so
	// that a quantile is known to a factor of two.
	spikeFactor = 3
	// spikeDeviations is the same in deviations, for what is never quiet.
	spikeDeviations = 6
	// lookBad and lookGood are the quantiles in a row that begin and end a spike.
	lookBad, lookGood = 2, 3
	// idle is how many scrapes without enough observations end one.
	idle = 8
	// accepted is the time after which a high latency has become normal.
	accepted = 15 * time.Minute
	// podFloor and pointFloor are by how much a latency must be higher than normal
	// for anyone to care: seconds, of a pod or an attempt, and of an extension
	// point.
	podFloor, pointFloor = 0.1, 0.05
)

// judged are the quantiles that are compared with what is normal: of most pods,
// and of the slowest.
func judged() []float64 { return []float64{0.5, 0.99} }

// latency finds what takes longer than normal. However many latencies rise, it is
// one thing to know.
type latency struct {
	alarm  alarm
	series map[string]*series
}

// series is one latency.
type series struct {
	of    string // event.SchedulerLatency*
	point string // extension point, if it is of one
	floor float64

	collected interval.Histogram
	collects  int // scrapes
	histories map[float64]*history
	bad, good int // looks in a row
	silent    int // scrapes without a look, in a row
	high      bool
	worst     rise
}

// rise is a quantile that is higher than normal.
type rise struct{ quantile, now, normal float64 }

func (r rise) factor() float64 { return r.now / max(r.normal, 1e-6) }

func newLatency() latency {
	return latency{alarm: alarm{enter: 1, leave: 1}, series: map[string]*series{}}
}

func (l *latency) get(of, point string, floor float64) *series {
	s := l.series[of+"/"+point]
	if s == nil {
		s = &series{of: of, point: point, floor: floor, collected: interval.Histogram{}, histories: map[float64]*history{}}
		for _, q := range judged() {
			s.histories[q] = &history{}
		}
		l.series[of+"/"+point] = s
	}
	return s
}

// look adds what was observed and judges it when that is enough.
func (s *series) look(h interval.Histogram) {
	s.collected.Add(h)
	s.collects++
	if s.collected.Count() < enough {
		s.silent++
		if s.collects >= patience {
			s.collected, s.collects = interval.Histogram{}, 0
		}
		if s.silent >= idle {
			s.high, s.bad, s.good = false, 0, 0
		}
		return
	}
	s.silent = 0
	worst, quantiles := rise{}, map[float64]float64{}
	for _, q := range judged() {
		now := s.collected.Quantile(q)
		if math.IsNaN(now) || math.IsInf(now, 0) {
			continue
		}
		quantiles[q] = now
		past := s.histories[q]
		normal, deviation := past.normal()
		r := rise{q, now, normal}
		if len(past.values) >= learned && now > spikeFactor*normal && now > normal+spikeDeviations*deviation &&
			now > normal+s.floor && r.factor() > worst.factor() {
			worst = r
		}
	}
	s.collected, s.collects = interval.Histogram{}, 0
	if worst.now > 0 {
		s.worst = worst
		s.bad, s.good = s.bad+1, 0
	} else {
		s.bad, s.good = 0, s.good+1
	}
	switch {
	case s.bad >= lookBad:
		s.high = true
	case s.good >= lookGood:
		s.high = false
	}
	if s.bad == 0 && !s.high { // while it is high nothing is learned
		for q, now := range quantiles {
			s.histories[q].add(now)
		}
	}
}

// forget makes what is now what is normal.
func (s *series) forget() {
	for q := range s.histories {
		s.histories[q] = &history{}
	}
	s.high, s.bad, s.good = false, 0, 0
}

func (d *Detector) spikes(now time.Time, iv *interval.Interval) []Finding {
	l := &d.latency
	// Pods that were placed at the first attempt: the others waited for room, not
	// for the scheduler.
	l.get(event.SchedulerLatencyPod, "", podFloor).look(iv.Histogram(exposition.PodScheduling, interval.Match{"attempts": "1"}))
	l.get(event.SchedulerLatencyAttempt, "", podFloor).look(iv.Histogram(exposition.AttemptDuration, interval.Match{"result": "scheduled"}))
	for _, point := range iv.Values(exposition.ExtensionPoint+"_bucket", "extension_point", nil) {
		l.get(event.SchedulerLatencyExtensionPoint, point, pointFloor).look(
			iv.Histogram(exposition.ExtensionPoint, interval.Match{"extension_point": point}))
	}
	ended := ""
	if l.alarm.on && now.Sub(l.alarm.since) >= accepted {
		for _, s := range l.series {
			s.forget()
		}
		ended = "; the scheduler has been as slow for " + humanoutput.Duration(accepted) + ", which counts as normal from now on"
	}
	worst := l.worst()
	phase := l.alarm.look(now, worst != nil)
	if phase == "" {
		return nil
	}
	f := Finding{
		Kind: event.KindSchedulerLatencySpike, At: now, Reason: "LatencySpike",
		Message: "pods are scheduled as fast as normal again", Metadata: map[string]string{},
	}
	switch {
	case ended != "":
		f.Message = "latency is not told any more" + ended
	case worst != nil:
		describe(&f, worst, iv)
	}
	d.complete(&f, phase, &l.alarm)
	return []Finding{f}
}

// worst is the latency to tell of those that are high: of pods rather than of
// attempts rather than of the extension point that rose most. Nil when none is.
func (l *latency) worst() *series {
	rank := []string{event.SchedulerLatencyExtensionPoint, event.SchedulerLatencyAttempt, event.SchedulerLatencyPod}
	var worst *series
	for _, s := range l.series {
		if !s.high {
			continue
		}
		if worst == nil {
			worst = s
			continue
		}
		better := slices.Index(rank, s.of) - slices.Index(rank, worst.of)
		if better > 0 || better == 0 && s.worst.factor() > worst.worst.factor() {
			worst = s
		}
	}
	return worst
}

// describe tells which latency is high, and where the time goes.
func describe(f *Finding, s *series, iv *interval.Interval) {
	point := s.point
	if point == "" {
		point = most(iv, exposition.ExtensionPoint+"_sum", "extension_point", nil)
	}
	plugin := most(iv, exposition.PluginExecution+"_sum", "plugin", interval.Match{"extension_point": point})
	what := map[string]string{
		event.SchedulerLatencyPod:            "scheduling a pod",
		event.SchedulerLatencyAttempt:        "an attempt to schedule a pod",
		event.SchedulerLatencyExtensionPoint: "the extension point " + s.point,
	}[s.of]
	f.Message = fmt.Sprintf("%s takes %s (p%g), normal is %s", what, latencyText(s.worst.now), s.worst.quantile*100, latencyText(s.worst.normal))
	f.Metadata = map[string]string{
		event.TapioSchedulerLatency:    s.of,
		event.TapioSchedulerQuantile:   strconv.FormatFloat(s.worst.quantile, 'f', -1, 64),
		event.TapioSchedulerCurrentMs:  milliseconds(s.worst.now),
		event.TapioSchedulerBaselineMs: milliseconds(s.worst.normal),
	}
	if point == "" {
		return
	}
	f.Metadata[event.TapioSchedulerExtensionPoint] = point
	if s.point == "" {
		f.Message += "; most of it in " + point
	}
	if plugin != "" {
		f.Metadata[event.TapioSchedulerPlugin] = plugin
		f.Message += ", plugin " + plugin
	}
}

// most is the value of a label with the greatest increase; empty without any.
func most(iv *interval.Interval, name, label string, match interval.Match) string {
	best, greatest := "", 0.0
	values := iv.Values(name, label, match)
	slices.Sort(values)
	for _, v := range values {
		m := interval.Match{label: v}
		for k, want := range match {
			m[k] = want
		}
		if n := iv.Increase(name, m); n > greatest {
			best, greatest = v, n
		}
	}
	return best
}

func latencyText(s float64) string {
	return humanoutput.Duration(time.Duration(s * float64(time.Second)))
}
