package journal

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// What one message meets is no reason to hold up all others, or to start the log
// again, unless the log may be broken.
func TestWhatAFailedAppendMeans(t *testing.T) {
	j, err := Open(t.Context(), Config{Dir: t.TempDir(), MaxBytes: 64 << 20, Retention: time.Hour, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NoError(t, j.Close()) // so that nothing repairs
	for _, test := range []struct {
		err             error
		sent            bool
		blocked, broken bool
	}{
		{nil, true, false, false},
		{&jetstream.APIError{Code: 409, ErrorCode: 10158, Description: "duplicate message id is in process"}, true, false, false},
		{errors.New("nats: not sent"), false, true, false},
		{errors.New("nats: maximum bytes exceeded"), true, true, false},
		{errors.New("nats: timeout"), true, true, true},
	} {
		j.failure, j.broken = nil, false
		j.slots <- struct{}{}
		(&Receipt{journal: j}).settle(test.err, test.sent)
		require.Equal(t, test.blocked, j.failure != nil, "%v", test.err)
		require.Equal(t, test.broken, j.broken, "%v", test.err)
	}
	j.failure, j.broken, j.starts = nil, false, 1
	j.slots <- struct{}{}
	(&Receipt{journal: j}).settle(errors.New("nats: server is disconnected"), true)
	require.NoError(t, j.failure, "it was sent to the server before this one")
}

// told calls back with what is logged.
type told func(message string)

func (told) Enabled(context.Context, slog.Level) bool             { return true }
func (f told) Handle(_ context.Context, record slog.Record) error { f(record.Message); return nil }
func (f told) WithAttrs([]slog.Attr) slog.Handler                 { return f }
func (f told) WithGroup(string) slog.Handler                      { return f }

// A server that stops by itself fails no append. While there is none the log
// says so, and what is appended is not kept to be sent later: what is sent again
// meanwhile would be stored before it.
func TestTheEmbeddedServerStopsByItself(t *testing.T) {
	var j *Journal
	blocked := make(chan error, 1)
	log := slog.New(told(func(message string) {
		if message == "start the embedded log again" {
			blocked <- j.Blocked()
		}
	}))
	var err error
	j, err = Open(t.Context(), Config{Dir: t.TempDir(), MaxBytes: 64 << 20, Retention: time.Hour, Registry: prometheus.NewRegistry(), Log: log})
	require.NoError(t, err)
	defer func() { require.NoError(t, j.Close()) }()
	stop := func() {
		j.embedded.server.Shutdown()
		j.embedded.server.WaitForShutdown()
	}
	works := func() bool { return j.Blocked() == nil }

	j.embedded.mu.Lock()
	stop()
	j.embedded.mu.Unlock()
	require.ErrorIs(t, <-blocked, ErrUnavailable)
	require.Eventually(t, works, patience, time.Millisecond)

	j.embedded.mu.Lock() // so that nothing repairs
	stop()
	require.Eventually(t, func() bool { return !works() }, patience, time.Millisecond)
	require.EqualError(t, j.Blocked(), "the log cannot be written for now: not connected to the embedded log, which is started again")
	require.ErrorIs(t, j.conn.Publish(subjectEvents, nil), nats.ErrReconnectBufExceeded)
	j.embedded.mu.Unlock()
	require.Eventually(t, works, patience, time.Millisecond)
}

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second
