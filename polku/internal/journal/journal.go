// Package journal is the durable log of POLKU: a NATS JetStream stream, in this
// process or in an external cluster, that holds an event from the moment it is
// acknowledged until every route has passed it.
//
// docs/design/log.md says why it is as it is.
package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	neturl "net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/yairfalse/tapio/shared/event"
)

// Names in JetStream. They are what an operator sees with the nats tool.
const (
	streamEvents     = "POLKU_EVENTS"
	subjectEvents    = "polku.events"
	streamDeadLetter = "POLKU_DEADLETTER"
	subjectDead      = "polku.deadletter."
	bucketCursors    = "POLKU_CURSORS"
)

const (
	// duplicatesWindow is how long JetStream recognizes a batch that is sent
	// again. A client that lost its connection is back long before.
	duplicatesWindow = 2 * time.Minute
	// deadLetterBytes bounds the dead letters: the oldest go first.
	deadLetterBytes = 64 << 20
	// DefaultStoreTimeout is how long storing one message may take before it
	// counts as failed. JetStream does not answer when its disk fails.
	DefaultStoreTimeout = 30 * time.Second
	// requestTimeout bounds every other request.
	requestTimeout = 10 * time.Second
	// infoTimeout bounds the request that tells whether an external log works: a
	// server that has just died does not answer. An embedded one does, however
	// slow its disk is.
	infoTimeout = 2 * time.Second
	// refreshEvery is how often the fill of the log and of its disk is read.
	refreshEvery = 250 * time.Millisecond
	// messageOverhead is more than JetStream stores beside a body.
	messageOverhead = 256
	// maxPending is how many messages may be on their way at once. The client
	// of NATS fails at twice as many, so that it never does.
	maxPending = 2048
	// maxBody keeps a message small enough for a reader to hold several.
	maxBody = 512 << 10
	// leastPayload is the least max_payload of NATS: of the largest event alone.
	leastPayload = event.MaxSize + 4*messageOverhead
	// DefaultDiskReserve stays free on the disk of an embedded log, so that
	// JetStream never meets a full one: it stops for good when it does.
	DefaultDiskReserve = 128 << 20
)

// Config says where the log is and how much it holds.
type Config struct {
	// Dir is where the embedded log keeps its files; unused with URL.
	Dir string
	// URL are the servers of an external NATS cluster, separated by commas.
	URL string
	// Credentials is the path of a NATS credentials file for URL; may be empty.
	Credentials string
	// Replicas is how many servers of the cluster hold each message; 0 is 1.
	Replicas int
	// MaxBytes is the size at which the log is full.
	MaxBytes int64
	// Retention is how long events that every route has passed are kept.
	Retention time.Duration
	// DiskReserve is how many bytes stay free on the disk; 0 is
	// DefaultDiskReserve.
	DiskReserve int64
	// StoreTimeout is how long storing one message may take; 0 is
	// DefaultStoreTimeout.
	StoreTimeout time.Duration

	Registry prometheus.Registerer
	Log      *slog.Logger
}

// Journal is the open log. It is safe for concurrent use.
type Journal struct {
	config   Config
	embedded *embedded // nil for an external cluster
	conn     *nats.Conn
	js       jetstream.JetStream
	events   jetstream.Stream
	cursors  jetstream.KeyValue
	metrics  *metrics
	slots    chan struct{} // one for each message on its way
	stop     context.CancelFunc
	stopped  sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{}           // closed and replaced when room may have come
	failure error                   // why the log takes nothing, until it works again
	giveUp  context.CancelCauseFunc // ends the wait for the state of the stream
	broken  bool                    // a sent append failed, so that files may be in disorder
	starts  int                     // of an embedded server, after failures
	created time.Time               // when the stream was made
	newest  Cursor                  // the newest message that was seen
	life    context.Context
	endLife context.CancelFunc
	usage   usage
}

// usage is how full the log is. The server is asked at times only; in between
// everything that was sent counts as stored, so that the truth is never worse.
type usage struct {
	logBytes  int64 // when asked
	diskFree  int64 // when asked; negative when there is no disk to watch
	sent      int64 // bytes, since the start
	settled   int64 // bytes whose fate is known, since the start
	settledAt int64 // settled when asked
}

