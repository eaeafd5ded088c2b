package cli_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/ahti/internal/ahtitest"
	"github.com/yairfalse/tapio/ahti/internal/cli"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// The variables of a process that a test starts: it is the command line and no
// test, and with a size it has a small file system of its own for its data.
const (
	child = "TEST_CHILD="
	tmpfs = "TEST_TMPFS="
)

var postgres = ahtitest.NewPostgres("fsync=off")

func TestMain(m *testing.M) {
	var environ []string
	var isChild bool
	for _, variable := range os.Environ() {
		if _, found := strings.CutPrefix(variable, child); found {
			isChild = true
		} else if at, found := strings.CutPrefix(variable, tmpfs); found {
			if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
				panic(err)
			}
			if err := syscall.Mount("tmpfs", at, "tmpfs", 0, "size=24m"); err != nil {
				panic(err)
			}
		} else {
			environ = append(environ, variable)
		}
	}
	if isChild {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		status := cli.Run(ctx, os.Args[1:], environ, os.Stdout, os.Stderr)
		stop()
		os.Exit(status)
	}
	code := m.Run()
	if err := postgres.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// process is an ahti that a test started.
type process struct {
	ahtiv1.AhtiServiceClient
	cmd                   *exec.Cmd
	grpc, http, telemetry string
	connection            *grpc.ClientConn
	mu                    sync.Mutex
	log                   strings.Builder
}

var served = regexp.MustCompile(`msg="?(serving JSON|serving health and metrics|serving)"?.* address=(\S+)`)

func start(t *testing.T, config store.Config, attributes *syscall.SysProcAttr, environ ...string) *process {
	t.Helper()
	p := &process{}
	args := []string{"--listen=127.0.0.1:0", "--http-listen=127.0.0.1:0", "--telemetry-listen=127.0.0.1:0", "--data-dir=" + config.Dir, "--store=" + config.URL}
	p.cmd = exec.Command("/proc/self/exe", args...) //nolint:noctx // killed below
	p.cmd.Env = append([]string{child + "1"}, environ...)
	p.cmd.SysProcAttr = attributes
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.kill(t) })

	ready := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			if m := served.FindStringSubmatch(lines.Text()); m != nil {
				switch m[1] {
				case "serving JSON":
					p.http = m[2]
				case "serving health and metrics":
					p.telemetry = m[2]
				default:
					p.grpc = m[2]
					ready <- true
				}
			}
		}
		ready <- false
	}()
	require.True(t, <-ready, "%s", p.said())
	p.connection, err = grpc.NewClient(p.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	p.AhtiServiceClient = ahtiv1.NewAhtiServiceClient(p.connection)
	return p
}

func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// kill ends the process as a crash does.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if p.cmd.ProcessState != nil {
		return
	}
	require.NoError(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait() // killed
	if p.connection != nil {
		require.NoError(t, p.connection.Close())
	}
}

func (p *process) ready(t *testing.T) (int, string) {
	t.Helper()
	return p.get(t, "/readyz")
}

func (p *process) get(t *testing.T, path string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.telemetry+path, nil)
	require.NoError(t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, errors.Join(err, response.Body.Close()))
	return response.StatusCode, string(body)
}

// ledger is what senders know to be stored.
type ledger struct {
	mu           sync.Mutex
	acknowledged map[string]bool
}

func (l *ledger) add(ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		l.acknowledged[id] = true
	}
}

func (l *ledger) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acknowledged)
}

// send sends events in requests of 50 until it is over, and returns how it
// ended.
func (l *ledger) send(p *process, w ahtitest.Workload, from, n int) error {
	stream, err := p.Ingest(context.Background())
	if err != nil {
		return err
	}
	go func() {
		for i := 0; i < n; i += 50 {
			if stream.Send(&ahtiv1.IngestRequest{Events: w.Events(from+i, 50)}) != nil {
				return
			}
		}
		_ = stream.CloseSend()
	}()
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		l.add(response.GetEventIds())
	}
}

// all reads the whole timeline.
func all(t *testing.T, p *process) []string {
	t.Helper()
	var ids []string
	request := &ahtiv1.TimelineRequest{PageSize: 2000}
	for {
		page, err := p.Timeline(t.Context(), request)
		require.NoError(t, err)
		for _, e := range page.GetEvents() {
			ids = append(ids, e.GetId())
		}
		if request.PageToken = page.GetNextPageToken(); request.GetPageToken() == "" {
			return ids
		}
	}
}

