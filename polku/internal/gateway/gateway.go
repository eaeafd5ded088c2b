// Package gateway is the service polku.v1.Gateway: it takes events from sources,
// puts them into the log, and acknowledges exactly those that are there.
package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/yairfalse/tapio/polku/internal/journal"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

const (
	// inFlight is how many bytes may be on their way into the log, over all
	// streams. At a disk that takes 100 MB/s that is 80 ms.
	inFlight = 8 << 20
	// eventWeight is the least that an event counts of inFlight.
	eventWeight = 512
	// eventCost is what is kept of an event on its way beside its bytes and its
	// answer: slices that find it, and its id among those in flight.
	// TestWhatABatchTakes measures 110 to 140 bytes.
	eventCost = 128
	// maxWaiting is how many bytes may be held beyond inFlight, over all streams,
	// until there is room for them; maxDelayed is the same for what has to wait
	// because of its own source, which sends more than it may, or the same again:
	// that takes no room from the others. Beyond that a stream is ended, and its
	// source sends again later.
	maxWaiting = 24 << 20
	maxDelayed = 24 << 20
	// rememberBytes is how much of the end of the log is read at the start for
	// the ids in it: more than may have been stored without being acknowledged.
	rememberBytes = 64 << 20
	// rememberTimeout is how long that may take: duplicates are less bad than a
	// gateway that does not start.
	rememberTimeout = time.Minute
)

// Config says how a Gateway works.
type Config struct {
	Journal *journal.Journal
	// RateLimit is how many events a second one source may send; 0 for any. A
	// source that sends more waits.
	RateLimit float64
	Registry  prometheus.Registerer
	Log       *slog.Logger
	// Components adds parts to what Health tells. It may be nil.
	Components func(ctx context.Context) map[string]*polkuv1.ComponentHealth
}

// Gateway implements polku.v1.Gateway. Its server must use Codec.
type Gateway struct {
	polkuv1.UnimplementedGatewayServer

	config   Config
	journal  *journal.Journal
	log      *slog.Logger
	ids      *recentIDs
	limiter  *limiter
	gate     *semaphore.Weighted
	waiting  budget
	delayed  budget
	unread   atomic.Int64 // bytes of answers that sources have not read yet
	items    sync.Pool    // of *[]item
	counters counters
	started  time.Time
	stopping chan struct{}
}

// counters count events and streams since the start.
type counters struct {
	received    atomic.Int64
	stored      atomic.Int64
	duplicates  atomic.Int64
	invalid     atomic.Int64
	tooLarge    atomic.Int64
	unknown     atomic.Int64 // formats
	rateLimited atomic.Int64 // by having to wait
	shed        atomic.Int64 // streams
	slow        atomic.Int64 // streams

	streams atomic.Int64 // now
	flying  atomic.Int64 // events on their way into the log, now
}

// budget is how many bytes may be held by what waits for one thing.
type budget struct {
	most int64
	held atomic.Int64
}

// New returns a gateway. It reads the end of the log for the ids in it.
func New(ctx context.Context, config Config) (*Gateway, error) {
	g := &Gateway{
		config:   config,
		journal:  config.Journal,
		log:      config.Log,
		ids:      newRecentIDs(rememberIDs),
		limiter:  newLimiter(config.RateLimit),
		gate:     semaphore.NewWeighted(inFlight),
		waiting:  budget{most: maxWaiting},
		delayed:  budget{most: maxDelayed},
		started:  time.Now(),
		stopping: make(chan struct{}),
	}
	if err := g.register(config.Registry); err != nil {
		return nil, err
	}
	g.forgetLost()
	reading, cancel := context.WithTimeout(ctx, rememberTimeout)
	defer cancel()
	err := g.journal.Recent(reading, rememberBytes, func(entry journal.Entry) error {
		b, refused := readBatch(entry.Body, nil)
		if refused != nil { // the disk changed it, which the routes count
			g.log.Error("cannot read the ids of a message of the log", "sequence", entry.Sequence, "error", refused)
		}
		keys := make([]idKey, 0, len(b.items))
		for _, i := range b.items {
			if envelope, err := event.CheckEnvelope(i.wire); err == nil {
				keys = append(keys, g.ids.key(envelope.ID))
			}
		}
		g.ids.add(keys)
		return nil
	})
	if err != nil && (ctx.Err() != nil || reading.Err() == nil) {
		return nil, err
	}
	if err != nil {
		g.log.Warn("events that are sent again now may be stored twice", "error", err)
	}
	return g, nil
}

// forgetLost forgets the ids of a log when it is lost.
func (g *Gateway) forgetLost() {
	context.AfterFunc(g.journal.Life(), func() {
		g.ids.forget()
		g.forgetLost()
	})
}

