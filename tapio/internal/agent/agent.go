// Package agent runs the node agent: it attaches the observers, turns what the
// kernel sends into events, and writes them out.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/cgroup"
	"github.com/yairfalse/tapio/bpf/tcp"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
	"github.com/yairfalse/tapio/shared/otlp"
	"github.com/yairfalse/tapio/shared/polku"
	"github.com/yairfalse/tapio/shared/telemetry"
	"github.com/yairfalse/tapio/tapio/internal/feed"
	"github.com/yairfalse/tapio/tapio/internal/observer"
	"github.com/yairfalse/tapio/tapio/internal/observer/container"
	"github.com/yairfalse/tapio/tapio/internal/observer/network"
	"github.com/yairfalse/tapio/tapio/internal/owner"
	"github.com/yairfalse/tapio/tapio/internal/pods"
	"github.com/yairfalse/tapio/tapio/internal/privilege"
	"github.com/yairfalse/tapio/tapio/internal/supervisor"
)

// Config says what to observe and where to send it.
type Config struct {
	Observers []string // network.Name, container.Name
	ExitScope container.Scope
	Output    humanoutput.Output
	Style     humanoutput.Style // of Text
	Listen    string            // HOST:PORT of health and metrics; empty for none
	CgroupFS  string            // where the control groups are mounted
	ProcFS    string            // where procfs is mounted

	TCP tcp.Options

	Node    string // k8s.node.name; empty if not known
	Cluster string // k8s.cluster.name; empty if not known
	// Kubernetes is the API server that knows the pods of Node; nil for none:
	// then pods and containers have ids and no names.
	Kubernetes *rest.Config
	// Where else to send events: each if its Endpoint is not empty. The agent
	// fills in who it is.
	Polku polku.Config
	OTLP  otlp.Config

	Stdout  io.Writer // events
	Summary io.Writer // the accounting at the end
	Log     *slog.Logger
	// Ready is called when every observer has been tried once. It may be nil.
	Ready func()
}

// Observers are the names of all observers.
func Observers() []string { return []string{network.Name, container.Name} }

// How long a stop may take from its start on, whatever hangs: less than a second
// in all. What one part does not need is left to the next, and each has something
// for itself.
const (
	detachWithin = 300 * time.Millisecond // until the observers have ended
	drainWithin  = 650 * time.Millisecond // until the kernel's records are handled
	flushWithin  = 750 * time.Millisecond // until all is delivered
)

// agent is the state of one run.
type agent struct {
	config     Config
	log        *slog.Logger
	host       string
	events     *event.Factory
	identity   map[string]string // metadata of every event
	sinks      []sink
	shared     *bpf.Shared
	feed       *feed.Feed
	node       *observer.Node
	pods       *pods.Context // nil outside of a cluster
	network    *network.Observer
	supervisor *supervisor.Supervisor
	metrics    *metrics
	groups     *bpf.Attachment // held, or the garbage collector detaches it

	mu       sync.Mutex
	tried    map[string]bool   // observers
	mapBytes map[string]uint64 // by observer
}

// Run runs the agent until ctx is done. It returns an error only if nothing
// can be observed at all; what cannot be observed for now becomes an event.
func Run(ctx context.Context, config Config) error {
	if err := privilege.Check(); err != nil {
		return err
	}
	a := newAgent(config)
	if err := a.open(ctx); err != nil {
		return err
	}
	return a.run(ctx)
}

func newAgent(config Config) *agent {
	return &agent{config: config, log: config.Log, events: event.NewFactory(), tried: map[string]bool{}, mapBytes: map[string]uint64{}}
}

