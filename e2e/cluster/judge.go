package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

const (
	// explainWithin is how soon after its first symptom a fault has to be
	// explained.
	explainWithin = 10 * time.Second
	// calm is how long an answer has to stay what it is before the next step.
	calm = 6 * time.Second
	// defaultWithin is how long a scenario may take until it is explained.
	defaultWithin = 90 * time.Second
	// laterWithin is how long the scheduler-scraper may take to see the same.
	laterWithin = time.Minute
	// lookEvery is how often AHTI is asked.
	lookEvery = 200 * time.Millisecond
)

// judge follows what AHTI tells while things happen.
type judge struct {
	stage

	mu        sync.Mutex
	incidents []*ahtiv1.Incident // as of at
	at        time.Time
	err       error
	told      map[string]*telling // all that was ever told, by id
}

// telling is an incident with when it was told.
type telling struct {
	in          *ahtiv1.Incident // as it was told last
	first, last time.Time
}

// outcome is what became of a scenario.
type outcome struct {
	scenario
	fault     time.Time
	mended    time.Time
	symptom   time.Time // the first one
	explained time.Time // when the answer was right for the first time
	problems  []string
	notes     []string
}

func newJudge(s *system) *judge {
	return &judge{stage: stage{system: s}, told: map[string]*telling{}}
}

// look asks AHTI all the time.
func (j *judge) look(ctx context.Context) {
	for ; ctx.Err() == nil; pause(ctx, lookEvery) {
		incidents, err := j.system.incidents(ctx)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		j.mu.Lock()
		j.err = err
		if err == nil {
			j.incidents, j.at = incidents, now
			for _, in := range incidents {
				t := j.told[in.GetId()]
				if t == nil {
					t = &telling{first: now}
					j.told[in.GetId()] = t
				}
				t.in, t.last = in, now
			}
		}
		j.mu.Unlock()
	}
}

// now returns what is told, and since when that is known.
func (j *judge) now() ([]*ahtiv1.Incident, time.Time, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.incidents, j.at, j.err
}

// runAll runs the scenarios, those that break nodes one by one at the end.
func (j *judge) runAll(ctx context.Context, chosen []scenario, atOnce int) []*outcome {
	looking, stop := context.WithCancel(ctx)
	defer stop()
	j.done.Go(func() { j.look(looking) })
	outcomes := make([]*outcome, len(chosen))
	room := make(chan struct{}, atOnce)
	var running sync.WaitGroup
	for i, c := range chosen {
		outcomes[i] = &outcome{scenario: c}
		if c.onNode {
			continue
		}
		running.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			j.play(ctx, outcomes[i])
		})
	}
	running.Wait()
	for _, o := range outcomes {
		if o.onNode {
			j.play(ctx, o)
		}
	}
	// What was right once has to be right at the end.
	for _, o := range outcomes {
		if len(o.problems) == 0 && ctx.Err() == nil {
			if wrong := j.wrong(o); wrong != "" {
				o.problem("at the end of the run: %s", wrong)
			}
		}
	}
	return outcomes
}

// slack is how far the times of a cluster may be off: many are whole seconds.
const slack = 2 * time.Second

// mine says whether an incident is about what happens in the scenario. Of those about
// a node, it is those that began while it was broken: whatever runs on a node that
// another scenario breaks suffers with it.
func (o *outcome) mine(in *ahtiv1.Incident, node string) bool {
	ofNode := in.GetRoot().GetType() == ahtiv1.EntityType_ENTITY_TYPE_NODE
	if touches(in, o.namespace()) && (o.onNode || !ofNode) {
		return true
	}
	at := in.GetStartedAt().AsTime()
	return o.onNode && involves(in, node) && !o.fault.IsZero() && at.After(o.fault.Add(-slack)) && (o.mended.IsZero() || at.Before(o.mended))
}

func (o *outcome) problem(format string, args ...any) {
	o.problems = append(o.problems, fmt.Sprintf(format, args...))
}

