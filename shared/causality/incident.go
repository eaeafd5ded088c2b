package causality

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"math"
	"slices"
	"strings"
	"time"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// relapse is how long what nobody could explain may stay away and come back as the
// same incident, as long as nobody changes anything: a leak takes hours to fill the
// memory again.
const relapse = 2 * time.Hour

// maxSteps is how long a chain of symptoms may be that cause each other.
const maxSteps = 8

// group is an incident in the making: runs with one root.
type group struct {
	change *change // the root, if one was seen
	origin *run    // else the run that led to the others
	runs   []*run  // sorted by first
	via    map[*run]*candidate
}

// Incidents returns what is and was wrong, the newest first. Symptoms that one
// cause explains are one incident.
func (e *Engine) Incidents(now time.Time) []*ahtiv1.Incident {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.incidents(now, nil)
}

// Why returns the incidents that touch one of the entities, or what owns it or
// is owned by it, and that were seen between two times: the most severe first.
func (e *Engine) Why(entities []*ahtiv1.EntityReference, from, to, now time.Time) []*ahtiv1.Incident {
	e.mu.Lock()
	defer e.mu.Unlock()
	near := map[*vertex]bool{}
	for _, ref := range entities {
		if v := e.graph.vertices[key{ref.GetType(), ref.GetClusterId(), ref.GetId()}]; v != nil {
			e.family(v, near)
		}
	}
	found := e.incidents(now, func(g *group) bool {
		if g.last().at < from.UnixNano() || g.started() > to.UnixNano() {
			return false
		}
		return g.change != nil && near[g.change.vertex] ||
			slices.ContainsFunc(g.runs, func(r *run) bool { return near[r.vertex] || r.peer != nil && near[r.peer] })
	})
	slices.SortStableFunc(found, func(a, b *ahtiv1.Incident) int {
		return cmp.Or(cmp.Compare(a.GetState(), b.GetState()), cmp.Compare(b.GetSeverity(), a.GetSeverity()))
	})
	return found
}

// family collects a thing with what owns it and what it owns.
func (e *Engine) family(v *vertex, into map[*vertex]bool) {
	var walk func(v *vertex, up, down bool)
	walk = func(v *vertex, up, down bool) {
		into[v] = true
		for i := range v.ties {
			g := &v.ties[i]
			follow := g.kind == tieSame || g.kind == owns && (g.out && down || !g.out && up) || g.kind == exposes && v.kind == ahtiv1.EntityType_ENTITY_TYPE_SERVICE && g.out && down
			if !follow {
				continue
			}
			for _, t := range g.ties {
				if o := t.other(v); !into[o] {
					walk(o, up && g.kind == tieSame || g.kind == owns && !g.out, down && (g.kind == tieSame || g.out))
				}
			}
		}
	}
	walk(v, true, true)
}

// incidents folds all runs into groups and shows those that count and that the
// filter lets through.
func (e *Engine) incidents(now time.Time, filter func(*group) bool) []*ahtiv1.Incident {
	e.question++
	var found []*ahtiv1.Incident
	for _, g := range e.groups() {
		if !e.opened(g, now) || filter != nil && !filter(g) {
			continue
		}
		found = append(found, e.show(g, now))
	}
	slices.SortFunc(found, func(a, b *ahtiv1.Incident) int {
		return cmp.Or(b.GetStartedAt().AsTime().Compare(a.GetStartedAt().AsTime()), strings.Compare(a.GetId(), b.GetId()))
	})
	return found
}

// allRuns lists every run by time.
func (e *Engine) allRuns() []*run {
	all := make([]*run, 0, e.runs)
	for v := range e.suffering {
		for _, r := range v.runs {
			if !e.ordered(r) {
				all = append(all, r)
			}
		}
	}
	slices.SortFunc(all, compareRuns)
	return all
}

// farewell is how long a pod may take to go when it is told to: its grace period,
// 30 s by default, and the time until the API tells.
const farewell = 90 * time.Second

