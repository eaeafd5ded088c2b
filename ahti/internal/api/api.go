// Package api answers over HTTP, in JSON, what the gRPC service answers: each
// path is one of its methods, each parameter a field of its request.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/endpoint"
)

const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	answerTimeout     = time.Minute
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 16 << 10
	// maxAtOnce is how many requests are answered at a time; each holds its
	// answer in memory.
	maxAtOnce = 32
)

// Config says how to serve.
type Config struct {
	Address     string // HOST:PORT
	Flag        string // that sets Address, for errors
	Service     ahtiv1.AhtiServiceServer
	StopTimeout time.Duration
	Log         *slog.Logger
}

// Server serves JSON. Listen, then Serve.
type Server struct {
	config   Config
	http     *http.Server
	listener net.Listener
}

// NewServer prepares a server.
func NewServer(config Config) *Server {
	return &Server{config: config, http: &http.Server{
		Handler:           Handler(config.Service),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      answerTimeout + readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(config.Log.Handler(), slog.LevelWarn),
	}}
}

// Listen takes the address.
func (s *Server) Listen(ctx context.Context) error {
	l, err := endpoint.Listen(ctx, "JSON", s.config.Address, s.config.Flag)
	if err == nil {
		s.listener = l
	}
	return err
}

// Addr is the address that Listen took.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers until ctx is done.
func (s *Server) Serve(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- s.http.Serve(s.listener) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve JSON on %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.StopTimeout)
	defer cancel()
	if err := s.http.Shutdown(stop); err != nil {
		_ = s.http.Close() // what it reports, the listener, is closed already
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve JSON on %s: %w", s.Addr(), err)
	}
	return nil
}

// Handler is the API without its server.
func Handler(service ahtiv1.AhtiServiceServer) http.Handler {
	mux := http.NewServeMux()
	room := make(chan struct{}, maxAtOnce)
	handle := func(path string, call func(context.Context, *parameters) (proto.Message, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
			defer cancel()
			select {
			case room <- struct{}{}:
				defer func() { <-room }()
			case <-ctx.Done():
				fail(w, status.FromContextError(ctx.Err()).Err())
				return
			}
			p, err := newParameters(r)
			if err != nil {
				fail(w, err)
				return
			}
			message, err := call(ctx, p)
			if err != nil {
				fail(w, err)
				return
			}
			write(w, message)
		})
	}
	handle("/v1/incidents", func(ctx context.Context, p *parameters) (proto.Message, error) {
		request := &ahtiv1.ListIncidentsRequest{
			Since: p.time("since"), Until: p.time("until"), Cluster: p.text("cluster"), Namespace: p.text("namespace"),
			State: p.state("state"), PageSize: int32(p.number("page_size")), PageToken: p.text("page_token"),
		}
		return answer(p, request, func() (proto.Message, error) { return service.ListIncidents(ctx, request) })
	})
	handle("/v1/incidents/{id}", func(ctx context.Context, p *parameters) (proto.Message, error) {
		request := &ahtiv1.GetIncidentRequest{Id: p.path("id")}
		return answer(p, request, func() (proto.Message, error) { return service.GetIncident(ctx, request) })
	})
	handle("/v1/why", func(ctx context.Context, p *parameters) (proto.Message, error) {
		request := &ahtiv1.WhyRequest{
			EventId: p.text("event_id"), Entity: p.text("entity"), Cluster: p.text("cluster"),
			At: p.time("at"), LookbackSeconds: p.number("lookback_seconds"),
		}
		return answer(p, request, func() (proto.Message, error) { return service.Why(ctx, request) })
	})
	handle("/v1/timeline", func(ctx context.Context, p *parameters) (proto.Message, error) {
		request := &ahtiv1.TimelineRequest{
			Entity: p.text("entity"), Cluster: p.text("cluster"), Since: p.time("since"), Until: p.time("until"),
			PageSize: int32(p.number("page_size")), PageToken: p.text("page_token"),
		}
		return answer(p, request, func() (proto.Message, error) { return service.Timeline(ctx, request) })
	})
	handle("/v1/topology", func(ctx context.Context, p *parameters) (proto.Message, error) {
		request := &ahtiv1.TopologyRequest{
			Entity: p.text("entity"), Cluster: p.text("cluster"), At: p.time("at"), Depth: int32(p.number("depth")),
		}
		return answer(p, request, func() (proto.Message, error) { return service.Topology(ctx, request) })
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", http.MethodGet)
			writeError(w, http.StatusMethodNotAllowed, "this API only reads: use GET")
			return
		}
		writeError(w, http.StatusNotFound, "no such path: use /v1/incidents, /v1/incidents/ID, /v1/why, /v1/timeline or /v1/topology")
	})
	return mux
}

