package serve_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/yairfalse/tapio/polku/internal/journal"
	"github.com/yairfalse/tapio/polku/internal/route"
	"github.com/yairfalse/tapio/polku/internal/serve"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 60 * time.Second

// fails is a destination with one answer.
type fails struct{ err error }

func (f fails) Deliver(context.Context, []*eventv1.Event) error { return f.err }
func (f fails) Close() error                                    { return nil }

// A destination may answer with anything, and Health tells it all the same.
func TestHealthTellsAFailureThatIsNoText(t *testing.T) {
	ready := make(chan serve.Addresses, 1)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serve.Run(ctx, serve.Config{
			Listen: "127.0.0.1:0", OperatorListen: "127.0.0.1:0", MaxMessage: 1 << 20,
			Journal: journal.Config{Dir: t.TempDir(), MaxBytes: 64 << 20, Retention: time.Hour},
			Routes: func(context.Context, prometheus.Registerer, *slog.Logger) (map[string]route.Destination, error) {
				return map[string]route.Destination{"odd": fails{errors.New("it said \xff")}}, nil
			},
			Log: slog.New(slog.DiscardHandler), Ready: func(a serve.Addresses) { ready <- a },
		})
	}()
	defer func() {
		stop()
		require.NoError(t, <-ended)
	}()
	var at serve.Addresses
	select {
	case at = <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(at.Gateway.String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	client := polkuv1.NewGatewayClient(conn)
	e := event.NewFactory().New(event.KindAgentGap, time.Now(), "tapio")
	ack, err := client.SendEvent(t.Context(), &polkuv1.IngestEvent{Source: "s", Payload: &polkuv1.IngestEvent_Event{Event: e}})
	require.NoError(t, err)
	require.Empty(t, ack.GetErrors())
	require.Eventually(t, func() bool {
		health, err := client.Health(t.Context(), &polkuv1.HealthRequest{})
		if err != nil {
			t.Log(err)
			return false
		}
		part := health.GetComponents()["route/odd"]
		return !part.GetHealthy() && part.GetMessage() == "it said \uFFFD"
	}, patience, 10*time.Millisecond)
}
