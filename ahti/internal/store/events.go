package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/causality"
)

// Record is an event on its way into the log.
type Record struct {
	Event *ahtiv1.AhtiEvent
	// Body is the event encoded.
	Body []byte
	// Relevance says for how long the engine needs the event again.
	Relevance causality.Relevance
	// Sequence is set by Append: the place in the log, or 0 for an event that
	// was stored already.
	Sequence int64
}

// ErrUnsure is returned while the store does not know what the last commit
// became of. Missed tells.
var ErrUnsure = errors.New("the last commit failed without an answer")

// Append stores the records that are not stored yet, in their order, in one
// transaction that is durable when it returns. After an error nothing of them
// was stored as far as is known; call Missed before the next Append.
func (s *Store) Append(ctx context.Context, records []*Record) error {
	if s.unsure {
		return ErrUnsure
	}
	next := s.last
	err := s.inTransaction(ctx, func(t transaction) error {
		stored, err := t.stored(ctx, records)
		if err != nil {
			return err
		}
		values := make([]any, 0, len(records)*eventColumns)
		for _, r := range records {
			e := r.Event
			if stored[e.GetId()] {
				r.Sequence = 0
				continue
			}
			stored[e.GetId()] = true
			next++
			r.Sequence = next
			values = append(values, next, e.GetId(), e.GetTimestamp().AsTime().UnixNano(), e.GetSubtype(), e.GetSource(),
				e.GetCluster(), int64(e.GetSeverity()), int64(r.Relevance), r.Body)
		}
		return t.insert(ctx, "INSERT INTO events (sequence, id, at, kind, source, cluster, severity, relevant, body) VALUES ", eventColumns, values, "")
	})
	if err != nil {
		s.unsure = true
		return fmt.Errorf("store %d events: %w", len(records), err)
	}
	s.last = next
	return nil
}

const eventColumns = 9

