package journal

import (
	"errors"
	"log/slog"
	"testing"
	"time"

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
