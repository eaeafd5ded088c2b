package stdout_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/yairfalse/tapio/polku/internal/destination/stdout"
	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

func events(n int) []*eventv1.Event {
	all := make([]*eventv1.Event, n)
	for i := range all {
		all[i] = &eventv1.Event{Id: strconv.Itoa(i), EventType: "agent.gap", Metadata: map[string]string{"a": "line\nend"}}
	}
	return all
}

func TestWritesAnEventALine(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	d := stdout.New(w)
	require.NoError(t, d.Deliver(t.Context(), events(2)))
	require.NoError(t, d.Deliver(t.Context(), nil))
	require.NoError(t, d.Close())
	require.NoError(t, w.Close(), "the writer is still open after Close")

	var ids []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var e eventv1.Event
		require.NoError(t, protojson.Unmarshal(lines.Bytes(), &e))
		assert.Contains(t, lines.Text(), `"event_type":"agent.gap"`)
		ids = append(ids, e.GetId())
	}
	assert.Equal(t, []string{"0", "1"}, ids)
}

func TestRefusesWhatJSONCannotHold(t *testing.T) {
	var b bytes.Buffer
	all := events(3)
	all[1].Source = "\xff"
	var refused *route.Refused
	require.ErrorAs(t, stdout.New(&b).Deliver(t.Context(), all), &refused)
	require.Len(t, refused.Events, 1)
	assert.Equal(t, 1, refused.Events[0].Index)
	assert.Equal(t, 2, bytes.Count(b.Bytes(), []byte("\n")), "the others are written")
}

// Whoever reads may be gone; the route tries again.
func TestFailedWriteIsRetried(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	t.Cleanup(func() { _ = w.Close() })
	err = stdout.New(w).Deliver(t.Context(), events(1))
	require.ErrorContains(t, err, "write 1 events")
	var refused *route.Refused
	require.NotErrorAs(t, err, &refused)
}

// Nobody reads the pipe that polku prints to: it must still be able to stop.
func TestDeliverEndsWithItsContext(t *testing.T) {
	r, w := io.Pipe()
	d := stdout.New(w)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Deliver(ctx, []*eventv1.Event{{Id: "1"}}) }()
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.ErrorIs(t, d.Deliver(ctx, []*eventv1.Event{{Id: "2"}}), context.Canceled)

	// What was held up ends before the next is written.
	go func() { ended <- d.Deliver(t.Context(), []*eventv1.Event{{Id: "3"}}) }()
	lines := bufio.NewScanner(r)
	require.True(t, lines.Scan())
	for !strings.Contains(lines.Text(), `"3"`) {
		require.True(t, lines.Scan())
	}
	require.NoError(t, <-ended)
}