// What was acknowledged before a kill is stored, nothing is stored twice when it
// is sent again, and the answers are those of an ahti that was never killed.
func TestKilledWhileIngesting(t *testing.T) {
	ahtitest.Stores(t, postgres, func(t *testing.T, config store.Config) {
		const senders = 3
		each := 2000
		if testing.Short() {
			each = 800
		}
		w := ahtitest.Workload{Pods: 30, Start: time.Now().Add(-30 * time.Minute), Step: 100 * time.Millisecond, Cluster: "prod"}
		l := &ledger{acknowledged: map[string]bool{}}
		for killed := range 3 {
			p := start(t, config, nil)
			var over sync.WaitGroup
			for s := range senders {
				over.Go(func() { _ = l.send(p, w, s*each, each) }) // it is killed
			}
			want := l.len() + 300
			if killed > 0 {
				want = min(senders*each, 2*senders*each/10*(killed+1)) // most are sent again first
			}
			require.Eventually(t, func() bool { return l.len() >= want }, 60*time.Second, time.Millisecond)
			p.kill(t)
			over.Wait()
		}
		p := start(t, config, nil)
		stored := map[string]int{}
		for _, id := range all(t, p) {
			stored[id]++
		}
		for id := range l.acknowledged {
			require.Equal(t, 1, stored[id], "%s was acknowledged", id)
		}
		for s := range senders {
			require.NoError(t, l.send(p, w, s*each, each))
		}
		ids := all(t, p)
		require.Len(t, ids, senders*each)
		p.kill(t)
		p = start(t, config, nil)

		// The same events without any mishap.
		calm := start(t, store.Config{Dir: t.TempDir()}, nil)
		for s := range senders {
			require.NoError(t, l.send(calm, w, s*each, each))
		}
		for n := range 30 {
			pod := w.Event(n).GetEntities()[0]
			question := &ahtiv1.WhyRequest{Entity: pod.GetNamespace() + "/" + pod.GetName()}
			require.Eventually(t, func() bool {
				want, err := calm.Why(t.Context(), question)
				require.NoError(t, err)
				got, err := p.Why(t.Context(), question)
				require.NoError(t, err)
				want.Answer, got.Answer = "", "" // has the time of the question
				return proto.Equal(want, got)
			}, 30*time.Second, 50*time.Millisecond, "%s", question.GetEntity())
			want, err := calm.Topology(t.Context(), &ahtiv1.TopologyRequest{Entity: question.GetEntity(), Depth: 3})
			require.NoError(t, err)
			got, err := p.Topology(t.Context(), &ahtiv1.TopologyRequest{Entity: question.GetEntity(), Depth: 3})
			require.NoError(t, err)
			require.Len(t, got.GetEntities(), len(want.GetEntities()))
			require.Len(t, got.GetRelationships(), len(want.GetRelationships()))
		}
	})
}

// A full disk: senders are told to try again, what was acknowledged stays, and
// ahti goes on by itself when there is room.
func TestDiskIsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs to be root to mount a small file system")
	}
	dir := t.TempDir()
	w := ahtitest.Workload{Pods: 30, Start: time.Now().Add(-30 * time.Minute), Step: 10 * time.Millisecond, Cluster: "prod"}
	p := start(t, store.Config{Dir: filepath.Join(dir, "data")}, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}, tmpfs+dir)
	// The mount is its own; it is reached through its process.
	ballast := fmt.Sprintf("/proc/%d/root%s/ballast", p.cmd.Process.Pid, dir)
	require.NoError(t, os.WriteFile(ballast, make([]byte, 16<<20), 0o600))

	l := &ledger{acknowledged: map[string]bool{}}
	const events = 6000
	err := l.send(p, w, 0, events)
	require.Equal(t, codes.Unavailable, status.Code(err), "%v\n%s", err, p.said())
	require.Contains(t, err.Error(), "free space")
	require.Eventually(t, func() bool { return strings.Contains(p.said(), "takes no events") }, 60*time.Second, 10*time.Millisecond, "its log comes by a pipe")
	require.Positive(t, l.len())
	require.Less(t, l.len(), events)
	before := l.len()
	require.Subset(t, all(t, p), keys(l.acknowledged), "questions are answered meanwhile")

	require.NoError(t, os.Remove(ballast))
	require.Eventually(t, func() bool {
		code, _ := p.ready(t)
		return code == http.StatusOK && l.send(p, w, 0, events) == nil
	}, 60*time.Second, 100*time.Millisecond, "%s", p.said())
	require.Greater(t, l.len(), before)
	require.Len(t, all(t, p), events)
	require.Eventually(t, func() bool { return strings.Contains(p.said(), "takes events again") }, 60*time.Second, 10*time.Millisecond)
}

