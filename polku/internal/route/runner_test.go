package route_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/journal"
	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

// recorder is a destination that does what a test tells it.
type recorder struct {
	mu     sync.Mutex
	ids    []string
	closed bool
	answer func(events []*eventv1.Event) error // may be nil
	hang   chan struct{}                       // may be nil
}

func (r *recorder) Deliver(ctx context.Context, events []*eventv1.Event) error {
	if r.hang != nil {
		select {
		case <-r.hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answer != nil {
		if err := r.answer(events); err != nil {
			return err
		}
	}
	for _, e := range events {
		r.ids = append(r.ids, e.GetId())
	}
	return nil
}

func (r *recorder) Close() error {
	r.closed = true
	return nil
}

func (r *recorder) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ids)
}

type rig struct {
	*route.Runner
	journal  *journal.Journal
	registry *prometheus.Registry
	stop     func()
}

// start runs routes over the log in dir.
func start(t *testing.T, dir string, destinations map[string]route.Destination) *rig {
	t.Helper()
	return startWith(t, journal.Config{Dir: dir, Retention: time.Hour}, destinations)
}

// startWith runs routes over a log.
func startWith(t *testing.T, config journal.Config, destinations map[string]route.Destination) *rig {
	t.Helper()
	r := &rig{registry: prometheus.NewRegistry()}
	var err error
	config.MaxBytes, config.Registry, config.Log = 64<<20, r.registry, slog.New(slog.DiscardHandler)
	r.journal, err = journal.Open(t.Context(), config)
	require.NoError(t, err)
	r.Runner, err = route.New(route.Config{
		Journal: r.journal, Destinations: destinations, Registry: r.registry, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, r.journal.Close())
	})
	t.Cleanup(r.stop)
	return r
}

// store stores one batch of events with ids from a prefix, and returns the ids.
func (r *rig) store(t *testing.T, prefix string, n int, edit func(e *eventv1.Event)) []string {
	t.Helper()
	payload := &polkuv1.EventPayload{}
	var ids []string
	for i := range n {
		e := &eventv1.Event{Id: fmt.Sprintf("%s-%d", prefix, i)}
		if edit != nil {
			edit(e)
		}
		payload.Events = append(payload.Events, e)
		ids = append(ids, e.GetId())
	}
	body, err := proto.Marshal(&polkuv1.IngestBatch{Source: "s", Payload: &polkuv1.IngestBatch_Events{Events: payload}})
	require.NoError(t, err)
	receipt, err := r.journal.Append(t.Context(), prefix, body)
	require.NoError(t, err)
	require.NoError(t, receipt.Wait())
	return ids
}

func delivers(t *testing.T, r *recorder, want []string) {
	t.Helper()
	require.Eventually(t, func() bool { return len(r.got()) >= len(want) }, patience, time.Millisecond)
	require.Equal(t, want, r.got())
}

func TestARouteGoesOnWhereItWas(t *testing.T) {
	dir := t.TempDir()
	first := &recorder{}
	r := start(t, dir, map[string]route.Destination{"a": first})
	var want []string
	for i := range 30 {
		want = append(want, r.store(t, fmt.Sprint("b", i), 100, nil)...)
	}
	delivers(t, first, want)
	r.stop()
	require.True(t, first.closed)

	second := &recorder{}
	r = start(t, dir, map[string]route.Destination{"a": second})
	delivers(t, second, r.store(t, "later", 3, nil))
}

func TestAFailedDeliveryIsRepeatedInOrder(t *testing.T) {
	d := &recorder{}
	failures := 0
	d.answer = func([]*eventv1.Event) error {
		if failures++; failures%3 != 0 {
			return errors.New("no route to host")
		}
		return nil
	}
	r := start(t, t.TempDir(), map[string]route.Destination{"a": d})
	var want []string
	for i := range 5 {
		want = append(want, r.store(t, fmt.Sprint("b", i), 10, nil)...)
	}
	delivers(t, d, want)
	require.Eventually(t, func() bool { return r.Status()[0].Cursor == 5 }, patience, time.Millisecond)
	require.NoError(t, r.Status()[0].Failure)
	require.False(t, r.Status()[0].FailedAt.IsZero())
}

func TestARouteThatHangsHoldsUpNoOtherButTheLog(t *testing.T) {
	stuck, quick := &recorder{hang: make(chan struct{})}, &recorder{}
	r := start(t, t.TempDir(), map[string]route.Destination{"stuck": stuck, "quick": quick})
	want := append(r.store(t, "one", 10, nil), r.store(t, "two", 10, nil)...)
	delivers(t, quick, want)
	require.NoError(t, testutil.GatherAndCompare(r.registry, stringReader(`
# HELP polku_route_lag_messages Messages of the log that a route has not delivered yet.
# TYPE polku_route_lag_messages gauge
polku_route_lag_messages{route="quick"} 0
polku_route_lag_messages{route="stuck"} 2
`), "polku_route_lag_messages"))
	close(stuck.hang)
	delivers(t, stuck, want)
}

