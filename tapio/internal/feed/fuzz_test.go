package feed

import (
	"bytes"
	"io"
	"log/slog"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/tcp"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Whatever a record holds, it ends in the books once at the most.
func FuzzRecord(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 48))
	for signal := range bpf.SignalCount {
		e := &tcp.Event{}
		e.Head.Signal = uint32(signal)
		f.Add(bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(e)), unsafe.Sizeof(*e))))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		sent := uint64(0)
		feed := &Feed{
			log:  slog.New(slog.NewTextHandler(io.Discard, nil)),
			emit: func(*eventv1.Event) error { sent++; return nil },
			subs: map[*Subscriber]struct{}{},
		}
		feed.Subscribe(&Subscriber{Handlers: map[bpf.Signal]Handler{
			bpf.ConnectRefused: func(record []byte) (*eventv1.Event, uint64, error) {
				_, err := tcp.Decode(record)
				return &eventv1.Event{}, 1, err
			},
			bpf.RTT:      func([]byte) (*eventv1.Event, uint64, error) { return nil, 1, nil },
			bpf.ExitCode: func([]byte) (*eventv1.Event, uint64, error) { panic("oops") },
		}})
		feed.record(raw)
		sum := sent
		for i := range feed.books {
			b := &feed.books[i]
			sum += b.made.Load() + b.scope.Load() + b.undecodable.Load() + b.unsent.Load() + b.unclaimed.Load()
		}
		require.LessOrEqual(t, sum, uint64(1))
		head, err := bpf.View[bpf.Head](raw)
		ours := err == nil && head.Signal < uint32(bpf.SignalCount)
		require.Equal(t, ours, sum == 1)
	})
}
