package gateway

import (
	"sync"

	"golang.org/x/time/rate"
)

// maxSources is how many sources have a rate limit of their own; the others
// share one, so that invented names take no memory.
const maxSources = 10_000

// limiter limits how many events a second each source may send.
type limiter struct {
	limit rate.Limit // 0 for none
	burst int

	mu      sync.Mutex
	sources map[string]*rate.Limiter
}

func newLimiter(perSecond float64) *limiter {
	// A second's worth at once: sources send batches.
	return &limiter{limit: rate.Limit(perSecond), burst: int(max(perSecond, 1)), sources: make(map[string]*rate.Limiter)}
}

// of returns the limit of a source; nil for none.
func (l *limiter) of(source []byte) *rate.Limiter {
	if l.limit <= 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.sources[string(source)]; ok {
		return s
	}
	name := string(source)
	if len(l.sources) >= maxSources {
		name = "" // no event may have it, so nobody else uses it
	}
	s := l.sources[name]
	if s == nil {
		s = rate.NewLimiter(l.limit, l.burst)
		l.sources[name] = s
	}
	return s
}