// answer calls the service unless the parameters are wrong.
func answer(p *parameters, request proto.Message, call func() (proto.Message, error)) (proto.Message, error) {
	if err := p.problem(); err != nil {
		return nil, err
	}
	// What the codec of gRPC refuses does not get in by this door either.
	if _, err := proto.Marshal(request); err != nil {
		return nil, status.Error(codes.InvalidArgument, "a parameter is not UTF-8")
	}
	return call()
}

// parameters reads the query and collects what is wrong with it.
type parameters struct {
	request *http.Request
	values  url.Values
	used    map[string]bool
	err     error
}

func newParameters(r *http.Request) (*parameters, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the query cannot be read: %v", err)
	}
	return &parameters{request: r, values: values, used: map[string]bool{}}, nil
}

// problem is what is wrong with the parameters that were read, or that nobody
// reads.
func (p *parameters) problem() error {
	if err := p.unknown(); err != nil {
		return err
	}
	return p.err
}

func (p *parameters) unknown() error {
	for name := range p.values {
		if !p.used[name] {
			return status.Errorf(codes.InvalidArgument, "parameter %.80q is not known here", name)
		}
	}
	return nil
}

func (p *parameters) wrong(name, value, want string) {
	if p.err == nil {
		p.err = status.Errorf(codes.InvalidArgument, "parameter %s is %.80q: use %s", name, value, want)
	}
}

func (p *parameters) path(name string) string { return p.request.PathValue(name) }

func (p *parameters) text(name string) string {
	p.used[name] = true
	if all := p.values[name]; len(all) > 1 {
		p.wrong(name, strings.Join(all, ", "), "it once")
	}
	return p.values.Get(name)
}

func (p *parameters) number(name string) int64 {
	text := p.text(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		p.wrong(name, text, "a whole number")
	}
	return n
}

func (p *parameters) time(name string) *timestamppb.Timestamp {
	text := p.text(name)
	if text == "" {
		return nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		p.wrong(name, text, "a time such as 2026-03-01T12:30:00Z")
		return nil
	}
	return timestamppb.New(at)
}

func (p *parameters) state(name string) ahtiv1.IncidentState {
	text := p.text(name)
	if text == "" {
		return ahtiv1.IncidentState_INCIDENT_STATE_UNSPECIFIED
	}
	state, known := ahtiv1.IncidentState_value["INCIDENT_STATE_"+strings.ToUpper(text)]
	if !known || state == 0 {
		p.wrong(name, text, "open or resolved")
	}
	return ahtiv1.IncidentState(state)
}

func write(w http.ResponseWriter, message proto.Message) {
	body, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
	if err != nil {
		writeError(w, http.StatusInternalServerError, "the answer cannot be written as JSON: "+err.Error())
		return
	}
	send(w, http.StatusOK, body)
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	s := status.Convert(err)
	switch s.Code() {
	case codes.InvalidArgument:
		code = http.StatusBadRequest
	case codes.NotFound:
		code = http.StatusNotFound
	case codes.ResourceExhausted:
		code = http.StatusTooManyRequests
	case codes.Unavailable, codes.Canceled:
		code = http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		code = http.StatusGatewayTimeout
	default:
	}
	writeError(w, code, s.Message())
}

func writeError(w http.ResponseWriter, code int, message string) {
	body, err := json.Marshal(map[string]string{"error": message})
	if err != nil {
		body = []byte(`{"error":"unknown"}`) // text can be encoded
	}
	send(w, code, body)
}

func send(w http.ResponseWriter, code int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the client is gone, or it is not
}
