// Package detect says when a scheduler does worse than it normally does. It has no
// clock and does no I/O: it is given what was scraped, and returns what is to be
// told.
package detect

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

// Finding is something to tell.
type Finding struct {
	Kind     string
	At       time.Time
	Severity eventv1.Severity // unspecified for that of the kind
	Outcome  eventv1.Outcome  // unspecified for that of the kind
	Reason   string           // one word for machines, as in a Kubernetes Event
	Message  string           // for people
	Metadata map[string]string
}

// Detector remembers what is normal.
type Detector struct {
	instance      string // that was observed last
	unavailable   alarm
	cause         Cause // of the last look that found nobody
	unschedulable alarm
	refusals      Refusals
	errors        alarm
	errorHistory  history
	preemption    preemption
	queues        map[string]*queue
	latency       latency
}

// New returns a detector that has learned nothing.
func New() *Detector {
	return &Detector{
		// A restart of a few seconds is seen by one scrape at most.
		unavailable: alarm{enter: 2, leave: 1},
		// Pods that are tried again leave the queue for a moment.
		unschedulable: alarm{enter: 1, leave: 3},
		errors:        alarm{enter: 1, leave: 4},
		preemption:    preemption{alarm: alarm{enter: 1, leave: 2}},
		queues:        map[string]*queue{},
		latency:       newLatency(),
	}
}

// Active tells which kinds of conditions hold.
func (d *Detector) Active() map[string]bool {
	growing := false
	for _, q := range d.queues {
		growing = growing || q.alarm.on
	}
	return map[string]bool{
		event.KindSchedulerUnavailable:     d.unavailable.on,
		event.KindSchedulerUnschedulable:   d.unschedulable.on,
		event.KindSchedulerErrors:          d.errors.on,
		event.KindSchedulerPreemptionStorm: d.preemption.alarm.on,
		event.KindSchedulerQueueGrowth:     growing,
		event.KindSchedulerLatencySpike:    d.latency.alarm.on,
	}
}

// NoLeader is the type of the cause that all answer and none leads.
const NoLeader = "no_leader"

// Cause says why nobody is known to schedule.
type Cause struct {
	Type     string // for error.type
	Message  string // what is wrong and what to do about it
	Answers  bool   // something answers: the scheduler may well work
	Instance string // empty when it is about all
}

// Unavailable notes that nobody was found who schedules.
func (d *Detector) Unavailable(now time.Time, c Cause) []Finding {
	d.cause = c
	phase := d.unavailable.look(now, true)
	if phase == "" {
		return nil
	}
	f := Finding{
		Kind: event.KindSchedulerUnavailable, At: now, Reason: "Unavailable", Message: c.Message,
		Metadata: map[string]string{event.ErrorType: c.Type, event.TapioReason: c.Message},
	}
	if c.Answers {
		f.Severity = eventv1.Severity_SEVERITY_WARNING
	}
	if c.Type == "timeout" {
		f.Outcome = eventv1.Outcome_OUTCOME_TIMEOUT
	}
	put(f.Metadata, event.TapioSchedulerInstance, c.Instance)
	d.complete(&f, phase, &d.unavailable)
	return []Finding{f}
}

// Standby notes that a scheduler answers and another one, which cannot be seen from
// here, schedules.
func (d *Detector) Standby(now time.Time, instance string) []Finding {
	return d.available(now, instance, "kube-scheduler at "+instance+" answers again, as standby")
}

func (d *Detector) available(now time.Time, instance, message string) []Finding {
	phase := d.unavailable.look(now, false)
	if phase == "" {
		return nil
	}
	f := Finding{
		Kind: event.KindSchedulerUnavailable, At: now, Reason: "Available",
		Message: message + " after " + humanoutput.Duration(now.Sub(d.unavailable.since)),
		Metadata: map[string]string{
			event.ErrorType: d.cause.Type, event.TapioSchedulerInstance: instance,
		},
	}
	f.Metadata[event.TapioReason] = f.Message
	d.complete(&f, phase, &d.unavailable)
	return []Finding{f}
}