// unsettled is the most that may have been stored since the server was asked.
func (u usage) unsettled() int64 { return u.sent - u.settledAt }

// Why the log takes nothing for now.
var (
	ErrLogFull     = errors.New("the log is full: a route that hangs holds it, or --log-max-bytes is too small")
	ErrDiskFull    = errors.New("the disk of the log is full: free space in --data-dir")
	ErrUnavailable = errors.New("the log cannot be written for now")
)

var errStopped = errors.New("it stopped by itself")

// Open opens the log and creates what is missing of it. It waits for an external
// NATS that does not answer, as its servers may start at the same time or elect
// a leader, until ctx ends.
func Open(ctx context.Context, config Config) (*Journal, error) {
	config.DiskReserve = cmp.Or(config.DiskReserve, DefaultDiskReserve)
	config.StoreTimeout = cmp.Or(config.StoreTimeout, DefaultStoreTimeout)
	config.Replicas = max(config.Replicas, 1)
	m, err := newMetrics(config.Registry)
	if err != nil {
		return nil, err
	}
	m.maxBytes.Set(float64(config.MaxBytes))
	j := &Journal{config: config, metrics: m, slots: make(chan struct{}, maxPending), changed: make(chan struct{})}
	j.life, j.endLife = context.WithCancel(context.Background())
	if err := j.await(ctx, j.connect); err != nil {
		return nil, err
	}
	if err := j.await(ctx, func() error { return j.prepare(ctx) }); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	if err := j.await(ctx, func() error { return j.refresh(ctx) }); err != nil {
		return nil, errors.Join(fmt.Errorf("read the state of the log: %w", err), j.Close())
	}
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	j.stop = stop
	j.stopped.Go(func() { j.watch(watch) })
	return j, nil
}

// await does a step of Open, again and again while servers elsewhere do not
// answer. The embedded server always does.
func (j *Journal) await(ctx context.Context, step func() error) error {
	told := ""
	for {
		err := step()
		if err == nil || j.config.URL == "" || !away(err) {
			return err
		}
		if err.Error() != told {
			told = err.Error()
			j.config.Log.Warn("waiting for NATS", "error", err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(refreshEvery):
		}
	}
}

// noSuitablePeers is the answer of a cluster of which too few servers are there;
// nats.go has no name for it.
const noSuitablePeers = 10005

// away reports whether an error means that servers cannot be reached or are not
// ready, which passes by itself.
func away(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == http.StatusServiceUnavailable || api.ErrorCode == noSuitablePeers
	}
	var network *net.OpError
	return errors.As(err, &network) || slices.ContainsFunc([]error{
		nats.ErrNoServers, nats.ErrReconnectBufExceeded, nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, context.DeadlineExceeded, io.EOF,
	}, func(passing error) bool { return errors.Is(err, passing) })
}

