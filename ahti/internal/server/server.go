package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/yairfalse/tapio/ahti/internal/api"
	"github.com/yairfalse/tapio/ahti/internal/brain"
	"github.com/yairfalse/tapio/ahti/internal/ingest"
	"github.com/yairfalse/tapio/ahti/internal/store"
	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/causality"
	"github.com/yairfalse/tapio/shared/rpc"
	"github.com/yairfalse/tapio/shared/telemetry"
)

// Config says what to serve.
type Config struct {
	Listen          string      // of gRPC
	TLS             *tls.Config // of gRPC; nil is without encryption
	HTTPListen      string      // of JSON; empty for none
	TelemetryListen string      // of health and metrics; empty for none
	Store           store.Config
	Retention       time.Duration // 0 is for ever
	FailureModes    string        // path of a table instead of the built-in one; may be empty
	MaxBytes        int64         // 0 is without limit
	Log             *slog.Logger
	// Ready is called with the addresses of gRPC and JSON when ahti serves. It
	// may be nil.
	Ready func(grpc, http net.Addr)
}

// stopWithin is how long running calls may take to end at a stop.
const stopWithin = 5 * time.Second

// Run serves until ctx is done.
func Run(ctx context.Context, config Config) (err error) {
	registry := prometheus.NewRegistry()
	var restored atomic.Bool
	var writer atomic.Pointer[ingest.Writer]

	ctx, cancel := context.WithCancelCause(ctx)
	var background sync.WaitGroup
	defer func() {
		cancel(nil) // first, or what serves already would go on after an error
		background.Wait()
	}()
	start := func(what string, run func(context.Context) error) {
		background.Go(func() {
			if err := run(ctx); err != nil {
				cancel(fmt.Errorf("%s: %w", what, err))
			}
		})
	}

	if config.TelemetryListen != "" {
		t, err := telemetry.NewServer(telemetry.Config{
			Address: config.TelemetryListen, Flag: "telemetry-listen", Registry: registry, StopTimeout: stopWithin, Log: config.Log,
		})
		if err != nil {
			return err
		}
		t.ReadyWhen("store", func() error {
			if !restored.Load() {
				return errors.New("reads what is stored")
			}
			return writer.Load().Failure()
		})
		if err := t.Listen(ctx); err != nil {
			return err
		}
		config.Log.Info("serving health and metrics", "address", t.Addr().String())
		start("health and metrics", t.Serve)
	}

	began := time.Now()
	config.Store.Log = config.Log
	s, err := store.Open(ctx, config.Store)
	if err != nil {
		if ctx.Err() != nil { // a stop was asked for while the database was away
			return ended(ctx)
		}
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	engine, err := newEngine(config.FailureModes)
	if err != nil {
		return err
	}
	if err := brain.Restore(ctx, s, engine, began); err != nil {
		return err
	}
	size := engine.Size()
	config.Log.Info("restored", "store", s.Kind(), "took", time.Since(began).Round(time.Millisecond),
		"entities", size.Entities, "relationships", size.Relationships, "symptoms", size.Symptoms, "changes", size.Changes)

	w, err := ingest.NewWriter(s, engine, registry, config.Log)
	if err != nil {
		return err
	}
	writer.Store(w)
	b := brain.New(brain.Config{
		Store: s, Engine: engine, Applied: w.Applied, Retention: config.Retention, MaxBytes: config.MaxBytes, Log: config.Log,
	})
	m, err := newMetrics(s, engine, b, registry)
	if err != nil {
		return err
	}
	service := newService(ServiceConfig{Store: s, Engine: engine, Writer: w, Brain: b, Stop: ctx.Done()}, m)
	g, err := rpc.NewServer(rpc.Config{
		Name: "ahti", Address: config.Listen, Flag: "listen", TLS: config.TLS, MaxMessage: maxMessage,
		StopTimeout: stopWithin, Registry: registry, Log: config.Log,
		Options: []grpc.ServerOption{grpc.ForceServerCodecV2(newCodec())},
	})
	if err != nil {
		return err
	}
	ahtiv1.RegisterAhtiServiceServer(g, service)
	if err := g.Listen(ctx); err != nil {
		return err
	}
	var httpAddr net.Addr
	if config.HTTPListen != "" {
		h := api.NewServer(api.Config{Address: config.HTTPListen, Flag: "http-listen", Service: service, StopTimeout: stopWithin, Log: config.Log})
		if err := h.Listen(ctx); err != nil {
			return err
		}
		httpAddr = h.Addr()
		config.Log.Info("serving JSON", "address", httpAddr.String())
		start("JSON", h.Serve)
	}

	// The writer outlives the calls, and the brain the writer: what is in
	// flight is committed, and what follows from it is stored.
	end := make(chan error, 1)
	writing, stopWriting := context.WithCancel(context.WithoutCancel(ctx))
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		err := w.Run(writing)
		if err != nil {
			cancel(err)
		}
		stopKeeping()
		end <- err
	}()
	kept := make(chan error, 1)
	go func() {
		err := b.Run(keeping)
		if err != nil {
			cancel(err)
		}
		kept <- err
	}()

	restored.Store(true)
	config.Log.Info("serving", "address", g.Addr().String(), "encrypted", config.TLS != nil)
	if config.Ready != nil {
		config.Ready(g.Addr(), httpAddr)
	}
	err = g.Serve(ctx)
	cancel(nil)
	background.Wait()
	stopWriting()
	err = errors.Join(err, <-end, <-kept)
	if err == nil {
		err = ended(ctx)
	}
	return err
}

// ended says why a run ended; nil when that was asked for.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// maxMessage is the largest request, bytes: the largest events of a batch come
// together at times.
const maxMessage = 8 << 20

// newEngine returns an engine that reasons by the table in a file.
func newEngine(file string) (*causality.Engine, error) {
	if file == "" {
		return causality.New(causality.Options{})
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the failure modes: %w: set --failure-modes to a table such as \"ahti failure-modes\" prints", err)
	}
	modes, err := causality.ReadModes(text)
	if err != nil {
		return nil, fmt.Errorf("use --failure-modes %s: %w", file, err)
	}
	return causality.New(causality.Options{Modes: modes})
}
