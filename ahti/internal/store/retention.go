package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
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
// of facts, those of things that were deleted before it. What is known of others
// from before it becomes one version. It returns how many events went.
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
	for _, t := range factTables() {
		if err := s.compact(ctx, t, at); err != nil {
			return events, fmt.Errorf("merge old versions of %s: %w", t.name, err)
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
		gone, err := s.victims(ctx, `SELECT DISTINCT e.entity FROM entities e WHERE e.gone = 1 AND e.at < ? AND NOT EXISTS
			(SELECT 1 FROM entities n WHERE n.entity = e.entity AND n.at > e.at) LIMIT ?`, 1, at, chunk)
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

// DeleteForgotten deletes what is known of things that nobody tells the end of, such
// as addresses and containers, with their ties: of those that no event names that is
// kept, of which nothing is known from a time on, and that known denies. It returns
// how many things went.
func (s *Store) DeleteForgotten(ctx context.Context, before time.Time, known func(*ahtiv1.Entity) bool) (all int, err error) {
	at := before.UnixNano()
	const first = -1 << 63
	for from, more := int64(first), true; more; {
		to, err := s.end(ctx, "entities", from, chunk)
		if err != nil || !to.Valid {
			return all, err
		}
		n, err := s.deleteForgotten(ctx, from, to.Int64, at, known)
		if all += n; err != nil {
			return all, fmt.Errorf("delete what is forgotten: %w", err)
		}
		if from, more = to.Int64+1, to.Int64 < 1<<63-1; more {
			if err := s.yield(ctx); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

func (s *Store) deleteForgotten(ctx context.Context, from, to, at int64, known func(*ahtiv1.Entity) bool) (all int, err error) {
	var forgotten []int64
	err = s.query(ctx, `SELECT e.entity, e.body FROM entities e WHERE e.entity >= ? AND e.entity <= ? AND e.at < ?
		AND NOT EXISTS (SELECT 1 FROM entities n WHERE n.entity = e.entity AND (n.sequence > e.sequence OR n.at >= ? OR n.gone = 1))
		AND NOT EXISTS (SELECT 1 FROM postings p WHERE p.entity = e.entity)`, []any{from, to, at, at}, func(rows *sql.Rows) error {
		var key int64
		var body sql.RawBytes
		if err := rows.Scan(&key, &body); err != nil {
			return err
		}
		e := &ahtiv1.Entity{}
		if err := proto.Unmarshal(body, e); err != nil {
			return fmt.Errorf("decode an entity: %w", err)
		}
		if !known(e) {
			forgotten = append(forgotten, key)
		}
		return nil
	})
	if err != nil || len(forgotten) == 0 {
		return 0, err
	}
	err = s.inTransaction(ctx, func(t transaction) error {
		for _, key := range forgotten {
			named := false // again, meanwhile
			s.derived.places(key, func(Place) { named = true })
			if named {
				continue
			}
			n, err := t.exec(ctx, "DELETE FROM entities WHERE entity = ? AND at < ? AND NOT EXISTS (SELECT 1 FROM postings WHERE entity = ?)", key, at, key)
			if err != nil {
				return err
			}
			if n == 0 {
				continue
			}
			all++
			for _, query := range []string{"DELETE FROM relationships WHERE source = ? AND at < ?", "DELETE FROM relationships WHERE target = ? AND at < ?"} {
				if _, err := t.exec(ctx, query, key, at); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return all, err
}

// end is where a part of some rows ends of a table by entity that begins at a key; not
// valid when there is nothing behind it.
func (s *Store) end(ctx context.Context, table string, from int64, rows int) (to sql.NullInt64, err error) {
	query := "SELECT MAX(entity) FROM (SELECT entity FROM " + table + " WHERE entity >= ? ORDER BY entity LIMIT ?) AS part"
	err = s.read.QueryRowContext(ctx, s.placeholders(query), from, rows).Scan(&to)
	return to, err
}

// compact makes one version of those that a thing has from before a time, and
// deletes ties that ended before it. A version tells a part of what is known, and
// they come in any order: what was known at the time is all of them together.
func (s *Store) compact(ctx context.Context, t table, at int64) error {
	for {
		merged, err := s.mergeable(ctx, t, at)
		if err != nil {
			return err
		}
		if len(merged) == 0 {
			break
		}
		err = s.inTransaction(ctx, func(tx transaction) error {
			for _, m := range merged {
				body, err := proto.Marshal(m.message)
				if err != nil {
					return fmt.Errorf("encode a fact: %w", err)
				}
				if _, err := tx.exec(ctx, t.in("UPDATE %[1]s SET at = ?, gone = ?, body = ? WHERE %[2]s = ? AND sequence = ?"), m.at, number(m.gone), body, m.key, m.sequence); err != nil {
					return err
				}
				for _, sequence := range m.replaced {
					if _, err := tx.exec(ctx, t.in("DELETE FROM %[1]s WHERE %[2]s = ? AND sequence = ?"), m.key, sequence); err != nil {
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
	_, err := s.inChunks(ctx, t.in(`DELETE FROM %[1]s WHERE (%[2]s, sequence) IN (SELECT o.%[2]s, o.sequence FROM %[1]s o
		WHERE o.gone = 1 AND o.at < ? AND NOT EXISTS (SELECT 1 FROM %[1]s n WHERE n.%[2]s = o.%[2]s AND n.sequence <> o.sequence) LIMIT ?)`), at)
	return err
}

// merged is a version that stands for others of the same thing.
type merged struct {
	key, sequence int64
	replaced      []int64 // sequences of the others
	fact
}

// mergeable merges the versions from before a time of some things that have more
// than one. Only retention changes versions, so that they may be read before the
// transaction.
func (s *Store) mergeable(ctx context.Context, t table, at int64) (all []*merged, err error) {
	const things = 500 // with some statements each in one transaction
	err = s.query(ctx, t.in(`SELECT o.%[2]s, o.sequence, o.at, o.gone, o.body FROM %[1]s o
		JOIN (SELECT %[2]s FROM %[1]s WHERE at < ? GROUP BY %[2]s HAVING COUNT(*) > 1 LIMIT ?) n ON n.%[2]s = o.%[2]s
		WHERE o.at < ? ORDER BY o.%[2]s, o.at, o.gone, o.sequence`), []any{at, things, at}, func(rows *sql.Rows) error {
		var gone int64
		var body sql.RawBytes
		m := &merged{fact: fact{message: t.empty()}}
		if err := rows.Scan(&m.key, &m.sequence, &m.at, &gone, &body); err != nil {
			return err
		}
		m.gone = gone == 1
		if err := proto.Unmarshal(body, m.message); err != nil {
			return fmt.Errorf("decode a fact: %w", err)
		}
		if last := len(all) - 1; last >= 0 && all[last].key == m.key {
			m.replaced = append(all[last].replaced, all[last].sequence)
			m.message = mergeFacts(all[last].message, m.message)
			all[last] = m
		} else {
			all = append(all, m)
		}
		return nil
	})
	return all, err
}

// mergeFacts adds to what was told of a thing what was told later.
func mergeFacts(earlier, later proto.Message) proto.Message {
	switch later := later.(type) {
	case *ahtiv1.Entity:
		both := proto.CloneOf(earlier.(*ahtiv1.Entity)) //nolint:errcheck,forcetypeassert // of the same table
		both.DeletedAt, both.DeleteReason = nil, ""
		proto.Merge(both, later)
		// To be named takes back an end that came before, and nothing of what exists.
		if later.GetState() == ahtiv1.EntityState_ENTITY_STATE_UNSPECIFIED && both.GetState() == ahtiv1.EntityState_ENTITY_STATE_DELETED {
			both.State = later.GetState()
		}
		return both
	case *ahtiv1.Relationship:
		both := proto.CloneOf(earlier.(*ahtiv1.Relationship)) //nolint:errcheck,forcetypeassert // of the same table
		began := both.GetCreatedAt()
		both.CreatedAt, both.DeletedAt, both.DeleteReason = nil, nil, ""
		proto.Merge(both, later)
		both.State = later.GetState()
		if both.CreatedAt == nil || began != nil && began.AsTime().Before(both.GetCreatedAt().AsTime()) {
			both.CreatedAt = began
		}
		return both
	}
	return later
}

// table is one of those of facts.
type table struct {
	name, key string
	empty     func() proto.Message
}

func factTables() []table {
	return []table{
		{"entities", "entity", func() proto.Message { return &ahtiv1.Entity{} }},
		{"relationships", "relationship", func() proto.Message { return &ahtiv1.Relationship{} }},
	}
}

// in puts the names of a table in a query: %[1]s is its own, %[2]s that of its
// key.
func (t table) in(query string) string { return fmt.Sprintf(query, t.name, t.key) }

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
		to, err := s.end(ctx, "postings", from, 5*chunk)
		if err != nil || !to.Valid {
			return err
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

// late is what part of the events may be older than they should be by the order in
// which they came, without holding up the deletion of all that is as old: one of so
// many.
const late = 1000

// DeleteShare deletes the oldest share of the events, by the order in which they
// came, and everything that is older than nearly all that is left.
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
	left := high.Int64 - low.Int64 - events
	err = s.read.QueryRowContext(ctx, s.placeholders("SELECT at FROM events ORDER BY at LIMIT 1 OFFSET ?"), max(left, 0)/late).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return events, nil
	} else if err != nil {
		return events, fmt.Errorf("find the oldest event: %w", err)
	}
	old, err := s.DeleteBefore(ctx, time.Unix(0, at.Int64))
	return events + old, err
}