func (j *Journal) connect() error {
	options := []nats.Option{
		nats.Name("polku"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.Timeout(requestTimeout),
		nats.ReconnectBufSize(-1), // what is sent late is sent out of order
		nats.NoCallbacksAfterClientClose(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { j.disconnected(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			j.config.Log.Debug("connection to the log", "error", err)
		}),
	}
	url := j.config.URL
	if url == "" {
		var err error
		if j.embedded, err = openEmbedded(j.config.Dir, j.config.Log); err != nil {
			return err
		}
		options = append(options, nats.InProcessServer(j.embedded))
	} else {
		if j.config.Credentials != "" {
			options = append(options, nats.UserCredentials(j.config.Credentials))
		}
		options = append(options,
			nats.IgnoreAuthErrorAbort(), // credentials may be renewed
			nats.ReconnectHandler(func(c *nats.Conn) {
				j.config.Log.Info("connected to NATS again", "server", c.ConnectedUrlRedacted())
			}))
	}
	var err error
	if j.conn, err = nats.Connect(url, options...); err != nil {
		if j.embedded != nil {
			return errors.Join(fmt.Errorf("connect to the embedded log: %w", err), j.embedded.close())
		}
		var malformed *neturl.Error // which repeats the URL
		if errors.As(err, &malformed) {
			err = malformed.Err
		}
		return fmt.Errorf("connect to NATS at %s: %w: set --nats-url to servers that run", j.config.servers(), err)
	}
	if most := j.conn.MaxPayload(); most < leastPayload {
		j.conn.Close()
		return fmt.Errorf("use NATS at %s: its max_payload of %d bytes is less than an event may have: set it to %d or more", j.config.servers(), most, leastPayload)
	}
	if j.js, err = jetstream.New(j.conn,
		jetstream.WithPublishAsyncTimeout(j.config.StoreTimeout), jetstream.WithPublishAsyncMaxPending(2*maxPending),
		jetstream.WithDefaultTimeout(requestTimeout)); err != nil {
		return fmt.Errorf("use JetStream: %w", err)
	}
	return nil
}

// prepare creates the streams or brings them to the present configuration.
func (j *Journal) prepare(ctx context.Context) error {
	events, err := j.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        streamEvents,
		Description: "Events between their acknowledgment and their delivery",
		Subjects:    []string{subjectEvents},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew, // never what is acknowledged
		MaxBytes:    j.config.MaxBytes,
		Replicas:    j.config.Replicas,
		Duplicates:  duplicatesWindow,
		AllowDirect: false, // a replica that is behind would say that a message is gone
	})
	if err != nil {
		return fmt.Errorf("create the stream %s: %w", streamEvents, err)
	}
	_, err = j.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        streamDeadLetter,
		Description: "Events that a destination refused for good",
		Subjects:    []string{subjectDead + "*"},
		Storage:     jetstream.FileStorage,
		Discard:     jetstream.DiscardOld,
		MaxBytes:    deadLetterBytes,
		Replicas:    j.config.Replicas,
		AllowDirect: true,
	})
	if err != nil {
		return fmt.Errorf("create the stream %s: %w", streamDeadLetter, err)
	}
	cursors, err := j.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket:      bucketCursors,
		Description: "The last message that each route has passed",
		Storage:     jetstream.FileStorage,
		Replicas:    j.config.Replicas,
	})
	if err != nil {
		return fmt.Errorf("create the bucket %s: %w", bucketCursors, err)
	}
	if j.events == nil { // the handles are names, good for ever
		j.events, j.cursors = events, cursors
	}
	return nil
}

// MaxBody is the largest body that Append takes, bytes.
func (j *Journal) MaxBody() int {
	return min(maxBody, int(j.conn.MaxPayload())-messageOverhead)
}

// Pipelined reports whether bodies that are on their way at once are stored in
// their order. An external log has several servers, of which one may refuse what
// the next takes when they change their leader: there the order is that of
// receipts which are waited for.
func (j *Journal) Pipelined() bool { return j.embedded != nil }

// Receipt stands for a body on its way into the log.
type Receipt struct {
	journal *Journal
	future  jetstream.PubAckFuture
	started time.Time
	size    int64
	starts  int // of the server that it was sent to
}

// unavailable is the ErrUnavailable that an error of NATS is.
func (j *Journal) unavailable(err error) error {
	return fmt.Errorf("%w: %w", ErrUnavailable, j.explain(err))
}

// explain puts a lost connection in words that say what is lost: nats.go tells of
// a buffer.
func (j *Journal) explain(err error) error {
	if !errors.Is(err, nats.ErrReconnectBufExceeded) && !errors.Is(err, nats.ErrDisconnected) {
		return err
	}
	if j.embedded != nil {
		return &disconnected{"the embedded log, which is started again", err}
	}
	return &disconnected{"NATS at " + j.config.servers(), err}
}

// disconnected says what there is no connection to, in place of the error that
// it wraps.
type disconnected struct {
	from string
	err  error
}

// Error implements error.
func (d *disconnected) Error() string { return "not connected to " + d.from }

// Unwrap returns the error of nats.go.
func (d *disconnected) Unwrap() error { return d.err }

