package store

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// derived is what follows from events that are stored and is not stored itself
// yet.
type derived struct {
	mu      sync.Mutex
	next    batch // grows
	writing batch // is being written by a checkpoint, or failed to be
}

// batch is what one checkpoint writes.
type batch struct {
	through       int64 // last sequence that it covers; 0 when there is none
	events        int
	postings      map[int64][]Place
	entities      map[factKey]*fact
	relationships map[factKey]*fact
}

type factKey struct{ key, sequence int64 }

type fact struct {
	at             int64
	gone           bool
	source, target int64 // of a relationship
	message        proto.Message
}

func newBatch() batch {
	return batch{postings: map[int64][]Place{}, entities: map[factKey]*fact{}, relationships: map[factKey]*fact{}}
}

func (d *derived) reset() { d.next, d.writing = newBatch(), newBatch() }

// places hands over what is known of an entity, in no order.
func (d *derived) places(key int64, each func(Place)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range []batch{d.writing, d.next} {
		for _, p := range b.postings[key] {
			each(p)
		}
	}
}

// facts are those that no checkpoint has stored.
func (d *derived) facts() (all []Fact) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range []batch{d.writing, d.next} {
		for _, f := range b.entities {
			e, _ := f.message.(*ahtiv1.Entity)
			all = append(all, Fact{At: f.at, Entity: e})
		}
		for _, f := range b.relationships {
			r, _ := f.message.(*ahtiv1.Relationship)
			all = append(all, Fact{At: f.at, Relationship: r})
		}
	}
	return all
}

// Note takes what follows from an event of the log: its place in the index, and
// the facts that became known by it. Events are noted in the order of their
// sequences. It returns how many wait for the next checkpoint.
func (s *Store) Note(r *Record, entities []*ahtiv1.Entity, relationships []*ahtiv1.Relationship) int {
	place, cluster := r.At(), r.Event.GetCluster()
	key := func(ref *ahtiv1.EntityReference) int64 {
		return entityKey(ref.GetType(), clusterOf(ref.GetClusterId(), cluster), ref.GetId())
	}
	s.derived.mu.Lock()
	defer s.derived.mu.Unlock()
	b := &s.derived.next
	b.through = r.Sequence
	b.events++
	for _, k := range keys(r.Event) {
		b.postings[k] = append(b.postings[k], place)
	}
	for _, e := range entities {
		k := entityKey(e.GetType(), clusterOf(e.GetClusterId(), cluster), e.GetId())
		f := &fact{message: e}
		f.at, f.gone = when(e, place.At)
		b.entities[factKey{k, r.Sequence}] = f
	}
	for _, t := range relationships {
		source, target := key(t.GetSource()), key(t.GetTarget())
		f := &fact{source: source, target: target, message: t}
		f.at, f.gone = when(t, place.At)
		b.relationships[factKey{tieKey(t.GetType(), source, target), r.Sequence}] = f
	}
	return b.events
}

// ending is a fact that may tell an end.
type ending interface {
	GetState() ahtiv1.EntityState
	GetDeletedAt() *timestamppb.Timestamp
}

// when is the time that a fact holds from, told by an event of a time, and
// whether it is an end.
func when(fact ending, told int64) (at int64, gone bool) {
	if fact.GetState() != ahtiv1.EntityState_ENTITY_STATE_DELETED {
		return told, false
	}
	if end := fact.GetDeletedAt(); end != nil {
		told = end.AsTime().UnixNano()
	}
	return told, true
}

// tieKey mixes type, source and target.
func tieKey(kind ahtiv1.RelationshipType, source, target int64) int64 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], uint64(source))
	binary.LittleEndian.PutUint64(b[8:], uint64(target))
	return entityKey(ahtiv1.EntityType(kind), "", string(b[:]))
}

// applied is the name of the state that tells how far checkpoints have come.
const applied = "applied"

// Checkpoint stores what was noted. After an error it is kept for the next one.
func (s *Store) Checkpoint(ctx context.Context) error {
	d := &s.derived
	d.mu.Lock()
	if d.writing.through == 0 {
		d.writing, d.next = d.next, newBatch()
	}
	b := d.writing
	d.mu.Unlock()
	if b.through == 0 {
		return nil
	}
	if err := s.inTransaction(ctx, func(t transaction) error { return t.checkpoint(ctx, b) }); err != nil {
		return fmt.Errorf("store the index and facts of %d events: %w", b.events, err)
	}
	d.mu.Lock()
	d.writing = newBatch()
	d.mu.Unlock()
	return nil
}