func (a *agent) open(ctx context.Context) (err error) {
	if a.host, err = os.Hostname(); err != nil {
		return fmt.Errorf("read the host's name: %w", err)
	}
	a.identify()
	if err := a.openSinks(ctx); err != nil {
		return err
	}
	if a.config.Kubernetes != nil {
		a.pods, err = pods.Open(pods.Config{Node: a.config.Node, API: a.config.Kubernetes, Send: a.send, Log: a.log})
		if err != nil {
			return err
		}
	}
	if a.shared, err = bpf.NewShared(); err != nil {
		return err
	}
	if a.feed, err = feed.Open(a.shared, a.log, a.emit); err != nil {
		return err
	}
	a.metrics = newMetrics(a)

	// The kernel tells of new cgroups from before the existing ones are listed
	// on, so that none is missed.
	groups, groupsErr := cgroup.Attach(a.shared)
	owners, err := owner.Open(a.config.CgroupFS, a.config.ProcFS)
	if err != nil {
		return err
	}
	if owners.Stats().Alone {
		a.log.Warn("only the agent's own control group is mounted: whose the others are is not known; mount the node's /sys/fs/cgroup, read-only",
			"path", a.config.CgroupFS)
	}
	if groupsErr != nil {
		a.unavailable("cgroup", groupsErr)
	} else {
		a.groups = groups
		a.attached("cgroup", groups.Bytes())
		a.feed.Subscribe(&feed.Subscriber{Handlers: map[bpf.Signal]feed.Handler{bpf.Cgroup: follow(owners)}})
	}
	a.node = &observer.Node{
		Feed: a.feed, Owners: owners, Events: a.events, Log: a.log,
		Attached: a.attached, Unavailable: a.unavailable,
	}
	a.supervisor = &supervisor.Supervisor{Failed: a.failed}
	for _, name := range a.config.Observers {
		task := supervisor.Task{Name: name}
		switch name {
		case network.Name:
			a.network = network.New(a.node, a.config.TCP)
			task.Run = a.network.Run
		case container.Name:
			task.Run = container.New(a.node, a.config.ExitScope).Run
		default:
			return fmt.Errorf("no observer is named %q; there are %s", name, strings.Join(Observers(), " and "))
		}
		a.supervisor.Tasks = append(a.supervisor.Tasks, task)
	}
	return nil
}

// follow keeps the table of cgroups up to date.
func follow(owners *owner.Table) feed.Handler {
	return func(record []byte) (*eventv1.Event, uint64, error) {
		c, err := cgroup.Decode(record)
		if err != nil {
			return nil, 1, err
		}
		key := owner.Cgroup{Hierarchy: c.Head.Hierarchy, ID: c.Head.CgroupId}
		if c.Removed != 0 {
			owners.Removed(key)
		} else if path, whole := cgroup.Path(c); whole {
			owners.Created(key, path)
		}
		return nil, 1, nil
	}
}

func (a *agent) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The feed outlives the observers: what they saw last is still in the ring.
	feedCtx, stopFeed := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFeed()

	registry := prometheus.NewRegistry()
	if err := a.register(registry); err != nil {
		return err
	}
	var background sync.WaitGroup
	if err := a.serve(ctx, registry, &background); err != nil {
		return err
	}
	stopDelivery, err := a.deliver(ctx, registry)
	if err != nil {
		return err
	}
	stopPods := a.followPods(ctx, &background)
	defer stopPods()
	feedDone := make(chan error, 1)
	go func() { feedDone <- a.feed.Run(feedCtx) }()

	supervised := make(chan struct{})
	go func() {
		a.supervisor.Run(ctx)
		close(supervised)
	}()

	select {
	case <-ctx.Done():
	case err := <-feedDone:
		stopPods()
		return errors.Join(err, stopDelivery(time.Now().Add(flushWithin)))
	}
	began := time.Now()
	drained := make(chan error, 1)
	go func() {
		select {
		case <-supervised:
		case <-time.After(detachWithin): // the end of the process detaches, too
			a.log.Warn("observers do not end", "waited", detachWithin)
		}
		stopFeed()
		drained <- errors.Join(<-feedDone, a.drain())
	}()
	select {
	case err = <-drained:
	case <-time.After(drainWithin):
		err = fmt.Errorf("stop: the kernel's records were not handled within %s; what was left is lost", drainWithin)
	}
	stopPods()
	err = errors.Join(err, stopDelivery(began.Add(flushWithin)))
	background.Wait()
	return errors.Join(err, a.account())
}

// followPods keeps the names of pods up to date until the returned function is
// called, which sends the events that wait for a name.
func (a *agent) followPods(ctx context.Context, background *sync.WaitGroup) (stop func()) {
	if a.pods == nil {
		return func() {}
	}
	// It outlives the observers, whose last events want names as well.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	background.Go(func() { a.pods.Run(ctx) })
	return func() {
		a.pods.Stop()
		cancel()
	}
}

// drain handles what is left when the observers and the feed have ended.
func (a *agent) drain() error {
	err := a.feed.Drain()
	if a.network != nil {
		a.network.Stop()
	}
	return errors.Join(err, a.feed.Close())
}

// account tells what became of everything.
func (a *agent) account() error {
	lines, err := a.feed.Accounting()
	if err == nil {
		writeSummary(a.config.Summary, lines, a.sinks)
	}
	return err
}

