package changes

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/yairfalse/tapio/shared/kube/apiservertest"
)

const (
	shortChanges = 3000 // of the run that is part of all tests
	writers      = 8
	// patience is how long the chain may make no progress at all.
	patience = 3 * time.Minute
	// pollEvery is how often the test looks.
	pollEvery = 200 * time.Millisecond
)

// ledger is everything that runs.
type ledger struct {
	t          *testing.T
	dir        string
	began      time.Time
	server     *apiservertest.Server
	client     dynamic.Interface
	polku      *process
	ahti       *process
	porttis    []*process
	changes    atomic.Int64
	apiKills   int
	outages    int
	compaction int
	story      []string
}

func number(t *testing.T, variable string, otherwise int) int {
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	return n
}

func TestChanges(t *testing.T) {
	total, seed := number(t, "CHANGES", shortChanges), number(t, "SEED", 1)
	l := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	group, writing := errgroup.WithContext(ctx)
	var all []*writer
	for i := range writers {
		w := &writer{
			name: fmt.Sprintf("w%d", i), client: l.client, random: rand.New(rand.NewPCG(uint64(seed), uint64(i))), //nolint:gosec // repeatable
			until: int64(total), changes: &l.changes, want: map[string]string{},
		}
		all = append(all, w)
		group.Go(func() error { return w.run(writing) })
	}
	go l.look(ctx)
	faults := l.faults()
	for i, f := range faults {
		l.awaitChanges(int64(total) * int64(i+1) / int64(len(faults)+1))
		f()
	}
	require.NoError(t, group.Wait())
	written := time.Since(l.began)
	l.tell("all is written")
	want := map[string]string{}
	for _, w := range all {
		for id, what := range w.want {
			want[id] = what
		}
	}
	l.alive(want)
	l.awaitDelivered(want)
	took := time.Since(l.began)
	l.tell("all is delivered")
	for _, p := range l.porttis {
		p.stop()
	}
	l.polku.stop()
	l.ahti.stop()
	lost, duplicates := l.judge(want)
	fmt.Print(l.summary(seed, len(want), len(lost), len(duplicates), written, took))
	require.Empty(t, first(lost), "lost %d", len(lost))
	require.Empty(t, first(duplicates), "duplicates %d", len(duplicates))
}

func first(list []string) []string { return list[:min(10, len(list))] }