// ordered says whether a run is only that a pod went as it was told to: it did
// not answer its probes any more, or ended by the signals that such pods get.
func (e *Engine) ordered(r *run) bool {
	switch r.name {
	case "not_ready", "liveness_failed":
	case containerFailed:
		switch exitOf(r.first.labels) {
		case "", "SIGTERM", "SIGKILL", "exit code 143", "exit code 137":
		default:
			return false
		}
	default:
		return false
	}
	pod := e.podOf(r.vertex)
	if pod == nil {
		return false
	}
	if told := pod.attributes[attributeDeleting]; told.value != "" && r.first.at >= told.at-int64(skew) {
		return true
	}
	return pod.deleted() && pod.gone >= r.last.at-int64(skew) && pod.gone <= r.first.at+int64(farewell)
}

// podOf returns the pod that a thing is or that it is a container of; nil when it
// is neither.
func (e *Engine) podOf(v *vertex) *vertex {
	if v.kind == ahtiv1.EntityType_ENTITY_TYPE_CONTAINER {
		v = e.ownerOf(v)
	}
	if v == nil || v.kind != ahtiv1.EntityType_ENTITY_TYPE_POD {
		return nil
	}
	return v
}

// settled says whether what a run is about has come right.
func (r *run) settled() bool {
	if _, over := r.ended(); over {
		return true
	}
	if r.name != "unschedulable" {
		return false
	}
	for i := range r.vertex.ties {
		g := &r.vertex.ties[i]
		if g.kind == runsOn && g.out && slices.ContainsFunc(g.ties, func(t *tie) bool { return t.since >= r.last.at }) {
			return true
		}
	}
	return false
}

// ended is when a run was told to be over; false when it was not, or goes on since.
func (r *run) ended() (at int64, ok bool) {
	over := r.vertex.over[r.name]
	i, _ := slices.BinarySearch(over, r.last.at)
	if i == len(over) {
		return 0, false
	}
	return over[i], true
}

func compareRuns(a, b *run) int {
	return cmp.Or(a.first.compare(b.first.stamp), strings.Compare(a.name, b.name), strings.Compare(a.about, b.about))
}

// believed returns the cause of a run that the engine would name; nil when
// there is none, or none that is likely enough.
func (e *Engine) believed(r *run) *candidate {
	x := e.explain(r)
	if len(x.candidates) == 0 || x.candidates[0].total < leastScore {
		return nil
	}
	if e.confidence(x, 0) < leastConfidence {
		return nil
	}
	return &x.candidates[0]
}

// confidence is the share of a candidate among everything that may have been the
// cause. What comes from the same root does not compete with it.
func (e *Engine) confidence(x *explanation, of int) float64 {
	rivals, same := unseen, x.candidates[of].total
	root := e.rootOf(&x.candidates[of])
	for i := range x.candidates {
		if i == of {
			continue
		}
		if c := &x.candidates[i]; e.rootOf(c) == root {
			same = max(same, c.total)
		} else {
			rivals += c.total
		}
	}
	return same / (same + rivals)
}

// rootOf follows the likeliest causes as far as they go.
func (e *Engine) rootOf(c *candidate) any {
	if c.change != nil {
		return c.change
	}
	x := e.explain(c.run)
	if x.root == nil {
		x.root = e.follow(c)
		// What is folded into one incident has one root: replicas that fail alike are
		// no rivals of each other.
		if r, ok := x.root.(*run); ok && r.peer == nil {
			x.root = e.placeOf(r, r.vertex)
		}
	}
	return x.root
}

func (e *Engine) follow(c *candidate) any {
	var way []*run
	for {
		if c.change != nil {
			return c.change
		}
		if at := slices.Index(way, c.run); at >= 0 {
			return slices.MinFunc(way[at:], compareRuns)
		}
		way = append(way, c.run)
		x := e.explain(c.run)
		if len(way) == maxSteps || len(x.candidates) == 0 || x.candidates[0].total < leastScore {
			return c.run
		}
		c = &x.candidates[0]
	}
}