// Stop ends the streams after what they have on its way is acknowledged, so that
// their sources go elsewhere or come again. It must be called once.
func (g *Gateway) Stop() { close(g.stopping) }

// Streams is how many streams are open.
func (g *Gateway) Streams() int64 { return g.counters.streams.Load() }

// parcel is a batch on its way into the log, with its answer.
type parcel struct {
	batch       batch
	events, ids [][]byte // to store
	keys        []idKey  // of the ids
	sources     [][]byte // of the events, if the batch names none and they have a limit
	size        int      // bytes that all of it takes until it is in the log
	answer      answer
	flight      *flight // of the keys; nil when they are on none
	receipts    []*journal.Receipt
	weight      int64
	free        func() // gives back the memory of the batch
	failure     error  // why the batch is not in the log, when that is known
}

// store sends the events of a checked batch on their way into the log, as far as
// they are not there yet.
func (g *Gateway) store(ctx context.Context, p *parcel) error {
	if err := g.depart(ctx, p); err != nil {
		g.abandon(p)
		return err
	}
	if len(p.events) == 0 { // it need not be kept until the parcels before it are in the log
		return g.settle(p)
	}
	return nil
}

func (g *Gateway) depart(ctx context.Context, p *parcel) error {
	if len(p.events) == 0 {
		return nil
	}
	if err := g.reserve(ctx, p); err != nil || len(p.events) == 0 {
		return err
	}
	if g.limiter.limit > 0 {
		if err := g.throttle(ctx, p); err != nil {
			return err
		}
	}
	weight := min(int64(max(p.size, len(p.events)*eventWeight)), inFlight)
	if !g.gate.TryAcquire(weight) {
		err := g.hold(&g.waiting, p, func() error { return g.gate.Acquire(ctx, weight) })
		if err != nil {
			return err
		}
	}
	p.weight = weight
	g.counters.flying.Add(int64(len(p.keys)))
	return g.append(ctx, p)
}

