package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// container is the number of ENTITY_TYPE_CONTAINER.
const container = "2"

const (
	// chunk is how many rows go in one transaction: few enough that what comes
	// in hardly waits.
	chunk = 2000
	// pause lets commits of events go first between two chunks.
	pause = 20 * time.Millisecond
)

// DeleteBefore deletes events, incidents and facts that are older than a time:
// of facts, those of things that were deleted before it and versions that others
// have replaced before it. It returns how many events went.
func (s *Store) DeleteBefore(ctx context.Context, before time.Time) (int64, error) {
	at := before.UnixNano()
	events, err := s.inChunks(ctx, "DELETE FROM events WHERE sequence IN (SELECT sequence FROM events WHERE at < ? ORDER BY at LIMIT ?)", at)
	if err != nil {
		return events, fmt.Errorf("delete old events: %w", err)
	}
	if err := s.deletePostings(ctx, at); err != nil {
		return events, fmt.Errorf("delete the index of old events: %w", err)
	}
	for _, query := range []string{
		"DELETE FROM incidents WHERE id IN (SELECT id FROM incidents WHERE last_seen_at < ? LIMIT ?)",
		// A container goes with its pod: nobody tells of its end.
		`DELETE FROM entities WHERE (entity, sequence) IN (SELECT c.entity, c.sequence FROM entities p
			JOIN relationships r ON r.source = p.entity JOIN entities c ON c.entity = r.target
			WHERE p.gone = 1 AND p.at < ? AND c.type = ` + container + ` LIMIT ?)`,
		`DELETE FROM relationships WHERE (relationship, sequence) IN (SELECT r.relationship, r.sequence FROM relationships r
			JOIN entities e ON e.entity = r.source OR e.entity = r.target
			WHERE e.gone = 1 AND e.at < ? AND NOT EXISTS (SELECT 1 FROM entities n WHERE n.entity = e.entity AND n.sequence > e.sequence) LIMIT ?)`,
	} {
		if _, err := s.inChunks(ctx, query, at); err != nil {
			return events, fmt.Errorf("delete what is old: %w", err)
		}
	}
	for _, table := range [][2]string{{"entities", "entity"}, {"relationships", "relationship"}} {
		for _, condition := range []string{
			// Replaced before then.
			"EXISTS (SELECT 1 FROM %[1]s n WHERE n.%[2]s = o.%[2]s AND n.sequence > o.sequence AND n.at < ?)",
			// Gone before then, and the only version that is left.
			"o.gone = 1 AND o.at < ? AND NOT EXISTS (SELECT 1 FROM %[1]s n WHERE n.%[2]s = o.%[2]s AND n.sequence <> o.sequence)",
		} {
			query := fmt.Sprintf("DELETE FROM %[1]s WHERE (%[2]s, sequence) IN (SELECT o.%[2]s, o.sequence FROM %[1]s o WHERE "+condition+" LIMIT ?)", table[0], table[1])
			if _, err := s.inChunks(ctx, query, at); err != nil {
				return events, fmt.Errorf("delete old %s: %w", table[0], err)
			}
		}
	}
	return events, nil
}

// inChunks repeats a deletion that takes a time and a limit until nothing is
// left to delete.
func (s *Store) inChunks(ctx context.Context, query string, at int64) (all int64, err error) {
	for {
		var n int64
		err := s.inTransaction(ctx, func(t transaction) (err error) {
			n, err = t.exec(ctx, query, at, chunk)
			return err
		})
		all += n
		if err != nil || n < chunk {
			return all, err
		}
		if err := s.yield(ctx); err != nil {
			return all, err
		}
	}
}

// yield gives free pages back and lets others write.
func (s *Store) yield(ctx context.Context) error {
	if err := s.dialect.giveBack(ctx, s); err != nil {
		return err
	}
	select {
	case <-time.After(pause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// deletePostings goes through the index entity by entity: it has no order of
// time.
func (s *Store) deletePostings(ctx context.Context, at int64) error {
	const first = -1 << 63
	for from, more := int64(first), true; more; {
		var to sql.NullInt64
		err := s.read.QueryRowContext(ctx, s.placeholders("SELECT MAX(entity) FROM (SELECT entity FROM postings WHERE entity >= ? ORDER BY entity LIMIT ?) AS part"), from, 5*chunk).Scan(&to)
		if err != nil {
			return err
		}
		if !to.Valid {
			return nil
		}
		err = s.inTransaction(ctx, func(t transaction) error {
			_, err := t.exec(ctx, "DELETE FROM postings WHERE entity >= ? AND entity <= ? AND last_at < ?", from, to.Int64, at)
			return err
		})
		if err != nil {
			return err
		}
		if from, more = to.Int64+1, to.Int64 < 1<<63-1; more {
			if err := s.yield(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// DeleteShare deletes the oldest share of the events, by the order in which they
// came, and what is older than everything that is left.
func (s *Store) DeleteShare(ctx context.Context, share float64) (int64, error) {
	var low, high sql.NullInt64
	if err := s.read.QueryRowContext(ctx, "SELECT MIN(sequence), MAX(sequence) FROM events").Scan(&low, &high); err != nil {
		return 0, fmt.Errorf("find the oldest events: %w", err)
	}
	if !low.Valid {
		return 0, nil
	}
	events, err := s.inChunks(ctx, "DELETE FROM events WHERE sequence IN (SELECT sequence FROM events WHERE sequence <= ? ORDER BY sequence LIMIT ?)",
		low.Int64+int64(share*float64(high.Int64-low.Int64)))
	if err != nil {
		return events, fmt.Errorf("delete the oldest events: %w", err)
	}
	var at sql.NullInt64
	if err := s.read.QueryRowContext(ctx, "SELECT MIN(at) FROM events").Scan(&at); err != nil {
		return events, fmt.Errorf("find the oldest event: %w", err)
	}
	if !at.Valid {
		return events, nil
	}
	_, err = s.DeleteBefore(ctx, time.Unix(0, at.Int64))
	return events, err
}