func (a *agent) register(registry *prometheus.Registry) error {
	collectors := []prometheus.Collector{a.metrics}
	if a.pods != nil {
		collectors = append(collectors, a.pods)
	}
	for _, s := range a.sinks {
		collectors = append(collectors, s)
	}
	for _, c := range collectors {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

func (a *agent) serve(ctx context.Context, registry *prometheus.Registry, background *sync.WaitGroup) error {
	if a.config.Listen == "" {
		return nil
	}
	server, err := telemetry.NewServer(telemetry.Config{
		Address: a.config.Listen, Flag: "listen", Registry: registry, StopTimeout: detachWithin / 2, Log: a.log,
	})
	if err != nil {
		return err
	}
	server.ReadyWhen("observers", a.ready)
	if a.pods != nil {
		server.ReadyWhen("pods", a.pods.Ready)
	}
	for _, s := range a.sinks {
		server.ReadyWhen(s.name, s.Ready)
	}
	if err := server.Listen(ctx); err != nil {
		return err
	}
	a.log.Info("serving health and metrics", "address", server.Addr().String())
	background.Go(func() {
		if err := server.Serve(ctx); err != nil {
			a.log.Error("health and metrics", "error", err)
		}
	})
	return nil
}

// ready says which observers do not observe.
func (a *agent) ready() error {
	var down []error
	for _, s := range a.supervisor.Status() {
		if !s.Ready {
			down = append(down, fmt.Errorf("%s: %w", s.Name, cmp.Or(s.Err, errStarting)))
		}
	}
	return errors.Join(down...)
}

var errStarting = errors.New("starting")

// emit completes an event, checks it and sends it. Wrong evidence is never sent,
// which is the error.
func (a *agent) emit(e *eventv1.Event) error {
	maps.Copy(e.GetMetadata(), a.identity)
	if err := event.Validate(e); err != nil {
		a.log.Error("an observer made an invalid event", "event_type", e.GetEventType(), "error", err)
		return err
	}
	if a.pods != nil {
		return a.pods.Send(e)
	}
	return a.send(e)
}

// send hands an event to the sinks.
func (a *agent) send(e *eventv1.Event) error {
	for _, s := range a.sinks {
		s.Send(e)
	}
	a.metrics.sent(e.GetEventType())
	return nil
}

// attached notes that an observer works.
func (a *agent) attached(name string, mapBytes uint64) {
	a.mu.Lock()
	a.mapBytes[name] = mapBytes
	a.mu.Unlock()
	a.tryDone(name)
}

// failed tells that an observer does not work for now.
func (a *agent) failed(name string, err error, again time.Duration) {
	a.unavailable(name, fmt.Errorf("%w; next try in %s", err, again.Round(time.Second)))
	a.tryDone(name)
}

// unavailable tells that something cannot be observed.
func (a *agent) unavailable(signal string, err error) {
	a.log.Warn("cannot observe", "signal", signal, "error", err)
	e := a.events.New(event.KindAgentSignalUnavailable, time.Now(), observer.Source)
	e.Metadata[event.TapioSignal] = signal
	e.Metadata[event.TapioReason] = reason(err)
	if err := a.emit(e); err != nil {
		a.log.Warn("event lost", "event_type", e.GetEventType(), "error", err)
	}
}

// reason is the error as one line that fits a metadata value: a verifier's log
// has thousands.
func reason(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	// The cut may leave a part of a character, and each bad byte may grow to
	// three.
	return strings.ToValidUTF8(text[:min(len(text), event.MaxValueLen/4)], "\uFFFD")
}

// tryDone frees what only loading needs once every observer was tried.
func (a *agent) tryDone(name string) {
	a.mu.Lock()
	first := !a.tried[name] && slices.Contains(a.config.Observers, name)
	if slices.Contains(a.config.Observers, name) {
		a.tried[name] = true
	}
	all := len(a.tried) == len(a.config.Observers)
	total := a.shared.Bytes()
	for _, b := range a.mapBytes {
		total += b
	}
	a.mu.Unlock()
	if !all {
		return
	}
	a.shared.Loaded()
	debug.FreeOSMemory()
	if !first {
		return
	}
	a.log.Info("observing", "observers", strings.Join(a.config.Observers, ","), "kernel_maps", humanoutput.Bytes(float64(total)))
	if a.config.Ready != nil {
		a.config.Ready()
	}
}
