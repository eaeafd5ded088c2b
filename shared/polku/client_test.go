package polku

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/certs"
	"github.com/yairfalse/tapio/shared/certs/certstest"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/queue"
)

// inBatches makes batches of exactly so many events.
func inBatches(events int) func(*Config) {
	return func(c *Config) { c.Batch = queue.Batch{Events: events, Linger: time.Hour} }
}

func TestDeliversInOrder(t *testing.T) {
	const events = 10_000
	g := newGateway(t).start()
	var acked []string // on the client's goroutine
	l := startClient(t, g.address, func(c *Config) {
		c.Acked = func(list []*eventv1.Event) {
			for _, e := range list {
				acked = append(acked, e.GetId())
			}
		}
	})
	for n := range events {
		require.NoError(t, l.Send(t.Context(), number(n)))
	}
	l.flush()
	require.NoError(t, l.Ready())
	l.stop()
	require.Equal(t, numbers(0, events-1), strings.Join(g.got(), " "))
	require.Equal(t, numbers(0, events-1), strings.Join(acked, " "))
	g.mu.Lock()
	defer g.mu.Unlock()
	require.Equal(t, "tapio", g.batches[0].GetSource())
	require.Equal(t, "test", g.batches[0].GetCluster())
	require.EqualValues(t, events, l.metric("acked_total", ""))
	require.EqualValues(t, events, l.metric("sent_total", ""))
	require.Zero(t, l.metric("in_flight_events", ""))
	l.lintMetrics()
}