// number is how both databases hold a bool in an integer column.
func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// stored tells which of the records' ids are in the log.
func (t transaction) stored(ctx context.Context, records []*Record) (map[string]bool, error) {
	found := make(map[string]bool, len(records))
	for _, n := range bulk {
		for len(records) >= n {
			query := "SELECT id FROM events WHERE id IN (" + strings.Repeat(",?", n)[1:] + ")"
			ids := make([]any, n)
			for i, r := range records[:n] {
				ids[i] = r.Event.GetId()
			}
			records = records[n:]
			if err := t.ids(ctx, query, ids, found); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

func (t transaction) ids(ctx context.Context, query string, args []any, found map[string]bool) (err error) {
	stmt, err := t.statement(ctx, query)
	if err != nil {
		return err
	}
	rows, err := stmt.QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return err
		}
		found[id] = true
	}
	return rows.Err()
}

// Missed returns the events that a commit stored although Append returned an
// error, as when the connection to the database broke before the answer came.
func (s *Store) Missed(ctx context.Context) ([]*Record, error) {
	if !s.unsure {
		return nil, nil
	}
	var missed []*Record
	last := s.last
	err := s.After(ctx, last, func(r *Record) error {
		missed = append(missed, r)
		last = r.Sequence
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.last, s.unsure = last, false
	return missed, nil
}

// After hands over the events behind a sequence in their order. Their Relevance
// is not set.
func (s *Store) After(ctx context.Context, sequence int64, each func(*Record) error) error {
	err := s.query(ctx, "SELECT sequence, body FROM events WHERE sequence > ? ORDER BY sequence", []any{sequence}, records(each))
	if err != nil {
		return fmt.Errorf("read the events after %d: %w", sequence, err)
	}
	return nil
}

// Need chooses relevant events. Zero values choose all.
type Need struct {
	Relevance    causality.Relevance // one of those that are relevant
	Since, Until time.Time           // until is excluded
	Through      int64               // the last sequence
}

// Relevant hands over relevant events in no order, without decoding them: Event
// is nil.
func (s *Store) Relevant(ctx context.Context, need Need, each func(*Record) error) error {
	// The first condition is that of the index.
	query, args := "SELECT sequence, body FROM events WHERE relevant > 0 AND relevant = ?", []any{int64(need.Relevance)}
	if !need.Since.IsZero() {
		query, args = query+" AND at >= ?", append(args, need.Since.UnixNano())
	}
	if !need.Until.IsZero() {
		query, args = query+" AND at < ?", append(args, need.Until.UnixNano())
	}
	if need.Through != 0 {
		query, args = query+" AND sequence <= ?", append(args, need.Through)
	}
	if err := s.query(ctx, query, args, encoded(each)); err != nil {
		return fmt.Errorf("read the relevant events: %w", err)
	}
	return nil
}

func encoded(each func(*Record) error) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		r := &Record{}
		if err := rows.Scan(&r.Sequence, &r.Body); err != nil {
			return err
		}
		return each(r)
	}
}

func records(each func(*Record) error) func(*sql.Rows) error {
	return encoded(func(r *Record) error {
		if err := r.decode(); err != nil {
			return err
		}
		return each(r)
	})
}

func (r *Record) decode() error {
	r.Event = &ahtiv1.AhtiEvent{}
	if err := proto.Unmarshal(r.Body, r.Event); err != nil {
		return fmt.Errorf("decode event %d: %w", r.Sequence, err)
	}
	return nil
}

// Event returns the event with an id, or ErrNotFound.
func (s *Store) Event(ctx context.Context, id string) (*ahtiv1.AhtiEvent, error) {
	var found *ahtiv1.AhtiEvent
	err := s.query(ctx, "SELECT sequence, body FROM events WHERE id = ?", []any{id}, records(func(r *Record) error {
		found = r.Event
		return nil
	}))
	if err != nil {
		return nil, fmt.Errorf("read event %s: %w", id, err)
	}
	if found == nil {
		return nil, fmt.Errorf("event %s: %w", id, ErrNotFound)
	}
	return found, nil
}

// Place is where an event stands in a timeline: by time, then by sequence.
type Place struct {
	At       int64 // nanoseconds since the Unix epoch
	Sequence int64
}

// before orders places.
func (p Place) before(q Place) bool {
	return p.At < q.At || p.At == q.At && p.Sequence < q.Sequence
}

// Span chooses a part of a timeline: from Since on, up to Until, itself
// excluded, and only what stands behind After. A page of it has Limit events at
// most, and Bytes of them encoded, if that is not 0, but one event at least.
type Span struct {
	Since, Until time.Time
	After        Place
	Limit        int
	Bytes        int
}

// page is a part of a timeline as it fills up.
type page struct {
	span   Span
	events []*Record
	bytes  int
	more   bool // there is an event that has no room
}

// add decodes an event into the page if there is room. It returns errEnough if not.
func (p *page) add(r *Record) error {
	p.bytes += len(r.Body)
	if n := len(p.events); n == p.span.Limit || n > 0 && p.span.Bytes > 0 && p.bytes > p.span.Bytes {
		p.more = true
		return errEnough
	}
	if err := r.decode(); err != nil {
		return err
	}
	p.events = append(p.events, r)
	return nil
}

// next is the place to go on from; nil when there is nothing more.
func (p *page) next() *Place {
	if !p.more {
		return nil
	}
	place := p.events[len(p.events)-1].At()
	return &place
}

// rowsAtOnce is how many rows a query asks for at a time: a page of large events is
// full long before its limit, and what a database sends then is for nothing.
const rowsAtOnce = 1000

// start is the first place of the span.
func (s Span) start() Place {
	if since := (Place{At: s.Since.UnixNano()}); s.After.before(since) {
		return Place{At: since.At, Sequence: -1}
	}
	return s.After
}

// Timeline returns events by time, of one cluster or of all when it is empty,
// and the place to go on from if there are more.
func (s *Store) Timeline(ctx context.Context, cluster string, span Span) ([]*Record, *Place, error) {
	query := "SELECT sequence, body FROM events WHERE (at, sequence) > (?, ?) AND at < ?"
	if cluster != "" {
		query += " AND cluster = ?"
	}
	query += " ORDER BY at, sequence LIMIT ?"
	p := &page{span: span}
	for start := span.start(); ; {
		args := []any{start.At, start.Sequence, span.Until.UnixNano()}
		if cluster != "" {
			args = append(args, cluster)
		}
		asked := min(span.Limit+1-len(p.events), rowsAtOnce)
		got := 0
		err := s.query(ctx, query, append(args, asked), encoded(func(r *Record) error {
			got++
			return p.add(r)
		}))
		if err != nil && !errors.Is(err, errEnough) {
			return nil, nil, fmt.Errorf("read the timeline: %w", err)
		}
		if p.more || got < asked {
			return p.events, p.next(), nil
		}
		start = p.events[len(p.events)-1].At()
	}
}

// At is the place of a record in a timeline.
func (r *Record) At() Place {
	return Place{At: r.Event.GetTimestamp().AsTime().UnixNano(), Sequence: r.Sequence}
}
