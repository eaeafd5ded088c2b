// Package interval tells what happened between two scrapes of one scheduler, as
// Prometheus would from the same series.
package interval

import (
	"maps"
	"math"
	"strconv"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
)

// Scrape is a page and when it was read.
type Scrape struct {
	Page *exposition.Page
	At   time.Time
}

// Interval is the time between two scrapes.
type Interval struct {
	Length time.Duration
	// Restarted tells that another process answered the second scrape.
	Restarted bool
	after     *exposition.Page
	before    map[string]float64 // by the whole series
}

// Between returns what happened from one scrape to the next one.
func Between(before, after Scrape) *Interval {
	iv := &Interval{
		Length:    after.At.Sub(before.At),
		Restarted: before.Page.Started() != after.Page.Started(),
		after:     after.Page,
		before:    map[string]float64{},
	}
	if iv.Restarted {
		return iv // it counts from zero again, whatever it was at
	}
	before.Page.Names(func(name string) {
		for _, s := range before.Page.Series(name) {
			iv.before[key(s.Labels)] = s.Value
		}
	})
	return iv
}

// SinceStart returns what happened since the scheduler's process began.
func SinceStart(s Scrape) *Interval {
	iv := &Interval{after: s.Page, before: map[string]float64{}}
	if started := s.Page.Started(); started > 0 {
		iv.Length = max(0, s.At.Sub(time.UnixMilli(int64(started*1000))))
	}
	return iv
}

// key names a series. Labels are sorted.
func key(l labels.Labels) string { return string(l.Bytes(nil)) }

// Match are the values that labels must have; a label that it does not name may
// have any.
type Match map[string]string

func (m Match) matches(l labels.Labels) bool {
	for name, value := range m {
		if l.Get(name) != value {
			return false
		}
	}
	return true
}

// increase is how much a counter grew. What is smaller than before was reset, and
// counts from zero. A series that was not there before began at zero: the
// scheduler's process is the same, and makes a series when it first counts.
func (iv *Interval) increase(s exposition.Series) (float64, bool) {
	if math.IsNaN(s.Value) || math.IsInf(s.Value, 0) || s.Value < 0 {
		return 0, false // no counter has such a value
	}
	before, known := iv.before[key(s.Labels)]
	if !known || math.IsNaN(before) || s.Value < before {
		return s.Value, true
	}
	return s.Value - before, true
}

// Increase is by how much all counters of a name grew together.
func (iv *Interval) Increase(name string, match Match) float64 {
	sum := 0.0
	for _, s := range iv.after.Series(name) {
		if n, ok := iv.increase(s); ok && match.matches(s.Labels) {
			sum += n
		}
	}
	return sum
}

// IncreaseBy is the same by the values of a label.
func (iv *Interval) IncreaseBy(name, label string) map[string]float64 {
	sums := map[string]float64{}
	for _, s := range iv.after.Series(name) {
		if n, ok := iv.increase(s); ok {
			sums[s.Labels.Get(label)] += n
		}
	}
	return sums
}

// Values are the values that a label has in the series of a name that match.
func (iv *Interval) Values(name, label string, match Match) []string {
	seen := map[string]bool{}
	var values []string
	for _, s := range iv.after.Series(name) {
		if v := s.Labels.Get(label); v != "" && !seen[v] && match.matches(s.Labels) {
			seen[v] = true
			values = append(values, v)
		}
	}
	return values
}

// Histogram is what was observed in the interval: by upper bound, the observations
// at or below it.
type Histogram map[float64]float64

// Histogram adds up the histograms of a family that match.
func (iv *Interval) Histogram(family string, match Match) Histogram {
	h := Histogram{}
	for _, s := range iv.after.Series(family + "_bucket") {
		if !match.matches(s.Labels) {
			continue
		}
		bound, err := strconv.ParseFloat(s.Labels.Get(model.BucketLabel), 64)
		if err != nil || math.IsNaN(bound) {
			continue // as histogram_quantile does
		}
		if n, ok := iv.increase(s); ok {
			h[bound] += n
		}
	}
	return h
}

// Add adds the observations of another interval.
func (h Histogram) Add(other Histogram) {
	for bound, n := range other {
		h[bound] += n
	}
}

// Clone returns a copy.
func (h Histogram) Clone() Histogram { return maps.Clone(h) }

// Count is the number of observations.
func (h Histogram) Count() float64 { return h[math.Inf(1)] }

// Quantile is what Prometheus' histogram_quantile says, by its own code; NaN
// without observations.
func (h Histogram) Quantile(q float64) float64 {
	if len(h) == 0 {
		return math.NaN()
	}
	buckets := make(promql.Buckets, 0, len(h))
	for bound, n := range h {
		buckets = append(buckets, promql.Bucket{UpperBound: bound, Count: n})
	}
	value, _, _, _, _, _ := promql.BucketQuantile(q, buckets)
	return value
}
