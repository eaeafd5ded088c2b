package causality

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Lessons are what the engine has learned of how often and how soon changes of
// a class are followed by symptoms. They hold counts only, no names of things.
type Lessons struct {
	// Since and Through are the times, nanoseconds since the Unix epoch, of
	// what they were learned from.
	Since   int64 `json:"since"`
	Through int64 `json:"through"`
	// Sufferers is how many entities had a symptom, by name: at most at once
	// within the engine's window.
	Sufferers map[string]int `json:"sufferers"`
	// Causes counts changes by class.
	Causes map[string]int `json:"causes"`
	// Symptoms counts symptoms by name.
	Symptoms map[string]int `json:"symptoms"`
	// Pairs tells how symptoms followed changes, by class of the change and
	// then name of the symptom.
	Pairs map[string]map[string]Pair `json:"pairs"`
}

// Pair tells how often, and how soon, one thing followed another.
type Pair struct {
	// Count is how often.
	Count int `json:"count"`
	// Mean is that of the delay's natural logarithm, seconds.
	Mean float64 `json:"mean"`
	// Squares is the sum of squared differences from Mean.
	Squares float64 `json:"squares"`
}

const (
	// horizon is how long after a change a symptom counts as having followed
	// it. A change is learned from when it is that old.
	horizon = 30 * time.Minute
	// trust is how many samples weigh as much as what was assumed before.
	trust = 8
	// spread is the standard deviation of the logarithm of delays that is
	// assumed: most are within a factor of seven of the typical one.
	spread = 2.0
	// latest is what is left of a cause's score however late the symptom is.
	latest = 0.1
	// knownHistory and unknownHistory are what is assumed of pairs that are in
	// the table of failure modes, and of others.
	knownHistory   = 0.95
	unknownHistory = 0.08
	// alone is how often a symptom must have come without a change before that
	// counts against a cause that the table knows, and leastKnown is what is
	// left of such a cause then.
	alone      = 5
	leastKnown = 0.6
)

func newLessons() Lessons {
	return Lessons{
		Sufferers: map[string]int{}, Causes: map[string]int{}, Symptoms: map[string]int{},
		Pairs: map[string]map[string]Pair{},
	}
}

// MarshalBinary encodes the lessons for a store.
func (l Lessons) MarshalBinary() ([]byte, error) {
	data, err := json.Marshal(lessonsFile(l))
	if err != nil {
		return nil, fmt.Errorf("encode lessons: %w", err)
	}
	return data, nil
}

// UnmarshalBinary decodes what MarshalBinary made.
func (l *Lessons) UnmarshalBinary(data []byte) error {
	file := lessonsFile(newLessons())
	if err := json.Unmarshal(data, &file); err != nil {
		return fmt.Errorf("decode lessons: %w", err)
	}
	*l = Lessons(file)
	return nil
}

// lessonsFile is Lessons without its methods, which JSON would call.
type lessonsFile Lessons

// Lessons returns a copy of what has been learned.
func (e *Engine) Lessons() Lessons {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lessons.clone()
}

func (l Lessons) clone() Lessons {
	out := newLessons()
	out.Since, out.Through = l.Since, l.Through
	maps.Copy(out.Sufferers, l.Sufferers)
	maps.Copy(out.Causes, l.Causes)
	maps.Copy(out.Symptoms, l.Symptoms)
	for k, pairs := range l.Pairs {
		out.Pairs[k] = maps.Clone(pairs)
	}
	return out
}

// Teach replaces what has been learned, before the first Apply.
func (e *Engine) Teach(l Lessons) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lessons = l.clone()
	e.epoch++
}

