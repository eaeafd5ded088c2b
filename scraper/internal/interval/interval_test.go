package interval_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/scraper/internal/exposition"
	"github.com/yairfalse/tapio/scraper/internal/interval"
)

const (
	family = exposition.AttemptDuration
	// exact is how far from Prometheus a quantile may be, relatively.
	exact = 1e-9
	// apart is the time between two scrapes.
	apart = 15 * time.Second
)

// scrape parses a page that was read at a time after the epoch.
func scrape(t *testing.T, at time.Duration, body string) interval.Scrape {
	t.Helper()
	p, err := exposition.Parse([]byte(body), "text/plain")
	require.NoError(t, err, body)
	return interval.Scrape{Page: p, At: time.Unix(0, 0).Add(at)}
}

// histogram writes cumulative buckets.
func histogram(result string, bounds []string, counts ...float64) string {
	var b strings.Builder
	for i, bound := range bounds {
		fmt.Fprintf(&b, "%s_bucket{result=%q,le=%q} %v\n", family, result, bound, counts[i])
	}
	return b.String()
}

// seriesSet gives Prometheus the series of two scrapes.
type seriesSet struct {
	series []promql.Series
	next   int
	storage.SeriesSet
}

func (s *seriesSet) Next() bool {
	s.next++
	return s.next <= len(s.series)
}

func (s *seriesSet) At() storage.Series { return promql.NewStorageSeries(s.series[s.next-1]) }

// prometheus asks Prometheus' own engine about the buckets of two scrapes.
func prometheus(t *testing.T, query string, scrapes ...interval.Scrape) float64 {
	t.Helper()
	points := map[string]*promql.Series{}
	set := &seriesSet{SeriesSet: storage.EmptySeriesSet()}
	var order []string
	for i, s := range scrapes {
		for _, one := range s.Page.Series(family + "_bucket") {
			key := one.Labels.String()
			if points[key] == nil {
				points[key] = &promql.Series{Metric: one.Labels}
				order = append(order, key)
			}
			points[key].Floats = append(points[key].Floats, promql.FPoint{T: int64(i) * apart.Milliseconds(), F: one.Value})
		}
	}
	for _, key := range order {
		set.series = append(set.series, *points[key])
	}
	engine := promql.NewEngine(promql.EngineOpts{
		MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: time.Minute,
		Parser: parser.NewParser(parser.Options{EnableExtendedRangeSelectors: true}),
	})
	queryable := &storage.MockQueryable{MockQuerier: &storage.MockQuerier{
		SelectMockFunction: func(bool, *storage.SelectHints, ...*labels.Matcher) storage.SeriesSet { return set },
	}}
	at := time.UnixMilli(int64(len(scrapes)-1) * apart.Milliseconds())
	q, err := engine.NewInstantQuery(t.Context(), queryable, nil, query, at)
	require.NoError(t, err)
	defer q.Close()
	result := q.Exec(t.Context())
	require.NoError(t, result.Err)
	vector, err := result.Vector()
	require.NoError(t, err)
	if len(vector) == 0 {
		return math.NaN()
	}
	require.Len(t, vector, 1)
	return vector[0].F
}

// same compares numbers that may be none.
func same(t *testing.T, want, got float64, what string) {
	t.Helper()
	switch {
	case math.IsNaN(want), math.IsInf(want, 0), want == 0:
		assert.True(t, math.IsNaN(want) && math.IsNaN(got) || want == got, "%s: want %v, got %v", what, want, got)
	default:
		assert.InEpsilon(t, want, got, exact, what)
	}
}

// increase is what happened between two scrapes without extrapolation.
const increase = "histogram_quantile(%v, sum by (le) (increase(" + family + "_bucket[15s] anchored)))"

