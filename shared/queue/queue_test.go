package queue_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/queue"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

const (
	info     = eventv1.Severity_SEVERITY_INFO
	warning  = eventv1.Severity_SEVERITY_WARNING
	severe   = eventv1.Severity_SEVERITY_ERROR
	critical = eventv1.Severity_SEVERITY_CRITICAL
)

var start = time.Date(2026, time.March, 4, 5, 6, 7, 0, time.UTC)

// make1 makes event number n, n seconds after the start.
func make1(n int, s eventv1.Severity) *eventv1.Event {
	return &eventv1.Event{
		Id: fmt.Sprint(n), Severity: s, TimestampUnixNs: start.Add(time.Duration(n) * time.Second).UnixNano(),
	}
}

var all = queue.Batch{Events: math.MaxInt, Bytes: math.MaxInt}

// take returns the ids of all that is queued, in order.
func take(t *testing.T, q *queue.Queue) string {
	if q.Stats().Events == 0 {
		return ""
	}
	events, err := q.Take(t.Context(), all)
	require.NoError(t, err)
	return ids(events)
}

func ids(events []*eventv1.Event) string {
	list := make([]string, len(events))
	for i, e := range events {
		list[i] = e.GetId()
	}
	return strings.Join(list, " ")
}

func TestOfferSheds(t *testing.T) {
	for _, c := range []struct {
		name   string
		offer  []eventv1.Severity // numbered from 1; there is room for 4
		want   string
		losses []queue.Loss
	}{
		{"room", []eventv1.Severity{info, critical, info, warning}, "1 2 3 4", nil},
		{
			"oldest of the least severe",
			[]eventv1.Severity{severe, info, critical, info, warning},
			"1 3 4 5",
			[]queue.Loss{{queue.Full, info, 1}},
		},
		{
			"then those of the next severity",
			[]eventv1.Severity{severe, info, warning, severe, critical, critical, severe},
			"4 5 6 7",
			[]queue.Loss{{queue.Full, info, 1}, {queue.Full, warning, 1}, {queue.Full, severe, 1}},
		},
		{
			"less severe than all is itself the loss",
			[]eventv1.Severity{severe, severe, severe, severe, warning, severe},
			"2 3 4 6",
			[]queue.Loss{{queue.Full, warning, 1}, {queue.Full, severe, 1}},
		},
		{
			"no severity is the least",
			[]eventv1.Severity{0, info, info, info, info},
			"2 3 4 5",
			[]queue.Loss{{queue.Full, 0, 1}},
		},
		{
			"an unknown severity is the worst",
			[]eventv1.Severity{99, critical, critical, critical, severe},
			"1 2 3 4",
			[]queue.Loss{{queue.Full, severe, 1}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := queue.New(queue.Limits{Events: 4, Bytes: 1 << 20})
			for i, s := range c.offer {
				q.Offer(make1(i+1, s))
			}
			require.Equal(t, c.want, take(t, q))
			require.ElementsMatch(t, c.losses, q.Losses())
			require.Zero(t, q.Stats().Events)
			require.Zero(t, q.Stats().Bytes)
		})
	}
}

func TestOfferKeepsWithinItsBytes(t *testing.T) {
	small, big := make1(1, info), make1(2, info)
	size := queue.Size(small)
	const tagAndLength = 1 + 2
	big.Payload = make([]byte, 3*size-queue.Size(big)-tagAndLength)
	q := queue.New(queue.Limits{Events: 100, Bytes: 5 * size})
	for range 5 {
		require.True(t, q.Offer(small))
	}
	require.True(t, q.Offer(big), "three small ones go for it")
	require.Equal(t, "1 1 2", take(t, q))

	// One that does not fit even at the cost of all that it may push out costs
	// nothing but itself.
	for n, s := range []eventv1.Severity{critical, critical, critical, info} {
		require.True(t, q.Offer(make1(n+3, s)))
	}
	require.False(t, q.Offer(big))
	require.Equal(t, "3 4 5 6", take(t, q))

	big.Payload = make([]byte, 10*size)
	require.False(t, q.Offer(big))
	require.ErrorIs(t, q.Put(t.Context(), big), queue.ErrTooLarge)
	require.Equal(t, []queue.Loss{{queue.Full, info, 4}, {queue.TooLarge, info, 2}}, q.Losses())
	require.EqualValues(t, 6, q.Lost())
}