func TestResendsWhatIsNotAckedAfterABrokenStream(t *testing.T) {
	g := newGateway(t).start()
	n := 0
	g.answer = func(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error {
		switch n++; {
		case n < 4: // withheld
			return nil
		case n == 4:
			// The second batch is safe, of the third one event.
			send(&polkuv1.Ack{EventIds: []string{"e0000003", "e0000004", "e0000005", "e0000007"}})
			return errBreak
		}
		return ackAll(b, send)
	}
	l := startClient(t, g.address, inBatches(3))
	for n := range 12 {
		l.Offer(number(n))
	}
	l.flush()
	require.Equal(t, []string{
		numbers(0, 2), numbers(3, 5), numbers(6, 8), numbers(9, 11),
		numbers(0, 2), "e0000006 e0000008", numbers(9, 11),
	}, g.got())
	require.EqualValues(t, 12, l.metric("acked_total", ""))
	require.Zero(t, l.metric("acks_unknown_total", ""))
	require.EqualValues(t, 1, l.metric("reconnects_total", ""))
	l.eventually(func() bool { return l.metric("sent_total", "") == 20 }, "counted, which the ack may overtake")
	require.Contains(t, l.log.String(), "broken by the test")
}

func TestAcksInAnyOrderAndGrouping(t *testing.T) {
	const batches, size = 6, 4
	g := newGateway(t).start()
	var held []string
	g.answer = func(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error {
		held = append(held, idsOf(b)...)
		if len(held) < batches*size {
			return nil
		}
		slices.Reverse(held)
		send(&polkuv1.Ack{}) // tells nothing
		send(&polkuv1.Ack{EventIds: []string{"stranger", held[7]}})
		send(&polkuv1.Ack{EventIds: []string{held[7]}}) // again
		for i, id := range held {
			if i != 7 {
				send(&polkuv1.Ack{EventIds: []string{id}})
			}
		}
		return nil
	}
	l := startClient(t, g.address, inBatches(size))
	for n := range batches * size {
		l.Offer(number(n))
	}
	l.flush()
	require.EqualValues(t, batches*size, l.metric("acked_total", ""))
	require.EqualValues(t, 2, l.metric("acks_unknown_total", ""))
	require.Len(t, g.got(), batches)
}

func TestRefusalsAreFinalOrNot(t *testing.T) {
	g := newGateway(t).start()
	tries := map[string]int{}
	g.answer = func(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error {
		a := &polkuv1.Ack{}
		for _, id := range idsOf(b) {
			tries[id]++
			code := ""
			switch {
			case id == "e0000001":
				code = "invalid"
			case id == "e0000002" && tries[id] < 4:
				code = codeRateLimited
			case id == "e0000003" && tries[id] < 2:
				code = codeUnavailable
			}
			if code == "" {
				a.EventIds = append(a.EventIds, id)
			} else {
				a.Errors = append(a.Errors, &polkuv1.AckError{EventId: id, Code: code, Message: "because"})
			}
		}
		a.Errors = append(a.Errors, &polkuv1.AckError{Code: "unreadable"}, &polkuv1.AckError{EventId: "stranger", Code: "invalid"})
		send(a)
		return nil
	}
	var acked, refused []string
	l := startClient(t, g.address, func(c *Config) {
		c.Batch.Events = 5
		c.Acked = func(list []*eventv1.Event) {
			for _, e := range list {
				if e.GetEventType() != event.KindAgentGap {
					acked = append(acked, e.GetId())
				}
			}
		}
		c.Refused = func(e *eventv1.Event, why *polkuv1.AckError) { refused = append(refused, e.GetId()+" "+why.GetCode()) }
	})
	for n := range 5 {
		l.Offer(number(n))
	}
	l.flush()
	l.stop()
	require.ElementsMatch(t, strings.Fields(numbers(0, 0)+" "+numbers(2, 4)), acked)
	require.Equal(t, []string{"e0000001 invalid"}, refused)
	require.EqualValues(t, 1, l.metric("refused_total", `code="invalid"`))
	require.EqualValues(t, 3, l.metric("retried_total", `code="rate_limited"`))
	require.EqualValues(t, 1, l.metric("retried_total", `code="unavailable"`))
	require.Positive(t, l.metric("refused_total", `code="unreadable"`))
	require.Contains(t, l.log.String(), "because")
	require.EqualValues(t, 1, l.metric("lost_total", `reason="refused",severity="warning"`))
	require.EqualValues(t, 1, l.Lost())
	require.Equal(t, 1, g.told())
}

// A gateway that does not even take the event that tells of what it refused is
// not told of that for ever.
func TestGatewayThatRefusesEverything(t *testing.T) {
	g := newGateway(t).start()
	g.answer = func(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error {
		a := &polkuv1.Ack{}
		for _, id := range idsOf(b) {
			a.Errors = append(a.Errors, &polkuv1.AckError{EventId: id, Code: "invalid"})
		}
		send(a)
		return nil
	}
	l := startClient(t, g.address, inBatches(1))
	l.Offer(number(1))
	l.flush()
	require.EqualValues(t, 2, l.Lost(), "the event and the gap")
	require.EqualValues(t, 2, l.metric("refused_total", ""))
	require.Len(t, g.got(), 2)
}

func TestCodesOfAStrangeGatewayDoNotFillTheMetrics(t *testing.T) {
	c := counts{refused: map[string]uint64{}}
	for n := range 1000 {
		c.refuse(strconv.Itoa(n))
	}
	require.LessOrEqual(t, len(c.refused), 51)
	require.EqualValues(t, 950, c.refused["other"])
}

func TestAnIDTwiceInFlight(t *testing.T) {
	g := newGateway(t).start()
	l := startClient(t, g.address, inBatches(2))
	release := make(chan struct{})
	g.setAnswer(func(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error {
		<-release
		return ackAll(b, send)
	})
	for _, n := range []int{1, 2, 2, 3, 2, 2} {
		l.Offer(number(n))
	}
	l.eventually(func() bool { return l.metric("in_flight_events", "") == 6 }, "all in flight")
	close(release)
	l.flush()
	require.False(t, l.Offer(&eventv1.Event{Severity: eventv1.Severity_SEVERITY_ERROR}))
	require.Error(t, l.Send(t.Context(), &eventv1.Event{}))
	require.EqualValues(t, 1, l.metric("lost_total", `reason="no_id",severity="error"`))
}

func TestAnEventThatCannotBeEncodedHoldsNobodyUp(t *testing.T) {
	g := newGateway(t).start()
	var refused atomic.Int32
	l := startClient(t, g.address, func(c *Config) {
		c.Batch = queue.Batch{Events: 3, Linger: time.Millisecond}
		c.Refused = func(e *eventv1.Event, why *polkuv1.AckError) {
			if e.GetId() == "e0000002" && why.GetCode() == string(Invalid) {
				refused.Add(1)
			}
		}
	})
	bad := number(2)
	bad.Metadata[event.TapioReason] = "\xff"
	for _, e := range []*eventv1.Event{number(1), bad, number(3), bad, bad, bad, number(4), typical(5), number(6)} {
		l.Offer(e)
	}
	l.flush()
	var got []string
	for _, e := range g.events() {
		if e.GetEventType() != event.KindAgentGap {
			got = append(got, e.GetId())
		}
	}
	require.Equal(t, []string{"e0000001", "e0000003", "e0000004", "e0000005", "e0000006"}, got)
	require.EqualValues(t, 4, l.metric("lost_total", `reason="invalid",severity="warning"`))
	require.EqualValues(t, 4, refused.Load(), "who waits for its ack must know that none comes")
	require.EqualValues(t, 1, g.connections())
	require.True(t, proto.Equal(typical(5), g.events()[slices.IndexFunc(g.events(), func(e *eventv1.Event) bool { return e.GetId() == "e0000005" })]))
}

// large makes event n with so many bytes besides.
func large(n, bytes int) *eventv1.Event {
	e := number(n)
	e.Payload = make([]byte, bytes)
	return e
}

// told adds up the losses that the gateway was told of.
func (g *gateway) told() (lost int) {
	for _, e := range g.events() {
		if e.GetEventType() == event.KindAgentGap {
			n, err := strconv.Atoi(e.GetMetadata()[event.TapioGapEvents])
			assert.NoError(g.t, err)
			lost += n
		}
	}
	return lost
}

func TestAnEventThatNoGatewayTakes(t *testing.T) {
	g := newGateway(t).start()
	l := startClient(t, g.address, nil)
	require.False(t, l.Offer(large(1, event.MaxSize)))
	require.ErrorContains(t, l.Send(t.Context(), large(2, event.MaxSize)), "send at most 262144")
	require.True(t, l.Offer(large(3, event.MaxSize-1<<10)))
	l.flush()
	require.True(t, slices.ContainsFunc(g.events(), func(e *eventv1.Event) bool { return e.GetId() == number(3).GetId() }))
	require.EqualValues(t, 2, l.metric("lost_total", `reason="too_large",severity="warning"`))
	require.Equal(t, 2, g.told())
	require.Equal(t, 1, g.connections())
}

func TestGatewayThatTakesOnlySmallMessages(t *testing.T) {
	const limit, events = 8 << 10, 400
	g := newGateway(t, grpc.MaxRecvMsgSize(limit)).start()
	refused := 0 // on the client's goroutine
	l := startClient(t, g.address, func(c *Config) {
		c.Batch = queue.Batch{Events: 100, Linger: 10 * time.Millisecond}
		c.Refused = func(*eventv1.Event, *polkuv1.AckError) { refused++ }
	})
	var want []string
	for n := range events {
		e := number(n)
		if n%100 == 50 {
			e = large(n, limit)
		} else {
			want = append(want, e.GetId())
		}
		l.Offer(e)
	}
	l.flush()
	var got []string
	for _, e := range g.events() {
		if e.GetEventType() != event.KindAgentGap {
			got = append(got, e.GetId())
		}
	}
	require.Equal(t, want, got, "in order")
	require.EqualValues(t, events/100, l.metric("lost_total", `reason="too_large",severity="warning"`))
	require.EqualValues(t, events/100, l.Lost())
	require.Equal(t, events/100, g.told())
	require.Contains(t, l.log.String(), "raise it")
	l.stop()
	require.Equal(t, events/100, refused)
}

func TestGatewayThatLeavesOutSomeAcks(t *testing.T) {
	const events = 200
	g := newGateway(t).start()
	left := map[string]bool{}
	g.answer = func(b *polkuv1.IngestBatch, send func(*polkuv1.Ack)) error {
		ids := idsOf(b)
		slices.Reverse(ids)
		for _, id := range ids {
			if strings.HasSuffix(id, "7") && !left[id] { // the first time
				left[id] = true
				continue
			}
			send(&polkuv1.Ack{EventIds: []string{id}})
		}
		return nil
	}
	l := startClient(t, g.address, inBatches(10), func(c *Client) { c.overdue = 50 * time.Millisecond })
	for n := range events {
		l.Offer(number(n))
	}
	l.flush()
	require.EqualValues(t, events, l.metric("acked_total", ""))
	require.Zero(t, l.Lost())
	require.Contains(t, l.log.String(), errOverdue.Error())
	g.mu.Lock()
	defer g.mu.Unlock()
	sizes := map[int]bool{}
	for _, b := range g.batches {
		sizes[len(idsOf(b))] = true
	}
	require.Equal(t, map[int]bool{10: true, 1: true}, sizes, "again only what was left out")
}

func TestWindowKnowsWhatWasPassedOver(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	three := func() window {
		w := newWindow()
		for n := range 3 {
			w.add(newBatch(nil, []*eventv1.Event{number(2 * n), number(2*n + 1)}))
		}
		return w
	}
	for _, c := range []struct {
		name    string
		acked   []int // event n in second n
		overdue bool  // if it was to be by second 10
	}{
		{"nothing acked", nil, false},
		{"in order", []int{0, 1}, false},
		{"part of a batch", []int{0}, true},
		{"a later batch", []int{4, 5}, true},
		{"the second of three", []int{2, 3}, true},
		{"all", []int{5, 4, 3, 2, 1, 0}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := three()
			for _, n := range c.acked {
				e, _ := w.settle(number(n).GetId(), at(n))
				require.NotNil(t, e)
			}
			require.Equal(t, c.overdue, w.overdue(at(10)))
			require.False(t, w.overdue(start), "not yet")
			w.renew(math.MaxInt, func(e []*eventv1.Event) []*batch { return []*batch{newBatch(nil, e)} })
			require.False(t, w.overdue(at(10)), "a new stream is a new chance")
		})
	}
	w := three()
	w.settle(number(0).GetId(), at(0))
	w.settle(number(2).GetId(), at(2))
	w.settle(number(1).GetId(), at(9))
	require.True(t, w.overdue(at(5)))
	w.settle(number(3).GetId(), at(9))
	require.False(t, w.overdue(at(5)))
}

func TestGatewayThatWithholdsAcks(t *testing.T) {
	const size, window, room = 4, 3, 10
	g := newGateway(t).start()
	g.answer = func(*polkuv1.IngestBatch, func(*polkuv1.Ack)) error { return nil }
	l := startClient(t, g.address, func(c *Config) {
		c.Batch = queue.Batch{Events: size, Linger: time.Millisecond}
		c.Window = window
		c.Queue.Events = room
	})
	sent := 0
	for ; sent < size*window; sent++ {
		require.NoError(t, l.Send(t.Context(), number(sent)))
	}
	l.eventually(func() bool { return l.metric("in_flight_events", "") == size*window }, "a full window")
	for ; sent < size*window+room; sent++ {
		require.NoError(t, l.Send(t.Context(), number(sent)))
	}
	// Now the back-pressure has reached the sender.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, l.Send(ctx, number(sent)), context.DeadlineExceeded)
	require.Equal(t, size*window+room, l.Pending())
	err := l.Flush(ctx)
	require.ErrorContains(t, err, fmt.Sprintf("%d are left", size*window+room))
	require.NoError(t, l.Ready())
	require.Equal(t, 1, g.connections())

	// The log has room again: everything comes, once.
	g.setAnswer(ackAll)
	g.mu.Lock()
	waiting := slices.Clone(g.batches)
	g.mu.Unlock()
	require.Len(t, waiting, window)
	g.server.Stop() // the acks of the waiting ones are lost with the stream
	g.start()
	l.flush()
	var ids []string
	for _, e := range g.events() {
		ids = append(ids, e.GetId())
	}
	require.Equal(t, numbers(0, sent-1), strings.Join(ids, " "))
	require.Zero(t, l.Lost())
}

func TestGatewayThatIsGoneForLong(t *testing.T) {
	const room, offered = 1000, 60_000
	g := newGateway(t)
	l := startClient(t, g.address, func(c *Config) {
		c.Queue.Events = room
		c.Identity = map[string]string{event.HostName: "node-1"}
	})
	l.eventually(func() bool { return !errors.Is(l.Ready(), errStarting) }, "a first try")
	require.ErrorContains(t, l.Ready(), "connection refused")
	n := 0
	for ; n < 2*room; n++ {
		l.Offer(number(n))
	}
	before := heap()
	for ; n < offered; n++ {
		l.Offer(number(n))
	}
	require.Less(t, heap()-before, int64(1<<20), "memory stays flat")

	g.start()
	l.flush()
	got := g.events()
	gap := got[0]
	require.Equal(t, event.KindAgentGap, gap.GetEventType(), "before the events that follow")
	require.NoError(t, event.Validate(gap))
	require.Equal(t, strconv.Itoa(offered-room), gap.GetMetadata()[event.TapioGapEvents])
	require.Equal(t, "node-1", gap.GetMetadata()[event.HostName])
	began, err := time.Parse(time.RFC3339Nano, gap.GetMetadata()[event.TapioGapBegan])
	require.NoError(t, err)
	require.Equal(t, number(0).GetTimestampUnixNs(), began.UnixNano())
	require.Equal(t, number(offered-room-1).GetTimestampUnixNs(), gap.GetTimestampUnixNs())
	require.Len(t, got, 1+room)
	for i, e := range got[1:] {
		require.Equal(t, number(offered-room+i).GetId(), e.GetId())
	}
	require.EqualValues(t, offered-room, l.metric("lost_total", `reason="queue_full",severity="warning"`))
	require.EqualValues(t, offered-room, l.Lost())
	require.Contains(t, l.log.String(), "events were lost")
	require.LessOrEqual(t, strings.Count(l.log.String(), "connection refused"), 2, "not a line a try")
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestGatewayThatIsKilled stops the gateway again and again under load, and
// counts.
func TestGatewayThatIsKilled(t *testing.T) {
	const events, kills = 10_000, 5
	g := newGateway(t).start()
	l := startClient(t, g.address, func(c *Config) { c.Batch = queue.Batch{Events: 16, Linger: time.Millisecond} })
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range events {
			assert.NoError(t, l.Send(t.Context(), number(n)))
		}
	})
	for k := range kills {
		l.eventually(func() bool { return l.metric("acked_total", "") > float64(k*events/kills/2) }, "progress")
		g.server.Stop()
		g.start()
	}
	wg.Wait()
	l.flush()
	got := g.events()
	require.Len(t, got, events, "lost 0")
	for n, e := range got {
		require.Equal(t, number(n).GetId(), e.GetId(), "in order")
	}
	require.Positive(t, l.metric("reconnects_total", ""))
	require.Zero(t, l.Lost())
}

// TestGapsAddUp loses events while the gateway comes and goes: what arrives and
// what the gaps tell of is all there was.
func TestGapsAddUp(t *testing.T) {
	const offered = 40_000
	g := newGateway(t).start()
	l := startClient(t, g.address, func(c *Config) {
		c.Queue.Events = 50
		c.Batch = queue.Batch{Events: 16, Linger: time.Millisecond}
	})
	for n := range offered {
		l.Offer(number(n))
		switch n % (offered / 4) {
		case offered / 8:
			g.server.Stop()
		case offered / 5:
			g.start()
		}
	}
	l.Offer(&eventv1.Event{}) // a loss that nothing follows
	l.flush()
	events, missing := 0, g.told()
	for _, e := range g.events() {
		if e.GetEventType() != event.KindAgentGap {
			events++
		}
	}
	require.Positive(t, missing)
	require.Equal(t, offered+1, events+missing)
	require.EqualValues(t, missing, l.Lost())
}

// What no gateway takes is an error at the start, not a refusal of each event.
func TestNewRefusesABadConfiguration(t *testing.T) {
	for want, config := range map[string]Config{
		"ftp://gateway:1": {Endpoint: "ftp://gateway:1", Source: "s"},
		"source is empty": {Endpoint: "gateway:1"},
		"cluster is":      {Endpoint: "gateway:1", Source: "s", Cluster: strings.Repeat("c", event.MaxNameLen+1)},
	} {
		config.Log = slog.New(slog.DiscardHandler)
		_, err := New(config)
		require.ErrorContains(t, err, want)
	}
}

func TestMutualTLS(t *testing.T) {
	ours, theirs := certstest.NewAuthority(t, "ours"), certstest.NewAuthority(t, "theirs")
	files := ours.Side(t, "gateway")
	server, err := files.Server()
	require.NoError(t, err)
	g := newGateway(t, grpc.Creds(credentials.NewTLS(server))).start()
	with := func(files certs.Files) func(*Config) {
		return func(c *Config) { c.TLS = files }
	}

	l := startClient(t, g.address, with(ours.Side(t, "agent")))
	l.Offer(number(1))
	l.flush()
	require.Equal(t, []string{"e0000001"}, g.got())
	l.stop()

	// What is wrong stands in the log and in the readiness, and when it is set
	// right nothing needs a restart.
	wrong := theirs.Side(t, "agent")
	ours.Write(t, wrong.CA)
	for _, c := range []struct {
		name, address, want string
		files               certs.Files
		repair              func()
	}{
		{"client of another authority", g.address, "bad certificate", wrong, func() { ours.Issue(t, "agent", wrong.Cert, wrong.Key) }},
		{"no client certificate", g.address, "certificate required", certs.Files{CA: files.CA}, nil},
		{"server of another authority", g.address, "unknown authority", theirs.Side(t, "agent"), nil},
		{"plaintext", "http://" + g.address, "server preface", certs.Files{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := startClient(t, c.address, with(c.files))
			l.Offer(number(2))
			l.eventually(func() bool { return strings.Contains(fmt.Sprint(l.Ready()), c.want) }, "readiness")
			l.eventually(func() bool { return strings.Contains(l.log.String(), c.want) }, "log")
			require.Zero(t, l.metric("connected", ""))
			require.Zero(t, l.metric("reconnects_total", ""))
			require.NotContains(t, l.log.String(), "connected to the gateway")
			require.Equal(t, 1, l.Pending())
			if c.repair != nil {
				c.repair()
				l.flush()
				require.NoError(t, l.Ready())
				require.EqualValues(t, 1, l.metric("connected", ""))
			}
		})
	}
}

func TestNoGatewayThere(t *testing.T) {
	// A gRPC server, but of something else.
	g := newGateway(t)
	l := startClient(t, g.address, nil)
	var tries atomic.Int32
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
		tries.Add(1)
		return status.Error(codes.Unimplemented, "unknown service polku.v1.Gateway")
	}))
	listener := listen(t, g.address)
	go func() { _ = server.Serve(listener) }() // until Stop
	t.Cleanup(server.Stop)
	l.eventually(func() bool { return strings.Contains(l.log.String(), "unknown service polku.v1.Gateway") }, "the reason")
	l.eventually(func() bool { return tries.Load() > 5 }, "tries")
	require.ErrorContains(t, l.Ready(), "unknown service")
	require.NotContains(t, l.log.String(), "connected to the gateway")
	require.LessOrEqual(t, strings.Count(l.log.String(), "unknown service"), 1, "not a line a try")
}

