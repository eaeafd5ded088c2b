package journal_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/journal"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

func open(t *testing.T, edit func(*journal.Config)) *journal.Journal {
	t.Helper()
	config := journal.Config{
		MaxBytes: 64 << 20, Retention: time.Hour, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	}
	edit(&config)
	j, err := journal.Open(t.Context(), config)
	require.NoError(t, err)
	return j
}

// body is a batch with one event of an id, of about a size.
func body(t *testing.T, id string, size int) []byte {
	t.Helper()
	b, err := proto.Marshal(&polkuv1.IngestBatch{Source: "s", Payload: &polkuv1.IngestBatch_Events{
		Events: &polkuv1.EventPayload{Events: []*eventv1.Event{{Id: id, Payload: make([]byte, size)}}},
	}})
	require.NoError(t, err)
	return b
}

// store appends until it is acknowledged, as a source does.
func store(ctx context.Context, t *testing.T, j *journal.Journal, id string, size int) error {
	t.Helper()
	for {
		receipt, err := j.Append(ctx, id, body(t, id, size))
		if err == nil {
			err = receipt.Wait()
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// ids reads the whole log.
func ids(t *testing.T, j *journal.Journal) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all []string
	require.NoError(t, j.Recent(ctx, 1<<40, func(entry journal.Entry) error {
		events, err := entry.Events()
		for _, e := range events {
			all = append(all, e.GetId())
		}
		return err
	}))
	return all
}

func TestABodyOfOneIDIsStoredOnceAlsoAfterARestart(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		j := open(t, func(c *journal.Config) { c.Dir = dir })
		for range 2 {
			require.NoError(t, store(t.Context(), t, j, "one", 10))
		}
		require.Equal(t, []string{"one"}, ids(t, j))
		require.NoError(t, j.Close())
	}
}

// Alerts compare the size of the log with the size at which it is full.
func TestTellsWhenItIsFull(t *testing.T) {
	registry := prometheus.NewRegistry()
	j := open(t, func(c *journal.Config) { c.Dir, c.MaxBytes, c.Registry = t.TempDir(), 32<<20, registry })
	defer func() { require.NoError(t, j.Close()) }()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == "polku_log_max_bytes" {
			require.EqualValues(t, 32<<20, f.GetMetric()[0].GetGauge().GetValue())
			return
		}
	}
	require.Fail(t, "polku_log_max_bytes is missing")
}

func TestALongReasonStaysText(t *testing.T) {
	j := open(t, func(c *journal.Config) { c.Dir = t.TempDir() })
	defer func() { require.NoError(t, j.Close()) }()
	require.NoError(t, j.Bury(t.Context(), "route", "x"+strings.Repeat("é", 1000), &eventv1.Event{Id: "a"}))
	require.NoError(t, j.DeadLetters(t.Context(), "", 10, func(d journal.DeadLetter) error {
		require.True(t, utf8.ValidString(d.Reason), "cut within a letter: %q", d.Reason[len(d.Reason)-8:])
		require.Greater(t, len(d.Reason), 1000)
		return nil
	}))
}

// A list that ends early must not look complete.
func TestDeadLettersThatCannotBeReadAreNoEndOfTheList(t *testing.T) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
		Users: []*server.User{{Username: "polku", Password: "p", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{">"}, Deny: []string{"$JS.API.DIRECT.GET.POLKU_DEADLETTER"}},
		}}, {Username: "operator", Password: "o"}},
	})
	require.NoError(t, err)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	require.True(t, s.ReadyForConnections(patience))
	as := func(user string) *journal.Journal {
		return open(t, func(c *journal.Config) { c.URL = strings.Replace(s.ClientURL(), "://", "://"+user+"@", 1) })
	}
	read := func(ctx context.Context, j *journal.Journal) (ids []string, err error) {
		err = j.DeadLetters(ctx, "", 10, func(d journal.DeadLetter) error {
			ids = append(ids, d.Event.GetId())
			return nil
		})
		return ids, err
	}
	all, limited := as("operator:o"), as("polku:p")
	defer func() { require.NoError(t, errors.Join(all.Close(), limited.Close())) }()
	for i := range 3 {
		require.NoError(t, all.Bury(t.Context(), "route", "bad", &eventv1.Event{Id: fmt.Sprint(i)}))
	}
	conn, err := nats.Connect(s.ClientURL(), nats.UserInfo("operator", "o"))
	require.NoError(t, err)
	defer conn.Close()
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	stream, err := js.Stream(t.Context(), "POLKU_DEADLETTER")
	require.NoError(t, err)
	require.NoError(t, stream.DeleteMsg(t.Context(), 2))
	ids, err := read(t.Context(), all)
	require.NoError(t, err)
	require.Equal(t, []string{"0", "2"}, ids, "one that is gone is no end")

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = read(ctx, limited)
	require.ErrorContains(t, err, "read dead letter 3")
}

