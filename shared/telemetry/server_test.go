package telemetry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// patience is how long a test waits for what must happen before it fails.
const patience = 30 * time.Second

// log collects what a server logs.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newServer(t *testing.T) (*Server, *log) {
	l := new(log)
	s, err := NewServer(Config{
		Address:     "127.0.0.1:0",
		Flag:        "telemetry-address",
		Registry:    prometheus.NewRegistry(),
		StopTimeout: patience,
		Log:         NewLogger(l, slog.LevelDebug, Text),
	})
	require.NoError(t, err)
	return s, l
}

// start serves until the test ends or stop is called, which returns what Serve
// returned.
func start(t *testing.T, s *Server) (stop func() error) {
	require.Nil(t, s.Addr())
	require.NoError(t, s.Listen(t.Context()))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() { assert.NoError(t, stop()) })
	return stop
}

func get(t *testing.T, s *Server, path string) (int, string) {
	t.Helper()
	return do(t, s, http.MethodGet, path, nil)
}

func do(t *testing.T, s *Server, method, path string, header http.Header) (int, string) {
	t.Helper()
	status, body, err := request(method, "http://"+s.Addr().String()+path, header)
	require.NoError(t, err)
	return status, body
}

func request(method, url string, header http.Header) (int, string, error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return 0, "", err
	}
	if header != nil {
		req.Header = header
	}
	// A connection for each request: none lingers when the server stops.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

func TestHealthAndReadiness(t *testing.T) {
	s, _ := newServer(t)
	var mu sync.Mutex
	reason := errors.New("3 of 9 programs")
	s.ReadyWhen("kernel", func() error {
		mu.Lock()
		defer mu.Unlock()
		return reason
	})
	s.ReadyWhen("owners", func() error { return nil })
	start(t, s)

	status, body := get(t, s, "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "[-] kernel: 3 of 9 programs\n[+] owners\nnot ready\n", body)
	status, body = get(t, s, "/healthz")
	assert.Equal(t, http.StatusOK, status, "alive all the same")
	assert.Equal(t, "ok\n", body)

	mu.Lock()
	reason = nil
	mu.Unlock()
	status, body = get(t, s, "/readyz")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "[+] kernel\n[+] owners\nready\n", body)

	s.ReadyWhen("late", func() error { return errors.New("no") })
	status, _ = get(t, s, "/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
}

func TestConditionThatPanics(t *testing.T) {
	s, l := newServer(t)
	s.ReadyWhen("broken", func() error { panic("broken") })
	start(t, s)
	_, _, err := request(http.MethodGet, "http://"+s.Addr().String()+"/readyz", nil)
	require.Error(t, err)
	status, _ := get(t, s, "/healthz")
	assert.Equal(t, http.StatusOK, status, "the server lives on")
	assert.Contains(t, l.String(), "level=WARN", "and says so")
}

func TestMetrics(t *testing.T) {
	s, l := newServer(t)
	events := prometheus.NewCounter(prometheus.CounterOpts{Name: "tapio_events_total", Help: "Events."})
	s.config.Registry.MustRegister(events)
	events.Add(3)
	start(t, s)

	status, body := do(t, s, http.MethodGet, "/metrics", http.Header{"Accept-Encoding": {"gzip, zstd"}})
	assert.Equal(t, http.StatusOK, status)
	for _, want := range []string{"\ntapio_events_total 3\n", "\ngo_goroutines ", "\nprocess_resident_memory_bytes "} {
		assert.Contains(t, body, want)
	}

	// One collector that fails is counted and logged, and hides nothing.
	s.config.Registry.MustRegister(invalid{})
	status, body = get(t, s, "/metrics")
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, body, "\ntapio_events_total 3\n")
	assert.Contains(t, l.String(), "level=WARN")
}

type invalid struct{}

func (invalid) Describe(ch chan<- *prometheus.Desc) {
	ch <- prometheus.NewDesc("tapio_invalid", "x", nil, nil)
}

func (invalid) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("tapio_invalid", "x", nil, nil), errors.New("cannot read it"))
}

func TestRegistryWithCollectors(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector())
	_, err := NewServer(Config{Registry: registry, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)

	registry = prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "go_goroutines", Help: "something else"}, func() float64 { return 1 }))
	_, err = NewServer(Config{Registry: registry, Log: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "go_goroutines")
}