// servers is URL for people, without what is secret in it.
func (c Config) servers() string {
	var names []string
	for server := range strings.SplitSeq(c.URL, ",") {
		server = strings.TrimSpace(server)
		if !strings.Contains(server, "://") {
			server = "nats://" + server // as nats.go takes it
		}
		name := "a malformed URL"
		if u, err := neturl.Parse(server); err == nil {
			name = u.Scheme + "://" + u.Host
		}
		names = append(names, name)
	}
	return strings.Join(names, ",")
}

// Append sends a body, the encoding of a polku.v1.IngestBatch, on its way into
// the log. It first waits while the log can take nothing, so that appends of one
// goroutine are stored in their order if the log is Pipelined. Two bodies with one id within
// duplicatesWindow are stored once.
//
// The caller must wait for the Receipt, and must leave the body alone until
// then. Append waits for receipts of others when many are out, so that a
// receipt should be waited for beside further appends.
func (j *Journal) Append(ctx context.Context, id string, body []byte) (*Receipt, error) {
	size := int64(len(body) + messageOverhead)
	starts, err := j.admit(ctx, size)
	if err != nil {
		return nil, err
	}
	future, err := j.js.PublishMsgAsync(&nats.Msg{
		Subject: subjectEvents,
		Header:  nats.Header{jetstream.MsgIDHeader: []string{id}},
		Data:    body,
	}, jetstream.WithRetryAttempts(0)) // whoever sends again keeps the order
	r := &Receipt{journal: j, future: future, started: time.Now(), size: size, starts: starts}
	if err != nil {
		r.settle(err, false) // it was not sent, so it left nothing behind
		return nil, j.unavailable(err)
	}
	return r, nil
}

// Wait returns nil when the body is on disk, in the majority of replicas if
// there are several. After an error it may be or not; the log takes nothing
// more until it works again.
func (r *Receipt) Wait() error {
	select {
	case <-r.future.Ok():
		r.settle(nil, true)
		return nil
	case err := <-r.future.Err():
		r.settle(err, true)
		return r.journal.unavailable(err)
	}
}

func (r *Receipt) settle(err error, sent bool) {
	j := r.journal
	<-j.slots
	j.mu.Lock()
	j.usage.settled += r.size
	// What failed before a repair is repaired, and a copy that comes while the
	// first is in process is refused alone.
	if err != nil && r.starts == j.starts && !inProcess(err) {
		j.failure = cmp.Or(j.failure, err)
		j.broken = j.broken || sent && !isFull(err)
	}
	j.mu.Unlock()
	if err != nil {
		j.metrics.failures.Inc()
		return
	}
	j.metrics.seconds.Observe(time.Since(r.started).Seconds())
}

// admit returns when there is room for one message of size bytes, and counts it
// as sent. It tells how often the server had been started again by then.
func (j *Journal) admit(ctx context.Context, size int64) (starts int, err error) {
	select {
	case j.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, fmt.Errorf("%w (%w)", ErrUnavailable, ctx.Err())
	}
	for {
		j.mu.Lock()
		reason, changed, starts := j.obstacle(size), j.changed, j.starts
		if reason == nil {
			j.usage.sent += size
		}
		j.mu.Unlock()
		if reason == nil {
			return starts, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			<-j.slots
			return 0, fmt.Errorf("%w (%w)", reason, ctx.Err())
		}
	}
}

// obstacle says why size bytes cannot be stored now. The caller holds mu.
func (j *Journal) obstacle(size int64) error {
	u := j.usage
	switch {
	case errors.Is(j.failure, ErrDiskFull):
		return ErrDiskFull
	case errors.Is(j.failure, ErrUnavailable):
		return j.failure
	case j.failure != nil:
		return j.unavailable(j.failure)
	case u.logBytes+u.unsettled()+size > j.config.MaxBytes:
		return ErrLogFull
	case u.diskFree >= 0 && u.diskFree-u.unsettled()-size < j.config.DiskReserve:
		return ErrDiskFull
	}
	return nil
}

// Blocked says why the log takes nothing now; nil when it does.
func (j *Journal) Blocked() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.obstacle(int64(j.MaxBody()))
}

