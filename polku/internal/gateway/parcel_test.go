package gateway

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// heap is what is in use, bytes.
func heap() int64 {
	var m runtime.MemStats
	for range 3 { // pools keep what they have through two
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// encodings makes batches of n of the smallest events, with ids as long as wanted.
func encodings(t testing.TB, source string, n, idLength int) (protobuf, json func(number int) []byte) {
	events := func(number int) []*eventv1.Event {
		all := make([]*eventv1.Event, n)
		for i := range all {
			id := fmt.Sprintf("%x.%x", number, i)
			all[i] = &eventv1.Event{
				Id: id + strings.Repeat("x", max(idLength-len(id), 0)), TimestampUnixNs: time.Now().UnixNano(), EventType: "x",
			}
			if source == "" {
				all[i].Source = "s"
			}
		}
		return all
	}
	marshal := func(b *polkuv1.IngestBatch) []byte {
		b.Source = source
		wire, err := proto.Marshal(b)
		require.NoError(t, err)
		return wire
	}
	protobuf = func(number int) []byte {
		return marshal(&polkuv1.IngestBatch{Payload: &polkuv1.IngestBatch_Events{Events: &polkuv1.EventPayload{Events: events(number)}}})
	}
	json = func(number int) []byte {
		var lines []byte
		var err error
		for _, e := range events(number) {
			lines, err = event.AppendJSON(lines, e)
			require.NoError(t, err)
		}
		return marshal(&polkuv1.IngestBatch{Payload: &polkuv1.IngestBatch_Raw{Raw: &polkuv1.RawPayload{Format: formatJSON, Data: lines}}})
	}
	return protobuf, json
}

// What a batch counts while it waits is what it takes: otherwise the bounds on
// what may wait bound nothing.
func TestWhatABatchTakes(t *testing.T) {
	const batches, events = 16, 2000
	for _, tt := range []struct {
		name     string
		source   string
		idLength int
		json     bool
	}{
		{"tiny events", "acme", 0, false},
		{"tiny events of many sources", "", 0, false},
		{"long ids", "", event.MaxIDLen, false},
		{"JSON", "", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &Gateway{ids: newRecentIDs(rememberIDs), limiter: newLimiter(1), delayed: budget{most: maxDelayed}}
			encode, json := encodings(t, tt.source, events, tt.idLength)
			if tt.json {
				encode = json
			}
			before := heap()
			parcels, wires := make([]*parcel, batches), make([][]byte, batches)
			var size int64
			for i := range parcels {
				wire := encode(i)
				b, refused := readBatch(wire, nil)
				require.Nil(t, refused)
				p := g.check(b, refused, len(wire), nil)
				require.Len(t, p.events, events)
				require.NoError(t, g.reserve(t.Context(), p))
				parcels[i], wires[i] = p, wire
				size += int64(p.size)
			}
			takes := heap() - before
			t.Logf("an event takes %d bytes, and counts %d", takes/batches/events, size/batches/events)
			require.Less(t, float64(takes), 1.15*float64(size))
			require.Greater(t, float64(takes), 0.75*float64(size))
			runtime.KeepAlive(parcels)
			runtime.KeepAlive(wires)
			runtime.KeepAlive(g)
		})
	}
}

// A batch of which nothing has to be stored is not kept until the batches before
// it are: only its answer is.
func TestABatchWithoutNewsIsFreedAtOnce(t *testing.T) {
	g := &Gateway{ids: newRecentIDs(rememberIDs), limiter: newLimiter(0)}
	encode, _ := encodings(t, "acme", 2, 0)
	wire := encode(1)
	known, _ := readBatch(wire, nil)
	for _, i := range known.items {
		envelope, err := event.CheckEnvelope(i.wire)
		require.NoError(t, err)
		g.ids.add([]idKey{g.ids.key(envelope.ID)})
	}
	bad := protowire.AppendTag(nil, batchEvents, protowire.BytesType)
	bad = protowire.AppendBytes(bad, []byte("\n\x02\n\x00")) // an event without an id
	for name, wire := range map[string][]byte{"known": wire, "refused": bad} {
		freed := 0
		b, refused := readBatch(wire, nil)
		p := g.check(b, refused, len(wire), func() { freed++ })
		require.NoError(t, g.store(t.Context(), p), name)
		require.Equal(t, 1, freed, name)
		require.NotEmpty(t, p.answer.acks, name)
		require.NoError(t, g.settle(p), name)
		require.Equal(t, 1, freed, name)
	}
}
