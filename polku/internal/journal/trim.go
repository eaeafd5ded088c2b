package journal

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// watermark is the share of MaxBytes above which history gives way to new
// events, whatever its age.
const watermark = 0.8

// Trim removes entries that all cursors have passed, which are those of the
// routes, as far as they are older than the retention or the log is above its
// watermark. Everything else stays for replay. Without any cursor nothing waits
// for any entry.
func (j *Journal) Trim(ctx context.Context, cursors ...Cursor) error {
	info, err := j.events.Info(ctx)
	if err != nil {
		return fmt.Errorf("read the state of the log: %w", j.explain(err))
	}
	s := info.State
	passed := s.LastSeq
	for _, c := range cursors {
		if held, err := j.holds(ctx, s, c); err != nil || !held {
			return err // a route has not noticed yet that the log is another one
		}
		passed = min(passed, c.Sequence)
	}
	if s.Msgs == 0 || passed < s.FirstSeq {
		return nil
	}
	keep := s.FirstSeq
	horizon := time.Now().Add(-j.config.Retention)
	if s.FirstTime.Before(horizon) {
		if keep, err = j.firstSince(ctx, horizon, s.FirstSeq, passed+1); err != nil {
			return err
		}
	}
	if excess := float64(s.Bytes) - watermark*float64(j.config.MaxBytes); excess > 0 {
		keep = max(keep, s.FirstSeq+uint64(excess/(float64(s.Bytes)/float64(s.Msgs)))+1)
	}
	keep = min(keep, passed+1)
	if keep <= s.FirstSeq {
		return nil
	}
	if err := j.events.Purge(ctx, jetstream.WithPurgeSequence(keep)); err != nil {
		return fmt.Errorf("trim the log up to message %d: %w", keep, err)
	}
	j.metrics.trimmed.Add(float64(keep - s.FirstSeq))
	return nil
}

// firstSince finds the first entry of [from, to) that was stored at a time or
// later; to when none was.
func (j *Journal) firstSince(ctx context.Context, t time.Time, from, to uint64) (uint64, error) {
	var failed error
	n := sort.Search(int(to-from), func(i int) bool {
		if failed != nil {
			return true
		}
		msg, err := j.events.GetMsg(ctx, from+uint64(i))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return false // a gap holds nothing that is worth to be kept
		}
		if err != nil {
			failed = fmt.Errorf("read message %d of the log: %w", from+uint64(i), err)
			return true
		}
		return !msg.Time.Before(t)
	})
	return from + uint64(n), failed
}
