package causality

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/event"
)

const (
	// fade is how much a cause loses with each unit of distance.
	fade = 0.12
	// unseen is the score of everything that nobody observed. A cause is as
	// sure as it is greater than this and its rivals together.
	unseen = 0.1
	// genericPrior is for changes near a symptom that no row ties to it.
	genericPrior = 0.5
	// genericTypical and genericWithin stand in for the row of such a change.
	genericTypical = time.Minute
	genericWithin  = time.Hour
	// leastScore and leastConfidence are what a cause needs to be believed.
	leastScore      = 0.1
	leastConfidence = 0.3
	// gapFit is the rating of the delay of a change whose time is not known.
	gapFit = 0.7
	// consequence is how soon the cluster acts on a change of an owner.
	consequence = 10 * time.Minute
	// aftermath is how long what a symptom did to others may take to show when the
	// symptom itself is over.
	aftermath = time.Minute
	// maxChanges is how many changes of one thing are looked at.
	maxChanges = 64
	// maxRated is how many causes of a symptom are compared with each other.
	maxRated = 96
	// maxCandidates is how many causes of a symptom are kept.
	maxCandidates = 8
)

// candidate is a change or a run that may have caused a run.
type candidate struct {
	change *change
	run    *run
	row    *modeRow // nil when only nearness speaks for it
	fields []field  // that the row looks for
	where  Where
	path   []*vertex // from what suffers to where the cause is
	score  *ahtiv1.Score
	total  float64
}

func (c *candidate) stamp() stamp {
	if c.change != nil {
		return c.change.stamp
	}
	return c.run.first.stamp
}

func (c *candidate) vertex() *vertex {
	if c.change != nil {
		return c.change.vertex
	}
	return c.run.vertex
}

// explanation is what may have caused a run, the likeliest first.
type explanation struct {
	made       bool
	checked    uint64 // question for which it was found current
	root       any    // what the likeliest causes lead to, as of checked; nil when not asked
	clock      uint64 // of the graph when it was made
	epoch      uint64 // of the lessons
	reached    []*vertex
	candidates []candidate
	preceded   []*change // all changes within reach that came before
	ended      uint64    // digest of the runs that had ended before
	governing  []*policies
	nodes      int // how many nodes the cluster had; -1 when it does not matter
}

// current says whether nothing that the explanation of a run rests on has changed.
func (x *explanation) current(r *run, rows []*modeRow, epoch uint64) bool {
	return x.made && x.epoch == epoch &&
		!slices.ContainsFunc(x.reached, func(v *vertex) bool { return v.touched > x.clock }) &&
		!slices.ContainsFunc(x.governing, func(p *policies) bool { return p.touched > x.clock }) &&
		x.ended == endedBefore(r, rows, x.reached)
}

// endedBefore returns a digest of the runs that may have caused a run and had
// ended when it began. If one of them goes on after all, which touches no vertex,
// the run has to be explained anew. There can be so many that a list of them for
// each run would take most of the memory.
func endedBefore(r *run, rows []*modeRow, reached []*vertex) uint64 {
	const prime = 1099511628211 // of FNV-1a
	digest := uint64(14695981039346656037)
	for _, v := range reached {
		for _, o := range v.runs {
			if o != r && o.last.at < r.first.at && slices.ContainsFunc(rows, func(row *modeRow) bool { return row.followsFrom(o, r) }) {
				digest = (digest ^ uint64(o.last.at)) * prime
			}
		}
	}
	return digest
}

// explain returns the explanation of a run, from the cache when nothing that it
// rests on has changed.
func (e *Engine) explain(r *run) *explanation {
	x := &r.cached
	// Nothing changes while a question is answered.
	if x.checked == e.question && x.made {
		return x
	}
	rows := e.modes.explainer[r.name]
	if x.current(r, rows, e.epoch) && (x.nodes < 0 || x.nodes == len(e.graph.nodes[r.vertex.cluster])) {
		x.checked, x.root = e.question, nil
		return x
	}
	s := search{graph: e.graph, start: r.vertex, peer: r.peer, at: r.first.at, steps: e.steps, want: map[Where]bool{}}
	for _, row := range rows {
		for _, w := range row.Where {
			s.want[w] = true
		}
	}
	places := s.run()
	*x = explanation{made: true, checked: e.question, clock: e.graph.clock, epoch: e.epoch, governing: s.governing}
	known := map[*vertex]bool{}
	reach := func(v *vertex) {
		if v != nil && !known[v] {
			known[v] = true
			x.reached = append(x.reached, v)
		}
	}
	rate := rating{Engine: e, explanation: x, of: r, rows: rows, places: places, best: map[any]int{}}
	for i := range places {
		v := places[i].vertex
		reach(v)
		if len(v.runs) > 0 {
			reach(e.podOf(v)) // whether it went as it was told to
		}
		rate.changesAt(i)
		rate.runsAt(i)
	}
	x.ended = endedBefore(r, rows, x.reached)
	// A node that is not there yet touches nothing that was reached.
	x.nodes = -1
	if s.want[Cluster] {
		x.nodes = len(e.graph.nodes[r.vertex.cluster])
	}
	slices.SortFunc(x.candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.total, a.total), a.stamp().compare(b.stamp()), compareKeys(a.vertex().key, b.vertex().key))
	})
	x.candidates = e.withoutConsequences(x.candidates[:min(len(x.candidates), maxRated)])
	x.candidates = slices.Clone(x.candidates[:min(len(x.candidates), maxCandidates)])
	return x
}

