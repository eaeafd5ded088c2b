package server_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/ahti/internal/server"
	"github.com/yairfalse/tapio/ahti/internal/store"
)

// A store that cannot be opened must end the process, so that it is started
// again: what serves already must not hold it.
func TestEndsWhenItCannotStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	ended := make(chan error, 1)
	go func() {
		ended <- server.Run(t.Context(), server.Config{
			Listen: "127.0.0.1:0", TelemetryListen: "127.0.0.1:0",
			Store: store.Config{Dir: filepath.Join(file, "data")}, Log: slog.New(slog.DiscardHandler),
		})
	}()
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "data directory")
	case <-time.After(time.Minute):
		require.FailNow(t, "ahti neither serves nor ends")
	}
}
