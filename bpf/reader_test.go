package bpf_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/bpf/tcp"
)

// patience is how long a test waits for what must come; it passes only when
// the test fails.
const patience = 20 * time.Second

func openReader(t testing.TB, s *bpf.Shared) *bpf.Reader {
	t.Helper()
	r, err := s.NewReader()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.Close()) })
	return r
}

// numbered returns a record that carries a number.
func numbered(n uint32) []byte {
	return bpftest.Bytes(&tcp.Event{TotalRetransmits: n})
}

func number(t testing.TB, record []byte) uint32 {
	e, err := tcp.Decode(record)
	require.NoError(t, err)
	return e.TotalRetransmits
}

func TestReaderKeepsTheOrder(t *testing.T) {
	s := bpftest.Open(t)
	sender, reader := bpftest.NewSender(t, s), openReader(t, s)
	var want, got []uint32
	for i := range uint32(100) {
		require.Equal(t, 1, sender.Send(numbered(i), 1))
		want = append(want, i)
	}
	require.NoError(t, reader.Drain(func(record []byte) { got = append(got, number(t, record)) }))
	assert.Equal(t, want, got)

	got = nil
	require.NoError(t, reader.Drain(func(record []byte) { got = append(got, number(t, record)) }))
	assert.Empty(t, got, "nothing comes twice")
}

func TestRunHandsOverWhatIsLeft(t *testing.T) {
	s := bpftest.Open(t)
	sender, reader := bpftest.NewSender(t, s), openReader(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	sender.Send(numbered(1), 3)
	n := 0
	require.NoError(t, reader.Run(ctx, func([]byte) { n++ }, func() {}))
	assert.Equal(t, 3, n)

	// And it can be run again.
	sender.Send(numbered(2), 2)
	require.NoError(t, reader.Run(ctx, func([]byte) { n++ }, func() {}))
	assert.Equal(t, 5, n)
}

func TestRunReadsAsItComes(t *testing.T) {
	s := bpftest.Open(t)
	sender, reader := bpftest.NewSender(t, s), openReader(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	records := make(chan uint32)
	done := make(chan error, 1)
	go func() {
		done <- reader.Run(ctx, func(record []byte) {
			select {
			case records <- number(t, record):
			case <-ctx.Done():
			}
		}, func() {})
	}()
	for i := range uint32(20) {
		sender.Send(numbered(i), 1)
		select {
		case n := <-records:
			require.Equal(t, i, n)
		case <-ctx.Done():
			t.Fatal("the record did not come")
		}
	}
	cancel()
	require.NoError(t, <-done)
}

func TestRunIsIdleWhenNothingComes(t *testing.T) {
	s := bpftest.Open(t)
	reader := openReader(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	times := 0
	require.NoError(t, reader.Run(ctx, func([]byte) { t.Error("nobody sent this") }, func() {
		if times++; times == 2 {
			cancel()
		}
	}))
	assert.Equal(t, 2, times)
}

// The ring of a busy node may never be empty.
func TestRunIsIdleAndEndsWhenTooMuchComes(t *testing.T) {
	s := bpftest.Open(t)
	sender, reader := bpftest.NewSender(t, s), openReader(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	idle, after := 0, 0
	sender.Send(numbered(0), 1)
	require.NoError(t, reader.Run(ctx, func([]byte) {
		if ctx.Err() != nil {
			after++
		}
		// As many again as were in the ring when the test was over.
		if after < 100_000 {
			sender.Send(numbered(0), 1)
		}
	}, func() {
		idle++
		cancel()
	}))
	assert.Equal(t, 1, idle)
	assert.Less(t, after, 100_000, "what came after the end is left in the ring")
}

func TestClosedReader(t *testing.T) {
	s := bpftest.Open(t)
	r, err := s.NewReader()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	nobody := func([]byte) { t.Error("nobody sent this") }
	assert.ErrorContains(t, r.Run(t.Context(), nobody, func() {}), "read the ring buffer")
	assert.ErrorContains(t, r.Drain(nobody), "drain the ring buffer")
}