// play runs one scenario and judges it.
func (j *judge) play(ctx context.Context, o *outcome) {
	say("%s: %s ...", o.name, o.about)
	err := j.perform(ctx, o)
	if err != nil {
		o.problem("%v", err)
	}
	if err := j.do(context.WithoutCancel(ctx), &o.scenario, o.mends); err != nil {
		o.problem("mend what was broken: %v", err)
	}
	o.mended = time.Now()
	if len(o.problems) == 0 {
		say("%s: right%s", o.name, o.times())
		return
	}
	if ctx.Err() != nil {
		return
	}
	say("%s: WRONG: %s", o.name, strings.Join(o.problems, "; "))
	if err := j.artifacts(o); err != nil {
		o.problem("%v", err)
	}
}

// perform sets up, breaks, and waits for the answer.
func (j *judge) perform(ctx context.Context, o *outcome) error {
	// What is wrong already when everything works is nobody's fault but ours.
	if o.unsettled {
		o.fault = time.Now()
	}
	if !o.early {
		if err := j.set(ctx, &o.scenario); err != nil {
			return err
		}
	}
	if !o.unsettled {
		if early := j.mine(o); len(early) > 0 {
			o.problem("told before anything was broken: %s", early[0].GetSummary())
		}
		o.fault = time.Now()
	}
	if err := j.do(ctx, &o.scenario, o.faults); err != nil {
		return err
	}
	if len(o.want) == 0 {
		pause(ctx, o.quiet)
		if wrong := j.wrong(o); wrong != "" {
			o.problem("%s", wrong)
		}
		return ctx.Err()
	}
	within := o.within
	if within == 0 {
		within = defaultWithin
	}
	if err := until(ctx, within, "the answer is right", func() error {
		if wrong := j.wrong(o); wrong != "" {
			return errors.New(wrong)
		}
		return nil
	}); err != nil {
		return err
	}
	_, o.explained, _ = j.now()
	for _, in := range j.mine(o) {
		if at := firstSymptom(in, o.want); o.symptom.IsZero() || at.Before(o.symptom) {
			o.symptom = at
		}
	}
	if took := o.explained.Sub(o.symptom); took > explainWithin {
		o.problem("explained only %.1f s after the first symptom", took.Seconds())
	}
	for _, w := range o.want {
		if err := until(ctx, laterWithin, "others tell the same", func() error {
			for _, in := range j.mine(o) {
				if w.wrong(in) == "" {
					if missing := lacks(in, w.later); missing != "" {
						return errors.New(missing)
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	// It has to stay right.
	for end := time.Now().Add(calm); time.Now().Before(end) && ctx.Err() == nil; pause(ctx, lookEvery) {
		if wrong := j.wrong(o); wrong != "" {
			o.problem("right at first, then: %s", wrong)
			break
		}
	}
	j.wavered(o)
	if err := j.drawn(ctx, o); err != nil {
		return err
	}
	return j.asked(ctx, o)
}

// mine returns the incidents of a scenario.
func (j *judge) mine(o *outcome) []*ahtiv1.Incident {
	all, _, _ := j.now()
	var mine []*ahtiv1.Incident
	for _, in := range all {
		if o.mine(in, j.faulty()) {
			mine = append(mine, in)
		}
	}
	return mine
}

// wrong says what is wrong with what is told of a scenario; empty when nothing is.
func (j *judge) wrong(o *outcome) string {
	_, _, err := j.now()
	if err != nil {
		return err.Error()
	}
	left := j.mine(o)
	for _, w := range o.want {
		var wrong []string
		at := slices.IndexFunc(left, func(in *ahtiv1.Incident) bool {
			problem := w.wrong(in)
			if problem != "" {
				wrong = append(wrong, fmt.Sprintf("%s (%s)", problem, in.GetSummary()))
			}
			return problem == ""
		})
		switch {
		case at >= 0:
			left = slices.Delete(slices.Clone(left), at, at+1)
		case len(wrong) == 0:
			return fmt.Sprintf("nothing is told; it should be about %s", w.root)
		default:
			return strings.Join(wrong, "; ")
		}
	}
	if len(left) > 0 {
		return "told though it is innocent: " + left[0].GetSummary()
	}
	return ""
}

// wavered notes what was told for a while and is not any more: people may have seen
// it.
func (j *judge) wavered(o *outcome) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, t := range j.told {
		if t.last.Before(j.at) && o.mine(t.in, j.faulty()) {
			took := t.last.Sub(t.first)
			o.notes = append(o.notes, fmt.Sprintf("told for %.1f s before: %s", took.Seconds(), t.in.GetSummary()))
			if took > explainWithin && !o.patient {
				o.problem("told for %.1f s, and not any more: %s", took.Seconds(), t.in.GetSummary())
			}
		}
	}
}

// asked asks as people do who look at what suffers.
func (j *judge) asked(ctx context.Context, o *outcome) error {
	for _, w := range o.want {
		entity := w.ask
		if entity == "node/" {
			entity = j.faulty()
		}
		incidents, err := j.why(ctx, entity)
		if err != nil {
			return err
		}
		if len(incidents) == 0 {
			o.problem("why %s: AHTI says that nothing is wrong with it", entity)
		} else if wrong := w.wrong(incidents[0]); wrong != "" {
			o.problem("why %s: %s", entity, wrong)
		}
	}
	return nil
}

// drawn compares the graph around the Deployments of a namespace with what the
// cluster has: each pod is there, and belongs to its Deployment.
func (j *judge) drawn(ctx context.Context, o *outcome) error {
	const template = `jsonpath={range .items[*]}{.metadata.labels.app} {.metadata.name}{"\n"}{end}`
	list, err := j.kubectl(ctx, "-n", o.namespace(), "get", "pods", "-l", "app", "--field-selector", "status.phase=Running", "-o", template)
	if err != nil {
		return err
	}
	for line := range strings.Lines(list) {
		words := strings.Fields(line)
		graph, err := j.topology(ctx, "pod/"+o.namespace()+"/"+words[1])
		if err != nil {
			return err
		}
		at := slices.IndexFunc(graph.GetEntities(), func(e *ahtiv1.Entity) bool { return nameOf(e) == "pod/"+words[1] })
		if at < 0 || !slices.Contains(owners(graph, graph.GetEntities()[at]), "deployment/"+words[0]) {
			o.problem("the topology does not tie pod %s to deployment %s", words[1], words[0])
		}
	}
	return nil
}

// delay is how long after the fault the first symptom came. The API gives many times
// in whole seconds, which may lie before the fault.
func (o *outcome) delay() time.Duration { return max(0, o.symptom.Sub(o.fault)) }

// times says how long it took.
func (o *outcome) times() string {
	if o.explained.IsZero() {
		return ""
	}
	return fmt.Sprintf(" (first symptom %.1f s after the fault, explained %.1f s after that)",
		o.delay().Seconds(), o.explained.Sub(o.symptom).Seconds())
}

// artifacts keeps what helps to find out why an answer was wrong.
func (j *judge) artifacts(o *outcome) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	folder := filepath.Join(j.folder, o.name)
	errs := []error{j.keepTold(ctx, folder, func(in *ahtiv1.Incident) bool { return o.mine(in, j.faulty()) },
		func(ev *ahtiv1.AhtiEvent) bool { return ev.GetNamespace() == o.namespace() || o.onNode })}
	for file, args := range map[string][]string{
		"objects.yaml": {"get", "all,endpointslices,configmaps,pvc,events", "-o", "yaml"},
		"describe.txt": {"describe", "pods"},
		"events.txt":   {"get", "events", "--sort-by=.lastTimestamp"},
	} {
		text, err := j.kubectl(ctx, append([]string{"-n", o.namespace()}, args...)...)
		errs = append(errs, err, keep(filepath.Join(folder, file), text))
	}
	return errors.Join(errs...)
}

// keepTold keeps incidents and events as AHTI tells them.
func (j *judge) keepTold(ctx context.Context, folder string, mine func(*ahtiv1.Incident) bool, about func(*ahtiv1.AhtiEvent) bool) error {
	incidents, err := j.system.incidents(ctx)
	if err != nil {
		return err
	}
	var told, events strings.Builder
	for _, in := range incidents {
		if mine(in) {
			told.WriteString(protojson.Format(in) + "\n")
		}
	}
	timeline, err := j.timeline(ctx)
	if err != nil {
		return err
	}
	for _, ev := range timeline {
		if about(ev) {
			line, err := protojson.Marshal(ev)
			if err != nil {
				return fmt.Errorf("keep an event: %w", err)
			}
			events.WriteString(string(line) + "\n")
		}
	}
	return errors.Join(keep(filepath.Join(folder, "incidents.json"), told.String()), keep(filepath.Join(folder, "timeline.json"), events.String()))
}