func TestQuantilesAreThoseOfPrometheus(t *testing.T) {
	bounds := []string{"0.001", "0.002", "0.004", "0.008", "+Inf"}
	tests := map[string]struct{ before, after string }{
		"normal":            {histogram("scheduled", bounds, 1, 5, 9, 9, 9), histogram("scheduled", bounds, 2, 11, 30, 33, 34)},
		"nothing happened":  {histogram("scheduled", bounds, 1, 5, 9, 9, 9), histogram("scheduled", bounds, 1, 5, 9, 9, 9)},
		"all reset":         {histogram("scheduled", bounds, 10, 50, 90, 90, 90), histogram("scheduled", bounds, 2, 3, 4, 5, 6)},
		"reset to zero":     {histogram("scheduled", bounds, 10, 50, 90, 90, 90), histogram("scheduled", bounds, 0, 0, 0, 0, 0)},
		"some reset":        {histogram("scheduled", bounds, 3, 3, 3, 9, 9), histogram("scheduled", bounds, 4, 2, 8, 10, 12)},
		"only +Inf":         {histogram("scheduled", []string{"+Inf"}, 1), histogram("scheduled", []string{"+Inf"}, 5)},
		"all in +Inf":       {histogram("scheduled", bounds, 0, 0, 0, 0, 1), histogram("scheduled", bounds, 0, 0, 0, 0, 9)},
		"without +Inf":      {histogram("scheduled", bounds[:4], 0, 0, 0, 1), histogram("scheduled", bounds[:4], 0, 1, 2, 9)},
		"negative bounds":   {histogram("scheduled", []string{"-2", "-1", "0", "+Inf"}, 0, 0, 0, 0), histogram("scheduled", []string{"-2", "-1", "0", "+Inf"}, 3, 6, 7, 9)},
		"not monotone":      {histogram("scheduled", bounds, 0, 0, 0, 0, 0), histogram("scheduled", bounds, 4, 3, 9, 8, 12)},
		"a bound twice":     {histogram("scheduled", []string{"1", "1.0", "+Inf"}, 0, 0, 0), histogram("scheduled", []string{"1", "1.0", "+Inf"}, 2, 3, 6)},
		"one bound":         {histogram("scheduled", []string{"1", "+Inf"}, 0, 0), histogram("scheduled", []string{"1", "+Inf"}, 3, 5)},
		"several to add up": {histogram("scheduled", bounds, 1, 2, 3, 4, 5) + histogram("error", bounds, 1, 1, 1, 1, 1), histogram("scheduled", bounds, 3, 4, 9, 9, 9) + histogram("error", bounds, 1, 1, 1, 1, 7)},
		"an odd bound":      {histogram("scheduled", []string{"1", "many", "+Inf"}, 0, 0, 0), histogram("scheduled", []string{"1", "many", "+Inf"}, 2, 3, 6)},
		"fractions":         {histogram("scheduled", bounds, 0.1, 0.2, 0.3, 0.4, 0.5), histogram("scheduled", bounds, 0.3, 0.6, 0.9, 1.2, 1.5)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before, after := scrape(t, 0, test.before), scrape(t, apart, test.after)
			h := interval.Between(before, after).Histogram(family, nil)
			for _, q := range []float64{-1, 0, 0.01, 0.5, 0.9, 0.99, 1, 2, math.NaN()} {
				text := fmt.Sprint(q)
				same(t, prometheus(t, fmt.Sprintf(increase, text), before, after), h.Quantile(q), "quantile "+text)
			}
		})
	}
}

// Thousands of histograms of any form.
func TestAnyHistogramsQuantileIsThatOfPrometheus(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var bounds []string
		bound := math.Exp(random.Float64()*10 - 8)
		for range 1 + random.IntN(14) {
			bounds = append(bounds, fmt.Sprint(bound))
			bound *= 1 + random.Float64()*3
		}
		bounds = append(bounds, "+Inf")
		var bodies [2]string
		for _, result := range []string{"scheduled", "unschedulable", "error"} {
			var before, after []float64
			b, a := 0.0, 0.0
			for range bounds {
				b += float64(random.IntN(50) * random.IntN(2))
				a += float64(random.IntN(200) * random.IntN(2))
				before, after = append(before, b), append(after, a)
			}
			bodies[0] += histogram(result, bounds, before...)
			bodies[1] += histogram(result, bounds, after...)
		}
		before, after := scrape(t, 0, bodies[0]), scrape(t, apart, bodies[1])
		h := interval.Between(before, after).Histogram(family, nil)
		for _, q := range []float64{0.5, 0.9, 0.99} {
			same(t, prometheus(t, fmt.Sprintf(increase, q), before, after), h.Quantile(q), bodies[0]+bodies[1])
		}
	}
}

func TestSinceStartIsWhatTheBucketsSay(t *testing.T) {
	bounds := []string{"0.001", "0.002", "0.004", "0.008", "+Inf"}
	s := scrape(t, 0, histogram("scheduled", bounds, 2, 11, 30, 33, 34))
	for _, q := range []float64{0.5, 0.9, 0.99} {
		want := prometheus(t, fmt.Sprintf("histogram_quantile(%v, sum by (le) (%s_bucket))", q, family), s)
		same(t, want, interval.SinceStart(s).Histogram(family, nil).Quantile(q), fmt.Sprint(q))
	}
}

func TestIncrease(t *testing.T) {
	const name = exposition.ScheduleAttempts
	attempts := func(result, value string) string { return name + `{result="` + result + `"} ` + value + "\n" }
	tests := map[string]struct {
		before, after string
		want          float64
	}{
		"grows":               {attempts("error", "3"), attempts("error", "5"), 2},
		"stands":              {attempts("error", "3"), attempts("error", "3"), 0},
		"is reset":            {attempts("error", "30"), attempts("error", "5"), 5},
		"appears":             {attempts("scheduled", "30"), attempts("scheduled", "30") + attempts("error", "5"), 5},
		"disappears":          {attempts("error", "30") + attempts("scheduled", "1"), attempts("scheduled", "2"), 1},
		"is no number":        {attempts("error", "3"), attempts("error", "NaN"), 0},
		"was no number":       {attempts("error", "NaN"), attempts("error", "4"), 4},
		"is infinite":         {attempts("error", "3"), attempts("error", "+Inf"), 0},
		"is negative":         {attempts("error", "3"), attempts("error", "-4"), 0},
		"of another process":  {attempts("error", "3") + "process_start_time_seconds 100\n", attempts("error", "5") + "process_start_time_seconds 200\n", 5},
		"of the same process": {attempts("error", "3") + "process_start_time_seconds 100\n", attempts("error", "5") + "process_start_time_seconds 100\n", 2},
	}
	for test, c := range tests {
		t.Run(test, func(t *testing.T) {
			iv := interval.Between(scrape(t, 0, c.before), scrape(t, apart, c.after))
			assert.InDelta(t, c.want, iv.Increase(name, nil), 0)
			assert.Equal(t, apart, iv.Length)
		})
	}
}