// Learn counts the changes and symptoms that are so old that what follows them
// has been seen, each exactly once, and says whether there were any.
func (e *Engine) Learn(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	through := now.Add(-horizon).UnixNano()
	if through <= e.lessons.Through {
		return false
	}
	e.question++
	type pair struct {
		cause   *change
		symptom string
	}
	var (
		changes []*change
		runs    []*run
	)
	soonest := map[pair]time.Duration{}
	sufferers := map[string]int{}
	for _, v := range e.graph.vertices {
		for _, c := range v.changes {
			if !c.learned && c.at <= through {
				changes = append(changes, c)
			}
		}
		names := map[string]bool{}
		for _, r := range v.runs {
			if e.ordered(r) {
				continue
			}
			names[r.name] = true
			if r.first.at <= through && !r.learned {
				runs = append(runs, r)
			}
			for _, c := range e.explain(r).preceded {
				if c.learned || c.at > through {
					continue
				}
				delay := max(time.Duration(r.first.at-c.at), 0)
				if known, ok := soonest[pair{c, r.name}]; !ok || delay < known {
					soonest[pair{c, r.name}] = delay
				}
			}
		}
		for name := range names {
			sufferers[name]++
		}
	}
	for name, n := range sufferers {
		e.lessons.Sufferers[name] = max(e.lessons.Sufferers[name], n)
	}
	// Sums of floating point numbers depend on their order.
	follows := slices.SortedFunc(maps.Keys(soonest), func(a, b pair) int {
		return cmp.Or(a.cause.compare(b.cause.stamp), strings.Compare(a.symptom, b.symptom))
	})
	for _, c := range changes {
		c.learned = true
		e.lessons.Causes[c.class()]++
		e.lessons.begin(c.at)
	}
	for _, r := range runs {
		r.learned = true
		e.lessons.Symptoms[r.name]++
		e.lessons.begin(r.first.at)
	}
	for _, f := range follows {
		class := f.cause.class()
		if e.lessons.Pairs[class] == nil {
			e.lessons.Pairs[class] = map[string]Pair{}
		}
		e.lessons.Pairs[class][f.symptom] = e.lessons.Pairs[class][f.symptom].add(math.Log(soonest[f].Seconds() + 1))
	}
	e.lessons.Through = through
	if len(changes) == 0 && len(runs) == 0 {
		return false
	}
	e.epoch++
	return true
}

func (l *Lessons) begin(at int64) {
	if l.Since == 0 || at < l.Since {
		l.Since = at
	}
}

func (p Pair) add(delay float64) Pair {
	p.Count++
	d := delay - p.Mean
	p.Mean += d / float64(p.Count)
	p.Squares += d * (delay - p.Mean)
	return p
}

// history rates how often the symptom has followed the class of changes,
// against how often it comes by chance to what has it at all: 0 to 1, the share
// that is not chance. Few samples leave the rating near what is assumed.
func (l *Lessons) history(class, symptom string, assumed float64) float64 {
	n := float64(l.Causes[class])
	if n == 0 {
		return assumed
	}
	followed := float64(l.Pairs[class][symptom].Count)
	chances := float64(max(l.Sufferers[symptom], 1)) * max(float64(l.Through-l.Since)/float64(horizon), 1)
	chance := (max(float64(l.Symptoms[symptom])-followed, 0) + 0.5) / (chances + 1)
	// At least so often, a standard deviation aside: one coincidence is no rule.
	rate := max(followed-math.Sqrt(followed), 0) / (n + 1)
	share := 0.0
	if rate > chance {
		share = 1 - chance/rate
	}
	if assumed == knownHistory {
		// That most rollouts are healthy says nothing for the one beside which
		// something breaks. Only a symptom that often comes without the change
		// speaks against it.
		if float64(l.Symptoms[symptom])-followed < alone {
			return assumed
		}
		share = max(share, leastKnown)
	}
	weight := n / (n + trust)
	return (1-weight)*assumed + weight*share
}

// delay rates how well a delay fits the pair: 0 to 1. What comes sooner than
// usual is held against a cause only as far as experience says so.
func (l *Lessons) delay(class, symptom string, typical, delay time.Duration) float64 {
	p := l.Pairs[class][symptom]
	n := float64(p.Count)
	const assumed = trust / 2
	mean := (assumed*math.Log(typical.Seconds()+1) + n*p.Mean) / (assumed + n)
	deviation := math.Sqrt((assumed*spread*spread + p.Squares) / (assumed + n))
	z := (math.Log(max(delay.Seconds(), 0)+1) - mean) / deviation
	fit := math.Exp(-z * z / 2)
	if z < 0 {
		fit = 1 - (1-fit)*n/(n+trust)
	}
	return max(fit, latest)
}
