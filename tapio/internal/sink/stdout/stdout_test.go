package stdout_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/tapio/internal/sink/stdout"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

const host = "node-7"

// writes remembers each write and, while there is an error, does a part of it.
type writes struct {
	mu   sync.Mutex
	all  []string
	err  error
	part int // bytes of the next write that fails
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.all = append(w.all, string(p))
		return len(p), nil
	}
	n := w.part
	w.part = 0
	if n > 0 {
		w.all = append(w.all, string(p[:n]))
	}
	return n, w.err
}

func (w *writes) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

func newEvent(comm string) *eventv1.Event {
	e := event.NewFactory().New(event.KindContainerOOMKill, time.Unix(1_700_000_000, 0), "tapio")
	e.Metadata[event.ProcessPID] = "1"
	e.Metadata[event.ProcessExecutableName] = comm
	return e
}

func open(t *testing.T, w io.Writer, format stdout.Format) *stdout.Sink {
	return stdout.New(w, format, "tapio", map[string]string{event.HostName: host}, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func run(t *testing.T, s *stdout.Sink) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		assert.NoError(t, s.Run(ctx))
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func flush(t *testing.T, s *stdout.Sink) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, s.Flush(ctx))
}

// leftOver is the error of a flush that has no time.
func leftOver(t *testing.T, s *stdout.Sink) error {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return s.Flush(ctx)
}

type totals struct {
	delivered uint64
	waiting   int
	lost      uint64
}

func of(s *stdout.Sink) (t totals) {
	t.delivered, t.waiting, t.lost = s.Totals()
	return t
}

func TestOneWriteAnEvent(t *testing.T) {
	for name, format := range map[string]stdout.Format{"json": stdout.JSON, "text": stdout.Text(humanoutput.Style{})} {
		t.Run(name, func(t *testing.T) {
			var w writes
			s := open(t, &w, format)
			run(t, s)
			s.Send(newEvent("a rather long name, so that the next is shorter"))
			s.Send(newEvent("two\nlines"))
			s.Send(newEvent("x"))
			flush(t, s)
			require.Len(t, w.all, 3)
			for _, line := range w.all {
				assert.Equal(t, 1, strings.Count(line, "\n"), "%q", line)
				assert.True(t, strings.HasSuffix(line, "\n"), "%q", line)
			}
			assert.Contains(t, w.all[0], "a rather long name")
			assert.NotContains(t, w.all[2], "rather")
			assert.Equal(t, totals{delivered: 3}, of(s))
		})
	}
}

func TestFormats(t *testing.T) {
	e := newEvent("x")
	want, err := event.AppendJSON([]byte("before "), e)
	require.NoError(t, err)
	got, err := stdout.JSON([]byte("before "), e)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got))

	style := humanoutput.Style{Color: true}
	got, err = stdout.Text(style)([]byte("before "), e)
	require.NoError(t, err)
	assert.Equal(t, "before "+style.Line(e), string(got))
}

func TestConcurrentSends(t *testing.T) {
	var w writes
	s := open(t, &w, stdout.JSON)
	run(t, s)
	var wg sync.WaitGroup
	const senders, each = 8, 100
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				s.Send(newEvent(strconv.Itoa(i*each + j)))
			}
		})
	}
	wg.Wait()
	flush(t, s)
	require.Len(t, w.all, senders*each)
	seen := map[string]bool{}
	for _, line := range w.all {
		seen[metadata(t, line)[event.ProcessExecutableName]] = true
	}
	assert.Len(t, seen, senders*each, "none is lost or mixed with another")
}

func metadata(t *testing.T, line string) map[string]string {
	t.Helper()
	var got struct{ Metadata map[string]string }
	require.NoError(t, json.Unmarshal([]byte(line), &got), "%q", line)
	return got.Metadata
}

