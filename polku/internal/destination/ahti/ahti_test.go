package ahti_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/yairfalse/tapio/polku/internal/destination/ahti"
	"github.com/yairfalse/tapio/polku/internal/route"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/rpc"
)

// patience is for what happens soon, on a machine that has other things to do.
const patience = 30 * time.Second

// service is an AHTI that keeps what it takes in memory.
type service struct {
	ahtiv1.UnimplementedAhtiServiceServer
	// answer decides about a request; nil stores everything.
	answer func(ctx context.Context, r *ahtiv1.IngestRequest) (*ahtiv1.IngestResponse, error)

	mu       sync.Mutex
	requests []*ahtiv1.IngestRequest
}

func (s *service) Ingest(stream grpc.BidiStreamingServer[ahtiv1.IngestRequest, ahtiv1.IngestResponse]) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.requests = append(s.requests, r)
		s.mu.Unlock()
		response := storeAll(r)
		if s.answer != nil {
			if response, err = s.answer(stream.Context(), r); err != nil {
				return err
			}
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func storeAll(r *ahtiv1.IngestRequest) *ahtiv1.IngestResponse {
	response := &ahtiv1.IngestResponse{}
	for _, e := range r.GetEvents() {
		response.EventIds = append(response.EventIds, e.GetId())
	}
	return response
}

// received returns the requests so far.
func (s *service) received() []*ahtiv1.IngestRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*ahtiv1.IngestRequest(nil), s.requests...)
}

// ids are those of all events received, in order.
func (s *service) ids() []string {
	var ids []string
	for _, r := range s.received() {
		for _, e := range r.GetEvents() {
			ids = append(ids, e.GetId())
		}
	}
	return ids
}

// serve answers on address until stop is called or the test ends. It is set up
// as the server of AHTI is.
func serve(t testing.TB, address string, s *service, files certs.Files) (addr string, stop func()) {
	config := rpc.Config{
		Name: "ahti", Address: address, Flag: "address", StopTimeout: 10 * time.Millisecond,
		Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	}
	if !files.Empty() {
		var err error
		config.TLS, err = files.Server()
		require.NoError(t, err)
	}
	server, err := rpc.NewServer(config)
	require.NoError(t, err)
	ahtiv1.RegisterAhtiServiceServer(server, s)
	require.NoError(t, server.Listen(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return server.Addr().String(), stop
}

func connect(t testing.TB, config ahti.Config) *ahti.Destination {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.Registry == nil {
		config.Registry = prometheus.NewRegistry()
	}
	if config.Timeout == 0 {
		config.Timeout = patience
	}
	d, err := ahti.New(config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Close()) })
	return d
}

// events returns n events with ids "0", "1" and so on.
func events(n int) []*eventv1.Event {
	all := make([]*eventv1.Event, n)
	for i := range all {
		all[i] = &eventv1.Event{
			Id: strconv.Itoa(i), EventType: event.KindContainerOOMKill, Source: "tapio",
			TimestampUnixNs: 1772366400000000000,
			Metadata:        map[string]string{event.HostName: "node-1", event.ContainerID: "c", event.K8sPodUID: "p"},
		}
	}
	return all
}

func TestDeliversTransformedEventsInOrder(t *testing.T) {
	s := &service{}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	for _, target := range []string{addr, "http://" + addr, "http://" + addr + "/"} {
		s.requests = nil
		registry := prometheus.NewRegistry()
		d := connect(t, ahti.Config{Endpoint: target, Registry: registry})
		require.NoError(t, d.Deliver(t.Context(), events(3)))
		assert.Equal(t, []string{"0", "1", "2"}, s.ids())
		assert.Equal(t, "c", s.received()[0].GetEvents()[0].GetEntities()[0].GetId())
		count, err := testutil.GatherAndCount(registry, "grpc_client_handled_total")
		require.NoError(t, err)
		assert.Positive(t, count)
	}
}

func TestDeliversNothing(t *testing.T) {
	s := &service{}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	require.NoError(t, connect(t, ahti.Config{Endpoint: addr}).Deliver(t.Context(), nil))
	assert.Empty(t, s.received())
}

// A request above the size that AHTI takes would fail for ever.
func TestSplitsWhatIsTooLargeForOneRequest(t *testing.T) {
	s := &service{}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	all := events(40)
	for _, e := range all {
		e.Payload = make([]byte, 200<<10)
	}
	d := connect(t, ahti.Config{Endpoint: addr})
	require.NoError(t, d.Deliver(t.Context(), all))
	assert.Len(t, s.received(), 4)
	want := make([]string, len(all))
	for i := range want {
		want[i] = strconv.Itoa(i)
	}
	assert.Equal(t, want, s.ids())

	require.NoError(t, d.Deliver(t.Context(), events(5000)), "small, but many")
	assert.Len(t, s.received(), 6)
}