// rating is a search for the causes of a run at work.
type rating struct {
	*Engine
	*explanation
	of     *run
	rows   []*modeRow
	places []place
	best   map[any]int // candidates by change or run
}

// add notes a candidate that was found at a place, unless it was found nearer.
func (x *rating) add(of any, at int, c candidate) {
	c.where = x.places[at].where
	c.total = c.score.GetPrior() * c.score.GetDistance() * c.score.GetDelay() * c.score.GetSpecificity() * c.score.GetHistory()
	i, there := x.best[of]
	switch {
	case !there:
		x.best[of] = len(x.candidates)
		c.path = pathTo(x.places, at)
		x.candidates = append(x.candidates, c)
	case x.candidates[i].total < c.total:
		c.path = pathTo(x.places, at)
		x.candidates[i] = c
	}
}

// changesAt rates the changes at one place.
func (x *rating) changesAt(at int) {
	p, r := &x.places[at], x.of
	distance := math.Exp(-fade * p.cost)
	for _, c := range newestBefore(p.vertex.changes, r.first.at+int64(consequence)) {
		delay := time.Duration(r.first.at - c.at)
		if delay < -skew && !c.gap || x.isMade(c) {
			continue
		}
		if _, there := x.best[c]; !there && delay <= horizon && delay >= -skew {
			x.preceded = append(x.preceded, c)
		}
		if p.where == Owner && c.onlyTemplate() && x.older(r.vertex, c) {
			continue
		}
		class := c.class()
		matched := false
		for _, row := range x.rows {
			fields, fits := row.fits(c, p.where)
			if !fits || delay > row.Within {
				continue
			}
			matched = true
			fit := x.lessons.delay(class, r.name, row.Typical, delay)
			if c.gap {
				fit = min(fit, gapFit)
			}
			x.add(c, at, candidate{change: c, row: row, fields: fields, score: &ahtiv1.Score{
				Prior: row.Prior, Distance: distance, Delay: fit,
				Specificity: specificity(r, row, fields), History: x.lessons.history(class, r.name, knownHistory),
			}})
		}
		if !matched && delay <= genericWithin && p.where != Neighbor && p.where != Cluster {
			x.add(c, at, candidate{change: c, fields: c.fields, score: &ahtiv1.Score{
				Prior: genericPrior, Distance: distance, Delay: x.lessons.delay(class, r.name, genericTypical, delay),
				Specificity: 1, History: x.lessons.history(class, r.name, unknownHistory),
			}})
		}
	}
}

// runsAt rates the symptoms at one place.
func (x *rating) runsAt(at int) {
	p, r := &x.places[at], x.of
	distance := math.Exp(-fade * p.cost)
	for _, o := range p.vertex.runs {
		if o == r || o.first.at > r.first.at+int64(skew) || x.ordered(o) {
			continue
		}
		// What was over explains nothing that began later.
		if at, over := o.ended(); over && at < r.first.at-int64(aftermath) {
			continue
		}
		for _, row := range x.rows {
			if !row.followsFrom(o, r) || !slices.Contains(row.Where, p.where) {
				continue
			}
			delay := time.Duration(max(r.first.at-o.last.at, 0))
			if delay > row.Within {
				continue
			}
			exact := 1.0
			if o.first.container != "" && r.first.container != "" && o.first.container != r.first.container {
				exact = 0.2
			}
			x.add(o, at, candidate{run: o, row: row, score: &ahtiv1.Score{
				Prior: row.Prior, Distance: distance, Delay: x.lessons.delay(o.name, r.name, row.Typical, delay),
				Specificity: exact, History: knownHistory,
			}})
		}
	}
}

// isMade says whether a change is the creation of what a controller made, or of
// what was there before a watcher told of it: neither is a cause of anything.
func (e *Engine) isMade(c *change) bool {
	return strings.HasSuffix(c.kind, ".created") && (e.ownerOf(c.vertex) != nil || c.vertex.born < c.at-int64(skew))
}

// older says whether what suffers is a pod, or belongs to one, from before a
// change. Pods of a StatefulSet come again under the same name: of what is known
// by its name only, the youngest counts.
func (e *Engine) older(v *vertex, c *change) bool {
	pod := e.podOf(v)
	if pod == nil {
		return false
	}
	born := pod.born
	if strings.Contains(pod.id, "/") {
		for o := range pod.same() {
			born = max(born, o.born)
		}
	}
	return born < c.at-int64(skew)
}

