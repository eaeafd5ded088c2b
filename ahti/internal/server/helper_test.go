package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/yairfalse/tapio/ahti/internal/ahtitest"
	"github.com/yairfalse/tapio/ahti/internal/server"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// The server that the tests of this package share. The tests end ahti and not the
// machine: nothing needs to reach the disk.
var postgres = ahtitest.NewPostgres("fsync=off")

func TestMain(m *testing.M) {
	code := m.Run()
	if err := postgres.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// running is an ahti in this process.
type running struct {
	ahtiv1.AhtiServiceClient
	grpc, http string
	stop       func() error
}

// run starts an ahti, which ends with the test.
func run(tb testing.TB, config server.Config) *running {
	tb.Helper()
	config.Listen, config.HTTPListen = "127.0.0.1:0", "127.0.0.1:0"
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan [2]net.Addr, 1), make(chan error, 1)
	config.Ready = func(grpc, http net.Addr) { ready <- [2]net.Addr{grpc, http} }
	go func() { ended <- server.Run(ctx, config) }()
	r := &running{}
	select {
	case addresses := <-ready:
		r.grpc, r.http = addresses[0].String(), addresses[1].String()
	case err := <-ended:
		cancel()
		require.NoError(tb, err)
	}
	connection, err := grpc.NewClient(r.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	require.NoError(tb, err)
	r.AhtiServiceClient = ahtiv1.NewAhtiServiceClient(connection)
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		_ = connection.Close()
		cancel()
		return <-ended
	}
	tb.Cleanup(func() { require.NoError(tb, r.stop()) })
	return r
}

// ingest stores events, in requests of some, and returns the responses.
func (r *running) ingest(tb testing.TB, events []*ahtiv1.AhtiEvent, atOnce int) []*ahtiv1.IngestResponse {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := r.Ingest(ctx)
	require.NoError(tb, err)
	var responses []*ahtiv1.IngestResponse
	for len(events) > 0 {
		n := min(atOnce, len(events))
		require.NoError(tb, stream.Send(&ahtiv1.IngestRequest{Events: events[:n]}))
		response, err := stream.Recv()
		require.NoError(tb, err)
		responses = append(responses, response)
		events = events[n:]
	}
	require.NoError(tb, stream.CloseSend())
	return responses
}

func each(t *testing.T, test func(t *testing.T, config store.Config)) {
	ahtitest.Stores(t, postgres, test)
}