func TestOneDirectoryIsForOneProcess(t *testing.T) {
	dir := t.TempDir()
	j := open(t, func(c *journal.Config) { c.Dir = dir })
	defer func() { require.NoError(t, j.Close()) }()
	_, err := journal.Open(t.Context(), journal.Config{
		Dir: dir, MaxBytes: 64 << 20, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	require.ErrorContains(t, err, "another polku has it")
}

// at is the cursor of a route that has passed a message.
func at(t *testing.T, j *journal.Journal, sequence uint64) journal.Cursor {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	reader := j.ReadFrom(sequence)
	defer reader.Close()
	entry, err := reader.Next(ctx)
	require.NoError(t, err)
	if entry.Sequence > sequence { // it is gone
		return journal.Cursor{Sequence: sequence}
	}
	return entry.Cursor()
}

// A cursor holds as long as its message is the one that it was, or all up to it
// is gone. What an earlier version stored beside the sequence is no such time.
func TestACursorOfAnotherLogIsNone(t *testing.T) {
	dir := t.TempDir()
	j := open(t, func(c *journal.Config) { c.Dir, c.Retention = dir, time.Nanosecond })
	defer func() { require.NoError(t, j.Close()) }()
	for i := range 5 {
		require.NoError(t, store(t.Context(), t, j, fmt.Sprint(i), 10))
	}
	third, last := at(t, j, 3), at(t, j, 5)
	other := third
	other.Time = other.Time.Add(-time.Nanosecond)
	check := func(stored, want journal.Cursor) {
		t.Helper()
		require.NoError(t, j.SetCursor(t.Context(), "r", stored))
		got, err := j.Cursor(t.Context(), "r")
		require.NoError(t, err)
		require.Equal(t, want.Sequence, got.Sequence)
		require.True(t, want.Time.Equal(got.Time))
	}
	begin := journal.Cursor{}
	check(begin, begin)
	check(third, third)
	check(last, last)
	check(other, begin)
	check(journal.Cursor{Sequence: 5, Time: third.Time}, begin)
	check(journal.Cursor{Sequence: 6, Time: last.Time}, begin)

	require.NoError(t, j.Trim(t.Context(), third, other))
	require.Len(t, ids(t, j), 5, "one of the routes has not noticed yet")
	require.NoError(t, j.Trim(t.Context(), last, third))
	require.Equal(t, []string{"3", "4"}, ids(t, j))
	check(third, third)
	check(other, other) // nothing that it could leave out is there
}

func TestTrimKeepsWhatIsNotPassedOrYoung(t *testing.T) {
	dir := t.TempDir()
	j := open(t, func(c *journal.Config) { c.Dir = dir })
	for i := range 10 {
		require.NoError(t, store(t.Context(), t, j, fmt.Sprint(i), 10))
	}
	require.NoError(t, j.Trim(t.Context(), at(t, j, 10)))
	require.Len(t, ids(t, j), 10, "all is young")
	require.NoError(t, j.Close())

	j = open(t, func(c *journal.Config) { c.Dir, c.Retention = dir, time.Nanosecond })
	require.NoError(t, j.Trim(t.Context(), at(t, j, 7)))
	require.Equal(t, []string{"7", "8", "9"}, ids(t, j), "the rest is not passed")
	require.NoError(t, j.Trim(t.Context(), at(t, j, 7)))
	require.NoError(t, j.Trim(t.Context()))
	require.Empty(t, ids(t, j))
	require.NoError(t, store(t.Context(), t, j, "new", 10))
	require.Equal(t, []string{"new"}, ids(t, j))
	require.NoError(t, j.Close())

	// Above the watermark history goes whatever its age, but no more than has to.
	j = open(t, func(c *journal.Config) { c.Dir, c.MaxBytes = t.TempDir(), 4<<20 })
	defer func() { require.NoError(t, j.Close()) }()
	for i := range 35 {
		require.NoError(t, store(t.Context(), t, j, fmt.Sprint(i), 100<<10))
	}
	require.NoError(t, j.Trim(t.Context(), at(t, j, 35)))
	left := len(ids(t, j))
	require.Less(t, left, 34)
	require.Greater(t, left, 25)
}

// inside in the environment names the small disk that the test is on.
const inside = "TEST_SMALL_DISK"

// JetStream stops for good when it meets a full disk. The log starts it again
// when there is room, with everything that was acknowledged.
func TestJetStreamMeetsAFullDisk(t *testing.T) {
	dir := os.Getenv(inside)
	if dir == "" {
		onSmallDisk(t)
		return
	}
	j := open(t, func(c *journal.Config) {
		c.Dir, c.DiskReserve, c.StoreTimeout, c.MaxBytes = filepath.Join(dir, "log"), 1, time.Hour, 1<<30
	})
	var acked []string
	for i := range 20 {
		require.NoError(t, store(t.Context(), t, j, fmt.Sprint("before-", i), 100<<10))
		acked = append(acked, fmt.Sprint("before-", i))
	}
	hog, err := os.Create(filepath.Join(dir, "hog"))
	require.NoError(t, err)
	for err == nil {
		_, err = hog.Write(make([]byte, 64<<10))
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NoError(t, hog.Close())

	// The log was last seen with room, so this goes to JetStream and fails.
	receipt, err := j.Append(t.Context(), "lost", body(t, "lost", 300<<10))
	require.Eventually(t, func() bool { return errors.Is(j.Blocked(), journal.ErrDiskFull) }, patience, 10*time.Millisecond)
	require.NoError(t, os.Remove(hog.Name()))
	if err == nil {
		// It fails with the server that did not answer, not after StoreTimeout.
		err = receipt.Wait()
	} else {
		t.Log("the log saw the disk fill before the append")
	}
	require.Error(t, err)
	for i := range 20 {
		require.NoError(t, store(t.Context(), t, j, fmt.Sprint("after-", i), 100<<10))
		acked = append(acked, fmt.Sprint("after-", i))
	}
	got := ids(t, j)
	if len(got) == len(acked)+1 {
		require.Equal(t, "lost", got[20], "what was not acknowledged may be there")
		got = append(got[:20], got[21:]...)
	}
	require.Equal(t, acked, got)
	require.NoError(t, j.Close())
}

// onSmallDisk runs the test again, in a mount namespace with a disk of 16 MiB.
func onSmallDisk(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs to be root to mount a small disk")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c",
		`mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"`, dir, self, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.NotContains(t, string(out), "saw the disk fill before")
	require.Contains(t, string(out), "--- PASS: "+t.Name())
}

// cluster starts three servers of NATS on loopback.
func cluster(t *testing.T) []*server.Server {
	t.Helper()
	servers := prepareCluster(t)
	for _, s := range servers {
		s.Start()
	}
	require.Eventually(t, func() bool {
		for _, s := range servers {
			if s.JetStreamIsLeader() {
				return everyPeerIsCurrent(s)
			}
		}
		return false
	}, patience, 10*time.Millisecond)
	return servers
}

// prepareCluster makes three servers that do not run yet.
func prepareCluster(t *testing.T) []*server.Server {
	t.Helper()
	// Routes need to know each other's ports before the servers start.
	var routes []*url.URL
	ports := make([]int, 3)
	for i := range ports {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		address, ok := l.Addr().(*net.TCPAddr)
		require.True(t, ok)
		ports[i] = address.Port
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		require.NoError(t, l.Close())
	}
	servers := make([]*server.Server, 3)
	for i := range servers {
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprint("nats-", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), SyncAlways: true, Routes: routes,
			Cluster: server.ClusterOpts{Name: "polku", Host: "127.0.0.1", Port: ports[i]},
		})
		require.NoError(t, err)
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		servers[i] = s
	}
	return servers
}

// said passes on what was logged.
type said chan string

func (s said) Write(p []byte) (int, error) {
	select {
	case s <- string(p):
	default:
	}
	return len(p), nil
}

// One server of three elects no leader. The gateway waits for the others.
func TestAClusterWithoutALeaderIsAwaited(t *testing.T) {
	servers := prepareCluster(t)
	servers[0].Start()
	require.True(t, servers[0].ReadyForConnections(patience))
	log := make(said, 1)
	opened := make(chan error, 1)
	go func() {
		j, err := journal.Open(t.Context(), journal.Config{
			URL: servers[0].ClientURL(), Replicas: 3, MaxBytes: 64 << 20, Registry: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(log, nil)),
		})
		if err == nil {
			err = errors.Join(j.Blocked(), j.Close())
		}
		opened <- err
	}()
	select {
	case line := <-log:
		require.Contains(t, line, "waiting for NATS")
	case err := <-opened:
		require.Fail(t, "did not wait", "%v", err)
	}
	servers[1].Start()
	servers[2].Start()
	require.NoError(t, <-opened)
}