func TestBadRequests(t *testing.T) {
	s, _ := newServer(t)
	start(t, s)
	for _, tt := range []struct {
		method, path string
		header       http.Header
		want         int
	}{
		{http.MethodHead, "/healthz", nil, http.StatusOK},
		{http.MethodPost, "/healthz", nil, http.StatusMethodNotAllowed},
		{http.MethodDelete, "/metrics", nil, http.StatusMethodNotAllowed},
		{http.MethodGet, "/", nil, http.StatusNotFound},
		{http.MethodGet, "/healthz/x", nil, http.StatusNotFound},
		{http.MethodGet, "/debug/pprof/", nil, http.StatusNotFound},
		{http.MethodGet, "/healthz", http.Header{"X-Large": {strings.Repeat("x", 2*maxHeaderBytes)}}, http.StatusRequestHeaderFieldsTooLarge},
		{http.MethodGet, "/healthz?" + strings.Repeat("x", 2*maxHeaderBytes), nil, http.StatusRequestHeaderFieldsTooLarge},
	} {
		status, _ := do(t, s, tt.method, tt.path, tt.header)
		assert.Equal(t, tt.want, status, "%s %.20s", tt.method, tt.path)
	}
}

// A header of any length is read no further than the limit.
func TestEndlessHeader(t *testing.T) {
	s, _ := newServer(t)
	start(t, s)
	conn := dial(t, s)
	_, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\n")
	require.NoError(t, err)
	line := []byte("X-" + strings.Repeat("a", 1000) + ": b\r\n")
	for sent := 0; err == nil && sent < 64<<20; sent += len(line) {
		_, err = conn.Write(line)
	}
	require.Error(t, err, "the server must close the connection")
}

// A client that sends its header slowly is cut off, and delays nobody meanwhile.
func TestSlowHeader(t *testing.T) {
	s, _ := newServer(t)
	require.Equal(t, readHeaderTimeout, s.http.ReadHeaderTimeout)
	s.http.ReadHeaderTimeout = 50 * time.Millisecond
	start(t, s)

	var slow []net.Conn
	for range 50 {
		conn := dial(t, s)
		_, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		require.NoError(t, err)
		slow = append(slow, conn)
	}
	status, _ := get(t, s, "/healthz")
	assert.Equal(t, http.StatusOK, status)
	for _, conn := range slow {
		answer, err := io.ReadAll(conn)
		if !errors.Is(err, syscall.ECONNRESET) {
			require.NoError(t, err, "the server must close the connection")
		}
		assert.NotContains(t, string(answer), "200 OK")
	}
}

func dial(t *testing.T, s *Server) net.Conn {
	conn, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

func TestListenErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()

	for address, want := range map[string]string{
		taken.Addr().String(): "another process has this address; set --telemetry-address to a free one",
		"192.0.2.1:1":         "set --telemetry-address to an address of this machine, HOST:PORT",
		"127.0.0.1":           "set --telemetry-address to an address of this machine, HOST:PORT",
		"127.0.0.1:http-ish":  "set --telemetry-address to an address of this machine, HOST:PORT",
	} {
		s, _ := newServer(t)
		s.config.Address = address
		err := s.Listen(t.Context())
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, address)
		assert.Nil(t, s.Addr())
		require.ErrorContains(t, s.Serve(t.Context()), "call Listen first")
	}
}

func TestServeFailure(t *testing.T) {
	s, _ := newServer(t)
	require.NoError(t, s.Listen(t.Context()))
	require.NoError(t, s.listener.Close())
	require.ErrorIs(t, s.Serve(t.Context()), net.ErrClosed)
}

// blockReadiness makes /readyz wait. It returns a channel that tells of a
// request that waits, and the function that lets it go on.
func blockReadiness(t *testing.T, s *Server) (waiting chan struct{}, release func()) {
	waiting = make(chan struct{})
	released := make(chan struct{})
	s.ReadyWhen("blocked", func() error {
		close(waiting)
		<-released
		return nil
	})
	release = sync.OnceFunc(func() { close(released) })
	t.Cleanup(release)
	return waiting, release
}

func TestGracefulStop(t *testing.T) {
	s, l := newServer(t)
	waiting, release := blockReadiness(t, s)
	stopping := make(chan struct{})
	s.http.RegisterOnShutdown(func() { close(stopping) })
	stop := start(t, s)
	url := "http://" + s.Addr().String()

	running := make(chan int, 1)
	go func() {
		status, _, _ := request(http.MethodGet, url+"/readyz", nil)
		running <- status
	}()
	<-waiting

	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	<-stopping
	_, _, err := request(http.MethodGet, url+"/healthz", nil)
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "no new requests")

	release()
	assert.Equal(t, http.StatusOK, <-running, "the running request gets its answer")
	require.NoError(t, <-stopped)
	assert.NotContains(t, l.String(), "WARN")
}

func TestStopTimeout(t *testing.T) {
	s, l := newServer(t)
	s.config.StopTimeout = time.Millisecond
	waiting, _ := blockReadiness(t, s)
	stop := start(t, s)

	running := make(chan error, 1)
	go func() {
		_, _, err := request(http.MethodGet, "http://"+s.Addr().String()+"/readyz", nil)
		running <- err
	}()
	<-waiting
	require.NoError(t, stop(), "a request that never ends does not keep the process")
	require.Error(t, <-running)
	assert.Contains(t, l.String(), "cut off requests")
}
