package pods

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

const (
	// holdFor is how long an event waits for what the API server has not told yet.
	// The kubelet reports a container that has just started, or crashed at once, a
	// second or two later.
	holdFor = 3 * time.Second
	// maxHeld bounds the events that wait, about 2 MB.
	maxHeld = 1024
)

// Config says which node's pods to know.
type Config struct {
	Node string // its name in the API
	API  *rest.Config
	// Send takes the finished events, and must not wait.
	Send func(*eventv1.Event) error
	Log  *slog.Logger
}

// Context adds to events whose they are. An event of a known pod passes at once;
// one that the API server has yet to tell about waits a little, and with it what
// comes after it of the same pod, so that their order stays.
type Context struct {
	table    *table
	watcher  *watcher
	resolver *resolver
	send     func(*eventv1.Event) error
	log      *slog.Logger
	now      func() time.Time
	kick     chan struct{} // something has changed that held events may wait for

	mu      sync.Mutex
	held    map[string][]held // by whose they are; in the order of their coming
	waiting int               // held events
	ended   bool              // nothing waits any more
	counts  counts
}

// held is an event that waits.
type held struct {
	event *eventv1.Event
	until time.Time
}

// Open makes a Context. It contacts nobody before Run.
func Open(config Config) (*Context, error) {
	client, err := newClient(config.API)
	if err != nil {
		return nil, err
	}
	c := &Context{
		send: config.Send, log: config.Log, now: time.Now, kick: make(chan struct{}, 1),
		held: map[string][]held{}, counts: newCounts(),
	}
	c.table = newTable(c.changed)
	c.watcher = newWatcher(client, config.Node, c.table, config.Log)
	c.resolver = newResolver(client, c.changed)
	return c, nil
}

// Ready says why pods may be missing.
func (c *Context) Ready() error { return c.watcher.ready() }

func (c *Context) changed() {
	select {
	case c.kick <- struct{}{}:
	default: // it will look anyway
	}
}

// Run watches and answers until ctx is done. Then nothing is held any more.
func (c *Context) Run(ctx context.Context) {
	var running sync.WaitGroup
	running.Go(func() { c.watcher.run(ctx) })
	running.Go(func() { c.resolver.run(ctx) })
	timer := time.NewTimer(holdFor)
	defer timer.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-c.kick:
		case <-timer.C:
		}
		timer.Reset(c.release())
	}
	c.Stop()
	running.Wait()
}

// Stop sends what is held with what is known; from then on nothing waits.
func (c *Context) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for key := range c.held {
		for _, h := range c.held[key] {
			_ = c.finish(h.event, c.describe(h.event).or(causeStopping)) // it has counted a loss
		}
		delete(c.held, key)
	}
	c.waiting = 0
}

// Send adds what is known to an event and sends it, now or within holdFor.
func (c *Context) Send(e *eventv1.Event) error {
	key := whose(e)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.held[key]) == 0 {
		lack := c.describe(e)
		if lack.none() || c.ended || !lack.worthWaiting {
			return c.finish(e, lack)
		}
	}
	if c.waiting >= maxHeld {
		// Of this pod the oldest goes, for the order; else this one.
		if len(c.held[key]) == 0 {
			return c.finish(e, c.describe(e).or(causeCrowded))
		}
		c.pop(key, causeCrowded)
	}
	c.held[key] = append(c.held[key], held{event: e, until: c.now().Add(holdFor)})
	c.waiting++
	c.counts.held++
	return nil // Run sleeps for holdFor at most
}

// whose names the line in which an event waits.
func whose(e *eventv1.Event) string {
	m := e.GetMetadata()
	return cmp.Or(m[event.K8sPodUID], m[event.ProcessLinuxCgroup])
}

// pop sends the first of a line. It needs mu.
func (c *Context) pop(key string, why cause) {
	line := c.held[key]
	_ = c.finish(line[0].event, c.describe(line[0].event).or(why)) // it has counted a loss
	c.waiting--
	if len(line) == 1 {
		delete(c.held, key)
		return
	}
	line[0] = held{}
	c.held[key] = line[1:]
}

// release sends what is complete or has waited for long enough, and returns when
// to look again.
func (c *Context) release() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	next := holdFor
	for key := range c.held {
		for len(c.held[key]) > 0 {
			first := c.held[key][0]
			lack := c.describe(first.event)
			if wait := first.until.Sub(now); !lack.none() && lack.worthWaiting && wait > 0 {
				next = min(next, wait)
				break
			}
			c.pop(key, causeNone)
		}
	}
	return next
}

// lack is what an event still lacks.
type lack struct {
	pod, peer    cause
	worthWaiting bool
}

