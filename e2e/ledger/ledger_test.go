package ledger

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
)

// Variables that choose the run.
const (
	eventsVariable = "EVENTS"
	seedVariable   = "SEED"
	killsVariable  = "KILLS"
	natsVariable   = "LEDGER_NATS"  // "cluster": three servers keep the log
	storeVariable  = "LEDGER_STORE" // "postgres": a server keeps the store
)

const (
	// The short run, which is part of all tests.
	shortEvents, shortKills = 20_000, 6
	sources                 = 4
	// bytesPerEvent is more than AHTI's store takes for one.
	bytesPerEvent = 3 << 10
	// leastLog is the smallest log that polku takes. Of a long run the log holds
	// a small part, so that sources feel when a route hangs.
	leastLog        = 16 << 20
	logBytesOfEvent = 64
)

// settings are what a run is chosen by.
type settings struct {
	events, kills, sources int
	seed                   uint64
	nats, postgres         bool
	logBytes               int64         // of polku's log
	noticeWithin           time.Duration // how long a full disk may stay unnoticed
}

func readSettings(t *testing.T) settings {
	number := func(variable string, otherwise, least int) int {
		text := os.Getenv(variable)
		if text == "" {
			return otherwise
		}
		n, err := strconv.Atoi(text)
		require.NoError(t, err, variable)
		require.GreaterOrEqual(t, n, least, variable)
		return n
	}
	choice := func(variable, value string) bool {
		text := os.Getenv(variable)
		require.Contains(t, []string{"", value}, text, variable)
		return text != ""
	}
	s := settings{
		events: number(eventsVariable, shortEvents, 1000), kills: number(killsVariable, shortKills, 0), sources: sources,
		seed: uint64(number(seedVariable, 1, 0)),
		nats: choice(natsVariable, "cluster"), postgres: choice(storeVariable, "postgres"),
		noticeWithin: 15 * time.Second,
	}
	s.logBytes = max(leastLog, int64(s.events)*logBytesOfEvent)
	return s
}

func TestLedger(t *testing.T) {
	s := readSettings(t)
	c := startChain(t, s)
	steps := plan(s)
	c.play(steps)
	c.await("all sources have finished", func() bool {
		return !slices.ContainsFunc(c.sources, func(p *process) bool { return !p.finished() })
	})
	c.await("polku has delivered everything", c.delivered)
	took := time.Since(c.began)
	c.tell("everything is delivered")

	trouble := func(what string, err error) {
		if err != nil {
			t.Errorf("%s:\n%v", what, err)
		}
	}
	trouble("what the sources saw", c.judgeJournals())
	trouble("what AHTI answers", judgeAnswers(t.Context(), c.books))
	c.tell("everything is read")
	close(c.stopLooking)
	for _, p := range c.processes() {
		p.observe()
	}
	trouble("stop", c.polku.stop(syscall.SIGTERM, patience))
	trouble("stop", c.ahti.stop(syscall.SIGTERM, patience))
	c.tell("polku and ahti have stopped")
	if s.postgres {
		trouble("what the store has", judgeStore(t.Context(), "pgx", c.postgresURL(), c.books))
		trouble("stop", c.postgres.stop(syscall.SIGINT, patience))
	} else {
		trouble("what the store has", judgeStore(t.Context(), "sqlite", sqliteAddress(c.ahtiData()), c.books))
	}
	for _, n := range c.nodes {
		trouble("stop", n.stop(syscall.SIGTERM, patience))
	}
	trouble("what the processes say", c.judgeFigures())
	fmt.Print(c.summary(steps, took))
	if t.Failed() {
		t.Logf("what happened:\n%s", strings.Join(c.story, "\n"))
	}
}

// delivered reports whether polku has nothing left for AHTI. It asks twice: a
// process that starts may not know yet.
func (c *chain) delivered() bool {
	for range 2 {
		figures, err := scrape(c.polku.metrics)
		lag, told := figures["polku_route_lag_messages"]
		if err != nil || !told || lag != 0 || !answers(c.polku.ready) {
			return false
		}
		time.Sleep(time.Second)
	}
	return true
}

// summary is the table that a run ends with.
func (c *chain) summary(steps []step, took time.Duration) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	row := func(name, format string, values ...any) {
		fmt.Fprintf(w, "  %s\t%s\n", name, fmt.Sprintf(format, values...))
	}
	s := c.settings
	outcome := "lost 0, duplicates 0, order kept"
	if c.t.Failed() {
		outcome = "FAILED, see above"
	}
	fmt.Fprintf(w, "ledger: %s\n", outcome)
	row("run", "EVENTS=%d SEED=%d KILLS=%d log=%s store=%s sources=%d", s.events, s.seed, s.kills,
		map[bool]string{false: "embedded", true: "cluster"}[s.nats], map[bool]string{false: "sqlite", true: "postgres"}[s.postgres], s.sources)
	row("time", "%s, %.0f events/s", took.Round(time.Second), float64(s.events)/took.Seconds())
	kills := c.kills()
	for _, name := range []string{"polku", "ahti", "sources", "nats", "postgres"} {
		if kills[name] > 0 {
			row("kills of "+name, "%d", kills[name])
		}
	}
	for _, f := range []fault{fillPolku, fillAHTI, freezeAHTI, loseNetwork} {
		n := 0
		for _, one := range steps {
			if one.fault == f {
				n++
			}
		}
		if n > 0 {
			row(string(f), "%d, noticed %d", n, c.noticed[f])
		}
	}
	row("duplicates absorbed", "at least %.0f by polku, %.0f by ahti", c.polku.total("polku_gateway_events_duplicate_total"), c.ahti.total("ahti_events_duplicate_total"))
	row("deliveries repeated", "at least %.0f by polku; commits failed %.0f", c.polku.total("polku_route_retries_total"), c.ahti.total("ahti_commits_failed_total"))
	row("restarts of the log", "%.0f inside polku", c.polku.total("polku_log_restarts_total"))
	row("gave up at a start", "polku %d times, ahti %d, without disk or servers", c.polku.excuses, c.ahti.excuses)
	for _, p := range c.processes() {
		row("most memory of "+p.name, "%d MiB resident", p.peak>>20)
	}
	_ = w.Flush() // into memory
	return text.String()
}