func (t transaction) checkpoint(ctx context.Context, b batch) error {
	var values []any
	for _, key := range slices.Sorted(maps.Keys(b.postings)) { // in the order of the table
		// A copy: readers look at the places meanwhile.
		places := slices.Clone(b.postings[key])
		body := encodePlaces(places)
		values = append(values, key, b.through, places[0].At, places[len(places)-1].At, body)
	}
	// The same rows again after a commit that did happen.
	err := t.insert(ctx, "INSERT INTO postings (entity, checkpoint, first_at, last_at, body) VALUES ", 5, values,
		" ON CONFLICT (entity, checkpoint) DO UPDATE SET body = excluded.body")
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	if values, err = facts(b.entities); err != nil {
		return err
	}
	err = t.insert(ctx, "INSERT INTO entities (entity, sequence, type, at, gone, body) VALUES ", 6, values,
		" ON CONFLICT (entity, sequence) DO UPDATE SET body = excluded.body")
	if err != nil {
		return fmt.Errorf("entities: %w", err)
	}
	if values, err = facts(b.relationships); err != nil {
		return err
	}
	err = t.insert(ctx, "INSERT INTO relationships (relationship, sequence, at, gone, source, target, body) VALUES ", 7, values,
		" ON CONFLICT (relationship, sequence) DO UPDATE SET body = excluded.body")
	if err != nil {
		return fmt.Errorf("relationships: %w", err)
	}
	return t.set(ctx, applied, binary.BigEndian.AppendUint64(nil, uint64(b.through)))
}

// facts are the values of rows, in the order of the table.
func facts(all map[factKey]*fact) ([]any, error) {
	var values []any
	order := slices.SortedFunc(maps.Keys(all), func(a, b factKey) int {
		return comparePlaces(Place{a.key, a.sequence}, Place{b.key, b.sequence})
	})
	for _, k := range order {
		f := all[k]
		body, err := proto.Marshal(f.message)
		if err != nil {
			return nil, fmt.Errorf("encode a fact: %w", err)
		}
		switch m := f.message.(type) {
		case *ahtiv1.Entity:
			values = append(values, k.key, k.sequence, int64(m.GetType()), f.at, number(f.gone), body)
		case *ahtiv1.Relationship:
			values = append(values, k.key, k.sequence, f.at, number(f.gone), f.source, f.target, body)
		}
	}
	return values, nil
}

func (t transaction) set(ctx context.Context, name string, value []byte) error {
	_, err := t.exec(ctx, "INSERT INTO state (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
	if err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	return nil
}

// SetState stores a value under a name.
func (s *Store) SetState(ctx context.Context, name string, value []byte) error {
	return s.inTransaction(ctx, func(t transaction) error { return t.set(ctx, name, value) })
}

// State returns the value under a name; nil when there is none.
func (s *Store) State(ctx context.Context, name string) ([]byte, error) {
	var value []byte
	err := s.query(ctx, "SELECT value FROM state WHERE name = ?", []any{name}, func(rows *sql.Rows) error { return rows.Scan(&value) })
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return value, nil
}

// Applied is the last sequence that checkpoints cover.
func (s *Store) Applied(ctx context.Context) (int64, error) {
	value, err := s.State(ctx, applied)
	if err != nil || len(value) != 8 {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(value)), nil
}

// Fact is an entity or a relationship as it became known at a time.
type Fact struct {
	At           int64 // nanoseconds since the Unix epoch
	Entity       *ahtiv1.Entity
	Relationship *ahtiv1.Relationship
}

// Facts hands over all facts that were noted, in no order and some twice.
func (s *Store) Facts(ctx context.Context, each func(Fact)) error {
	// Memory before the database: what a checkpoint moves meanwhile is then found
	// twice and not missed.
	for _, f := range s.derived.facts() {
		each(f)
	}
	// Nobody tells the end of containers and units: they are there while something is
	// heard of them. That is no news, so no fact tells it; the newest place in the
	// index does. It is looked up once an entity, with the newest version: a thing
	// may have thousands.
	err := s.query(ctx, `SELECT e.at, e.body, CASE WHEN e.type IN (?, ?) AND NOT EXISTS (SELECT 1 FROM entities n WHERE n.entity = e.entity AND n.sequence > e.sequence)
		THEN CASE WHEN NOT EXISTS (SELECT 1 FROM entities g WHERE g.entity = e.entity AND g.gone = 1)
		THEN (SELECT p.last_at FROM postings p WHERE p.entity = e.entity ORDER BY p.checkpoint DESC LIMIT 1) END END FROM entities e`, []any{
		int64(ahtiv1.EntityType_ENTITY_TYPE_CONTAINER), int64(ahtiv1.EntityType_ENTITY_TYPE_SERVICE_UNIT),
	}, func(rows *sql.Rows) error {
		f, body, heard := Fact{Entity: &ahtiv1.Entity{}}, sql.RawBytes{}, sql.NullInt64{}
		if err := rows.Scan(&f.At, &body, &heard); err != nil {
			return err
		}
		if err := proto.Unmarshal(body, f.Entity); err != nil {
			return fmt.Errorf("decode an entity: %w", err)
		}
		each(f)
		if e := f.Entity; heard.Int64 > f.At {
			each(Fact{At: heard.Int64, Entity: &ahtiv1.Entity{Type: e.GetType(), Id: e.GetId(), ClusterId: e.GetClusterId()}})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read entities: %w", err)
	}
	err = s.query(ctx, "SELECT at, body FROM relationships", nil, func(rows *sql.Rows) error {
		f, body := Fact{Relationship: &ahtiv1.Relationship{}}, sql.RawBytes{}
		if err := rows.Scan(&f.At, &body); err != nil {
			return err
		}
		if err := proto.Unmarshal(body, f.Relationship); err != nil {
			return fmt.Errorf("decode a relationship: %w", err)
		}
		each(f)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read relationships: %w", err)
	}
	return nil
}
