// Package observer holds what the observers have in common: how one is kept
// attached, and how its events say whose they are.
package observer

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/yairfalse/tapio/bpf"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/tapio/internal/feed"
	"github.com/yairfalse/tapio/tapio/internal/owner"
)

// Source is the name under which the agent's events are sent.
const Source = "tapio"

// Node is what an observer watches and where its events come from.
type Node struct {
	Feed   *feed.Feed
	Owners *owner.Table
	Events *event.Factory
	Log    *slog.Logger
	// Attached is told the memory of an observer's maps once it is attached.
	Attached func(observer string, mapBytes uint64)
	// Unavailable is told of a part of an observer that cannot be had while the
	// rest goes on.
	Unavailable func(signal string, err error)

	mu       sync.Mutex
	attached map[string][]*bpf.Attachment
}

// Missed returns, by observer, how many runs of its programs the kernel skipped.
func (n *Node) Missed() map[string]uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	missed := map[string]uint64{}
	for name, attached := range n.attached {
		for _, a := range attached {
			missed[name] += a.Missed()
		}
	}
	return missed
}

func (n *Node) keep(name string, attached []*bpf.Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached == nil {
		n.attached = map[string][]*bpf.Attachment{}
	}
	n.attached[name] = attached
}

// Watch subscribes before the programs of attach can send anything, waits until
// ctx is done or a handler fails, and detaches. When ctx is done subscription
// and maps stay, for the records that are still in the ring.
func (n *Node) Watch(ctx context.Context, name string, ready func(), sub *feed.Subscriber, attach func(*bpf.Shared) ([]*bpf.Attachment, error)) error {
	fault := make(chan error, 1)
	sub.Fault = func(err error) {
		select {
		case fault <- err:
		default:
		}
	}
	cancel := n.Feed.Subscribe(sub)
	attached, err := attach(n.Feed.Shared())
	giveUp := func() {
		cancel()
		n.keep(name, nil)
		for _, a := range attached {
			if err := a.Close(); err != nil {
				n.Log.Warn("detach", "observer", name, "error", err)
			}
		}
	}
	if err != nil {
		giveUp()
		return err
	}
	n.keep(name, attached)
	var bytes uint64
	for _, a := range attached {
		bytes += a.Bytes()
	}
	ready()
	n.Attached(name, bytes)
	select {
	case <-ctx.Done():
		for _, a := range attached {
			if err := a.Detach(); err != nil {
				n.Log.Warn("detach", "observer", name, "error", err)
			}
		}
		return nil
	case err := <-fault:
		giveUp()
		return err
	}
}

// Foreign reports whether a record is of another node on the same kernel: an
// agent tells only of its own.
func (n *Node) Foreign(h *bpf.Head) bool {
	return n.Owners.Foreign(owner.Cgroup{Hierarchy: h.Hierarchy, ID: h.CgroupId})
}

// NewEvent begins an event of a kind with what every record's head tells: when,
// which process, and whose.
func (n *Node) NewEvent(kind string, h *bpf.Head) (*eventv1.Event, owner.Entry) {
	e := n.Events.New(kind, n.Feed.Time(h.TimeNs), Source)
	if h.Pid != 0 {
		e.Metadata[event.ProcessPID] = strconv.FormatUint(uint64(h.Pid), 10)
		// A process may have no name.
		if name := Comm(&h.Comm); name != "" {
			e.Metadata[event.ProcessExecutableName] = name
		}
	}
	if h.Suppressed > 0 {
		e.Metadata[event.TapioSuppressed] = strconv.FormatUint(uint64(h.Suppressed), 10)
	}
	who, ok := n.Owners.Lookup(owner.Cgroup{Hierarchy: h.Hierarchy, ID: h.CgroupId})
	if !ok {
		e.Metadata[event.TapioAttribution] = event.AttributionUnknown
		return e, who
	}
	e.Metadata[event.ProcessLinuxCgroup] = Text(who.Path)
	if who.ContainerID != "" {
		e.Metadata[event.ContainerID] = who.ContainerID
	}
	if who.PodUID != "" {
		e.Metadata[event.K8sPodUID] = who.PodUID
	}
	if who.Unit != "" && who.ContainerID == "" {
		e.Metadata[event.TapioServiceUnit] = Text(who.Unit)
	}
	return e, who
}

// Comm returns a process name as valid text: a process may call itself anything.
func Comm(c *bpf.Comm) string { return Text(bpf.CommString(c)) }

// Text replaces what is not UTF-8 in a name that came from the kernel. Whoever
// may make a process or a cgroup chooses its bytes, and an event with others
// would be refused.
func Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