// Observe takes a scrape of the scheduler that schedules, and what happened since
// the scrape before: nil when there was none.
func (d *Detector) Observe(instance string, s interval.Scrape, iv *interval.Interval) []Finding {
	restarted := iv != nil && iv.Restarted
	if restarted || instance != d.instance {
		d.another(instance)
	}
	message := "kube-scheduler at " + instance + " answers again"
	if d.cause.Type == NoLeader {
		message = "kube-scheduler at " + instance + " leads"
	}
	if restarted {
		message += ", restarted,"
	}
	found := d.available(s.At, instance, message)
	if restarted && len(found) == 0 {
		found = append(found, restart(s.At, iv.Length))
	}
	found = append(found, d.unschedulablePods(s)...)
	if iv != nil {
		found = append(found, d.schedulingErrors(s.At, iv)...)
		found = append(found, d.preemptions(s.At, iv)...)
		found = append(found, d.spikes(s.At, iv)...)
	}
	found = append(found, d.growth(s)...)
	for i := range found {
		found[i].Metadata[event.TapioSchedulerInstance] = instance
	}
	return found
}

// another forgets what is only true of one process: what it counts too much, and
// the bounds of its histograms. What is normal for the cluster stays.
func (d *Detector) another(instance string) {
	d.instance, d.refusals = instance, Refusals{}
	for _, s := range d.latency.series {
		s.collected, s.collects = interval.Histogram{}, 0
	}
}

// restart tells of a restart that was too short to be an outage.
func restart(now time.Time, within time.Duration) Finding {
	message := "kube-scheduler restarted within the last " + humanoutput.Duration(within)
	return Finding{
		Kind: event.KindSchedulerUnavailable, At: now, Reason: "Restarted", Message: message,
		Severity: eventv1.Severity_SEVERITY_INFO, Outcome: eventv1.Outcome_OUTCOME_SUCCESS,
		Metadata: map[string]string{
			event.ErrorType: "restarted", event.TapioReason: message,
			event.TapioSchedulerPhase: event.SchedulerPhaseEnd,
		},
	}
}

// gates is the plugin that holds pods back because their owner asked for it.
const gates = "SchedulingGates"

// Refusals tells which pods find no node. The scheduler's count by plugin also
// holds pods that were deleted while they waited, until it restarts; what shows
// to be too much is remembered and taken off.
type Refusals struct {
	stale map[string]float64 // by plugin
}

// Count returns how many pods were refused by all nodes, at least, and how many of
// them each plugin refused.
func (r *Refusals) Count(p *exposition.Page) (pods float64, plugins map[string]float64) {
	queued := p.SumBy(exposition.PendingPods, "queue")
	refused := p.SumBy(exposition.UnschedulablePods, "plugin")
	delete(refused, gates)
	all := queued["unschedulable"] + queued["backoff"] + queued["active"]
	stale, most := map[string]float64{}, 0.0
	for plugin, n := range refused {
		// A plugin cannot refuse more pods than there are.
		stale[plugin] = max(min(r.stale[plugin], n), n-all)
		most = max(most, n-stale[plugin])
	}
	r.stale = stale
	// Refused pods may be held back for a moment before they are tried again.
	pods = max(queued["unschedulable"], min(most, queued["unschedulable"]+queued["backoff"]))
	plugins = map[string]float64{}
	for plugin, n := range refused {
		if n = min(n-stale[plugin], pods); n > 0 {
			plugins[plugin] = n
		}
	}
	return pods, plugins
}

func (d *Detector) unschedulablePods(s interval.Scrape) []Finding {
	pods, plugins := d.refusals.Count(s.Page)
	phase := d.unschedulable.look(s.At, pods > 0)
	if phase == "" {
		return nil
	}
	f := Finding{
		Kind: event.KindSchedulerUnschedulable, At: s.At, Reason: "Unschedulable",
		Message:  count(pods, "pod finds", "pods find") + " no node",
		Metadata: map[string]string{event.TapioSchedulerPodCount: number(pods)},
	}
	if phase == event.SchedulerPhaseEnd {
		f.Message = "no pod waits for a node any more"
	} else if len(plugins) > 0 {
		f.Message += ", refused by " + refusals(plugins, "%s (%s)", ", ")
		f.Metadata[event.TapioSchedulerPlugins] = refusals(plugins, "%s=%s", ",")
	}
	d.complete(&f, phase, &d.unschedulable)
	return []Finding{f}
}