func TestRefusedEventsBecomeDeadLetters(t *testing.T) {
	d := &recorder{answer: func(events []*eventv1.Event) error {
		refused := &route.Refused{}
		for i, e := range events {
			if e.GetSeverity() == eventv1.Severity_SEVERITY_CRITICAL {
				refused.Events = append(refused.Events, route.Refusal{Index: i, Reason: "too\nbad \xff"})
			}
		}
		if len(refused.Events) > 0 {
			return refused
		}
		return nil
	}}
	r := start(t, t.TempDir(), map[string]route.Destination{"a": d})
	r.store(t, "bad", 3, func(e *eventv1.Event) {
		if e.GetId() == "bad-1" {
			e.Severity = eventv1.Severity_SEVERITY_CRITICAL
		}
	})
	require.Eventually(t, func() bool { return r.Status()[0].Cursor == 1 }, patience, time.Millisecond)
	var letters []journal.DeadLetter
	require.NoError(t, r.journal.DeadLetters(t.Context(), "a", 10, func(l journal.DeadLetter) error {
		letters = append(letters, l)
		return nil
	}))
	require.Len(t, letters, 1)
	require.Equal(t, "bad-1", letters[0].Event.GetId())
	require.Equal(t, "s", letters[0].Event.GetSource(), "complete")
	require.Equal(t, "a", letters[0].Route)
	require.Equal(t, "too bad \uFFFD", letters[0].Reason)
	delivers(t, d, r.store(t, "good", 1, nil))
}

func TestRouteToNamesTheRoutes(t *testing.T) {
	a, b := &recorder{}, &recorder{}
	r := start(t, t.TempDir(), map[string]route.Destination{"a": a, "b": b})
	r.store(t, "x", 3, func(e *eventv1.Event) {
		switch e.GetId() {
		case "x-0":
			e.RouteTo = []string{"a"}
		case "x-1":
			e.RouteTo = []string{"b", "c"}
		}
	})
	delivers(t, a, []string{"x-0", "x-2"})
	delivers(t, b, []string{"x-1", "x-2"})
}

func TestReplayDeliversASpanAgain(t *testing.T) {
	d := &recorder{}
	r := start(t, t.TempDir(), map[string]route.Destination{"a": d})
	old := r.store(t, "old", 2, nil)
	from := time.Now()
	var span []string
	for i := range 3 {
		span = append(span, r.store(t, fmt.Sprint("span", i), 2, nil)...)
	}
	to := time.Now()
	young := r.store(t, "young", 2, nil)
	all := slices.Concat(old, span, young)
	delivers(t, d, all)

	var last route.Progress
	report := func(p route.Progress) error { last = p; return nil }
	require.NoError(t, r.Replay(t.Context(), "a", from, to, report))
	require.Equal(t, slices.Concat(all, span), d.got())
	require.Equal(t, len(span), last.Events)
	require.EqualValues(t, 5, r.Status()[0].Cursor, "the route stays where it is")

	require.NoError(t, r.Replay(t.Context(), "a", from, time.Now().Add(time.Hour), report))
	require.Equal(t, slices.Concat(all, span, span, young), d.got())
	require.NoError(t, r.Replay(t.Context(), "a", time.Now(), time.Now().Add(time.Hour), report), "there is nothing")
	require.ErrorIs(t, r.Replay(t.Context(), "b", from, to, report), route.ErrNoRoute)
}

func stringReader(s string) *strings.Reader { return strings.NewReader(s) }

// external starts a NATS server with JetStream on loopback and connects to it as
// an operator does.
func external(t *testing.T) (*server.Server, jetstream.JetStream) {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir()})
	require.NoError(t, err)
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	require.True(t, s.ReadyForConnections(patience))
	conn, err := nats.Connect(s.ClientURL())
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	return s, js
}

// An operator deletes single messages, the last of all among them.
func TestReadingEndsWhereTheLastMessageWasDeleted(t *testing.T) {
	s, js := external(t)
	d := &recorder{}
	r := startWith(t, journal.Config{URL: s.ClientURL(), Retention: time.Hour}, map[string]route.Destination{"d": d})
	began := time.Now().Add(-time.Hour)
	var ids []string
	for i := range 3 {
		ids = append(ids, r.store(t, fmt.Sprint("e", i), 1, nil)...)
	}
	delivers(t, d, ids)
	events, err := js.Stream(t.Context(), "POLKU_EVENTS")
	require.NoError(t, err)
	require.NoError(t, events.DeleteMsg(t.Context(), 3))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var recent []uint64
	require.NoError(t, r.journal.Recent(ctx, 1<<20, func(e journal.Entry) error {
		recent = append(recent, e.Sequence)
		return nil
	}))
	require.Equal(t, []uint64{1, 2}, recent)
	require.NoError(t, r.journal.Recent(ctx, 1, func(journal.Entry) error { return nil }))
	require.NoError(t, r.Replay(ctx, "d", began, time.Now().Add(time.Hour), func(route.Progress) error { return nil }))
	delivers(t, d, append(ids, ids[:2]...))
}