// A disk may have room again: nothing is lost, and no line is broken.
func TestWriteThatFailsIsTriedAgain(t *testing.T) {
	w := writes{err: errors.New("no space left on device"), part: 5}
	s := open(t, &w, stdout.JSON)
	run(t, s)
	s.Send(newEvent("1"))
	s.Send(newEvent("2"))
	require.Eventually(t, func() bool { return s.Ready() != nil }, patience, time.Millisecond)
	require.EqualError(t, s.Ready(), "no space left on device")
	require.EqualError(t, leftOver(t, s), "write events to standard output: 2 are left: no space left on device")
	require.Equal(t, totals{waiting: 2}, of(s))
	w.fail(nil)
	flush(t, s)
	require.NoError(t, s.Ready())
	lines := strings.SplitAfter(strings.Join(w.all, ""), "\n")
	require.Len(t, lines, 2+1)
	for i, line := range lines[:2] {
		assert.Equal(t, strconv.Itoa(i+1), metadata(t, line)[event.ProcessExecutableName])
	}
	require.Equal(t, totals{delivered: 2}, of(s))
	problems, err := testutil.CollectAndLint(s)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestEventThatIsNoText(t *testing.T) {
	var w writes
	s := open(t, &w, stdout.JSON)
	run(t, s)
	s.Send(newEvent("\xff"))
	flush(t, s)
	require.Len(t, w.all, 1, "not half an event")
	assert.Equal(t, "1", metadata(t, w.all[0])[event.TapioGapEvents])
	assert.Equal(t, host, metadata(t, w.all[0])[event.HostName])
	s.Send(newEvent("x"))
	flush(t, s)
	assert.Equal(t, "x", metadata(t, w.all[1])[event.ProcessExecutableName], "the next one is not disturbed")
	assert.Equal(t, totals{delivered: 2, lost: 1}, of(s))
}

// A pipe whose reader has gone is an error like any other, until there is another
// reader, which a named pipe may get.
func TestReaderGoesAndAnotherComes(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(name, 0o600))
	r, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	w, err := os.OpenFile(name, os.O_WRONLY, 0)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	s := open(t, w, stdout.JSON)
	run(t, s)
	s.Send(newEvent("x"))
	require.Eventually(t, func() bool { return s.Ready() != nil }, patience, time.Millisecond)
	require.ErrorIs(t, s.Ready(), unix.EPIPE)
	r, err = os.OpenFile(name, os.O_RDONLY, 0)
	require.NoError(t, err)
	flush(t, s)
	require.NoError(t, s.Ready())
	line, err := bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "x", metadata(t, line)[event.ProcessExecutableName])
	require.NoError(t, r.Close())
	require.NoError(t, w.Close())
}

// TestPipeThatNobodyReads: what waits is bounded, what is lost is told where it
// is missing, and the rest comes in order once somebody reads.
func TestPipeThatNobodyReads(t *testing.T) {
	const first, offered = 1_000, 12_000
	r, w, err := os.Pipe()
	require.NoError(t, err)
	s := open(t, w, stdout.JSON)
	run(t, s)
	for n := range first {
		s.Send(newEvent(strconv.Itoa(n)))
	}
	require.Eventually(t, func() bool { return errors.Is(s.Ready(), stdout.ErrUnread) }, patience, time.Millisecond)
	require.ErrorIs(t, leftOver(t, s), stdout.ErrUnread)
	for n := first; n < offered; n++ {
		s.Send(newEvent(strconv.Itoa(n)))
	}
	before := of(s)
	require.Positive(t, before.lost)
	require.EqualValues(t, offered, before.delivered+uint64(before.waiting-1)+before.lost, "besides what is to tell of the losses")
	require.LessOrEqual(t, before.waiting, 5_000+64+1)

	var read []int
	gaps, at := 0, 0
	lines := bufio.NewScanner(r)
	for gaps+len(read) < offered {
		require.True(t, lines.Scan(), "%v", lines.Err())
		m := metadata(t, lines.Text())
		if lost := m[event.TapioGapEvents]; lost != "" {
			gaps, err = strconv.Atoi(lost)
			require.NoError(t, err)
			at = len(read)
			continue
		}
		n, err := strconv.Atoi(m[event.ProcessExecutableName])
		require.NoError(t, err)
		read = append(read, n)
	}
	flush(t, s)
	require.NoError(t, s.Ready())
	require.EqualValues(t, before.lost, gaps)
	require.True(t, slices.IsSorted(read))
	require.Equal(t, at-1, read[at-1], "nothing is missing before the gap")
	require.Equal(t, at+gaps, read[at], "and nothing after it")
	require.Equal(t, offered-1, read[len(read)-1])
	require.Equal(t, totals{delivered: uint64(len(read) + 1), lost: before.lost}, of(s))
	require.NoError(t, r.Close())
	require.NoError(t, w.Close())
}

// TestStopWhileNobodyReads: a write that never ends holds up nobody.
func TestStopWhileNobodyReads(t *testing.T) {
	r, w := io.Pipe()
	s := open(t, w, stdout.JSON)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	s.Send(newEvent("1"))
	s.Send(newEvent("2"))
	require.Eventually(t, func() bool { return errors.Is(leftOver(t, s), stdout.ErrUnread) }, patience, time.Millisecond)
	require.EqualError(t, leftOver(t, s), "write events to standard output: 2 are left: nobody reads the output")
	cancel()
	require.NoError(t, <-done)
	require.Equal(t, totals{waiting: 2}, of(s))

	// Should somebody read after all, it writes no more than it was about to.
	line, err := bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "1", metadata(t, line)[event.ProcessExecutableName])
	require.Eventually(t, func() bool { return of(s) == totals{delivered: 1, waiting: 1} }, patience, time.Millisecond)
	require.NoError(t, w.Close())
}
