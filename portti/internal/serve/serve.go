// Package serve runs portti: it watches the API server and delivers every change.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/yairfalse/tapio/portti/internal/change"
	"github.com/yairfalse/tapio/portti/internal/deliver"
	"github.com/yairfalse/tapio/portti/internal/state"
	"github.com/yairfalse/tapio/portti/internal/watch"
	"github.com/yairfalse/tapio/shared/polku"
	"github.com/yairfalse/tapio/shared/queue"
	"github.com/yairfalse/tapio/shared/telemetry"
)

// gcPercent is how much the heap may grow between two collections. Most of it is
// versions that stay, so that half of what is usual costs little time and saves a
// quarter of the memory.
const gcPercent = 50

// Source is the source of portti's events.
const Source = "portti"

const (
	// What waits for the gateway. More would only be more memory: what does not
	// fit waits in the API server, and its history in etcd.
	queueEvents = 4096
	queueBytes  = 8 << 20
	// flushWithin is how long the gateway has to take what is under way at the
	// end. What it does not take is sent again after the next start.
	flushWithin = 5 * time.Second
	stopWithin  = time.Second
)

// Config says what to watch and where to send it.
type Config struct {
	API      *rest.Config
	Kinds    []change.Kind
	Cluster  string       // k8s.cluster.name; empty if not known
	Polku    polku.Config // who we are is filled in
	Stdout   io.Writer    // where to write events instead, if not nil
	StateDir string
	Listen   string // HOST:PORT of health and metrics; empty for none
	Log      *slog.Logger
}

// server is the state of one run.
type server struct {
	Config
	registry *prometheus.Registry
	book     *deliver.Book
	sender   deliver.Sender
	client   *polku.Client // nil for standard output

	mu       sync.Mutex
	watchers []*watch.Watcher
	disk     error // why the state is not kept
}

// Run runs until ctx is done. The error is about the configuration, or a state
// directory that another process uses.
func Run(ctx context.Context, c Config) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	s := &server{Config: c, registry: prometheus.NewRegistry(), book: deliver.NewBook(c.Log)}
	if err := s.openSender(); err != nil {
		return err
	}
	if err := s.registry.Register(s.book); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	api := rest.CopyConfig(c.API)
	api.WarningHandlerWithContext = rest.NoWarnings{}
	client, err := dynamic.NewForConfig(api)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	if err := s.serveHTTP(background, &running); err != nil {
		return err
	}
	cluster, err := watch.ClusterID(ctx, client, c.Log)
	if err != nil {
		return nil // told to stop before the API server answered
	}
	store, err := s.openState(cluster)
	if err != nil {
		return err
	}
	if store != nil {
		defer func() {
			if err := store.Close(); err != nil {
				c.Log.Warn("close the state", "error", err)
			}
		}()
	}
	return s.follow(ctx, client, store)
}

func (s *server) openSender() error {
	if s.Stdout != nil {
		s.sender = deliver.NewWriter(s.Stdout, s.book)
		return nil
	}
	c := s.Polku
	c.Source, c.Cluster, c.Log = Source, s.Cluster, s.Log
	c.Queue = queue.Limits{Events: queueEvents, Bytes: queueBytes}
	c.Acked, c.Refused = s.book.Acked, s.book.Refused
	client, err := polku.New(c)
	if err != nil {
		return err
	}
	s.client, s.sender = client, client
	if err := s.registry.Register(client); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	return nil
}

func (s *server) serveHTTP(ctx context.Context, running *sync.WaitGroup) error {
	if s.Listen == "" {
		return nil
	}
	server, err := telemetry.NewServer(telemetry.Config{
		Address: s.Listen, Flag: "listen", Registry: s.registry, StopTimeout: stopWithin, Log: s.Log,
	})
	if err != nil {
		return err
	}
	server.ReadyWhen("kinds", s.kindsReady)
	if s.client != nil {
		server.ReadyWhen("polku", s.client.Ready)
	}
	server.ReadyWhen("state", s.diskReady)
	if err := server.Listen(ctx); err != nil {
		return err
	}
	s.Log.Info("serving health and metrics", "address", server.Addr().String())
	running.Go(func() {
		if err := server.Serve(ctx); err != nil {
			s.Log.Error("health and metrics", "error", err)
		}
	})
	return nil
}

var errStarting = errors.New("the API server has not answered yet")

func (s *server) kindsReady() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watchers == nil {
		return errStarting
	}
	var down []error
	for _, w := range s.watchers {
		down = append(down, w.Ready())
	}
	return errors.Join(down...)
}

func (s *server) diskReady() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.disk
}

// kept notes whether the state is on disk.
func (s *server) kept(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && (s.disk == nil || s.disk.Error() != err.Error()) {
		s.Log.Warn("the state is not kept: after a restart more is sent again, and changes in between are told with a gap", "error", err)
	}
	s.disk = err
}

// openState opens the state, or does without if the disk does not allow it.
func (s *server) openState(cluster string) (*state.Store, error) {
	store, err := state.Open(s.StateDir, cluster, s.Log)
	if errors.Is(err, state.ErrLocked) {
		return nil, fmt.Errorf("--state-dir %s: %w", s.StateDir, err)
	}
	s.kept(err)
	if err != nil {
		return nil, nil //nolint:nilnil,nilerr // told; watching matters more
	}
	return store, nil
}

// follow watches all kinds and delivers until ctx is done.
func (s *server) follow(ctx context.Context, client dynamic.Interface, store *state.Store) error {
	digestKey := state.NewDigestKey()
	if store != nil {
		digestKey = store.DigestKey()
	}
	owners := watch.NewOwners(client)
	shared := watch.Config{
		Client: client, Owners: owners, Book: s.book, Sender: s.sender, Metrics: watch.NewMetrics(s.registry), Log: s.Log,
		Projector: change.NewProjector(change.Config{Cluster: s.Cluster, Source: Source, DigestKey: digestKey, Owners: owners.Controller}),
	}
	var watchers []*watch.Watcher
	for _, kind := range s.Kinds {
		watchers = append(watchers, watch.New(shared, kind, s.load(store, kind)))
	}
	s.mu.Lock()
	s.watchers = watchers
	s.mu.Unlock()

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	if s.client != nil {
		running.Go(func() { _ = s.client.Run(background) }) // always nil
	}
	if store != nil {
		running.Go(func() { s.book.Keep(background, store, s.kept) })
	}
	watch.RunAll(ctx, watchers)
	if s.client != nil {
		flush, cancel := context.WithTimeout(background, flushWithin)
		if err := s.client.Flush(flush); err != nil {
			s.Log.Warn("not everything was delivered; it is sent again after the next start", "error", err)
		}
		cancel()
	}
	stop()
	running.Wait()
	return nil
}

// load reads what is known of a kind. What cannot be read is forgotten, and listed
// and sent anew.
func (s *server) load(store *state.Store, kind change.Kind) watch.Known {
	if store == nil {
		return watch.Known{}
	}
	known := watch.Known{Objects: map[string]*change.Version{}}
	var err error
	known.ResourceVersion, err = store.Load(kind.Word, func(uid string, data []byte) error {
		v := &change.Version{}
		known.Objects[uid] = v
		return v.UnmarshalBinary(data)
	})
	if err == nil {
		return known
	}
	s.Log.Warn("the state of a kind cannot be used: its objects are listed and sent anew; the gateway drops what it has", "kind", kind.Word, "error", err)
	if err := store.Forget(kind.Word); err != nil {
		s.kept(err)
	}
	return watch.Known{}
}
