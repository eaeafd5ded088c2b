package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yairfalse/tapio/polku/internal/journal"
)

// trimEvery is how often the log is trimmed.
const trimEvery = 2 * time.Second

// Config says which routes there are.
type Config struct {
	Journal *journal.Journal
	// Destinations by the names of their routes. A name is kept as the key of a
	// cursor: a route that is named otherwise begins anew.
	Destinations map[string]Destination
	Registry     prometheus.Registerer
	Log          *slog.Logger
}

// Runner runs the routes.
type Runner struct {
	journal *journal.Journal
	log     *slog.Logger
	routes  []*route // sorted by name
}

// names are what route_to, a subject and a key of JetStream can hold.
var names = regexp.MustCompile(`^[a-z0-9]([-a-z0-9_]{0,61}[a-z0-9])?$`)

// New prepares the routes.
func New(config Config) (*Runner, error) {
	m, err := newMetrics(config.Registry)
	if err != nil {
		return nil, err
	}
	r := &Runner{journal: config.Journal, log: config.Log}
	for name, destination := range config.Destinations {
		if !names.MatchString(name) {
			return nil, fmt.Errorf("route %q: use at most 63 lower-case letters, digits and dashes as the name", name)
		}
		r.routes = append(r.routes, &route{
			name: name, destination: destination, journal: config.Journal, log: config.Log, metrics: m.of(name),
		})
	}
	slices.SortFunc(r.routes, func(a, b *route) int { return strings.Compare(a.name, b.name) })
	return r, config.Registry.Register(&lag{r})
}

// Run delivers until ctx ends, then closes the destinations.
func (r *Runner) Run(ctx context.Context) error {
	var running sync.WaitGroup
	for _, route := range r.routes {
		running.Go(func() { route.run(ctx) })
	}
	if len(r.routes) == 0 {
		r.log.Warn("there are no routes: events go undelivered when they are older than --log-retention or the log needs their room")
	}
	running.Go(func() { r.trim(ctx) })
	running.Wait()
	var errs []error
	for _, route := range r.routes {
		if err := route.destination.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close route %s: %w", route.name, err))
		}
	}
	return errors.Join(errs...)
}

// trim removes from the log what every route has passed and nobody will replay.
func (r *Runner) trim(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		passed, known := r.passed()
		if !known {
			continue
		}
		if err := r.journal.Trim(ctx, passed...); err != nil && ctx.Err() == nil {
			r.log.Warn("the log was not trimmed", "error", err)
		}
	}
}

// passed is how far each route is; not known until each has read its cursor.
func (r *Runner) passed() (passed []journal.Cursor, known bool) {
	for _, route := range r.routes {
		route.mu.Lock()
		if !route.started {
			route.mu.Unlock()
			return nil, false
		}
		passed = append(passed, route.passed)
		route.mu.Unlock()
	}
	return passed, true
}

// Status is how one route stands.
type Status struct {
	Name string
	// Cursor is the last entry of the log that was delivered.
	Cursor uint64
	// OldestPending is when the oldest entry that is in delivery was stored;
	// zero when none is.
	OldestPending time.Time
	// Failure is why the last delivery failed; nil after one that did not.
	Failure  error
	FailedAt time.Time
}

// Status returns how each route stands.
func (r *Runner) Status() []Status {
	statuses := make([]Status, 0, len(r.routes))
	for _, route := range r.routes {
		route.mu.Lock()
		statuses = append(statuses, Status{
			Name: route.name, Cursor: route.passed.Sequence, OldestPending: route.pending,
			Failure: route.failure, FailedAt: route.failed,
		})
		route.mu.Unlock()
	}
	return statuses
}

// ErrNoRoute says that there is no route of a name.
var ErrNoRoute = errors.New("no such route")

// Progress is how far a replay is.
type Progress struct {
	Events  int       // delivered, or refused and buried
	Through time.Time // when the last of them was stored
	Failure error     // of the last try; it is repeated
}

// Replay delivers again what was stored in [from, to) to the destination of a
// route, in the order of the log. It ends with what the log holds when it is
// called. The live deliveries of the route go on beside it, and the route's
// cursor stays where it is. report is called with each step.
func (r *Runner) Replay(ctx context.Context, name string, from, to time.Time, report func(Progress) error) error {
	i := slices.IndexFunc(r.routes, func(x *route) bool { return x.name == name })
	if i < 0 {
		return fmt.Errorf("%w: %q: %s", ErrNoRoute, name, r.known())
	}
	state, err := r.journal.State(ctx)
	if err != nil {
		return err
	}
	if state.Messages == 0 || state.LastTime.Before(from) {
		return nil
	}
	reader := r.journal.ReadSince(from)
	defer reader.Close()
	if empty, err := reader.Empty(ctx); err != nil || empty {
		return err
	}
	return r.routes[i].replay(ctx, reader, to, state.LastSequence, report)
}

// known names the routes that there are.
func (r *Runner) known() string {
	if len(r.routes) == 0 {
		return "the gateway has none"
	}
	found := make([]string, 0, len(r.routes))
	for _, route := range r.routes {
		found = append(found, route.name)
	}
	return "use one of " + strings.Join(found, ", ")
}

func (r *route) replay(ctx context.Context, reader *journal.Reader, to time.Time, last uint64, report func(Progress) error) error {
	var p Progress
	var reported error
	tell := func() {
		if err := report(p); err != nil && reported == nil {
			reported = err
		}
	}
	for {
		entry, err := reader.Next(ctx)
		if err != nil {
			return err
		}
		if entry.Sequence > last || !entry.Time.Before(to) {
			return reported
		}
		events := r.decode(entry).events
		for part := range slices.Chunk(events, maxEvents) {
			if err := r.part(ctx, part, func(err error) {
				p.Failure = err
				if err != nil {
					tell()
				}
			}); err != nil {
				return err
			}
		}
		p.Events, p.Through = p.Events+len(events), entry.Time
		tell()
		if reported != nil || entry.Sequence == last || entry.Behind == 0 {
			return reported
		}
	}
}