// maxPlugins is how many plugins are named; there are two dozen.
const maxPlugins = 30

// refusals writes plugins and how many pods each refused, the most first.
func refusals(plugins map[string]float64, format, separator string) string {
	names := slices.SortedFunc(maps.Keys(plugins), func(a, b string) int {
		return cmp.Or(cmp.Compare(plugins[b], plugins[a]), strings.Compare(a, b))
	})
	var words []string
	for _, name := range names[:min(len(names), maxPlugins)] {
		words = append(words, fmt.Sprintf(format, name, number(plugins[name])))
	}
	return strings.Join(words, separator)
}

func (d *Detector) schedulingErrors(now time.Time, iv *interval.Interval) []Finding {
	attempts := iv.IncreaseBy(exposition.ScheduleAttempts, "result")
	failed := attempts["error"]
	normal, _ := d.errorHistory.normal()
	phase := d.errors.look(now, failed > 0 && failed > 2*normal)
	d.errorHistory.add(failed)
	if phase == "" {
		return nil
	}
	all := sum(attempts)
	f := Finding{
		Kind: event.KindSchedulerErrors, At: now, Reason: "SchedulingErrors",
		Message: fmt.Sprintf("%s of %s ended with an error within %s", number(failed),
			count(all, "scheduling attempt", "scheduling attempts"), humanoutput.Duration(iv.Length)),
		Metadata: map[string]string{
			event.TapioSchedulerErrorCount: number(failed), event.TapioSchedulerAttemptCount: number(all),
			event.TapioSchedulerWindowS: seconds(iv.Length),
		},
	}
	if phase == event.SchedulerPhaseEnd {
		f.Message = "scheduling attempts end without errors again"
	}
	d.complete(&f, phase, &d.errors)
	return []Finding{f}
}

// preemption counts evictions within a window that ends now.
type preemption struct {
	alarm   alarm
	recent  []evictions
	history history // of victims in the window
}

type evictions struct {
	at                time.Time
	attempts, victims float64
}

const (
	// stormWindow is the time in which victims are counted, and stormVictims how
	// many make a storm: a rollout of something important may evict one or two.
	stormWindow  = time.Minute
	stormVictims = 5
	// stormFactor is how many times what is normal they must be.
	stormFactor = 3
)

func (d *Detector) preemptions(now time.Time, iv *interval.Interval) []Finding {
	p := &d.preemption
	p.recent = append(p.recent, evictions{
		at:       now,
		attempts: iv.Increase(exposition.PreemptionAttempts, nil),
		victims:  iv.Increase(exposition.PreemptionVictims+"_sum", nil),
	})
	p.recent = slices.DeleteFunc(p.recent, func(e evictions) bool { return now.Sub(e.at) >= stormWindow })
	var all evictions
	for _, e := range p.recent {
		all.attempts += e.attempts
		all.victims += e.victims
	}
	normal, _ := p.history.normal()
	window := min(stormWindow, iv.Length*time.Duration(len(p.recent)))
	perWindow := all.victims
	if iv.Length > stormWindow {
		// After a time without scrapes, or when they are rare, nobody knows when.
		window = iv.Length
		perWindow *= stormWindow.Seconds() / iv.Length.Seconds()
	}
	phase := p.alarm.look(now, perWindow >= stormVictims && perWindow > stormFactor*normal)
	p.history.add(perWindow)
	if phase == "" {
		return nil
	}
	f := Finding{
		Kind: event.KindSchedulerPreemptionStorm, At: now, Reason: "PreemptionStorm",
		Message: fmt.Sprintf("%s evicted for others within %s, in %s", count(all.victims, "pod was", "pods were"),
			humanoutput.Duration(window), count(all.attempts, "preemption", "preemptions")),
		Metadata: map[string]string{
			event.TapioSchedulerVictimCount: number(all.victims), event.TapioSchedulerAttemptCount: number(all.attempts),
			event.TapioSchedulerWindowS: seconds(window),
		},
	}
	if phase == event.SchedulerPhaseEnd {
		f.Message = "few pods are evicted for others again"
	}
	d.complete(&f, phase, &p.alarm)
	return []Finding{f}
}

