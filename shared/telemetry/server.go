package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/yairfalse/tapio/shared/endpoint"
)

// The clients are probes and scrapers: small requests, answered at once.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	writeTimeout      = 30 * time.Second
	idleTimeout       = 2 * time.Minute // longer than the usual scrape interval
	maxHeaderBytes    = 8 << 10
	maxScrapes        = 4 // at once; each holds the whole page in memory
)

// Config says how a Server is to serve.
type Config struct {
	// Address is HOST:PORT to listen on; port 0 takes a free one.
	Address string

	// Flag is the name of the flag that sets Address, without dashes. Errors
	// name it.
	Flag string

	// Registry is shown on /metrics. NewServer adds the collectors for the Go
	// runtime and the process unless they are there.
	Registry *prometheus.Registry

	// StopTimeout is how long Serve waits for running requests when it is told
	// to stop.
	StopTimeout time.Duration

	Log *slog.Logger
}

// Server answers, for one process,
//
//	/healthz  200 as long as the process can answer at all
//	/readyz   200 when every condition holds, else 503; a line for each
//	/metrics  the registry
//
// Liveness must not depend on a peer: a node agent that is restarted because
// its destination is down loses what it has learned and helps nobody.
type Server struct {
	config   Config
	http     *http.Server
	listener net.Listener

	mu         sync.Mutex
	conditions []condition
}

type condition struct {
	name  string
	check func() error
}

// NewServer prepares a server. It fails only if the registry refuses the
// collectors.
func NewServer(config Config) (*Server, error) {
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		var there prometheus.AlreadyRegisteredError
		if err := config.Registry.Register(c); err != nil && !errors.As(err, &there) {
			return nil, fmt.Errorf("register the runtime's own metrics: %w", err)
		}
	}
	s := &Server{config: config}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", s.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(config.Registry, promhttp.HandlerOpts{
		Registry:            config.Registry,
		ErrorLog:            slog.NewLogLogger(config.Log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError, // one bad collector must not hide the others
		MaxRequestsInFlight: maxScrapes,
		// A compressor holds more memory than the page it would shorten.
		DisableCompression: true,
	}))
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(config.Log.Handler(), slog.LevelWarn),
	}
	return s, nil
}

// ReadyWhen adds a condition to /readyz. check is called for each request, at
// times by several at once; it must not block, and its error says why the
// condition does not hold.
func (s *Server) ReadyWhen(name string, check func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conditions = append(s.conditions, condition{name, check})
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	conditions := s.conditions // only ever appended to
	s.mu.Unlock()

	status := http.StatusOK
	var body strings.Builder
	for _, c := range conditions {
		if err := c.check(); err != nil {
			status = http.StatusServiceUnavailable
			fmt.Fprintf(&body, "[-] %s: %v\n", c.name, err)
		} else {
			fmt.Fprintf(&body, "[+] %s\n", c.name)
		}
	}
	if status == http.StatusOK {
		body.WriteString("ready\n")
	} else {
		body.WriteString("not ready\n")
	}
	answer(w, status, body.String())
}

func answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the client is gone, or it is not
}

// Listen takes the address, so that a binary finds out at its start that it
// cannot. The error names the flag to change.
func (s *Server) Listen(ctx context.Context) error {
	l, err := endpoint.Listen(ctx, "health and metrics", s.config.Address, s.config.Flag)
	if err == nil {
		s.listener = l
	}
	return err
}

// Addr is the address that Listen took; nil before.
func (s *Server) Addr() net.Addr {
	if s.listener == nil {
		return nil
	}
	return s.listener.Addr()
}

// Serve answers requests from Listen on until ctx ends, then waits for those
// that are running, for Config.StopTimeout at most: a client that lingers is cut
// off and does not make the stop a failure. A server serves once.
func (s *Server) Serve(ctx context.Context) error {
	if s.listener == nil {
		return errors.New("serve health and metrics: call Listen first")
	}
	ended := make(chan error, 1)
	go func() { ended <- s.http.Serve(s.listener) }()

	select {
	case err := <-ended:
		return fmt.Errorf("serve health and metrics on %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.StopTimeout)
	defer cancel()
	if err := s.http.Shutdown(stop); err != nil {
		s.config.Log.Warn("cut off requests for health or metrics that outlast the stop",
			"address", s.Addr().String(), "waited", s.config.StopTimeout, "error", err)
		_ = s.http.Close() // what it reports, the listener, is closed already
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve health and metrics on %s: %w", s.Addr(), err)
	}
	return nil
}