// groups folds all runs by their root.
func (e *Engine) groups() []*group {
	all := e.allRuns()
	via := make(map[*run]*candidate, len(all))
	for _, r := range all {
		if via[r] = e.believed(r); via[r] == nil {
			via[r] = e.supported(r, all)
		}
	}
	byRoot := map[any]*group{}
	var order []*group
	join := func(root any, r *run) {
		g := byRoot[root]
		if g == nil {
			g = &group{via: via}
			g.change, _ = root.(*change)
			g.origin, _ = root.(*run)
			byRoot[root] = g
			order = append(order, g)
		}
		g.runs = append(g.runs, r)
	}
	var rootless []*run
	led := map[*run][]*run{} // runs by the unexplained one that they follow from
	for _, r := range all {
		switch end := origin(via, r); {
		case via[end] != nil && via[end].change != nil:
			join(via[end].change, r)
		default:
			if led[end] == nil {
				rootless = append(rootless, end)
			}
			led[end] = append(led[end], r)
		}
	}
	slices.SortFunc(rootless, compareRuns)
	// What nothing explains, and shows in the same way at the same place and
	// time, has one cause that nobody saw.
	last := map[string]*run{}
	ends := map[string]int64{}
	peers := map[string]int{}
	for _, r := range rootless {
		if r.peer != nil {
			peers[e.placeOf(r, r.vertex)]++
		}
	}
	for _, r := range rootless {
		// Who finds nobody anywhere has a fault of its own.
		at := r.vertex
		if r.peer != nil && peers[e.placeOf(r, r.vertex)] <= manyPeers {
			at = e.behind(r.peer, r.first.at)
		}
		k := e.placeOf(r, at)
		root := last[k]
		if root == nil || !e.relapses(r, at, ends[k]) {
			root = r
			last[k] = r
		}
		ends[k] = max(ends[k], r.last.at)
		for _, o := range led[r] {
			join(root, o)
		}
	}
	for _, g := range order {
		slices.SortFunc(g.runs, compareRuns)
	}
	return order
}

// origin follows the believed causes of a run as far as they are runs. A circle
// begins with its earliest run.
func origin(via map[*run]*candidate, r *run) *run {
	way := []*run{r}
	for {
		c := via[r]
		if c == nil || c.run == nil || len(way) == maxSteps {
			return r
		}
		r = c.run
		if at := slices.Index(way, r); at >= 0 {
			return slices.MinFunc(way[at:], compareRuns)
		}
		way = append(way, r)
	}
}

// relapses says whether an unexplained run belongs to the one of its kind that ended
// at a time. Too little to tell anyone does not add up over hours.
func (e *Engine) relapses(r *run, at *vertex, ended int64) bool {
	if r.first.at <= ended+int64(quiet) {
		return true
	}
	return r.first.at <= ended+int64(relapse) && r.times() >= int64(e.opens(r.name)) && !e.changedSince(at, ended, r.first.at)
}

// changedSince says whether anybody changed a thing, or what owns it, between two
// times. How many there are of it does not matter.
func (e *Engine) changedSince(v *vertex, from, to int64) bool {
	for range maxSteps {
		if slices.ContainsFunc(v.changes, func(c *change) bool {
			return c.at > from && c.at <= to && !followsOwner(c.kind) && !c.onlyReplicas()
		}) {
			return true
		}
		if v = e.ownerOf(v); v == nil {
			return false
		}
	}
	return false
}

// supported returns what a run tells again without naming the thing: the scheduler
// says that pods wait, not which. Nil when the run names what suffers, or nothing
// else was seen.
func (e *Engine) supported(r *run, all []*run) *candidate {
	row := e.modes.byName[r.name]
	if row == nil || len(row.Supports) == 0 {
		return nil
	}
	var latest *run // what came right long ago is not counted any more
	for _, o := range all {
		if o.vertex.cluster == r.vertex.cluster && slices.Contains(row.Supports, o.name) &&
			o.first.at <= r.last.at+int64(skew) && o.last.at+int64(quiet) >= r.first.at &&
			!o.settled() && (latest == nil || o.last.at > latest.last.at) {
			latest = o
		}
	}
	if latest == nil {
		return nil
	}
	return &candidate{run: latest}
}

// manyPeers is how many peers that do not answer make the one who calls them the
// suspect.
const manyPeers = 8

// placeOf names what an unexplained run is folded by: its name, and the outermost
// owner of the sufferer or of what does not answer.
func (e *Engine) placeOf(r *run, at *vertex) string {
	top := e.top(at)
	return strings.Join([]string{r.name, top.cluster, top.kind.String(), top.id}, "\x00")
}

