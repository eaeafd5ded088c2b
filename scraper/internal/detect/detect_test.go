package detect_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/scraper/internal/detect"
	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/shared/event"
)

const every = 15 * time.Second

// scheduler is one that a test changes between scrapes.
type scheduler struct {
	t        *testing.T
	detector *detect.Detector
	values   map[string]float64 // by series
	now      time.Time
	last     *interval.Scrape
	instance string
}

func newScheduler(t *testing.T) *scheduler {
	s := &scheduler{t: t, instance: "cp-1:10259", detector: detect.New(), now: time.Unix(1_700_000_000, 0), values: map[string]float64{
		"process_start_time_seconds": 1_600_000_000,
	}}
	for _, q := range []string{"active", "backoff", "unschedulable", "gated"} {
		s.values[pending(q)] = 0
	}
	return s
}

func pending(queue string) string { return exposition.PendingPods + `{queue="` + queue + `"}` }

func refused(plugin string) string {
	return exposition.UnschedulablePods + `{plugin="` + plugin + `",profile="default-scheduler"}`
}

func attempts(result string) string { return exposition.ScheduleAttempts + `{result="` + result + `"}` }

// bounds are those of the scheduler's histograms.
var bounds = []float64{0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048}

// observe adds observations to a histogram.
func (s *scheduler) observe(family, labels string, seconds, n float64) {
	for _, bound := range bounds {
		key := fmt.Sprintf(`%s_bucket{%s,le="%v"}`, family, labels, bound)
		if s.values[key] += 0; seconds <= bound {
			s.values[key] += n
		}
	}
	s.values[fmt.Sprintf(`%s_bucket{%s,le="+Inf"}`, family, labels)] += n
	s.values[fmt.Sprintf(`%s_count{%s}`, family, labels)] += n
	s.values[fmt.Sprintf(`%s_sum{%s}`, family, labels)] += n * seconds
}

// place schedules pods that take some time each, most of it in a plugin.
func (s *scheduler) place(n, seconds float64) {
	s.observe(exposition.PodScheduling, `attempts="1"`, seconds, n)
	s.observe(exposition.AttemptDuration, `result="scheduled"`, seconds*0.9, n)
	s.observe(exposition.ExtensionPoint, `extension_point="Filter"`, 0.0005, n)
	s.observe(exposition.ExtensionPoint, `extension_point="PreBind"`, seconds*0.8, n)
	s.observe(exposition.PluginExecution, `extension_point="PreBind",plugin="VolumeBinding"`, seconds*0.8, n/10)
	s.values[attempts("scheduled")] += n
}

// scrape looks at the scheduler an interval later.
func (s *scheduler) scrape() []detect.Finding {
	s.t.Helper()
	s.now = s.now.Add(every)
	var body strings.Builder
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		fmt.Fprintf(&body, "%s %v\n", key, s.values[key])
	}
	p, err := exposition.Parse([]byte(body.String()), "text/plain")
	require.NoError(s.t, err)
	now := interval.Scrape{Page: p, At: s.now}
	var iv *interval.Interval
	if s.last != nil {
		iv = interval.Between(*s.last, now)
	}
	s.last = &now
	return s.detector.Observe(s.instance, now, iv)
}

// told writes findings as "kind phase".
func told(found []detect.Finding) []string {
	words := []string{}
	for _, f := range found {
		words = append(words, strings.TrimPrefix(f.Kind, "scheduler.")+" "+f.Metadata[event.TapioSchedulerPhase])
	}
	return words
}

func (s *scheduler) quiet(scrapes int) {
	s.t.Helper()
	for i := range scrapes {
		require.Empty(s.t, told(s.scrape()), "scrape %d", i)
	}
}

func (s *scheduler) tells(want ...string) []detect.Finding {
	s.t.Helper()
	found := s.scrape()
	require.Equal(s.t, want, told(found))
	return found
}

func TestIdle(t *testing.T) {
	s := newScheduler(t)
	s.quiet(100)
}

// An ordinary day: rollouts, a single slow pod, gated pods, two evictions.
func TestOrdinaryDay(t *testing.T) {
	s := newScheduler(t)
	for i := range 200 {
		s.place(float64(i%7*5), 0.01*float64(1+i%2))
		if i%50 == 7 {
			s.place(1, 1.5)
			s.values[exposition.PreemptionVictims+"_sum"]++
		}
		s.values[pending("active")] = float64(i % 3 * 5)
		s.values[pending("gated")] = 4
		s.values[refused("SchedulingGates")] = 4
		require.Empty(t, told(s.scrape()), "scrape %d", i)
	}
}

