package event_test

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

var at = time.Date(2026, time.March, 4, 5, 6, 7, 891_234_567, time.UTC)

func TestNewFillsWhatFollowsFromTheKind(t *testing.T) {
	e := event.NewFactory().New(event.KindNetworkConnectionTimeout, at, "tapio")

	assert.Equal(t, at.UnixNano(), e.GetTimestampUnixNs())
	assert.Equal(t, "tapio", e.GetSource())
	assert.Equal(t, "network.connection_timeout", e.GetEventType())
	assert.Equal(t, eventv1.Severity_SEVERITY_ERROR, e.GetSeverity())
	assert.Equal(t, eventv1.Outcome_OUTCOME_TIMEOUT, e.GetOutcome())
	require.NotNil(t, e.GetMetadata(), "an observer writes into it")
	assert.Empty(t, e.GetMetadata())

	id, err := ulid.ParseStrict(e.GetId())
	require.NoError(t, err)
	assert.Equal(t, at.Truncate(time.Millisecond), id.Timestamp().UTC())
}

func TestNewOfAnUnknownKindDoesNotValidate(t *testing.T) {
	e := event.NewFactory().New("network.connection_refudes", at, "tapio")
	require.ErrorContains(t, event.Validate(e), `"network.connection_refudes" is not in the registry`)
}

func TestIDsOfOneMillisecondSortAsTheyWereMade(t *testing.T) {
	f := event.NewFactory()
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = f.New(event.KindAgentGap, at, "tapio").GetId()
	}
	require.True(t, slices.IsSorted(ids))
	require.Len(t, slices.Compact(ids), 1000)
}

func TestIDsStayUniqueAmongGoroutinesAndFactories(t *testing.T) {
	const goroutines, each = 8, 500
	shared := event.NewFactory()
	ids := make([][]string, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		f := shared
		if g%2 == 1 {
			f = event.NewFactory()
		}
		wg.Go(func() {
			for i := range each {
				// Times go up and down, as those of several observers do.
				when := at.Add(time.Duration(i%3) * time.Millisecond)
				ids[g] = append(ids[g], f.New(event.KindAgentGap, when, "tapio").GetId())
			}
		})
	}
	wg.Wait()
	all := slices.Concat(ids...)
	slices.Sort(all)
	require.Len(t, slices.Compact(all), goroutines*each)
}

func TestIDsOfImpossibleTimesAreUnique(t *testing.T) {
	f := event.NewFactory()
	seen := map[string]bool{}
	for _, when := range []time.Time{{}, time.Unix(-1, 0), time.Unix(0, 0), time.Unix(1<<50, 0)} {
		e := f.New(event.KindAgentGap, when, "tapio")
		_, err := ulid.ParseStrict(e.GetId())
		require.NoError(t, err, when)
		require.False(t, seen[e.GetId()], when)
		seen[e.GetId()] = true
	}
}

func BenchmarkNew(b *testing.B) {
	f := event.NewFactory()
	b.ReportAllocs()
	for b.Loop() {
		f.New(event.KindNetworkConnectionRefused, at, "tapio")
	}
}
