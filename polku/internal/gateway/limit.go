package gateway

import (
	"context"
	"sync"
	"time"

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

// allow reports whether a source may send n more events now, and counts them then.
func (l *limiter) allow(source []byte, n int) bool {
	return l.of(source).AllowN(time.Now(), n)
}

// wait returns when a source may have sent n more events.
func (l *limiter) wait(ctx context.Context, source []byte, n int) error {
	limit := l.of(source)
	for n > 0 {
		some := min(n, l.burst)
		if err := limit.WaitN(ctx, some); err != nil {
			return err
		}
		n -= some
	}
	return nil
}

// of returns the limit of a source.
func (l *limiter) of(source []byte) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.sources[string(source)]; ok {
		return s
	}
	name := string(source)
	if len(l.sources) >= maxSources {
		name = "" // no event is without a source, so nobody else has this one
	}
	s := l.sources[name]
	if s == nil {
		s = rate.NewLimiter(l.limit, l.burst)
		l.sources[name] = s
	}
	return s
}