func start(t *testing.T) *ledger {
	s := apiservertest.Start(t)
	client, err := dynamic.NewForConfig(s.Config())
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "changes-")
	require.NoError(t, err)
	l := &ledger{t: t, dir: dir, began: time.Now(), server: s, client: client}
	t.Cleanup(func() {
		for _, p := range l.processes() {
			if p.running() {
				p.kill()
			}
		}
		if t.Failed() {
			t.Logf("what happened:\n%s\nlogs are kept in %s", strings.Join(l.story, "\n"), dir)
			return
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	ahti, polku := l.address(), l.address()
	l.ahti = l.process("ahti", "ahti", "--telemetry-listen", "--listen", ahti, "--http-listen", "", "--data-dir", l.path("ahti"))
	l.polku = l.process("polku", "polku", "--http-listen", "--listen", polku, "--operator-listen", l.address(), "--ahti", ahti,
		"--data-dir", l.path("polku"))
	kubeconfig, err := s.Kubeconfig(apiservertest.AdminToken)
	require.NoError(t, err)
	for _, name := range []string{"portti-a", "portti-b"} {
		l.porttis = append(l.porttis, l.process("portti", name, "--listen", "--polku", "http://"+polku, "--cluster", clusterName,
			"--kubeconfig", kubeconfig, "--state-dir", l.path(name)))
	}
	for _, p := range l.processes() {
		require.Eventually(t, p.ready, patience, 50*time.Millisecond, "%s does not get ready:\n%s", p.name, p.logEnd())
	}
	l.tell("all is ready")
	l.began = time.Now()
	return l
}

func (l *ledger) path(name string) string { return filepath.Join(l.dir, name) }

func (l *ledger) address() string {
	port, err := apiservertest.FreePort()
	require.NoError(l.t, err)
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// process starts a binary, whose metrics are where a flag says.
func (l *ledger) process(binary, name, metricsFlag string, arguments ...string) *process {
	address := l.address()
	p := &process{
		t: l.t, name: binary, url: "http://" + address, arguments: append([]string{metricsFlag, address}, arguments...),
		logFile: l.path(name + ".log"), seen: map[string]float64{}, total: map[string]float64{},
	}
	p.start()
	return p
}

func (l *ledger) processes() []*process {
	var all []*process
	for _, p := range append([]*process{l.ahti, l.polku}, l.porttis...) {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// look watches the processes.
func (l *ledger) look(ctx context.Context) {
	for ctx.Err() == nil {
		for _, p := range l.processes() {
			if p.running() {
				p.observe()
			}
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (l *ledger) tell(format string, values ...any) {
	line := fmt.Sprintf("%7.1f s  %8d changes  ", time.Since(l.began).Seconds(), l.changes.Load()) + fmt.Sprintf(format, values...)
	l.story = append(l.story, line)
	if testing.Verbose() {
		fmt.Println(line)
	}
}

func (l *ledger) awaitChanges(n int64) {
	l.t.Helper()
	was, since := int64(-1), time.Now()
	for {
		now := l.changes.Load()
		if now >= n {
			return
		}
		if now != was {
			was, since = now, time.Now()
		}
		require.Less(l.t, time.Since(since), patience, "the writers stand still")
		time.Sleep(5 * time.Millisecond)
	}
}

// faults are what befalls the chain, in this order, evenly spread over the run.
func (l *ledger) faults() []func() {
	a, b := l.porttis[0], l.porttis[1]
	api := func() {
		l.apiKills++
		l.server.Kill()
		require.NoError(l.t, l.server.StartAPIServer())
		l.tell("the API server was killed and is back")
	}
	both := func() {
		a.kill()
		b.kill()
		l.tell("both porttis killed")
	}
	again := func(down time.Duration, list ...*process) {
		time.Sleep(down) // for others to write meanwhile
		for _, p := range list {
			p.start()
		}
		l.tell("back")
	}
	return []func(){
		func() { a.kill(); l.tell("one portti killed"); again(time.Second, a) },
		func() { b.kill(); l.tell("the other portti killed"); again(time.Second, b) },
		api,
		func() { both(); again(time.Second, a, b) },
		func() {
			l.outages++
			l.polku.kill()
			l.tell("the gateway killed")
			again(10*time.Second, l.polku)
		},
		func() {
			// Etcd keeps the history of minutes; who is left must have had the time to
			// read it, or nobody ever has.
			require.Eventually(l.t, b.ready, patience, pollEvery, "the other portti does not catch up:\n%s", b.logEnd())
			a.kill()
			l.tell("one portti killed")
			time.Sleep(time.Second)
			list, err := l.client.Resource(resources()["configmap"]).List(l.t.Context(), metav1.ListOptions{Limit: 1})
			require.NoError(l.t, err)
			l.compaction++
			require.NoError(l.t, l.server.Compact(list.GetResourceVersion()))
			l.tell("etcd compacted")
			again(0, a)
		},
		api,
		func() { both(); api(); again(0, a, b) },
		func() { a.kill(); api(); again(0, a) },
		func() {
			l.outages++
			l.polku.kill()
			both()
			l.tell("the gateway killed, too")
			again(2*time.Second, l.polku, a, b)
		},
	}
}

// alive adds what etcd holds now, the objects that the API server made for itself
// included.
func (l *ledger) alive(want map[string]string) {
	for word, r := range resources() {
		list, err := l.client.Resource(r).List(l.t.Context(), metav1.ListOptions{})
		require.NoError(l.t, err)
		for i := range list.Items {
			o := &list.Items[i]
			id := idOf(string(o.GetUID()), o.GetResourceVersion())
			if want[id] == "" {
				require.Empty(l.t, o.GetLabels()["app"], "a version of ours that nobody wrote")
				want[id] = fmt.Sprintf("%s %s uid %s version %s, of etcd", word, o.GetName(), o.GetUID(), o.GetResourceVersion())
			}
		}
	}
}

// awaitDelivered waits until all is in the store, or nothing moves any more.
func (l *ledger) awaitDelivered(want map[string]string) {
	was, since := -1.0, time.Now()
	for {
		open := 0.0
		told := true
		for _, p := range l.porttis {
			n, ok := p.now("portti_changes_open")
			open, told = open+n, told && ok && p.ready()
		}
		lag, ok := l.polku.now("polku_route_lag_messages")
		if told && ok && open+lag == 0 {
			if lost, _ := l.judge(want); len(lost) == 0 {
				return
			}
		}
		stored := l.ahti.sum("ahti_events_ingested_total")
		if progress := stored - open - lag; progress != was {
			was, since = progress, time.Now()
		}
		const quiet = 20 * time.Second
		if limit := patience; time.Since(since) > limit || told && ok && open+lag == 0 && time.Since(since) > quiet {
			return // the judge tells what is missing
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// judge counts each change in AHTI's table of events.
func (l *ledger) judge(want map[string]string) (lost, duplicates []string) {
	address := url.URL{Scheme: "file", Path: filepath.Join(l.path("ahti"), "ahti.db"), RawQuery: "mode=ro"}
	db, err := sql.Open("sqlite", address.String())
	require.NoError(l.t, err)
	defer func() { require.NoError(l.t, db.Close()) }()
	rows, err := db.QueryContext(l.t.Context(), "SELECT id FROM events")
	require.NoError(l.t, err)
	seen := make(map[string]int, len(want))
	for rows.Next() {
		var id string
		require.NoError(l.t, rows.Scan(&id))
		seen[id]++
	}
	require.NoError(l.t, errors.Join(rows.Err(), rows.Close()))
	for id, what := range want {
		switch {
		case seen[id] == 0:
			lost = append(lost, what)
		case seen[id] > 1:
			duplicates = append(duplicates, what)
		}
	}
	return lost, duplicates
}

// summary is the table that a run ends with.
func (l *ledger) summary(seed, changes, lost, duplicates int, written, took time.Duration) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	row := func(name, format string, values ...any) {
		fmt.Fprintf(w, "  %s\t%s\n", name, fmt.Sprintf(format, values...))
	}
	a, b := l.porttis[0], l.porttis[1]
	fmt.Fprintf(w, "changes: lost %d, duplicates %d of %d\n", lost, duplicates, changes)
	row("run", "CHANGES=%d SEED=%d writers=%d", changes, seed, writers)
	row("written", "%s, %.0f changes/s", written.Round(time.Second), float64(changes)/written.Seconds())
	row("delivered", "%s, %.0f changes/s", took.Round(time.Second), float64(changes)/took.Seconds())
	row("kills", "portti %d and %d, API server %d, gateway %d; compactions %d", a.kills, b.kills, l.apiKills, l.outages, l.compaction)
	each := func(name, metric string) {
		row(name, "at least %.0f and %.0f", a.sum(metric), b.sum(metric))
	}
	each("sent by the porttis", "portti_changes_total")
	each("recovered from history", "portti_changes_recovered_total")
	each("sent with a gap", "portti_changes_gap_total")
	each("uncertain times", "portti_gaps_total")
	each("lists", "portti_lists_total")
	row("duplicates absorbed", "at least %.0f by polku", l.polku.sum("polku_gateway_events_duplicate_total"))
	for i, p := range l.processes() {
		row("most memory of "+p.name, "%d MiB resident (%d)", p.peak>>20, i)
	}
	_ = w.Flush() // into memory
	return text.String()
}