// What fails behind the acknowledgment is counted: nobody else would notice.
func TestFailuresAreCounted(t *testing.T) {
	ahtitest.Stores(t, postgres, func(t *testing.T, config store.Config) {
		p := start(t, config, nil)
		_, before := p.get(t, "/metrics")
		for _, line := range []string{
			"ahti_checkpoints_failed_total 0", `ahti_housekeeping_failed_total{task="incidents"} 0`,
			`ahti_housekeeping_failed_total{task="lessons"} 0`, `ahti_housekeeping_failed_total{task="retention"} 0`,
		} {
			require.Contains(t, before, line+"\n")
		}
		driver, name := "sqlite", filepath.Join(config.Dir, "ahti.db")
		if config.URL != "" {
			driver, name = "pgx", config.URL
		}
		db, err := sql.Open(driver, name)
		require.NoError(t, err)
		for _, table := range []string{"state", "incidents"} {
			_, err := db.ExecContext(t.Context(), "ALTER TABLE "+table+" RENAME TO lost_"+table)
			require.NoError(t, err)
		}
		require.NoError(t, db.Close())

		// As many as make a checkpoint due.
		stream, err := p.Ingest(t.Context())
		require.NoError(t, err)
		for n := range 4 {
			request := &ahtiv1.IngestRequest{}
			for range 5000 {
				request.Events = append(request.Events, &ahtiv1.AhtiEvent{
					Id: fmt.Sprintf("%d-%d", n, len(request.GetEvents())), Subtype: "x", Timestamp: timestamppb.Now(),
				})
			}
			require.NoError(t, stream.Send(request))
			_, err := stream.Recv()
			require.NoError(t, err)
		}
		require.NoError(t, stream.CloseSend())
		require.Eventually(t, func() bool {
			_, now := p.get(t, "/metrics")
			return checkpointsFailed.MatchString(now) && incidentsFailed.MatchString(now)
		}, 60*time.Second, 50*time.Millisecond, "%s", p.said())
	})
}

var (
	checkpointsFailed = regexp.MustCompile(`(?m)^ahti_checkpoints_failed_total [1-9]`)
	incidentsFailed   = regexp.MustCompile(`(?m)^ahti_housekeeping_failed_total\{task="incidents"\} [1-9]`)
)

func keys(set map[string]bool) []string {
	var all []string
	for k := range set {
		all = append(all, k)
	}
	return all
}

// An ahti whose database another one has opened says so and ends.
func TestReplaced(t *testing.T) {
	config := store.Config{URL: postgres.Database(t)}
	w := ahtitest.Workload{Pods: 30, Start: time.Now().Add(-30 * time.Minute), Step: 10 * time.Millisecond, Cluster: "prod"}
	l := &ledger{acknowledged: map[string]bool{}}
	earlier := start(t, config, nil)
	require.NoError(t, l.send(earlier, w, 0, 50))
	later := start(t, config, nil)
	require.Equal(t, codes.Unavailable, status.Code(l.send(earlier, w, 50, 50)))
	require.Error(t, earlier.cmd.Wait())
	require.Contains(t, earlier.said(), "another ahti has opened the database")
	require.NoError(t, earlier.connection.Close())
	earlier.connection = nil
	require.NoError(t, l.send(later, w, 50, 50))
	require.Len(t, all(t, later), 100)
}

// SIGTERM ends it in order, with streams open.
func TestStops(t *testing.T) {
	w := ahtitest.Workload{Pods: 30, Start: time.Now().Add(-30 * time.Minute), Step: 10 * time.Millisecond, Cluster: "prod"}
	dir := t.TempDir()
	p := start(t, store.Config{Dir: dir}, nil)
	stream, err := p.Ingest(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&ahtiv1.IngestRequest{Events: w.Events(0, 10)}))
	_, err = stream.Recv()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	_, err = stream.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.NoError(t, p.cmd.Wait(), "%s", p.said())
	require.NoError(t, p.connection.Close())
	p.connection = nil
}
