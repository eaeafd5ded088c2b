package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"
	_ "modernc.org/sqlite" // the driver "sqlite"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// named is how many ids a verdict names of each kind.
const named = 10

// verdict is what is wrong.
type verdict struct {
	counts map[string]int
	ids    map[string][]string
}

func newVerdict() *verdict { return &verdict{counts: map[string]int{}, ids: map[string][]string{}} }

func (v *verdict) wrong(what, id string) {
	v.counts[what]++
	if len(v.ids[what]) < named {
		v.ids[what] = append(v.ids[what], id)
	}
}

// err tells everything that is wrong, or is nil.
func (v *verdict) err() error {
	var errs []error
	for what, n := range v.counts {
		errs = append(errs, fmt.Errorf("%s: %d, the first: %s", what, n, strings.Join(v.ids[what], " ")))
	}
	return errors.Join(errs...)
}

// tally counts the copies of each event.
type tally struct {
	books []book
	seen  [][]uint8 // by source and number
}

func newTally(books []book) *tally {
	t := &tally{books: books}
	for _, b := range books {
		t.seen = append(t.seen, make([]uint8, b.Events+1))
	}
	return t
}

// count counts an id and tells its source and number; ok is false for an id that
// nobody has sent.
func (t *tally) count(id string) (source, number int, ok bool) {
	for i, b := range t.books {
		if n := b.number(id); n > 0 {
			if t.seen[i][n] < 255 {
				t.seen[i][n]++
			}
			return i, n, true
		}
	}
	return 0, 0, false
}

// judge adds what is missing and what is there more than once.
func (t *tally) judge(v *verdict) {
	for i, b := range t.books {
		for n := 1; n <= b.Events; n++ {
			switch t.seen[i][n] {
			case 0:
				v.wrong("lost", b.id(n))
			case 1:
			default:
				v.wrong("duplicate", b.id(n))
			}
		}
	}
}

// judgeAnswers reads everything through AHTI's API: each event once, as it was
// sent.
func judgeAnswers(ctx context.Context, books []book) (err error) {
	connection, err := grpc.NewClient(ahtiAddress, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("ask AHTI: %w", err)
	}
	defer func() { err = errors.Join(err, connection.Close()) }()
	client := ahtiv1.NewAhtiServiceClient(connection)
	v, t := newVerdict(), newTally(books)
	request := &ahtiv1.TimelineRequest{
		Since: timestamppb.New(books[0].Begin.Add(-history)), Until: timestamppb.New(books[0].Begin.Add(time.Minute)), PageSize: 10_000,
	}
	for more := true; more; {
		response, err := client.Timeline(ctx, request)
		if err != nil {
			return fmt.Errorf("read the timeline of AHTI: %w", err)
		}
		for _, e := range response.GetEvents() {
			if source, n, ok := t.count(e.GetId()); !ok {
				v.wrong("never sent", e.GetId())
			} else if !same(books[source], n, e) {
				v.wrong("changed", e.GetId())
			}
		}
		request.PageToken = response.GetNextPageToken()
		more = request.GetPageToken() != ""
	}
	t.judge(v)
	return v.err()
}

// same reports whether AHTI has event n as it was sent.
func same(b book, n int, e *ahtiv1.AhtiEvent) bool {
	sent := b.event(n)
	return e.GetTimestamp().AsTime().UnixNano() == sent.GetTimestampUnixNs() && e.GetSubtype() == sent.GetEventType() &&
		e.GetSource() == sent.GetSource() && e.GetCluster() == cluster && e.GetSeverity() == sent.GetSeverity() &&
		maps.Equal(e.GetLabels(), sent.GetMetadata())
}

