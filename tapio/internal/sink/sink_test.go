package sink_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/tapio/internal/sink"
)

// writes remembers each write. It has no lock: a sink is to keep one.
type writes []string

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, string(p))
	return len(p), nil
}

func newEvent(comm string) *eventv1.Event {
	e := event.NewFactory().New(event.KindContainerOOMKill, time.Unix(1_700_000_000, 0), "tapio")
	e.Metadata[event.ProcessPID] = "1"
	e.Metadata[event.ProcessExecutableName] = comm
	return e
}

func TestOneWriteAnEvent(t *testing.T) {
	for name, open := range map[string]func(io.Writer) *sink.Lines{
		"json": sink.NewJSON,
		"text": func(w io.Writer) *sink.Lines { return sink.NewText(w, humanoutput.Style{}) },
	} {
		t.Run(name, func(t *testing.T) {
			var w writes
			s := open(&w)
			require.NoError(t, s.Send(newEvent("a rather long name, so that the next is shorter")))
			require.NoError(t, s.Send(newEvent("two\nlines")))
			require.NoError(t, s.Send(newEvent("x")))
			require.Len(t, w, 3)
			for _, line := range w {
				assert.Equal(t, 1, strings.Count(line, "\n"), "%q", line)
				assert.True(t, strings.HasSuffix(line, "\n"), "%q", line)
			}
			assert.Contains(t, w[0], "a rather long name")
			assert.NotContains(t, w[2], "rather")
		})
	}
}

func TestJSON(t *testing.T) {
	var w writes
	e := newEvent("x")
	require.NoError(t, sink.NewJSON(&w).Send(e))
	want, err := event.AppendJSON(nil, e)
	require.NoError(t, err)
	assert.Equal(t, string(want)+"\n", w[0])
}

func TestText(t *testing.T) {
	var w writes
	style := humanoutput.Style{Color: true}
	e := newEvent("x")
	require.NoError(t, sink.NewText(&w, style).Send(e))
	assert.Equal(t, style.Line(e)+"\n", w[0])
}

func TestConcurrentSends(t *testing.T) {
	var w writes
	s := sink.NewJSON(&w)
	var wg sync.WaitGroup
	const senders, each = 8, 100
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				assert.NoError(t, s.Send(newEvent(strconv.Itoa(i*each+j))))
			}
		})
	}
	wg.Wait()
	require.Len(t, w, senders*each)
	seen := map[string]bool{}
	for _, line := range w {
		var got struct{ Metadata map[string]string }
		require.NoError(t, json.Unmarshal([]byte(line), &got))
		seen[got.Metadata[event.ProcessExecutableName]] = true
	}
	assert.Len(t, seen, senders*each, "none is lost or mixed with another")
}

type broken struct{ err error }

func (b broken) Write([]byte) (int, error) { return 0, b.err }

func TestErrors(t *testing.T) {
	full := errors.New("no space left on device")
	err := sink.NewJSON(broken{full}).Send(newEvent("x"))
	require.ErrorIs(t, err, full)
	require.EqualError(t, err, "write event: no space left on device")

	var w writes
	s := sink.NewJSON(&w)
	require.ErrorContains(t, s.Send(newEvent("\xff")), "format container.oom_kill")
	assert.Empty(t, w, "not half an event")
	require.NoError(t, s.Send(newEvent("x")), "the next one is not disturbed")
	assert.Len(t, w, 1)
}

// A pipe whose reader has gone is an error like any other.
func TestClosedPipe(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.ErrorContains(t, sink.NewJSON(w).Send(newEvent("x")), "broken pipe")
	require.NoError(t, w.Close())
}