// throttle waits until the sources of a parcel may send it. To refuse some of it
// would change their order.
func (g *Gateway) throttle(ctx context.Context, p *parcel) error {
	for from := 0; from < len(p.events); {
		source, to := p.batch.source, len(p.events)
		if p.sources != nil {
			source, to = p.sources[from], from+1
			for to < len(p.events) && bytes.Equal(p.sources[to], source) {
				to++
			}
		}
		n := to - from
		from = to
		if g.limiter.allow(source, n) {
			continue
		}
		err := g.hold(&g.delayed, p, func() error {
			g.counters.rateLimited.Add(int64(n))
			err := g.limiter.wait(ctx, source, n)
			if err != nil && ctx.Err() == nil { // the deadline of the call comes before its turn
				return status.Errorf(codes.ResourceExhausted, "%.80q sends more than %g events a second: send again later", source, g.config.RateLimit)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hold waits with a parcel that takes memory meanwhile. It is sent away when too
// much is held like that.
func (g *Gateway) hold(b *budget, p *parcel, wait func() error) error {
	held := b.held.Add(int64(p.size))
	defer b.held.Add(-int64(p.size))
	if held > b.most && held > int64(p.size) { // one alone may be as large as a message may be
		g.counters.shed.Add(1)
		return errFull
	}
	err := wait()
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	return err
}

var errFull = status.Error(codes.Unavailable, "the gateway is full and many sources wait: connect again later and send what was not acknowledged")

// read checks a batch that arrived, whose memory goes when its parcel is done.
func (g *Gateway) read(f frame) *parcel {
	items, ok := g.items.Get().(*[]item)
	if !ok {
		items = new([]item)
	}
	b, refused := readBatch(f.ReadOnlyData(), *items)
	p := g.check(b, refused, f.Len(), f.Free)
	clear(b.items) // which would keep the batch in memory
	*items = b.items[:0]
	g.items.Put(items)
	return p
}

// check sorts the events of a batch: those to store go into a parcel, which
// answers for the rest. It is nil when there is nothing to answer. free is called
// when the size bytes that the batch was read from are not needed any more.
func (g *Gateway) check(b batch, refused *refusal, size int, free func()) *parcel {
	p := &parcel{batch: b, free: free}
	p.batch.items = nil // they serve the next batch
	if refused != nil {
		g.count(refused, max(len(b.items), 1))
		g.counters.received.Add(int64(max(len(b.items), 1)))
		g.refuseAll(p, b, refused)
		p.done()
		return p
	}
	if len(b.items) == 0 {
		p.done()
		return nil
	}
	g.counters.received.Add(int64(len(b.items)))
	own := g.limiter.limit > 0 && len(b.source) == 0
	p.events = make([][]byte, 0, len(b.items))
	p.ids = make([][]byte, 0, len(b.items))
	p.keys = make([]idKey, 0, len(b.items))
	latest := time.Now().Add(event.MaxAhead).UnixNano()
	for i := range b.items {
		item := &b.items[i]
		envelope, refused := g.judge(b, item)
		if refused == nil && envelope.Time > latest {
			refused = invalid("timestamp_unix_ns is more than %s ahead of this gateway: set the clock of the sender", event.MaxAhead)
		}
		if refused != nil {
			g.count(refused, 1)
			p.answer.refused(string(envelope.ID), refused)
			continue
		}
		if own {
			p.sources = append(p.sources, envelope.Source)
		}
		p.events = append(p.events, item.wire)
		p.ids = append(p.ids, envelope.ID)
		p.keys = append(p.keys, g.ids.key(envelope.ID))
		p.answer.stored(envelope.ID)
	}
	p.size = size + b.made + p.answer.size + len(p.events)*eventCost
	return p
}

// reserve leaves in the parcel what is not in the log yet. It waits while another
// parcel has some of it on its way: an event is acknowledged when it is in the
// log, and stored again when that failed.
func (g *Gateway) reserve(ctx context.Context, p *parcel) error {
	known := 0
	for {
		f, after := g.ids.reserve(p.keys, func(i int) {
			p.events[i] = nil
			known++
		})
		if after == nil {
			p.flight = f
			break
		}
		err := g.hold(&g.delayed, p, func() error {
			select {
			case <-after:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil {
			return err
		}
	}
	if known > 0 {
		g.counters.duplicates.Add(int64(known))
		p.dropKnown()
	}
	return nil
}

// dropKnown removes the events that are nil.
func (p *parcel) dropKnown() {
	n := 0
	for i, e := range p.events {
		if e != nil {
			p.events[n], p.ids[n], p.keys[n] = e, p.ids[i], p.keys[i]
			if p.sources != nil {
				p.sources[n] = p.sources[i]
			}
			n++
		}
	}
	p.events, p.ids, p.keys = p.events[:n], p.ids[:n], p.keys[:n]
}

// judge says why an event cannot be stored; nil if it can. The id of the
// envelope is empty unless it is good to name the event by.
func (g *Gateway) judge(b batch, i *item) (event.Envelope, *refusal) {
	if i.err != nil {
		var named event.Envelope
		if event.ValidateID(i.id) == nil {
			named.ID = []byte(i.id)
		}
		return named, invalid("%s", i.err.Error())
	}
	envelope, err := event.CheckEnvelope(i.wire)
	switch {
	case err != nil && len(i.wire) > event.MaxSize:
		return envelope, &refusal{codeTooLarge, err.Error()}
	case err != nil:
		return envelope, &refusal{codeInvalid, err.Error()}
	case len(envelope.Source) == 0 && len(b.source) == 0:
		return envelope, invalid("source is empty, in the event and in its batch: set the name of the program that observed the event")
	}
	return envelope, nil
}

// refuseAll answers for a batch that is refused as a whole: by the ids of its
// events as far as they can be read.
func (g *Gateway) refuseAll(p *parcel, b batch, refused *refusal) {
	named := 0
	if refused.code != codeTooLarge { // else there are too many to name
		for i := range b.items {
			if envelope, _ := g.judge(b, &b.items[i]); len(envelope.ID) > 0 {
				p.answer.refused(string(envelope.ID), refused)
				named++
			}
		}
	}
	if named == 0 {
		p.answer.refused("", refused)
	}
}

func (g *Gateway) count(r *refusal, n int) {
	switch r.code {
	case codeTooLarge:
		g.counters.tooLarge.Add(int64(n))
	case codeUnknownFormat:
		g.counters.unknown.Add(int64(n))
	default:
		g.counters.invalid.Add(int64(n))
	}
}

func (g *Gateway) append(ctx context.Context, p *parcel) error {
	ids := p.ids
	return p.batch.bodies(p.events, g.journal.MaxBody(), func(body []byte, n int) error {
		receipt, err := g.journal.Append(ctx, batchID(ids[:n]), body)
		ids = ids[n:]
		if err != nil {
			return unavailable(err)
		}
		if g.journal.Pipelined() {
			p.receipts = append(p.receipts, receipt)
			return nil
		}
		if err := receipt.Wait(); err != nil {
			return unavailable(err)
		}
		return nil
	})
}

func unavailable(err error) error {
	return status.Errorf(codes.Unavailable, "%v: send again what was not acknowledged", err)
}

// batchID is the same for the same events, whoever takes them: a hash of their
// ids. Half a SHA-256 is more than accidents and malice can collide.
func batchID(ids [][]byte) string {
	hash := sha256.New()
	var length [4]byte
	for _, id := range ids {
		binary.LittleEndian.PutUint32(length[:], uint32(len(id)))
		hash.Write(length[:])
		hash.Write(id)
	}
	return base64.RawURLEncoding.EncodeToString(hash.Sum(nil)[:16])
}

// settle waits until a parcel is in the log, or is not.
func (g *Gateway) settle(p *parcel) error {
	if err := g.wait(p, true); err != nil {
		return unavailable(err)
	}
	return nil
}

// abandon lets go of a parcel that is in the log in parts at most. Its ids stay
// unknown: JetStream recognizes a part that is sent again.
func (g *Gateway) abandon(p *parcel) { _ = g.wait(p, false) } // whoever abandons it has an error already

// wait waits for what is on its way and gives back what the parcel holds. whole
// says that nothing else of it remains to be sent.
func (g *Gateway) wait(p *parcel, whole bool) error {
	var failed error
	for _, r := range p.receipts {
		if err := r.Wait(); err != nil && failed == nil {
			failed = err
		}
	}
	if p.weight > 0 {
		g.counters.flying.Add(-int64(len(p.keys)))
		g.gate.Release(p.weight)
		p.weight = 0
	}
	if p.flight != nil {
		stored := whole && failed == nil
		if stored {
			g.counters.stored.Add(int64(len(p.keys)))
		}
		g.ids.land(p.flight, p.keys, stored) // only now: an id that is known is acknowledged at once
		p.flight, p.keys = nil, nil
	}
	p.done()
	return failed
}

// done gives back the memory that the answer does not need.
func (p *parcel) done() {
	if p.free != nil {
		p.free()
	}
	p.batch, p.events, p.ids, p.sources, p.free = batch{}, nil, nil, nil, nil
	p.receipts = nil // which have what was sent to the log
}

// state is what each Ack says about the gateway.
func (g *Gateway) state() *polkuv1.Ack {
	c := &g.counters
	return &polkuv1.Ack{
		BufferSize:     c.flying.Load(),
		BufferCapacity: inFlight / eventWeight,
		MiddlewareStats: &polkuv1.MiddlewareStats{
			RateLimitedCount: c.rateLimited.Load(),
			DedupCount:       c.duplicates.Load(),
			TotalReceived:    c.received.Load(),
			TotalForwarded:   c.stored.Load(),
		},
	}
}

// SendEvent stores one event.
func (g *Gateway) SendEvent(ctx context.Context, in *polkuv1.IngestEvent) (*polkuv1.Ack, error) {
	b := batch{source: []byte(in.GetSource()), cluster: []byte(in.GetCluster())}
	refused := b.one(in)
	if refused == nil {
		refused = b.checkOrigin()
	}
	p := g.check(b, refused, 0, nil)
	if p == nil {
		return nil, status.Error(codes.InvalidArgument, "the raw payload has no event")
	}
	if err := g.store(ctx, p); err != nil {
		return nil, err
	}
	if err := g.settle(p); err != nil {
		return nil, err
	}
	ack := g.state()
	for _, part := range p.answer.acks {
		if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(part, ack); err != nil {
			return nil, fmt.Errorf("read back the answer: %w", err)
		}
	}
	return ack, nil
}

// one reads the one event of a call.
func (b *batch) one(in *polkuv1.IngestEvent) *refusal {
	switch payload := in.GetPayload().(type) {
	case *polkuv1.IngestEvent_Event:
		return b.addMade(itemOf(payload.Event))
	case *polkuv1.IngestEvent_Raw:
		switch in.GetFormat() {
		case formatProtobuf:
			return b.addMade(item{wire: payload.Raw})
		case formatJSON:
			if err := b.decodeJSON(payload.Raw); err != nil {
				return err
			}
			if len(b.items) > 1 {
				b.items = nil
				return invalid("the payload has several events: send them with StreamEvents")
			}
			return nil
		}
		return unknownFormat(in.GetFormat())
	}
	return invalid("the call has no payload: set raw or event")
}

// Health says whether events are taken now, and how the parts are.
func (g *Gateway) Health(ctx context.Context, _ *polkuv1.HealthRequest) (*polkuv1.HealthResponse, error) {
	components := map[string]*polkuv1.ComponentHealth{"log": {Healthy: true, Message: "takes events"}}
	if err := g.journal.Blocked(); err != nil {
		components["log"] = &polkuv1.ComponentHealth{Message: err.Error()}
	}
	if g.config.Components != nil {
		for name, c := range g.config.Components(ctx) {
			components[name] = c
		}
	}
	return &polkuv1.HealthResponse{
		Healthy:         components["log"].GetHealthy(),
		Components:      components,
		UptimeSeconds:   int64(time.Since(g.started).Seconds()),
		EventsProcessed: uint64(g.counters.stored.Load()),
	}, nil
}