// judgeStore reads AHTI's table of events, whose sequence is the order of their
// arrival, while AHTI does not run: each event once, and those of each source in
// their order.
func judgeStore(ctx context.Context, driver, address string, books []book) (err error) {
	db, err := sql.Open(driver, address)
	if err != nil {
		return fmt.Errorf("open the store of AHTI: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rows, err := db.QueryContext(ctx, "SELECT id FROM events ORDER BY sequence")
	if err != nil {
		return fmt.Errorf("read the store of AHTI: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	v, t := newVerdict(), newTally(books)
	newest := make([]int, len(books))
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return fmt.Errorf("read the store of AHTI: %w", err)
		}
		source, n, ok := t.count(id)
		switch {
		case !ok:
			v.wrong("never sent", id)
		case n < newest[source]:
			v.wrong("after a later one of its source", id)
		default:
			newest[source] = n
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the store of AHTI: %w", err)
	}
	t.judge(v)
	return v.err()
}

func sqliteAddress(dir string) string {
	address := url.URL{Scheme: "file", Path: filepath.Join(dir, "ahti.db"), RawQuery: "mode=ro"}
	return address.String()
}

// judgeJournals checks that the sources saw every event acknowledged.
func (c *chain) judgeJournals() error {
	v, t := newVerdict(), newTally(c.books)
	for _, b := range c.books {
		journal, err := os.ReadFile(c.journal(b))
		if err != nil {
			return fmt.Errorf("read a journal: %w", err)
		}
		for id := range strings.Lines(string(journal)) {
			if _, _, ok := t.count(strings.TrimSuffix(id, "\n")); !ok {
				v.wrong("acknowledged but never sent", id)
			}
		}
	}
	for i, b := range c.books {
		for n := 1; n <= b.Events; n++ {
			if t.seen[i][n] == 0 {
				v.wrong("not acknowledged", b.id(n))
			}
		}
	}
	return v.err()
}

// judgeFigures compares what the processes count with what happened. Counters
// end with their process, so what one counted just before a kill is missing.
func (c *chain) judgeFigures() error {
	var errs []error
	none := func(p *process, metric string) {
		if n := p.total(metric); n != 0 {
			errs = append(errs, fmt.Errorf("%s counts %s = %g, want 0", p.name, metric, n))
		}
	}
	none(c.polku, "polku_gateway_events_refused_total")
	none(c.polku, "polku_dead_letters_total")
	none(c.polku, "polku_route_undecodable_messages_total")
	none(c.ahti, "ahti_events_refused_total")
	received, stored := c.polku.total("polku_gateway_events_received_total"), c.polku.total("polku_gateway_events_stored_total")
	if duplicates := c.polku.total("polku_gateway_events_duplicate_total"); stored+duplicates > received {
		errs = append(errs, fmt.Errorf("polku received %g events, but stored %g and knew %g", received, stored, duplicates))
	}
	if ingested := c.ahti.total("ahti_events_ingested_total"); ingested > float64(c.settings.events) || ingested == 0 {
		errs = append(errs, fmt.Errorf("ahti counts %g events ingested of %d", ingested, c.settings.events))
	}
	for _, p := range c.processes() {
		for _, f := range p.faults {
			errs = append(errs, fmt.Errorf("%s; its log ends with\n%s", f, c.logEnd(p.name)))
		}
		if bound := memoryBound(p.name); bound > 0 && p.peak > bound {
			errs = append(errs, fmt.Errorf("%s had %d MiB resident, more than %d", p.name, p.peak>>20, bound>>20))
		}
	}
	for _, f := range []fault{fillPolku, fillAHTI} {
		if n, happened := c.noticed[f]; happened && n == 0 {
			errs = append(errs, fmt.Errorf("nobody noticed: %s", f))
		}
	}
	return errors.Join(errs...)
}

// memoryBound is the most that a process may have resident, bytes; 0 for those
// that are not ours. They are far above what was measured, and far below what
// a process that keeps everything would have.
func memoryBound(name string) int64 {
	switch {
	case name == "polku":
		return 512 << 20
	case name == "ahti":
		return 1 << 30
	case strings.HasPrefix(name, "node-"):
		return 512 << 20
	}
	return 0
}