func TestTellsWhichEventsAreRefused(t *testing.T) {
	s := &service{answer: func(_ context.Context, r *ahtiv1.IngestRequest) (*ahtiv1.IngestResponse, error) {
		response := &ahtiv1.IngestResponse{}
		for _, e := range r.GetEvents() {
			if e.GetId() == "3" {
				response.Errors = append(response.Errors, &ahtiv1.IngestError{EventId: "3", Code: "too_old", Message: "it is older than the store keeps"})
				continue
			}
			response.EventIds = append(response.EventIds, e.GetId())
		}
		return response, nil
	}}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	all := events(7)
	all[1].EventType = ""                                          // the transform refuses it
	all[4].Metadata[event.ContainerID] = strings.Repeat("x", 2000) // and this one
	all[5].Payload = make([]byte, 3<<20)                           // no gateway takes so much
	all[6] = withManyLinks("6")                                    // its surplus links are left out
	err := connect(t, ahti.Config{Endpoint: addr}).Deliver(t.Context(), all)
	var refused *route.Refused
	require.ErrorAs(t, err, &refused)
	require.Len(t, refused.Events, 4)
	for i, want := range []struct {
		index  int
		reason string
	}{
		{1, "it has no event_type"},
		{3, "too_old: it is older than the store keeps"},
		{4, "has 2000 bytes"},
		{5, "with its entities"},
	} {
		assert.Equal(t, want.index, refused.Events[i].Index)
		assert.Contains(t, refused.Events[i].Reason, want.reason)
	}
	assert.Equal(t, []string{"0", "2", "3", "6"}, s.ids())
}

// withManyLinks is an event that is small and is about very much.
func withManyLinks(id string) *eventv1.Event {
	k := &eventv1.K8SEventData{ResourceType: "service", ResourceName: "api", Namespace: "shop"}
	for i := range 10_000 {
		k.Links = append(k.Links, &eventv1.ObjectLink{Type: "exposes", Target: &eventv1.ObjectReference{Kind: "pod", Uid: strconv.Itoa(i)}})
	}
	return &eventv1.Event{
		Id: id, EventType: "k8s.service.updated", Data: &eventv1.Event_K8S{K8S: k},
		Metadata: map[string]string{event.K8sClusterName: strings.Repeat("x", 500)},
	}
}

// An event that AHTI does not mention is not delivered: the route tries again.
func TestAnswerThatLeavesAnEventOpenIsAnError(t *testing.T) {
	s := &service{answer: func(_ context.Context, r *ahtiv1.IngestRequest) (*ahtiv1.IngestResponse, error) {
		r.Events = r.GetEvents()[1:]
		return storeAll(r), nil
	}}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	err := connect(t, ahti.Config{Endpoint: addr}).Deliver(t.Context(), events(3))
	require.ErrorContains(t, err, "neither stored nor refused 1 of 3 events")
	assertRetried(t, err)
}

func TestHangingAhtiIsAnError(t *testing.T) {
	s := &service{answer: func(ctx context.Context, _ *ahtiv1.IngestRequest) (*ahtiv1.IngestResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	err := connect(t, ahti.Config{Endpoint: addr, Timeout: 100 * time.Millisecond}).Deliver(t.Context(), events(1))
	assert.Equal(t, codes.DeadlineExceeded, status.Code(err))
	assertRetried(t, err)
}

// A listener that never answers the handshake is as good as gone.
func TestSilentListenerIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, l.Close()) })
	err = connect(t, ahti.Config{Endpoint: l.Addr().String(), Timeout: 100 * time.Millisecond}).Deliver(t.Context(), events(1))
	assertRetried(t, err)
}

func TestFailingStoreIsAnError(t *testing.T) {
	s := &service{answer: func(context.Context, *ahtiv1.IngestRequest) (*ahtiv1.IngestResponse, error) {
		return nil, status.Error(codes.Unavailable, "the disk is full")
	}}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	err := connect(t, ahti.Config{Endpoint: addr}).Deliver(t.Context(), events(1))
	require.ErrorContains(t, err, "the disk is full")
	require.ErrorContains(t, err, addr, "which AHTI it was")
	assertRetried(t, err)
}