func TestGapTellsOfEachLossOnce(t *testing.T) {
	q := queue.New(queue.Limits{Events: 1, Bytes: 1 << 20})
	_, lost := q.TakeGap()
	require.False(t, lost)
	for _, n := range []int{5, 3, 9, 7} {
		q.Offer(make1(n, info))
	}
	gap, lost := q.TakeGap()
	require.True(t, lost)
	require.Equal(t, queue.Gap{Events: 3, Began: start.Add(3 * time.Second).Local(), Ended: start.Add(9 * time.Second).Local()}, gap)
	_, lost = q.TakeGap()
	require.False(t, lost)

	e := gap.Event(event.NewFactory(), "tapio")
	require.NoError(t, event.Validate(e))
	require.Equal(t, event.KindAgentGap, e.GetEventType())
	require.Equal(t, "3", e.GetMetadata()[event.TapioGapEvents])
	require.Equal(t, "2026-03-04T05:06:10Z", e.GetMetadata()[event.TapioGapBegan])
	require.Equal(t, start.Add(9*time.Second).UnixNano(), e.GetTimestampUnixNs())

	q.Lose(make1(1, severe), "refused")
	gap, _ = q.TakeGap()
	require.EqualValues(t, 1, gap.Events)
	require.Contains(t, q.Losses(), queue.Loss{Reason: "refused", Severity: severe, Events: 1})
	require.Equal(t, "error", queue.Loss{Severity: severe}.SeverityName())
}

// A gap is told even if nothing happens after it, and Flush waits for that.
func TestGapWakesTheTaker(t *testing.T) {
	q := queue.New(queue.Limits{Events: 10, Bytes: 1 << 20})
	told := make(chan queue.Gap)
	go func() {
		events, err := q.Take(t.Context(), queue.Batch{Events: 5, Bytes: 1 << 20, Linger: time.Millisecond})
		assert.NoError(t, err)
		assert.Empty(t, events)
		gap, _ := q.TakeGap()
		told <- gap
	}()
	q.Lose(make1(1, info), "refused")
	flushed := make(chan error)
	go func() { flushed <- q.Flush(t.Context()) }()
	select {
	case gap := <-told:
		require.EqualValues(t, 1, gap.Events)
	case <-time.After(patience):
		t.Fatal("the taker still waits")
	}
	require.Equal(t, queue.Stats{Taken: 1}, q.Stats())
	q.Done(1)
	select {
	case err := <-flushed:
		require.NoError(t, err)
	case <-time.After(patience):
		t.Fatal("not flushed")
	}

	q.Lose(make1(2, info), "refused")
	require.Equal(t, 1, q.Stats().Pending())
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, q.Flush(ctx), context.DeadlineExceeded, "not told")
}

// Whatever is lost, the event that tells of it is a valid one.
func TestGapHasAPlausibleTime(t *testing.T) {
	before := time.Now()
	for _, at := range []int64{
		math.MinInt64, -1, 0, 1, math.MaxInt64,
		time.Date(2019, time.December, 31, 23, 59, 59, 0, time.UTC).UnixNano(),
		time.Date(2100, time.January, 1, 0, 0, 0, 0, time.UTC).UnixNano(),
	} {
		q := queue.New(queue.Limits{Events: 10, Bytes: 1 << 20})
		q.Lose(&eventv1.Event{TimestampUnixNs: at}, "invalid")
		gap, _ := q.TakeGap()
		require.NoError(t, event.Validate(gap.Event(event.NewFactory(), "tapio")), at)
		require.False(t, gap.Began.Before(before), at)
	}
	for _, at := range []time.Time{
		time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2099, time.December, 31, 23, 59, 59, 0, time.UTC),
	} {
		q := queue.New(queue.Limits{Events: 10, Bytes: 1 << 20})
		q.Lose(&eventv1.Event{TimestampUnixNs: at.UnixNano()}, "invalid")
		gap, _ := q.TakeGap()
		require.NoError(t, event.Validate(gap.Event(event.NewFactory(), "tapio")), at)
		require.True(t, gap.Ended.Equal(at), at)
	}
}

func TestALostGapIsNoNewGap(t *testing.T) {
	q := queue.New(queue.Limits{Events: 10, Bytes: 1 << 20})
	q.Lose(make1(1, info), "refused")
	gap, _ := q.TakeGap()
	q.Lose(gap.Event(event.NewFactory(), "tapio"), "refused")
	_, lost := q.TakeGap()
	require.False(t, lost)
	require.EqualValues(t, 2, q.Lost())
}

func TestTakeMakesBatches(t *testing.T) {
	q := queue.New(queue.Limits{Events: 100, Bytes: 1 << 20})
	for n := range 7 {
		q.Offer(make1(n+1, eventv1.Severity(n%6)))
	}
	size := queue.Size(make1(2, info))
	for _, c := range []struct {
		batch queue.Batch
		want  string
	}{
		{queue.Batch{Events: 3, Bytes: 1 << 20}, "1 2 3"},
		{queue.Batch{Events: 3, Bytes: 2*size + 1}, "4 5"},
		{queue.Batch{Events: 3, Bytes: 1}, "6"},                  // never nothing
		{queue.Batch{Events: 3, Bytes: 1 << 20, Linger: 1}, "7"}, // what there is after the linger
	} {
		events, err := q.Take(t.Context(), c.batch)
		require.NoError(t, err)
		require.Equal(t, c.want, ids(events))
	}
}