// watch keeps the state current and repairs what can be repaired.
func (j *Journal) watch(ctx context.Context) {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	var told error
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := j.repair(ctx)
		if err == nil {
			err = j.refresh(ctx)
		}
		if err != nil && ctx.Err() == nil {
			j.mu.Lock()
			j.failure = err
			j.mu.Unlock()
		}
		told = j.tell(told)
	}
}

// tell logs when the log begins or ends to take events.
func (j *Journal) tell(told error) error {
	blocked := j.Blocked()
	j.metrics.setBlocked(blocked)
	switch {
	case blocked == nil && told != nil:
		j.config.Log.Info("the log takes events again")
	case blocked != nil && (told == nil || !errors.Is(blocked, cause(told))):
		j.config.Log.Warn("the log takes no events: acknowledgments are withheld", "reason", blocked)
	}
	return blocked
}

// cause is which of the three obstacles an error is.
func cause(err error) error {
	for _, c := range []error{ErrLogFull, ErrDiskFull} {
		if errors.Is(err, c) {
			return c
		}
	}
	return ErrUnavailable
}

// repair brings the log back after a failure.
func (j *Journal) repair(ctx context.Context) error {
	j.mu.Lock()
	failure, broken := j.failure, j.broken
	j.mu.Unlock()
	stopped := j.embedded != nil && !j.embedded.works()
	if failure == nil && !stopped {
		return nil
	}
	if stopped || broken && j.embedded != nil {
		if free, err := j.embedded.free(); err != nil || free < j.config.DiskReserve {
			return ErrDiskFull
		}
		// A server that stopped by itself failed no append that would have said so.
		j.mu.Lock()
		j.failure = cmp.Or(j.failure, ErrUnavailable)
		j.mu.Unlock()
		j.config.Log.Warn("start the embedded log again", "reason", cmp.Or(failure, errStopped))
		if err := j.embedded.restart(); err != nil {
			return err
		}
		j.metrics.restarts.Inc()
		j.mu.Lock()
		j.starts++
		j.broken = false
		j.mu.Unlock()
		if err := j.reconnected(ctx); err != nil {
			return err
		}
	}
	info, err := j.info(ctx)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if err = j.prepare(ctx); err == nil {
			info, err = j.info(ctx)
		}
	}
	if err != nil {
		return j.unavailable(err)
	}
	if info.Cluster != nil && info.Cluster.Leader == "" {
		return fmt.Errorf("%w: its replicas have no leader", ErrUnavailable)
	}
	// Others may have filled the end that the log lost, so that its length alone
	// tells nothing. Who waits for the log goes on after that is known.
	j.mu.Lock()
	newest := j.newest
	j.mu.Unlock()
	same, err := j.holds(ctx, info.State, newest)
	if err != nil {
		return j.unavailable(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.compare(info, same)
	j.failure, j.broken = nil, false
	return nil
}

// disconnected notes that nothing can be stored or asked until that is repaired.
func (j *Journal) disconnected(err error) {
	if j.embedded == nil {
		j.config.Log.Warn("lost the connection to NATS", "error", err)
	}
	j.mu.Lock()
	j.failure = cmp.Or(j.failure, nats.ErrDisconnected)
	giveUp := j.giveUp
	j.mu.Unlock()
	if giveUp != nil {
		giveUp(nats.ErrDisconnected)
	}
}

// info asks for the state of the stream. Who is disconnected gets no answer.
func (j *Journal) info(ctx context.Context) (*jetstream.StreamInfo, error) {
	timeout := requestTimeout
	if j.embedded == nil {
		timeout = infoTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ctx, giveUp := context.WithCancelCause(ctx)
	defer giveUp(nil)
	j.mu.Lock()
	j.giveUp = giveUp
	j.mu.Unlock()
	info, err := j.events.Info(ctx)
	if err != nil && errors.Is(context.Cause(ctx), nats.ErrDisconnected) {
		err = nats.ErrDisconnected
	}
	return info, err
}

// reconnected waits until the connection is to the server that runs now. A flush
// that was begun while the last one went is never answered.
func (j *Journal) reconnected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for {
		err := j.conn.FlushTimeout(refreshEvery)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to the embedded log again: %w", err)
		case <-time.After(refreshEvery / 10):
		}
	}
}