func TestCanceledDeliveryReturns(t *testing.T) {
	arrived := make(chan struct{})
	s := &service{answer: func(ctx context.Context, _ *ahtiv1.IngestRequest) (*ahtiv1.IngestResponse, error) {
		close(arrived)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	d := connect(t, ahti.Config{Endpoint: addr})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	assert.Equal(t, codes.Canceled, status.Code(d.Deliver(ctx, events(1))))
}

// assertRetried checks that the route tries again.
func assertRetried(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	var refused *route.Refused
	assert.NotErrorAs(t, err, &refused)
}

func TestComesBackAfterAhtiDoes(t *testing.T) {
	s := &service{}
	addr, stop := serve(t, "127.0.0.1:0", s, certs.Files{})
	d := connect(t, ahti.Config{Endpoint: addr})
	require.NoError(t, d.Deliver(t.Context(), events(1)))

	stop()
	assertRetried(t, d.Deliver(t.Context(), events(2)))

	again := &service{}
	serve(t, addr, again, certs.Files{})
	require.Eventually(t, func() bool { return d.Deliver(t.Context(), events(2)) == nil }, patience, 10*time.Millisecond)
	assert.Equal(t, []string{"0", "1"}, again.ids())
}

// A replay delivers beside the route.
func TestConcurrentDeliveries(t *testing.T) {
	s := &service{}
	addr, _ := serve(t, "127.0.0.1:0", s, certs.Files{})
	d := connect(t, ahti.Config{Endpoint: addr})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { assert.NoError(t, d.Deliver(t.Context(), events(10))) })
	}
	wg.Wait()
	assert.Len(t, s.ids(), 80)
}

func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ours, other := newAuthority(t), newAuthority(t)
	server := certs.Files{Cert: dir + "/server.pem", Key: dir + "/server.key", CA: dir + "/ca.pem"}
	client := certs.Files{Cert: dir + "/client.pem", Key: dir + "/client.key", CA: dir + "/ca.pem"}
	stranger := certs.Files{Cert: dir + "/stranger.pem", Key: dir + "/stranger.key", CA: dir + "/ca.pem"}
	writePEM(t, server.CA, "CERTIFICATE", ours.cert.Raw)
	ours.issue(t, server)
	ours.issue(t, client)
	other.issue(t, stranger)
	otherCA := client
	otherCA.CA = dir + "/other.pem"
	writePEM(t, otherCA.CA, "CERTIFICATE", other.cert.Raw)

	s := &service{}
	addr, _ := serve(t, "127.0.0.1:0", s, server)
	for _, tt := range []struct {
		name, scheme string
		files        certs.Files
		want         string
	}{
		{"good", "https://", client, ""},
		{"good without a scheme", "", client, ""},
		{"server of another authority", "https://", otherCA, "certificate"},
		{"client of another authority", "https://", stranger, ""},
		{"client without certificate", "https://", certs.Files{CA: client.CA}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := connect(t, ahti.Config{Endpoint: tt.scheme + addr, TLS: tt.files}).Deliver(t.Context(), events(1))
			if strings.HasPrefix(tt.name, "good") {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, tt.want)
			assertRetried(t, err)
		})
	}
	t.Run("unencrypted", func(t *testing.T) {
		assertRetried(t, connect(t, ahti.Config{Endpoint: "http://" + addr}).Deliver(t.Context(), events(1)))
	})
	t.Run("authorities of the system", func(t *testing.T) {
		err := connect(t, ahti.Config{Endpoint: "https://" + addr}).Deliver(t.Context(), events(1))
		require.ErrorContains(t, err, "certificate")
		assertRetried(t, err)
	})
	assert.Len(t, s.received(), 2)
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key}
}

// issue writes a certificate for 127.0.0.1 and its key.
func (a *authority) issue(t *testing.T, files certs.Files) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: filepath.Base(files.Cert)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	writePEM(t, files.Cert, "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	writePEM(t, files.Key, "PRIVATE KEY", der)
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func TestRefusesBadConfiguration(t *testing.T) {
	registry := prometheus.NewRegistry()
	config := ahti.Config{Endpoint: "127.0.0.1:1", Log: slog.New(slog.DiscardHandler), Registry: registry}
	bad := config
	bad.Endpoint = "ftp://ahti:21"
	_, err := ahti.New(bad)
	require.ErrorContains(t, err, `scheme "ftp" is not known`)
	bad = config
	bad.TLS = certs.Files{CA: filepath.Join(t.TempDir(), "missing.pem")}
	_, err = ahti.New(bad)
	require.ErrorContains(t, err, "missing.pem")

	for range 2 { // a route that is configured anew registers again
		d, err := ahti.New(config)
		require.NoError(t, err)
		_, err = ahti.New(config)
		require.ErrorContains(t, err, "register the metrics")
		require.NoError(t, d.Close())
	}
}

func BenchmarkDeliver(b *testing.B) {
	s := &service{}
	addr, _ := serve(b, "127.0.0.1:0", s, certs.Files{})
	d := connect(b, ahti.Config{Endpoint: addr})
	for _, n := range []int{1, 500} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			all := events(n)
			b.ReportAllocs()
			for b.Loop() {
				s.mu.Lock()
				s.requests = nil
				s.mu.Unlock()
				if err := d.Deliver(b.Context(), all); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