func everyPeerIsCurrent(leader *server.Server) bool {
	health, err := leader.Jsz(&server.JSzOptions{})
	if err != nil || health.Meta == nil || len(health.Meta.Replicas) != 2 {
		return false
	}
	for _, r := range health.Meta.Replicas {
		if !r.Current || r.Offline {
			return false
		}
	}
	return true
}

func TestAClusterThatTakesNoLargeEventIsRefused(t *testing.T) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), MaxPayload: 64 << 10,
	})
	require.NoError(t, err)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	require.True(t, s.ReadyForConnections(patience))
	_, err = journal.Open(t.Context(), journal.Config{
		URL: s.ClientURL(), MaxBytes: 64 << 20, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	require.ErrorContains(t, err, "max_payload")
}

// Who reads it has to know where to look, and not the password.
func TestNATSGoesAwayAndTheErrorSaysSo(t *testing.T) {
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
		Username: "polku", Password: "hidden",
	})
	require.NoError(t, err)
	s.Start()
	require.True(t, s.ReadyForConnections(patience))
	j := open(t, func(c *journal.Config) { c.URL = strings.Replace(s.ClientURL(), "://", "://polku:hidden@", 1) })
	defer func() { require.NoError(t, j.Close()) }()
	s.Shutdown()
	s.WaitForShutdown()
	want := "the log cannot be written for now: not connected to NATS at " + s.ClientURL()
	require.Eventually(t, func() bool {
		err := j.Blocked()
		return err != nil && err.Error() == want
	}, patience, 10*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = j.Append(ctx, "id", nil)
	require.ErrorContains(t, err, want)
	_, err = j.State(t.Context())
	require.EqualError(t, err, "read the state of the log: not connected to NATS at "+s.ClientURL())
}