// Somebody deletes the stream of an external log. What comes after that begins at
// its first sequence again, and no route may take it for delivered.
func TestAStreamThatIsMadeAnewIsDeliveredFromItsBeginning(t *testing.T) {
	s, js := external(t)
	d := &recorder{}
	config := journal.Config{URL: s.ClientURL(), Retention: time.Nanosecond} // so that all that is passed goes
	r := startWith(t, config, map[string]route.Destination{"d": d})
	reader, err := r.journal.ReadNew(t.Context())
	require.NoError(t, err)
	defer reader.Close()
	for i := range 5 {
		r.store(t, fmt.Sprint("old", i), 1, nil)
		_, err := reader.Next(t.Context())
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return len(d.got()) == 5 }, patience, 10*time.Millisecond)

	for round := range 2 {
		before := d.got()
		if round == 1 { // while nobody runs, too
			r.stop()
		}
		life := r.journal.Life()
		require.NoError(t, js.DeleteStream(t.Context(), "POLKU_EVENTS"))
		if round == 1 {
			r = startWith(t, config, map[string]route.Destination{"d": d})
		} else {
			<-life.Done()
		}
		later := r.store(t, fmt.Sprint("new", round), 1, nil)
		require.Eventually(t, func() bool { return len(d.got()) > len(before) }, patience, 10*time.Millisecond)
		require.Equal(t, append(before, later...), d.got())
		if round == 0 {
			entry, err := reader.Next(t.Context())
			require.NoError(t, err)
			require.EqualValues(t, 1, entry.Sequence)
			require.EqualValues(t, 1, r.Status()[0].Cursor)
		}
	}
}

// The end of an external log is lost, as when its disk is restored from a copy,
// and others fill it with new messages before a route looks. The route may not
// take those for delivered, neither when it starts nor when it runs.
func TestALogThatLostItsEndIsDeliveredFromItsBeginning(t *testing.T) {
	dir, port := t.TempDir(), server.RANDOM_PORT
	boot := func() *server.Server {
		s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir})
		require.NoError(t, err)
		s.Start()
		require.True(t, s.ReadyForConnections(patience))
		address, ok := s.Addr().(*net.TCPAddr)
		require.True(t, ok)
		port = address.Port
		return s
	}
	down := func(s *server.Server) {
		s.Shutdown()
		s.WaitForShutdown()
	}
	events := filepath.Join(dir, "jetstream", "$G", "streams", "POLKU_EVENTS")
	copied := filepath.Join(t.TempDir(), "copy")
	s := boot()
	defer func() { down(s) }()
	d := &recorder{}
	config := journal.Config{URL: s.ClientURL(), Retention: time.Hour}
	r := startWith(t, config, map[string]route.Destination{"d": d})
	for i := range 5 {
		r.store(t, fmt.Sprint("old", i), 1, nil)
	}
	require.Eventually(t, func() bool { return len(d.got()) == 5 }, patience, 10*time.Millisecond)
	for _, running := range []bool{false, true} {
		down(s)
		require.NoError(t, os.RemoveAll(copied))
		require.NoError(t, os.CopyFS(copied, os.DirFS(events)))
		s = boot()
		for i := range 5 {
			r.keep(t, fmt.Sprint("lost", running, i))
		}
		state, err := r.journal.State(t.Context())
		require.NoError(t, err)
		kept := func() bool {
			cursor, err := r.journal.Cursor(t.Context(), "d")
			return err == nil && cursor.Sequence == state.LastSequence
		}
		require.Eventually(t, kept, patience, 10*time.Millisecond)

		if !running {
			r.stop()
		}
		down(s)
		require.NoError(t, os.RemoveAll(events))
		require.NoError(t, os.CopyFS(events, os.DirFS(copied)))
		s = boot()
		other := startWith(t, config, nil)
		var want []string
		for i := range 12 {
			want = append(want, other.keep(t, fmt.Sprint("new", running, i))...)
		}
		other.stop()
		if !running {
			r = startWith(t, config, map[string]route.Destination{"d": d})
		}
		require.Eventually(t, func() bool {
			got := d.got()
			return !slices.ContainsFunc(want, func(id string) bool { return !slices.Contains(got, id) })
		}, patience, 10*time.Millisecond)
	}
}

// keep stores one event, as often as it takes.
func (r *rig) keep(t *testing.T, id string) []string {
	t.Helper()
	payload := &polkuv1.EventPayload{Events: []*eventv1.Event{{Id: id}}}
	body, err := proto.Marshal(&polkuv1.IngestBatch{Source: "s", Payload: &polkuv1.IngestBatch_Events{Events: payload}})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		receipt, err := r.journal.Append(t.Context(), id, body)
		return err == nil && receipt.Wait() == nil
	}, patience, 5*time.Millisecond)
	return []string{id}
}