func TestUnschedulable(t *testing.T) {
	s := newScheduler(t)
	s.values[pending("unschedulable")] = 3
	s.values[refused("NodeResourcesFit")] = 3
	s.values[refused("TaintToleration")] = 1
	s.values[refused("VolumeBinding")] = 0
	f := s.tells("unschedulable start")[0] // at the first scrape already
	assert.Equal(t, "3 pods find no node, refused by NodeResourcesFit (3), TaintToleration (1)", f.Message)
	assert.Equal(t, "3", f.Metadata[event.TapioSchedulerPodCount])
	assert.Equal(t, "NodeResourcesFit=3,TaintToleration=1", f.Metadata[event.TapioSchedulerPlugins])
	s.quiet(3)
	s.tells("unschedulable ongoing") // a minute later
	s.values[pending("unschedulable")], s.values[pending("backoff")] = 0, 3
	s.quiet(3) // they are tried again
	s.tells("unschedulable ongoing")
	s.values[pending("backoff")] = 0
	s.quiet(2)
	f = s.tells("unschedulable end")[0]
	assert.Equal(t, eventv1.Severity_SEVERITY_INFO, f.Severity)
	assert.Equal(t, eventv1.Outcome_OUTCOME_SUCCESS, f.Outcome)
	s.quiet(10)
}

// The scheduler goes on to count pods that were deleted while they waited.
func TestPodsThatWereDeletedWhileTheyWaited(t *testing.T) {
	s := newScheduler(t)
	s.values[refused("NodeAffinity")] = 2
	s.quiet(2)
	s.values[pending("active")] = 1
	s.quiet(1)
	s.values[pending("active")], s.values[pending("unschedulable")] = 0, 1
	s.values[refused("NodeAffinity")] = 3
	f := s.tells("unschedulable start")[0]
	assert.Equal(t, "NodeAffinity=1", f.Metadata[event.TapioSchedulerPlugins])
}

// What one process counts too much says nothing of the next one.
func TestAnotherSchedulerLeads(t *testing.T) {
	s := newScheduler(t)
	s.values[refused("NodeAffinity")] = 2 // of pods that were deleted
	s.quiet(2)
	s.instance = "cp-2:10259"
	s.last = nil
	s.values[refused("NodeAffinity")], s.values[pending("unschedulable")] = 2, 2
	f := s.tells("unschedulable start")[0]
	assert.Equal(t, "NodeAffinity=2", f.Metadata[event.TapioSchedulerPlugins])

	s.values[refused("NodeAffinity")] = 4 // two were deleted
	s.quiet(1)
	s.values["process_start_time_seconds"]++
	s.values[refused("NodeAffinity")] = 2
	s.tells("unavailable end") // a restart
	s.quiet(1)
	f = s.tells("unschedulable ongoing")[0]
	assert.Equal(t, "NodeAffinity=2", f.Metadata[event.TapioSchedulerPlugins])
}

// An hour in which nobody could look is not a minute.
func TestPreemptionsWhileNobodyLooked(t *testing.T) {
	s := newScheduler(t)
	s.quiet(5)
	s.now = s.now.Add(time.Hour)
	s.values[exposition.PreemptionVictims+"_sum"] += 20
	s.values[exposition.PreemptionAttempts] += 20
	s.quiet(1)
	s.now = s.now.Add(time.Hour)
	s.values[exposition.PreemptionVictims+"_sum"] += 600
	f := s.tells("preemption_storm start")[0]
	assert.Contains(t, f.Message, "600 pods were evicted for others within 1h0m15s")
}

func TestErrors(t *testing.T) {
	s := newScheduler(t)
	s.values[attempts("error")] = 50 // long ago
	s.quiet(2)
	s.values[attempts("error")] += 3
	s.values[attempts("scheduled")] += 7
	f := s.tells("errors start")[0]
	assert.Equal(t, "3 of 10 scheduling attempts ended with an error within 15 s", f.Message)
	assert.Equal(t, "3", f.Metadata[event.TapioSchedulerErrorCount])
	assert.Equal(t, "10", f.Metadata[event.TapioSchedulerAttemptCount])
	s.quiet(3)
	s.tells("errors end")
}

func TestPreemptionStorm(t *testing.T) {
	s := newScheduler(t)
	s.quiet(5)
	evict := func() {
		s.values[exposition.PreemptionVictims+"_sum"] += 4
		s.values[exposition.PreemptionAttempts] += 2
	}
	evict()
	s.quiet(1)
	evict()
	found := s.tells("preemption_storm start")
	assert.Equal(t, "8 pods were evicted for others within 60 s, in 4 preemptions", found[0].Message)
	assert.Equal(t, "8", found[0].Metadata[event.TapioSchedulerVictimCount])
	s.quiet(3)
	s.tells("preemption_storm end")
}

func TestQueueGrowth(t *testing.T) {
	s := newScheduler(t)
	s.quiet(5)
	for range 2 {
		s.values[pending("active")] += 20
		s.quiet(1)
	}
	s.values[pending("active")] += 20
	f := s.tells("queue_growth start")[0]
	assert.Equal(t, "the queue active grows: 60 pods, 60 more than 45 s ago", f.Message)
	assert.Equal(t, "active", f.Metadata[event.TapioSchedulerQueue])
	for range 3 {
		s.values[pending("active")] += 20
		s.quiet(1)
	}
	s.values[pending("active")] += 20
	s.tells("queue_growth ongoing")
	s.values[pending("active")] = 0
	s.quiet(3)
	s.tells("queue_growth end")
	s.quiet(10)
}

