package detect

import (
	"math"
	"slices"
	"time"

	"github.com/yairfalse/tapio/shared/event"
)

// again is how often a condition that goes on is told. The causality engine takes
// what pauses for ten minutes for two things.
const again = time.Minute

// alarm is one condition: it begins after some bad looks in a row and ends after
// some good ones, so that what flickers is told once.
type alarm struct {
	enter, leave int // looks in a row

	on        bool
	since     time.Time // of the first bad look
	told      time.Time
	bad, good int // in a row
}

// look notes whether the condition holds, and says what is to be told: a phase, or
// nothing.
func (a *alarm) look(now time.Time, holds bool) (phase string) {
	if holds {
		if a.bad++; a.bad == 1 && !a.on {
			a.since = now
		}
		a.good = 0
	} else {
		a.good++
		a.bad = 0
	}
	switch {
	case !a.on && a.bad >= a.enter:
		a.on, a.told = true, now
		return event.SchedulerPhaseStart
	case a.on && a.good >= a.leave:
		a.on, a.told = false, now
		return event.SchedulerPhaseEnd
	case a.on && holds && now.Sub(a.told) >= again:
		a.told = now
		return event.SchedulerPhaseOngoing
	}
	return ""
}

// history are the last values of something, for what is normal.
type history struct {
	values []float64
}

// remembered is how many values a history has: a quarter of an hour of scrapes
// every 15 s.
const remembered = 60

func (h *history) add(v float64) {
	if len(h.values) == remembered {
		h.values = h.values[1:]
	}
	h.values = append(h.values, v)
}

// normal is the median, and the deviation that a normal distribution would have:
// a single outlier moves neither.
func (h *history) normal() (median, deviation float64) {
	const perDeviation = 1.4826 // deviations of a normal distribution in its median absolute deviation
	median = medianOf(h.values)
	distances := make([]float64, len(h.values))
	for i, v := range h.values {
		distances[i] = math.Abs(v - median)
	}
	return median, perDeviation * medianOf(distances)
}

// medianOf is 0 without values.
func medianOf(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
