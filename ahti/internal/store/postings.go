package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// The index of entities is a list of places for each entity and checkpoint: one
// row for thousands of events, where a row an event would cost more than the
// event itself.

// entityKey is what the database calls an entity. Two entities may have the same
// key by chance: who reads by a key compares what was found.
func entityKey(kind ahtiv1.EntityType, cluster, id string) int64 {
	h := xxhash.New()
	var head [10]byte
	_, _ = h.Write(binary.AppendUvarint(binary.AppendUvarint(head[:0], uint64(kind)), uint64(len(cluster)))) // never fails
	_, _ = h.WriteString(cluster)
	_, _ = h.WriteString(id)
	return int64(h.Sum64())
}

// clusterOf is the cluster of an entity that was told in an event of a cluster.
func clusterOf(own, event string) string { return cmp.Or(own, event) }

// keys are the entities of an event.
func keys(e *ahtiv1.AhtiEvent) []int64 {
	all := make([]int64, len(e.GetEntities()))
	for i, entity := range e.GetEntities() {
		all[i] = entityKey(entity.GetType(), clusterOf(entity.GetClusterId(), e.GetCluster()), entity.GetId())
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// encodePlaces encodes places, which it sorts.
func encodePlaces(places []Place) []byte {
	slices.SortFunc(places, comparePlaces)
	b := make([]byte, 0, 8*len(places))
	var last Place
	for _, p := range places {
		b = binary.AppendUvarint(b, uint64(p.At-last.At))
		b = binary.AppendVarint(b, p.Sequence-last.Sequence)
		last = p
	}
	return b
}

var errPostings = errors.New("the index of entities is damaged: restore a backup of the store")

// decodePlaces hands over places in their order until each returns false.
func decodePlaces(b []byte, each func(Place) bool) error {
	var last Place
	for len(b) > 0 {
		at, n := binary.Uvarint(b)
		if n <= 0 {
			return errPostings
		}
		sequence, m := binary.Varint(b[n:])
		if m <= 0 {
			return errPostings
		}
		b = b[n+m:]
		last.At += int64(at)
		last.Sequence += sequence
		if !each(last) {
			return nil
		}
	}
	return nil
}

func comparePlaces(a, b Place) int {
	return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Sequence, b.Sequence))
}

// first collects the first places of a span.
type first struct {
	span   Span
	start  Place
	places []Place
	bound  Place // nothing behind it counts any more; zero while that is not known
}

// add takes a place and says whether one behind it may still count.
func (f *first) add(p Place) bool {
	if p.At >= f.span.Until.UnixNano() || f.bound != (Place{}) && f.bound.before(p) {
		return false
	}
	if f.start.before(p) {
		f.places = append(f.places, p)
	}
	// Twice as many before sorting, so that sorting costs little an entry.
	if len(f.places) > 2*(f.span.Limit+1) {
		f.sort()
	}
	return true
}

// sort keeps what the span asks for and one more, if there is more.
func (f *first) sort() {
	slices.SortFunc(f.places, comparePlaces)
	f.places = slices.Compact(f.places)
	if len(f.places) > f.span.Limit {
		f.places = f.places[:f.span.Limit+1]
		f.bound = f.places[f.span.Limit]
	}
}

// EntityTimeline returns the events about any of some entities by time, and
// the place to go on from if there are more.
func (s *Store) EntityTimeline(ctx context.Context, refs []*ahtiv1.EntityReference, span Span) ([]*Record, *Place, error) {
	found := &first{span: span, start: span.start()}
	for _, ref := range refs {
		key := entityKey(ref.GetType(), ref.GetClusterId(), ref.GetId())
		// Memory before the database: what a checkpoint moves meanwhile is then
		// found twice and not missed.
		s.derived.places(key, func(p Place) { found.add(p) })
		err := s.query(ctx, "SELECT body FROM postings WHERE entity = ? AND last_at >= ? AND first_at < ?",
			[]any{key, found.start.At, span.Until.UnixNano()}, func(rows *sql.Rows) error {
				var body sql.RawBytes
				if err := rows.Scan(&body); err != nil {
					return err
				}
				return decodePlaces(body, found.add)
			})
		if err != nil {
			return nil, nil, fmt.Errorf("read the index of %s: %w", ref.GetId(), err)
		}
	}
	found.sort()
	p := &page{span: span}
	if err := s.at(ctx, found.places, p); err != nil {
		return nil, nil, err
	}
	next := p.next()
	if n := len(found.places); next == nil && n > span.Limit { // some of their events are gone
		next = &found.places[n-1]
	}
	return slices.DeleteFunc(p.events, func(r *Record) bool { return !about(r.Event, refs) }), next, nil
}

// about says whether an event is about one of some entities.
func about(e *ahtiv1.AhtiEvent, refs []*ahtiv1.EntityReference) bool {
	return slices.ContainsFunc(e.GetEntities(), func(x *ahtiv1.Entity) bool {
		return slices.ContainsFunc(refs, func(ref *ahtiv1.EntityReference) bool {
			return x.GetId() == ref.GetId() && x.GetType() == ref.GetType() && clusterOf(x.GetClusterId(), e.GetCluster()) == ref.GetClusterId()
		})
	})
}

// at reads the events at places into a page, in their order, until it is full. An
// event that is gone by now is left out.
func (s *Store) at(ctx context.Context, places []Place, p *page) error {
	for _, n := range bulk {
		query := "SELECT sequence, body FROM events WHERE sequence IN (" + strings.Repeat(",?", n)[1:] + ")"
		for len(places) >= n {
			args, bodies := make([]any, n), make(map[int64]*Record, n)
			for i, place := range places[:n] {
				args[i] = place.Sequence
			}
			err := s.query(ctx, query, args, encoded(func(r *Record) error {
				bodies[r.Sequence] = r
				return nil
			}))
			for _, place := range places[:n] {
				if r := bodies[place.Sequence]; r != nil && err == nil {
					err = p.add(r)
				}
			}
			if errors.Is(err, errEnough) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read events of an entity: %w", err)
			}
			places = places[n:]
		}
	}
	return nil
}