// inProcess reports whether a cluster still replicates a message of the same id.
func inProcess(err error) bool {
	const duplicateMessageConflict = 10158 // nats.go has no name for it
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == duplicateMessageConflict
}

func isFull(err error) bool {
	return strings.Contains(err.Error(), "maximum bytes exceeded")
}

// refresh reads how full the log is and lets those go on who wait for room.
func (j *Journal) refresh(ctx context.Context) error {
	j.mu.Lock()
	settled, newest := j.usage.settled, j.newest
	j.mu.Unlock()
	info, err := j.info(ctx)
	if err != nil {
		return j.unavailable(err)
	}
	free := int64(-1)
	if j.embedded != nil {
		if free, err = j.embedded.free(); err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.compare(info, info.State.LastSeq >= newest.Sequence)
	j.usage.logBytes, j.usage.diskFree, j.usage.settledAt = int64(info.State.Bytes), free, settled
	close(j.changed)
	j.changed = make(chan struct{})
	j.metrics.state(info.State, free)
	return nil
}

// see notes the newest entry that a reader had. What comes after a failure, until
// the log has been compared, may be of another one.
func (j *Journal) see(c Cursor) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure == nil && c.Sequence > j.newest.Sequence {
		j.newest = c
	}
}

// compare notices that the stream is not the one that was there before, or lost
// its end, which is not the same then: sequences that are remembered mean
// nothing. The caller holds mu.
func (j *Journal) compare(info *jetstream.StreamInfo, same bool) {
	before, last, found := j.created, j.newest.Sequence, Cursor{info.State.LastSeq, info.State.LastTime}
	if before.IsZero() || before.Equal(info.Created) && same {
		j.created = info.Created
		if found.Sequence > last {
			j.newest = found
		}
		return
	}
	j.created, j.newest = info.Created, found
	j.metrics.renewals.Inc()
	j.config.Log.Error("the log is not what it was, what is missing is lost: the routes check where they are",
		"created", j.created, "created_before", before, "last", j.newest.Sequence, "last_before", last)
	end := j.endLife
	j.life, j.endLife = context.WithCancel(context.Background())
	end()
}

// Life ends when the stream was created anew or lost its end, which only an
// external one can. What is known of its sequences and of the events in it is
// void then, and the next Life begins.
func (j *Journal) Life() context.Context {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.life
}

// State is how full the log is and what it holds.
type State struct {
	Messages      uint64
	Bytes         uint64
	MaxBytes      int64
	FirstSequence uint64
	LastSequence  uint64
	FirstTime     time.Time // zero when the log is empty
	LastTime      time.Time
	DiskFree      int64 // bytes; -1 for an external cluster
	DeadLetters   uint64
	Blocked       error // why it takes nothing now; nil when it does
}

// State asks the server.
func (j *Journal) State(ctx context.Context) (State, error) {
	info, err := j.events.Info(ctx)
	if err != nil {
		return State{}, fmt.Errorf("read the state of the log: %w", j.explain(err))
	}
	s := info.State
	state := State{
		Messages: s.Msgs, Bytes: s.Bytes, MaxBytes: j.config.MaxBytes,
		FirstSequence: s.FirstSeq, LastSequence: s.LastSeq,
		DiskFree: -1, Blocked: j.Blocked(),
	}
	if s.Msgs > 0 {
		state.FirstTime, state.LastTime = s.FirstTime, s.LastTime
	}
	if j.embedded != nil {
		if state.DiskFree, err = j.embedded.free(); err != nil {
			return State{}, err
		}
	}
	dead, err := j.js.Stream(ctx, streamDeadLetter)
	if err != nil {
		return State{}, fmt.Errorf("read the state of the dead letters: %w", err)
	}
	state.DeadLetters = dead.CachedInfo().State.Msgs
	return state, nil
}

// Close closes the log. Appends that still wait for their receipts fail.
func (j *Journal) Close() error {
	if j.stop != nil {
		j.stop()
		j.stopped.Wait()
	}
	j.conn.Close()
	if j.embedded != nil {
		return j.embedded.close()
	}
	return nil
}