func (l lack) none() bool { return l.pod == causeNone && l.peer == causeNone }

// or gives a reason for not waiting any longer.
func (l lack) or(why cause) lack {
	if why == causeNone {
		return l
	}
	if l.pod != causeNone {
		l.pod = why
	}
	if l.peer == causePending {
		l.peer = why
	}
	return l
}

// describe adds to an event what is known by now, and says what is not. It may
// be called again. It needs mu.
func (c *Context) describe(e *eventv1.Event) lack {
	var l lack
	m := e.GetMetadata()
	uid := m[event.K8sPodUID]
	var pod *Pod
	if uid != "" {
		pod = c.table.lookup(uid)
		switch {
		case pod == nil && c.watcher.live():
			l.pod, l.worthWaiting = causePod, true
		case pod == nil:
			l.pod = causeAPI
		default:
			l.pod = c.describePod(e, pod)
			l.worthWaiting = l.pod != causeNone && c.watcher.live()
		}
	}
	if name := c.describePeer(e, pod); name != causeNone {
		l.peer = name
		l.worthWaiting = l.worthWaiting || name == causePending
	}
	return l
}

// describePod adds the pod, its container and its workload.
func (c *Context) describePod(e *eventv1.Event, pod *Pod) cause {
	m := e.GetMetadata()
	maps.Copy(m, pod.metadata)
	if n := e.GetNetwork(); n != nil {
		n.PodName = pod.Name
	}
	lacks := causeNone
	if pod.owner.kind == "Job" {
		a, ok := c.resolver.ask(question{namespace: pod.Namespace, name: pod.owner.name, uid: pod.owner.uid})
		switch {
		case !ok:
			lacks = causeOwner
		case a.found:
			a.owner.describe(m)
		case a.outcome == failed || a.outcome == limited:
			// Without the CronJob the owner is still right.
		}
	}
	if id := m[event.ContainerID]; id != "" {
		name, ok := pod.container(id, m[event.ProcessLinuxCgroup])
		if !ok {
			return causeContainer
		}
		m[event.K8sContainerName] = name
		if data := e.GetContainer(); data != nil {
			data.ContainerName = name
		}
	}
	return lacks
}

// describePeer adds whose the other side's address is.
func (c *Context) describePeer(e *eventv1.Event, own *Pod) cause {
	m := e.GetMetadata()
	text := m[event.NetworkPeerAddress]
	if text == "" || m[event.TapioPeerKind] != "" {
		return causeNone
	}
	ip, err := netip.ParseAddr(text)
	ip = ip.Unmap()
	if err != nil || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
		return causeNone // these belong to no object, or stay in the pod
	}
	pod, left, node := c.table.at(ip)
	var a answer
	switch {
	case node != "":
		a = answer{found: true, kind: event.PeerNode, object: reference{name: node}}
	case pod != nil && left.IsZero():
		a = peerPod(pod)
	case own == nil && m[event.K8sPodUID] == "":
		// What runs outside of pods talks to everybody in the world.
		return causeNone
	default:
		var ok bool
		a, ok = c.resolver.ask(question{address: ip, dialed: m[event.TapioNetworkRole] != event.RoleServer})
		if !ok {
			return causePending
		}
		// Nobody else has got the address of a pod that has just ended.
		if a.outcome == nobody && pod != nil && !hasLeft(time.Unix(0, e.GetTimestampUnixNs()), left) {
			a = peerPod(pod)
		}
	}
	if !a.found {
		return cause(a.outcome)
	}
	m[event.TapioPeerKind] = a.kind
	for key, value := range map[string]string{
		event.TapioPeerName: a.object.name, event.TapioPeerUID: a.object.uid, event.TapioPeerNamespace: a.space,
		event.TapioPeerOwnerKind: a.owner.kind, event.TapioPeerOwnerName: a.owner.name,
	} {
		if value != "" {
			m[key] = value
		}
	}
	return causeNone
}

// finish sends an event and counts what it lacks. It needs mu.
func (c *Context) finish(e *eventv1.Event, l lack) error {
	m := e.GetMetadata()
	switch l.pod {
	case causeNone:
		if m[event.K8sPodUID] != "" {
			c.counts.attributed++
		}
	case causeOwner:
		c.counts.unknown[l.pod]++
	default:
		m[event.TapioAttribution] = event.AttributionPartial
		c.counts.unknown[l.pod]++
	}
	if l.peer != causeNone {
		c.counts.unknownPeers[l.peer]++
	}
	err := c.send(e)
	if err != nil {
		c.counts.lost++
		c.log.Error("an event was lost on its way out", "event_type", e.GetEventType(), "error", err)
	}
	return err
}