func TestLatencySpike(t *testing.T) {
	s := newScheduler(t)
	for range 10 {
		s.place(20, 0.01)
		s.quiet(1)
	}
	s.place(20, 0.9)
	s.quiet(1)
	s.place(20, 0.9)
	f := s.tells("latency_spike start")[0]
	m := f.Metadata
	assert.Equal(t, event.SchedulerLatencyPod, m[event.TapioSchedulerLatency])
	assert.Equal(t, "PreBind", m[event.TapioSchedulerExtensionPoint])
	assert.Equal(t, "VolumeBinding", m[event.TapioSchedulerPlugin])
	assert.NotEmpty(t, m[event.TapioSchedulerCurrentMs])
	assert.NotEmpty(t, m[event.TapioSchedulerBaselineMs])
	assert.Contains(t, f.Message, "scheduling a pod takes ")
	assert.Contains(t, f.Message, "most of it in PreBind, plugin VolumeBinding")
	for range 3 {
		s.place(20, 0.9)
		s.quiet(1)
	}
	s.place(20, 0.9)
	s.tells("latency_spike ongoing")
	s.place(20, 0.01)
	s.quiet(1)
	s.place(20, 0.01)
	s.quiet(1)
	s.place(20, 0.01)
	s.tells("latency_spike end")
}

func TestASpikeBecomesNormal(t *testing.T) {
	s := newScheduler(t)
	for range 10 {
		s.place(20, 0.01)
		s.quiet(1)
	}
	phases := map[string]int{}
	for range 100 {
		s.place(20, 0.9)
		for _, phase := range told(s.scrape()) {
			phases[phase]++
		}
	}
	assert.Equal(t, 1, phases["latency_spike start"])
	assert.Equal(t, 1, phases["latency_spike end"])
	assert.InDelta(t, 15, phases["latency_spike ongoing"], 1)
}

func TestASpikeEndsWhenNothingIsScheduled(t *testing.T) {
	s := newScheduler(t)
	for range 10 {
		s.place(20, 0.01)
		s.quiet(1)
	}
	for range 2 {
		s.place(20, 0.9)
		s.scrape()
	}
	require.True(t, s.detector.Active()[event.KindSchedulerLatencySpike])
	var all []string
	for range 10 {
		all = append(all, told(s.scrape())...)
	}
	assert.Contains(t, all, "latency_spike end")
}

// Without anything learned nothing is high.
func TestNothingIsLearned(t *testing.T) {
	s := newScheduler(t)
	for range 30 {
		s.place(20, 1.5)
		s.quiet(1)
	}
}

func refusedConnect() detect.Cause {
	return detect.Cause{Type: "connection_refused", Message: "connection refused; see whether it runs"}
}

func TestUnavailable(t *testing.T) {
	s := newScheduler(t)
	s.quiet(3)
	fail := func() []detect.Finding {
		s.now = s.now.Add(every)
		return s.detector.Unavailable(s.now, refusedConnect())
	}
	require.Empty(t, fail(), "a restart takes as long")
	found := fail()
	require.Equal(t, []string{"unavailable start"}, told(found))
	assert.Equal(t, "connection_refused", found[0].Metadata[event.ErrorType])
	assert.Equal(t, "15", found[0].Metadata[event.TapioSchedulerDurationS])
	for range 3 {
		require.Empty(t, fail())
	}
	require.Equal(t, []string{"unavailable ongoing"}, told(fail()))
	f := s.tells("unavailable end")[0]
	assert.Equal(t, eventv1.Severity_SEVERITY_INFO, f.Severity)
	assert.Equal(t, "kube-scheduler at cp-1:10259 answers again after 90 s", f.Message)
	s.quiet(10)
}

func TestWhatAnswersMayWork(t *testing.T) {
	d := detect.New()
	now := time.Unix(1_700_000_000, 0)
	cause := detect.Cause{Type: "forbidden", Message: "it answers 403", Answers: true}
	require.Empty(t, d.Unavailable(now, cause))
	found := d.Unavailable(now.Add(every), cause)
	require.Len(t, found, 1)
	assert.Equal(t, eventv1.Severity_SEVERITY_WARNING, found[0].Severity)
}

func TestRestart(t *testing.T) {
	s := newScheduler(t)
	s.values[attempts("scheduled")] = 1000
	s.quiet(3)
	s.values["process_start_time_seconds"]++
	s.values[attempts("scheduled")] = 2
	f := s.tells("unavailable end")[0]
	assert.Equal(t, "restarted", f.Metadata[event.ErrorType])
	assert.Equal(t, eventv1.Severity_SEVERITY_INFO, f.Severity)
	s.quiet(5)
}