// behind is what answers at an address at a time: a Service or pod, or else the
// address itself.
func (e *Engine) behind(v *vertex, at int64) *vertex {
	for range 3 {
		var best *tie
		for i := range v.ties {
			if g := &v.ties[i]; g.kind == exposes && !g.out {
				for _, t := range g.newest() {
					if t.holds(at) && (best == nil || answers(t, best, at)) {
						best = t
					}
				}
			}
		}
		if best == nil || v.kind == ahtiv1.EntityType_ENTITY_TYPE_POD {
			return v
		}
		v = best.source
	}
	return v
}

// answers says whether a is more likely than b to be what answers at a time:
// Services stand before pods, what is there before what is gone, and who has the
// address now before who had it.
func answers(a, b *tie, at int64) bool {
	const service = ahtiv1.EntityType_ENTITY_TYPE_SERVICE
	there := func(t *tie) bool {
		ended := t.gone != 0 && t.gone >= t.alive && t.gone < at
		return !ended && (!t.source.deleted() || t.source.gone >= at)
	}
	return cmp.Or(
		compareBool(!there(a), !there(b)),
		compareBool(a.source.kind != service, b.source.kind != service),
		cmp.Compare(b.since, a.since),
		compareKeys(a.source.key, b.source.key),
	) < 0
}

// top is the outermost owner of a thing.
func (e *Engine) top(v *vertex) *vertex {
	for range maxSteps {
		owner := e.ownerOf(v)
		if owner == nil {
			return v
		}
		v = owner
	}
	return v
}

// ownerOf is what owns a thing; nil when nothing is known to.
func (e *Engine) ownerOf(v *vertex) *vertex {
	var owner *vertex
	for i := range v.ties {
		if g := &v.ties[i]; g.kind == owns && !g.out {
			for _, t := range g.ties {
				if owner == nil || compareKeys(t.source.key, owner.key) < 0 {
					owner = t.source
				}
			}
		}
	}
	return owner
}

// crowd is how many times as many events it takes when they are of many things,
// each of which has too few: a rollout has a failed probe here and there.
const crowd = 5

// opened says whether enough was seen to tell anyone.
func (e *Engine) opened(g *group, now time.Time) bool {
	counts := map[string]int64{}
	for _, r := range g.runs {
		if r.starting(now) && !g.via[r].asksElsewhere() {
			continue
		}
		enough := int64(e.opens(r.name))
		counts[r.name] += r.times()
		if r.times() >= enough || counts[r.name] >= crowd*enough {
			return true
		}
		// A Service without endpoints refuses some and lets others wait, as the kernel
		// limits how often it refuses.
		if call := r.call(); call != "" {
			if counts[call] += r.times(); counts[call] >= enough {
				return true
			}
		}
	}
	return false
}

// call names who fails to connect to whom, however that shows; empty for other
// symptoms.
func (r *run) call() string {
	switch r.name {
	case "connection_refused", "connection_timeout", "connection_unreachable":
		return r.vertex.id + "\x00" + r.about
	}
	return ""
}

// infancy is how long a pod or a node may take to become ready.
const infancy = 3 * time.Minute

// starting says whether a run is only that a thing takes its time to become ready.
func (r *run) starting(now time.Time) bool {
	until := r.last.at
	switch r.name {
	case "not_ready": // told again and again as long as it lasts
	case "node_not_ready":
		if at, over := r.ended(); over {
			until = at
		} else {
			until = max(until, now.UnixNano())
		}
	default:
		return false
	}
	return r.first.at-r.vertex.born <= int64(infancy) && until-r.first.at < int64(infancy)
}

// asksElsewhere says whether a probe was made to ask for something else than before.
// When it fails then, that is no slow start.
func (c *candidate) asksElsewhere() bool {
	if c == nil || c.change == nil {
		return false
	}
	return slices.ContainsFunc(c.fields, func(f field) bool {
		if f.class != "probe" || f.GetOld() == "" || f.GetNew() == "" {
			return false
		}
		steps := splitPath(f.GetPath())
		switch steps[len(steps)-1] {
		case "port", "path", "scheme", "host":
			return true
		}
		return false
	})
}

func (e *Engine) opens(name string) int {
	if row := e.modes.byName[name]; row != nil {
		return row.Opens
	}
	return 1
}

