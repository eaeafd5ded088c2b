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
	if _, err := s.inChunks(ctx, "DELETE FROM incidents WHERE id IN (SELECT id FROM incidents WHERE last_seen_at < ? LIMIT ?)", at); err != nil {
		return events, fmt.Errorf("delete old incidents: %w", err)
	}
	if err := s.deleteGone(ctx, at); err != nil {
		return events, fmt.Errorf("delete what is gone: %w", err)
	}
	for _, table := range [][2]string{{"entities", "entity"}, {"relationships", "relationship"}} {
		if err := s.deleteReplaced(ctx, table[0], table[1], at); err != nil {
			return events, fmt.Errorf("delete old versions of %s: %w", table[0], err)
		}
	}
	return events, nil
}

// victims reads numbers, one or two a row.
func (s *Store) victims(ctx context.Context, query string, columns int, args ...any) (rows [][]any, err error) {
	err = s.query(ctx, query, args, func(r *sql.Rows) error {
		values := make([]int64, columns)
		into, row := make([]any, columns), make([]any, columns)
		for i := range values {
			into[i] = &values[i]
		}
		if err := r.Scan(into...); err != nil {
			return err
		}
		for i := range values {
			row[i] = values[i]
		}
		rows = append(rows, row)
		return nil
	})
	return rows, err
}

// deleteGone deletes what is known of things that were deleted before a time,
// and their ties. A container goes with its pod: nobody tells of its end.
func (s *Store) deleteGone(ctx context.Context, at int64) error {
	for {
		gone, err := s.victims(ctx, `SELECT e.entity FROM entities e WHERE e.gone = 1 AND e.at < ? AND NOT EXISTS
			(SELECT 1 FROM entities n WHERE n.entity = e.entity AND n.sequence > e.sequence) LIMIT ?`, 1, at, chunk)
		if err != nil || len(gone) == 0 {
			return err
		}
		for _, pod := range gone {
			containers, err := s.victims(ctx, `SELECT c.entity FROM relationships r JOIN entities c ON c.entity = r.target
				WHERE r.source = ? AND c.type = `+container, 1, pod[0])
			if err != nil {
				return err
			}
			gone = append(gone, containers...)
		}
		err = s.inTransaction(ctx, func(t transaction) error {
			for _, key := range gone {
				for _, query := range []string{
					"DELETE FROM entities WHERE entity = ?",
					"DELETE FROM relationships WHERE source = ?",
					"DELETE FROM relationships WHERE target = ?",
				} {
					if _, err := t.exec(ctx, query, key[0]); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := s.yield(ctx); err != nil {
			return err
		}
	}
}

// deleteReplaced deletes versions that others have replaced before a time, and
// ties that ended before it.
func (s *Store) deleteReplaced(ctx context.Context, table, key string, at int64) error {
	for _, condition := range []string{
		`JOIN (SELECT %[2]s, MAX(sequence) AS newest FROM %[1]s WHERE at < ? GROUP BY %[2]s) n
			ON n.%[2]s = o.%[2]s AND o.sequence < n.newest`,
		`WHERE o.gone = 1 AND o.at < ? AND NOT EXISTS (SELECT 1 FROM %[1]s n WHERE n.%[2]s = o.%[2]s AND n.sequence <> o.sequence)`,
	} {
		for {
			old, err := s.victims(ctx, fmt.Sprintf("SELECT o.%[2]s, o.sequence FROM %[1]s o "+condition+" LIMIT ?", table, key), 2, at, 5*chunk)
			if err != nil {
				return err
			}
			if len(old) == 0 {
				break
			}
			err = s.inTransaction(ctx, func(t transaction) error {
				for _, row := range old {
					if _, err := t.exec(ctx, fmt.Sprintf("DELETE FROM %[1]s WHERE %[2]s = ? AND sequence = ?", table, key), row...); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			if err := s.yield(ctx); err != nil {
				return err
			}
		}
	}
	return nil
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