// The leader of a cluster dies while events come in. What is acknowledged is
// there, once, and reading goes on.
func TestAClusterLosesItsLeader(t *testing.T) {
	servers := cluster(t)
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.ClientURL())
	}
	j := open(t, func(c *journal.Config) {
		c.URL, c.Replicas, c.StoreTimeout = strings.Join(urls, ","), 3, 2*time.Second
	})
	defer func() { require.NoError(t, j.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	read := make(chan []string, 1)
	const all = 300
	go func() {
		reader := j.ReadFrom(1)
		defer reader.Close()
		var seen []string
		for len(seen) < all {
			entry, err := reader.Next(ctx)
			if err != nil {
				break
			}
			if events, err := entry.Events(); err == nil {
				seen = append(seen, events[0].GetId())
			}
		}
		read <- seen
	}()
	var acked []string
	for i := range all {
		if i == all/2 {
			for _, s := range servers {
				if s.JetStreamIsStreamLeader("$G", "POLKU_EVENTS") {
					s.Shutdown()
					s.WaitForShutdown()
				}
			}
		}
		require.NoError(t, store(ctx, t, j, fmt.Sprint(i), 1000))
		acked = append(acked, fmt.Sprint(i))
	}
	require.Equal(t, acked, ids(t, j))
	require.Equal(t, acked, <-read, "a reader misses and repeats nothing")
}