func (g *group) started() int64 {
	if g.change != nil {
		return g.change.at
	}
	return min(g.origin.first.at, g.runs[0].first.at)
}

func (g *group) last() stamp {
	last := g.runs[0].last
	for _, r := range g.runs {
		if r.last.compare(last) > 0 {
			last = r.last
		}
	}
	return last
}

// root is the event that an incident is named after.
func (g *group) root() (stamp, *vertex) {
	if g.change != nil {
		return g.change.stamp, g.change.vertex
	}
	return g.origin.first.stamp, g.origin.vertex
}

// primary is the symptom that the root led to first.
func (g *group) primary() *run {
	if g.change == nil {
		return g.origin
	}
	for _, r := range g.runs {
		if c := g.via[r]; c != nil && c.change == g.change {
			return r
		}
	}
	return g.runs[0]
}

// show makes the incident that callers see.
func (e *Engine) show(g *group, now time.Time) *ahtiv1.Incident {
	at, vertex := g.root()
	primary := g.primary()
	in := &ahtiv1.Incident{
		Id: incidentID(vertex.cluster, at.id), Cluster: vertex.cluster,
		StartedAt: timestamp(g.started()), LastSeenAt: timestamp(g.last().at), Root: vertex.view(),
		State: ahtiv1.IncidentState_INCIDENT_STATE_OPEN,
	}
	over := true
	in.SymptomCount = int64(len(g.runs))
	for _, r := range worst(g.runs, primary) {
		in.Symptoms = append(in.Symptoms, e.showRun(r, g.via[r]))
	}
	for _, r := range g.runs {
		in.Severity = max(in.GetSeverity(), r.worst)
		over = over && (r.vertex.deleted() || r.settled() || now.UnixNano()-r.last.at > int64(calm))
	}
	if over {
		in.State = ahtiv1.IncidentState_INCIDENT_STATE_RESOLVED
	}
	x := e.explain(primary)
	for i := range x.candidates {
		c := &x.candidates[i]
		if c.total < leastScore/2 {
			continue
		}
		in.Causes = append(in.Causes, e.showCause(c, e.confidence(x, i)))
	}
	slices.SortStableFunc(in.Causes, func(a, b *ahtiv1.Cause) int { return cmp.Compare(b.GetConfidence(), a.GetConfidence()) })
	believed := g.via[primary]
	if believed != nil {
		in.Confidence = e.confidence(x, 0)
	}
	in.Chain = e.chain(g, primary)
	in.Summary = e.summary(g, primary, believed, in)
	in.Advice = e.advice(g, primary, believed)
	return in
}

// maxSymptoms is how many symptoms of an incident are told.
const maxSymptoms = 100

// worst returns the first symptom and the worst others, by time.
func worst(runs []*run, primary *run) []*run {
	if len(runs) <= maxSymptoms {
		return runs
	}
	sorted := slices.Clone(runs)
	slices.SortStableFunc(sorted, func(a, b *run) int {
		return cmp.Or(compareBool(a != primary, b != primary), cmp.Compare(b.worst, a.worst))
	})
	sorted = sorted[:maxSymptoms]
	slices.SortFunc(sorted, compareRuns)
	return sorted
}

func (e *Engine) advice(g *group, primary *run, believed *candidate) string {
	if believed != nil && believed.row != nil && believed.row.Advice != "" {
		return believed.row.Advice
	}
	if row := e.modes.byName[primary.name]; row != nil && row.Advice != "" {
		return row.Advice
	}
	if g.change != nil {
		return "Undo the change if the symptoms go on."
	}
	return ""
}

func incidentID(cluster, event string) string {
	sum := sha256.Sum256([]byte(cluster + "\x00" + event))
	return "inc-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:16])
}

func (e *Engine) showRun(r *run, from *candidate) *ahtiv1.Symptom {
	first := r.first.at
	if row := e.modes.byName[r.name]; row != nil && len(row.Supports) > 0 && from != nil && from.run != nil {
		// Until then it told of others.
		first = max(first, from.run.first.at)
	}
	s := &ahtiv1.Symptom{
		Kind: r.first.kind, Entity: r.vertex.view(), Count: r.times(), Severity: r.worst,
		FirstAt: timestamp(first), LastAt: timestamp(r.last.at), Text: e.words(r, nil),
	}
	for _, sample := range r.samples {
		s.EventIds = append(s.EventIds, sample.id)
	}
	if !slices.Contains(s.GetEventIds(), r.last.id) {
		s.EventIds = append(s.EventIds, r.last.id)
	}
	return s
}