func TestTakeWaitsForAFullBatch(t *testing.T) {
	q := queue.New(queue.Limits{Events: 100, Bytes: 1 << 20})
	taken := make(chan string)
	go func() {
		for range 2 {
			events, err := q.Take(t.Context(), queue.Batch{Events: 3, Bytes: 1 << 20, Linger: time.Hour})
			assert.NoError(t, err)
			taken <- ids(events)
		}
	}()
	for n := range 6 {
		q.Offer(make1(n, info))
	}
	for _, want := range []string{"0 1 2", "3 4 5"} {
		select {
		case got := <-taken:
			require.Equal(t, want, got)
		case <-time.After(patience):
			t.Fatal("no batch")
		}
	}
}

func TestTakeGivesUpWithoutLoss(t *testing.T) {
	q := queue.New(queue.Limits{Events: 100, Bytes: 1 << 20})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := q.Take(ctx, all)
	require.ErrorIs(t, err, context.Canceled)
	q.Offer(make1(1, info))
	_, err = q.Take(ctx, queue.Batch{Events: 2, Bytes: 1 << 20, Linger: time.Hour})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "1", take(t, q))
}

func TestReturnPutsBackInFront(t *testing.T) {
	q := queue.New(queue.Limits{Events: 4, Bytes: 1 << 20})
	for n, s := range []eventv1.Severity{info, warning, info, severe} {
		q.Offer(make1(n+1, s))
	}
	events, err := q.Take(t.Context(), queue.Batch{Events: 3, Bytes: 1 << 20})
	require.NoError(t, err)
	q.Offer(make1(5, info))
	q.Return(events)
	require.Equal(t, 5, q.Stats().Events, "more than the limit, for now")
	require.True(t, q.Offer(make1(6, info)))
	require.Equal(t, "2 4 5 6", take(t, q))
	q.Return(events[:2])
	require.Equal(t, "1 2", take(t, q))
}

func TestFlushWaitsForWhatIsTakenToo(t *testing.T) {
	q := queue.New(queue.Limits{Events: 3, Bytes: 1 << 20})
	require.NoError(t, q.Flush(t.Context()))
	for n := range 4 {
		q.Offer(make1(n, info))
	}
	flushed := make(chan error)
	go func() { flushed <- q.Flush(t.Context()) }()
	events, err := q.Take(t.Context(), all)
	require.NoError(t, err)
	_, lost := q.TakeGap()
	require.True(t, lost)
	require.Equal(t, queue.Stats{Taken: 4}, q.Stats())
	q.Return(events[2:])
	q.Done(2)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, q.Flush(ctx), context.DeadlineExceeded)
	require.Equal(t, 2, q.Stats().Pending())
	require.Equal(t, "3", take(t, q))
	q.Done(2)
	select {
	case err := <-flushed:
		require.NoError(t, err)
	case <-time.After(patience):
		t.Fatal("not flushed")
	}
}

func TestPutWaitsForRoom(t *testing.T) {
	const senders, each = 4, 500
	q := queue.New(queue.Limits{Events: 3, Bytes: 1 << 20})
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for n := range each {
				assert.NoError(t, q.Put(t.Context(), make1(s*each+n, info)))
			}
		})
	}
	last := map[string]string{}
	for n := 0; n < senders*each; {
		events, err := q.Take(t.Context(), queue.Batch{Events: 2, Bytes: 1 << 20})
		require.NoError(t, err)
		n += len(events)
		for _, e := range events {
			source := string(rune('a' + (e.GetTimestampUnixNs()-start.UnixNano())/int64(time.Second)/each))
			require.Less(t, last[source], fmt.Sprintf("%08s", e.GetId()), "in the order of each sender")
			last[source] = fmt.Sprintf("%08s", e.GetId())
		}
	}
	wg.Wait()
	require.Zero(t, q.Lost())

	q = queue.New(queue.Limits{Events: 1, Bytes: 1 << 20})
	require.NoError(t, q.Put(t.Context(), make1(1, info)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, q.Put(ctx, make1(2, critical)), context.DeadlineExceeded)
	require.Equal(t, "1", take(t, q))
}