// A gateway may say nothing until it has something to ack.
func TestConnectedWithTheFirstAck(t *testing.T) {
	g := newGateway(t)
	g.silent = true
	g.start()
	l := startClient(t, g.address, nil, func(c *Client) { c.refusedWithin = time.Hour })
	l.eventually(func() bool { return g.connections() == 1 }, "a stream")
	require.ErrorIs(t, l.Ready(), errStarting)
	l.Offer(number(1))
	l.flush()
	require.NoError(t, l.Ready())
}

// A stream that lasts was accepted, and counts once, whatever the gateway says.
func TestAStreamConnectsOnce(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent=", silent), func(t *testing.T) {
			g := newGateway(t)
			g.silent = silent
			g.start()
			l := startClient(t, g.address, nil, func(c *Client) { c.refusedWithin = time.Nanosecond })
			l.eventually(func() bool { return l.Ready() == nil }, "accepted")
			l.Offer(number(1))
			l.flush()
			g.server.Stop()
			l.eventually(func() bool { return l.Ready() != nil }, "the end is noticed")
			require.Equal(t, 1, strings.Count(l.log.String(), "connected to the gateway"))
			require.Zero(t, l.metric("reconnects_total", ""))
		})
	}
}

// typical is what an observer makes of a refused connection.
func typical(n int) *eventv1.Event {
	e := number(n)
	e.EventType = event.KindNetworkConnectionRefused
	e.Metadata = map[string]string{
		event.ContainerID: strings.Repeat("0", 64), event.ErrorType: "ECONNREFUSED", event.HostName: "node-1",
		event.NetworkPeerAddress: "10.0.0.1", event.NetworkPeerPort: "5432", event.NetworkLocalAddress: "10.0.0.2",
		event.NetworkTransport: "tcp", event.NetworkType: "ipv4", event.ProcessExecutableName: "api", event.ProcessPID: "1234",
		event.ProcessLinuxCgroup: "/kubepods/burstable/pod0/0", event.K8sPodUID: "00000000-0000-0000-0000-000000000000",
	}
	e.Data = &eventv1.Event_Network{Network: &eventv1.NetworkEventData{
		Protocol: "tcp", SrcIp: "10.0.0.2", DstIp: "10.0.0.1", DstPort: 5432, Direction: "outbound", ProcessName: "api",
	}}
	return e
}