// newestBefore returns the last changes up to a time: an object that changes all
// the time, as one that elects a leader, has thousands.
func newestBefore(changes []*change, at int64) []*change {
	end, _ := slices.BinarySearchFunc(changes, at, func(c *change, at int64) int { return cmp.Compare(c.at, at+1) })
	return changes[max(0, end-maxChanges):end]
}

// fits says whether the row looks for such a change at such a place, and which
// of its fields matter.
func (r *modeRow) fits(c *change, where Where) ([]field, bool) {
	if !r.causedBy(c.kind) || !slices.Contains(r.Where, where) {
		return nil, false
	}
	if len(r.Cause.Field) == 0 {
		return nil, true
	}
	var fields []field
	for _, f := range c.fields {
		if !slices.Contains(r.Cause.Field, f.class) && !slices.Contains(r.Cause.Field, "*") {
			continue
		}
		switch r.Cause.Direction {
		case "increased":
			if f.direction() <= 0 {
				continue
			}
		case "decreased":
			if f.direction() >= 0 {
				continue
			}
		case "set":
			if f.GetNew() == "" || f.GetNew() == "false" {
				continue // taken away
			}
		case "lost":
			if f.GetOld() == "" {
				continue // nothing that was there before
			}
		}
		fields = append(fields, f)
	}
	return fields, len(fields) > 0 || slices.Contains(r.Cause.Field, "*")
}

// followsFrom says whether the row lets run r follow from run o.
func (r *modeRow) followsFrom(o, run *run) bool {
	for _, name := range r.Cause.Symptoms {
		if name == o.name && o.name != run.name {
			return true
		}
		// Two tellings of one thing: the later follows from the earlier.
		if name == sameSymptom && o.name == run.name && o.first.compare(run.first.stamp) < 0 {
			return true
		}
	}
	return false
}

// Ratings of how well the details of a change match a symptom.
const (
	exactMatch      = 1.0
	noDetail        = 0.8 // the row looks for no field
	otherContainer  = 0.15
	unsureContainer = 0.9
	otherLimit      = 0.5 // the limit that was hit is not the one that was set
)

// specificity rates how well the details of a change match the symptom.
func specificity(r *run, row *modeRow, fields []field) float64 {
	if len(fields) == 0 || slices.Contains(row.Cause.Field, "*") {
		return noDetail
	}
	best := 0.0
	for _, f := range fields {
		rating := exactMatch
		switch {
		case f.container == "":
		case r.first.container == "":
			rating = unsureContainer
		case r.first.container != f.container:
			rating = otherContainer
		}
		if limit := r.first.labels[event.TapioOOMLimitBytes]; limit != "" && f.class == "memory_limit" {
			set, errSet := resource.ParseQuantity(f.GetNew())
			hit, errHit := resource.ParseQuantity(limit)
			if errSet == nil && errHit == nil && set.Cmp(hit) != 0 {
				rating *= otherLimit
			}
		}
		best = max(best, rating)
	}
	return best
}

// pathTo returns the vertices from the start of the search to a place.
func pathTo(places []place, at int) []*vertex {
	var path []*vertex
	for i := at; i >= 0; i = places[i].from {
		path = append(path, places[i].vertex)
	}
	slices.Reverse(path)
	return path
}

// withoutConsequences drops the changes that the cluster made because of
// another one that is a candidate: a rollout makes a ReplicaSet, that makes pods.
func (e *Engine) withoutConsequences(candidates []candidate) []candidate {
	return slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool {
		return c.change != nil && slices.ContainsFunc(candidates, func(o candidate) bool { return e.followed(c.change, &o) })
	})
}

// followed says whether the cluster made a change because of another one.
func (e *Engine) followed(c *change, from *candidate) bool {
	o := from.change
	if o == nil || o.vertex == c.vertex || o.at > c.at+int64(skew) || c.at-o.at > int64(consequence) {
		return false
	}
	scaled := o.vertex.kind == ahtiv1.EntityType_ENTITY_TYPE_HPA && c.onlyReplicas()
	if !scaled && !followsOwner(c.kind) {
		return false
	}
	return e.owned(c.vertex, o.vertex) || (scaled || madeByControllers(c.vertex.kind)) && slices.Contains(from.path, c.vertex)
}

// madeByControllers says whether things of a kind are hardly ever made by people: what
// is on the way to a workload then follows from it. A Service or a claim does not.
func madeByControllers(kind ahtiv1.EntityType) bool {
	switch kind {
	case ahtiv1.EntityType_ENTITY_TYPE_POD, ahtiv1.EntityType_ENTITY_TYPE_REPLICASET, ahtiv1.EntityType_ENTITY_TYPE_JOB:
		return true
	}
	return false
}

// followsOwner says whether controllers make such changes by themselves.
func followsOwner(kind string) bool {
	return strings.HasSuffix(kind, ".created") || strings.HasSuffix(kind, ".deleted") ||
		strings.HasPrefix(kind, "k8s.replicaset.") || strings.HasPrefix(kind, "k8s.pod.") || strings.HasPrefix(kind, "k8s.job.")
}