// TestAgainstASimpleQueue does the same at random to the queue and to a slice.
func TestAgainstASimpleQueue(t *testing.T) {
	const limit = 20
	random := rand.New(rand.NewPCG(1, 2))
	q := queue.New(queue.Limits{Events: limit, Bytes: 1 << 20})
	var model []*eventv1.Event
	lost := 0
	for n := range 5_000 {
		switch random.IntN(10) {
		case 0:
			if len(model) == 0 {
				continue
			}
			k := 1 + random.IntN(2*limit)
			got, err := q.Take(t.Context(), queue.Batch{Events: k, Bytes: 1 << 20})
			require.NoError(t, err)
			k = min(k, len(model))
			require.Equal(t, ids(model[:k]), ids(got))
			model = slices.Clone(model[k:])
			if random.IntN(2) == 0 && len(got) > 0 {
				back := got[len(got)/2:]
				q.Return(back)
				model = append(slices.Clone(back), model...)
			}
		default:
			e := make1(n, eventv1.Severity(random.IntN(6)))
			q.Offer(e)
			model = append(model, e)
			for len(model) > limit {
				least := slices.MinFunc(model, func(a, b *eventv1.Event) int { return int(a.GetSeverity()) - int(b.GetSeverity()) })
				if least.GetSeverity() == e.GetSeverity() && model[len(model)-1] == e && slices.Index(model, least) == len(model)-1 {
					least = e
				}
				model = slices.Delete(model, slices.Index(model, least), slices.Index(model, least)+1)
				lost++
			}
		}
		require.Equal(t, len(model), q.Stats().Events)
	}
	require.EqualValues(t, lost, q.Lost())
	require.Equal(t, ids(model), take(t, q))
	require.Zero(t, q.Stats().Bytes)
}

// typical is an event with what an observer puts into one.
func typical(n int) *eventv1.Event {
	e := event.NewFactory().New(event.KindNetworkConnectionRefused, start.Add(time.Duration(n)), "tapio")
	for _, k := range event.Keys()[:16] {
		e.Metadata[k.Name] = strings.Repeat("v", 20)
	}
	e.Data = &eventv1.Event_Network{Network: &eventv1.NetworkEventData{Protocol: "tcp", SrcIp: "10.0.0.1", DstIp: "10.0.0.2", ProcessName: "curl"}}
	return e
}

func TestSizeCoversTheWire(t *testing.T) {
	for _, e := range []*eventv1.Event{
		{},
		typical(1),
		{Payload: make([]byte, 1<<20), RouteTo: make([]string, 1000)},
		{Metadata: map[string]string{strings.Repeat("k", 1<<16): strings.Repeat("v", 1<<20)}},
		{Data: &eventv1.Event_K8S{K8S: &eventv1.K8SEventData{Changes: []*eventv1.FieldChange{{Old: strings.Repeat("x", 1<<16)}}}}},
		{Data: &eventv1.Event_Kernel{Kernel: &eventv1.KernelEventData{Command: strings.Repeat("x", 1<<16)}}},
		{Data: &eventv1.Event_Container{Container: &eventv1.ContainerEventData{Image: strings.Repeat("x", 1<<16)}}},
		{Data: &eventv1.Event_Process{Process: &eventv1.ProcessEventData{Args: strings.Repeat("x", 1<<16)}}},
		{Data: &eventv1.Event_Resource{Resource: &eventv1.ResourceEventData{NodeName: strings.Repeat("x", 1<<16)}}},
		{Data: &eventv1.Event_Network{}},
	} {
		require.GreaterOrEqual(t, queue.Size(e), proto.Size(e))
	}
}

func TestMemoryOfAFullQueueIsWhatSizeSays(t *testing.T) {
	const bytes = 8 << 20
	q := queue.New(queue.Limits{Events: 20_000, Bytes: bytes})
	before := heap()
	for n := range 10_000 {
		e := proto.CloneOf(typical(n)) // with strings of its own
		for k, v := range e.GetMetadata() {
			e.Metadata[k] = strings.Clone(v)
		}
		q.Offer(e)
	}
	used := heap() - before
	t.Logf("%d events, Size %d, heap %d bytes", q.Stats().Events, q.Stats().Bytes, used)
	require.Positive(t, q.Lost())
	require.LessOrEqual(t, q.Stats().Bytes, bytes)
	require.Less(t, used, int64(bytes)*3/2)
	runtime.KeepAlive(q)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkOfferTake(b *testing.B) {
	q := queue.New(queue.Limits{Events: 20_000, Bytes: 64 << 20})
	e := typical(1)
	b.ReportAllocs()
	for i := range b.N {
		q.Offer(e)
		if i%256 == 255 {
			if _, err := q.Take(b.Context(), queue.Batch{Events: 256, Bytes: 1 << 20}); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkOfferToAFullQueue(b *testing.B) {
	q := queue.New(queue.Limits{Events: 20_000, Bytes: 64 << 20})
	e := typical(1)
	for q.Lost() == 0 {
		q.Offer(e)
	}
	b.ReportAllocs()
	for b.Loop() {
		q.Offer(e)
	}
}
