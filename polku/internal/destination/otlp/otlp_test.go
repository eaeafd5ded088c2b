package otlp_test

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	collogpb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	destination "github.com/yairfalse/tapio/polku/internal/destination/otlp"
	"github.com/yairfalse/tapio/polku/internal/route"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/otlp"
)

// collector is a server of OTLP. It knows events by their source, which is the
// service.name of their resource.
type collector struct {
	collogpb.UnimplementedLogsServiceServer
	address string
	// answer decides about the records of a request; nil takes all.
	answer func(ctx context.Context, sources []string) (*collogpb.ExportLogsServiceResponse, error)

	mu    sync.Mutex
	taken []string
}

// Export implements the protocol.
func (c *collector) Export(ctx context.Context, r *collogpb.ExportLogsServiceRequest) (*collogpb.ExportLogsServiceResponse, error) {
	var sources []string
	for _, resource := range r.GetResourceLogs() {
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				sources = append(sources, a.GetValue().GetStringValue())
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answer == nil {
		c.taken = append(c.taken, sources...)
		return &collogpb.ExportLogsServiceResponse{}, nil
	}
	return c.answer(ctx, sources)
}

func start(t *testing.T, c *collector, address string) (stop func()) {
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	c.address = l.Addr().String()
	server := grpc.NewServer()
	collogpb.RegisterLogsServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	stop = sync.OnceFunc(func() {
		server.Stop()
		assert.NoError(t, <-served)
	})
	t.Cleanup(stop)
	return stop
}

func open(t *testing.T, address string, timeout time.Duration) *destination.Destination {
	d, err := destination.New(t.Context(), destination.Config{Collector: otlp.Config{Endpoint: "http://" + address}, Timeout: timeout})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Close()) })
	return d
}

// events returns n events with sources "0", "1" and so on.
func events(n int) []*eventv1.Event {
	all := make([]*eventv1.Event, n)
	for i := range all {
		all[i] = &eventv1.Event{Id: "id-" + strconv.Itoa(i), Source: strconv.Itoa(i), EventType: "agent.gap", TimestampUnixNs: 1772366400000000000}
	}
	return all
}

func sources(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = strconv.Itoa(i)
	}
	return all
}

func TestDelivers(t *testing.T) {
	c := &collector{}
	start(t, c, "127.0.0.1:0")
	d := open(t, c.address, 0)
	require.NoError(t, d.Deliver(t.Context(), nil))
	require.NoError(t, d.Deliver(t.Context(), events(3)))
	assert.ElementsMatch(t, sources(3), c.taken)
}

// A request above the size that a collector takes would fail for ever.
func TestSplitsLargeDeliveries(t *testing.T) {
	c := &collector{}
	start(t, c, "127.0.0.1:0")
	all := events(40)
	for _, e := range all {
		e.Metadata = map[string]string{"text": string(make([]byte, 200<<10))}
	}
	require.NoError(t, open(t, c.address, 0).Deliver(t.Context(), all))
	assert.ElementsMatch(t, sources(40), c.taken)
}

// One bad event must not take its neighbors to the dead letters.
func TestFindsTheEventThatIsRejected(t *testing.T) {
	for name, reject := range map[string]func() (*collogpb.ExportLogsServiceResponse, error){
		"with the whole request": func() (*collogpb.ExportLogsServiceResponse, error) {
			return nil, status.Error(codes.InvalidArgument, "no fives")
		},
		"alone": func() (*collogpb.ExportLogsServiceResponse, error) {
			return &collogpb.ExportLogsServiceResponse{PartialSuccess: &collogpb.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "no fives"}}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := &collector{}
			c.answer = func(_ context.Context, sources []string) (*collogpb.ExportLogsServiceResponse, error) {
				if slices.Contains(sources, "5") {
					return reject()
				}
				c.taken = append(c.taken, sources...)
				return &collogpb.ExportLogsServiceResponse{}, nil
			}
			start(t, c, "127.0.0.1:0")
			err := open(t, c.address, 0).Deliver(t.Context(), events(8))
			var refused *route.Refused
			require.ErrorAs(t, err, &refused)
			require.Len(t, refused.Events, 1)
			assert.Equal(t, 5, refused.Events[0].Index)
			assert.Contains(t, refused.Events[0].Reason, "no fives")
			assert.ElementsMatch(t, []string{"0", "1", "2", "3", "4", "6", "7"}, c.taken)
		})
	}
}

func assertRetried(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	var refused *route.Refused
	assert.NotErrorAs(t, err, &refused)
}

func TestHangingCollectorIsRetried(t *testing.T) {
	c := &collector{answer: func(ctx context.Context, _ []string) (*collogpb.ExportLogsServiceResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	start(t, c, "127.0.0.1:0")
	assertRetried(t, open(t, c.address, 100*time.Millisecond).Deliver(t.Context(), events(1)))
}

func TestComesBackAfterTheCollectorDoes(t *testing.T) {
	c := &collector{}
	stop := start(t, c, "127.0.0.1:0")
	d := open(t, c.address, 0)
	require.NoError(t, d.Deliver(t.Context(), events(1)))
	stop()
	err := d.Deliver(t.Context(), events(2))
	assertRetried(t, err)
	require.ErrorContains(t, err, c.address, "which collector it was")
	again := &collector{}
	start(t, again, c.address)
	require.Eventually(t, func() bool { return d.Deliver(t.Context(), events(2)) == nil }, time.Minute, 10*time.Millisecond)
	again.mu.Lock()
	defer again.mu.Unlock()
	assert.ElementsMatch(t, sources(2), again.taken)
}

func TestRefusesBadConfiguration(t *testing.T) {
	_, err := destination.New(t.Context(), destination.Config{Collector: otlp.Config{Endpoint: "collector"}})
	require.ErrorContains(t, err, "port is missing")
}
