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

// SaveIncidents stores the last state of incidents and removes those that
// turned out to be parts of others.
func (s *Store) SaveIncidents(ctx context.Context, changed []*ahtiv1.Incident, removed []string) error {
	if len(changed)+len(removed) == 0 {
		return nil
	}
	var values []any
	for _, i := range changed {
		body, err := proto.Marshal(i)
		if err != nil {
			return fmt.Errorf("encode incident %s: %w", i.GetId(), err)
		}
		values = append(values, i.GetId(), i.GetCluster(), int64(i.GetState()),
			i.GetStartedAt().AsTime().UnixNano(), i.GetLastSeenAt().AsTime().UnixNano(), body)
	}
	err := s.inTransaction(ctx, func(t transaction) error {
		for _, id := range removed {
			if _, err := t.exec(ctx, "DELETE FROM incidents WHERE id = ?", id); err != nil {
				return err
			}
		}
		return t.insert(ctx, "INSERT INTO incidents (id, cluster, state, started_at, last_seen_at, body) VALUES ", 6, values,
			` ON CONFLICT (id) DO UPDATE SET cluster = excluded.cluster, state = excluded.state, started_at = excluded.started_at,
			last_seen_at = excluded.last_seen_at, body = excluded.body`)
	})
	if err != nil {
		return fmt.Errorf("store %d incidents: %w", len(values)/6, err)
	}
	return nil
}

// Incident returns the last state of an incident, or ErrNotFound.
func (s *Store) Incident(ctx context.Context, id string) (*ahtiv1.Incident, error) {
	var found *ahtiv1.Incident
	err := s.query(ctx, "SELECT body FROM incidents WHERE id = ?", []any{id}, incidents(func(i *ahtiv1.Incident) bool {
		found = i
		return true
	}))
	if err != nil {
		return nil, fmt.Errorf("read incident %s: %w", id, err)
	}
	if found == nil {
		return nil, fmt.Errorf("incident %s: %w", id, ErrNotFound)
	}
	return found, nil
}

// IncidentPlace is where an incident stands in a list: the newest start first,
// then by id.
type IncidentPlace struct {
	StartedAt int64 // nanoseconds since the Unix epoch
	ID        string
}

// IncidentFilter chooses incidents. Zero values choose all.
type IncidentFilter struct {
	SeenSince   time.Time
	BeganBefore time.Time
	Cluster     string
	State       ahtiv1.IncidentState
	After       *IncidentPlace
}

// Incidents hands over incidents, the newest first, until each returns false.
func (s *Store) Incidents(ctx context.Context, f IncidentFilter, each func(*ahtiv1.Incident) bool) error {
	query, args := "SELECT body FROM incidents WHERE 1 = 1", []any{}
	where := func(condition string, values ...any) {
		query += " AND " + condition
		args = append(args, values...)
	}
	if !f.SeenSince.IsZero() {
		where("last_seen_at >= ?", f.SeenSince.UnixNano())
	}
	if !f.BeganBefore.IsZero() {
		where("started_at < ?", f.BeganBefore.UnixNano())
	}
	if f.Cluster != "" {
		where("cluster = ?", f.Cluster)
	}
	if f.State != ahtiv1.IncidentState_INCIDENT_STATE_UNSPECIFIED {
		// In the query itself, so that the index of the open ones serves.
		where(fmt.Sprintf("state = %d", f.State))
	}
	if f.After != nil {
		where("(started_at < ? OR started_at = ? AND id > ?)", f.After.StartedAt, f.After.StartedAt, f.After.ID)
	}
	if err := s.query(ctx, query+" ORDER BY started_at DESC, id", args, incidents(each)); err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("list incidents: %w", err)
	}
	return nil
}

// errEnough ends a query early.
var errEnough = errors.New("enough")

func incidents(each func(*ahtiv1.Incident) bool) func(*sql.Rows) error {
	return func(rows *sql.Rows) error {
		var body sql.RawBytes
		if err := rows.Scan(&body); err != nil {
			return err
		}
		i := &ahtiv1.Incident{}
		if err := proto.Unmarshal(body, i); err != nil {
			return fmt.Errorf("decode an incident: %w", err)
		}
		if !each(i) {
			return errEnough
		}
		return nil
	}
}