// queue is what is known of one queue of the scheduler.
type queue struct {
	alarm   alarm
	last    []sample // the newest last
	history history
}

type sample struct {
	at   time.Time
	pods float64
}

const (
	// growthSteps is how many scrapes in a row a queue must have grown, and
	// growthPods by how much in all: what comes with one rollout is placed before.
	growthSteps = 3
	growthPods  = 10
	// growthFactor is how many times what is normal it must have become.
	growthFactor = 2
)

func (d *Detector) growth(s interval.Scrape) []Finding {
	var found []Finding
	pending := s.Page.SumBy(exposition.PendingPods, "queue")
	for _, name := range slices.Sorted(maps.Keys(pending)) {
		q := d.queues[name]
		if q == nil {
			q = &queue{alarm: alarm{enter: 1, leave: growthSteps + 1}}
			d.queues[name] = q
		}
		q.last = append(q.last, sample{s.At, pending[name]})
		q.last = q.last[max(0, len(q.last)-growthSteps-1):]
		normal, _ := q.history.normal()
		growth, window := q.growth()
		// Once it is known to grow, each step counts: the pods that come do not
		// come evenly.
		grows := growth >= growthPods && pending[name] > growthFactor*normal ||
			q.alarm.on && q.last[len(q.last)-1].pods > q.last[max(0, len(q.last)-2)].pods
		phase := q.alarm.look(s.At, grows)
		if !q.alarm.on {
			q.history.add(pending[name])
		}
		if phase == "" {
			continue
		}
		f := Finding{
			Kind: event.KindSchedulerQueueGrowth, At: s.At, Reason: "QueueGrowth",
			Message: fmt.Sprintf("the queue %s grows: %s, %s more than %s ago", name,
				count(pending[name], "pod", "pods"), number(growth), humanoutput.Duration(window)),
			Metadata: map[string]string{
				event.TapioSchedulerQueue: name, event.TapioSchedulerPodCount: number(pending[name]),
				event.TapioSchedulerGrowthCount: number(growth), event.TapioSchedulerWindowS: seconds(window),
			},
		}
		if phase == event.SchedulerPhaseEnd {
			f.Message = fmt.Sprintf("the queue %s grows no more: %s", name, count(pending[name], "pod", "pods"))
		}
		d.complete(&f, phase, &q.alarm)
		found = append(found, f)
	}
	return found
}

// growth is by how much the queue grew in the last steps; 0 when it did not grow
// in each.
func (q *queue) growth() (pods float64, window time.Duration) {
	first, last := q.last[0], q.last[len(q.last)-1]
	window = last.at.Sub(first.at)
	if len(q.last) <= growthSteps {
		return 0, window
	}
	for i, s := range q.last[1:] {
		if s.pods <= q.last[i].pods {
			return 0, window
		}
	}
	return last.pods - first.pods, window
}

// complete fills in what findings of all kinds have.
func (d *Detector) complete(f *Finding, phase string, a *alarm) {
	f.Metadata[event.TapioSchedulerPhase] = phase
	f.Metadata[event.TapioSchedulerDurationS] = seconds(f.At.Sub(a.since))
	if phase == event.SchedulerPhaseEnd {
		f.Severity, f.Outcome = eventv1.Severity_SEVERITY_INFO, eventv1.Outcome_OUTCOME_SUCCESS
	}
}

func put(m map[string]string, key, value string) {
	if value != "" {
		m[key] = value
	}
}

func sum(values map[string]float64) float64 {
	total := 0.0
	for _, v := range values {
		total += v
	}
	return total
}

func count(n float64, one, many string) string {
	if n == 1 {
		return number(n) + " " + one
	}
	return number(n) + " " + many
}

// number writes a value that is not negative as a decimal with at most three
// places.
func number(f float64) string {
	const places = 1000
	return strconv.FormatFloat(math.Round(max(0, f)*places)/places, 'f', -1, 64)
}

func seconds(d time.Duration) string { return number(d.Seconds()) }

func milliseconds(s float64) string { return number(s * 1000) }