func (e *Engine) showCause(c *candidate, confidence float64) *ahtiv1.Cause {
	out := &ahtiv1.Cause{
		EventId: c.stamp().id, Timestamp: timestamp(c.stamp().at), Entity: c.vertex().view(),
		Confidence: round(confidence), Score: &ahtiv1.Score{
			Prior: round(c.score.GetPrior()), Distance: round(c.score.GetDistance()), Delay: round(c.score.GetDelay()),
			Specificity: round(c.score.GetSpecificity()), History: round(c.score.GetHistory()),
		},
	}
	if c.row != nil {
		out.FailureMode = c.row.Name
	}
	if c.change != nil {
		out.Kind, out.Text = c.change.kind, e.done(c.change)
		for _, f := range c.fields {
			out.Changes = append(out.Changes, f.FieldChange)
		}
	} else {
		out.Kind, out.Text = c.run.first.kind, e.words(c.run, nil)
	}
	return out
}

// round keeps what a figure of this kind can say.
func round(x float64) float64 { return math.Round(x*1000) / 1000 }

// chain lists the steps from the root to the first symptom, and on to the worst
// that followed from it, each after what led to it: the times of some events are
// whole seconds, and would put what was made before what made it.
func (e *Engine) chain(g *group, primary *run) []*ahtiv1.ChainLink {
	end := primary
	for _, r := range g.runs {
		if r != primary && r.worst >= eventv1.Severity_SEVERITY_ERROR && leads(g, primary, r) && (end == primary || r.worst > end.worst) {
			end = r
		}
	}
	var links []*ahtiv1.ChainLink // from the end
	seen := map[string]bool{}
	add := func(l *ahtiv1.ChainLink) {
		if !seen[l.GetEventId()] {
			seen[l.GetEventId()] = true
			links = append(links, l)
		}
	}
	seenRuns := map[*run]bool{}
	for r := end; r != nil && !seenRuns[r]; {
		seenRuns[r] = true
		c := g.via[r]
		mode := ""
		if c != nil && c.row != nil {
			mode = c.row.Name
		}
		add(&ahtiv1.ChainLink{
			EventId: r.first.id, Kind: r.first.kind, Timestamp: timestamp(r.first.at), Entity: r.vertex.view(),
			Text: e.words(r, nil), FailureMode: mode,
		})
		if c == nil {
			break
		}
		for _, m := range slices.Backward(between(c, r)) {
			add(&ahtiv1.ChainLink{EventId: m.id, Kind: m.kind, Timestamp: timestamp(m.at), Entity: m.vertex.view(), Text: e.done(m)})
		}
		if c.change != nil {
			add(&ahtiv1.ChainLink{
				EventId: c.change.id, Kind: c.change.kind, Timestamp: timestamp(c.change.at), Entity: c.change.vertex.view(), Text: e.done(c.change),
			})
			break
		}
		r = c.run
	}
	slices.Reverse(links)
	return links
}

// leads says whether run r follows from run from.
func leads(g *group, from, r *run) bool {
	for range maxSteps {
		if r == from {
			return true
		}
		c := g.via[r]
		if c == nil || c.run == nil {
			return false
		}
		r = c.run
	}
	return false
}

// between lists what the cluster made on the way from a cause to a run: the
// ReplicaSet and the pod of a rollout.
func between(c *candidate, r *run) []*change {
	if c.change == nil {
		return nil
	}
	var made []*change
	for _, v := range c.path {
		if v == c.change.vertex {
			continue
		}
		for _, m := range v.changes {
			if strings.HasSuffix(m.kind, ".created") && m.at >= c.change.at-int64(skew) && m.at <= r.first.at+int64(skew) {
				made = append(made, m)
			}
		}
	}
	// By what owns what, where the API's whole seconds do not tell.
	slices.Reverse(made)
	slices.SortStableFunc(made, func(a, b *change) int { return cmp.Compare(a.at, b.at) })
	return made
}
