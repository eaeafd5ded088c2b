package cli_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/yairfalse/tapio/polku/internal/journal"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// source sends events as a client has to: what is not acknowledged when a stream
// breaks is sent again, in another composition.
type source struct {
	events []*eventv1.Event
	acked  map[string]bool
}

func newSource(n int) *source {
	f := event.NewFactory()
	s := &source{acked: make(map[string]bool)}
	for i := range n {
		s.events = append(s.events, typical(f, i))
	}
	return s
}

// send sends what is not acknowledged in batches and reads acks, until all is
// acknowledged, the stream breaks, or enough says so.
func (s *source) send(ctx context.Context, client polkuv1.GatewayClient, batch int, enough func() bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.StreamEvents(ctx)
	if err != nil {
		return err
	}
	var left []*eventv1.Event
	for _, e := range s.events {
		if !s.acked[e.GetId()] {
			left = append(left, e)
		}
	}
	go func() {
		for len(left) > 0 {
			n := min(batch, len(left))
			payload := &polkuv1.IngestBatch_Events{Events: &polkuv1.EventPayload{Events: left[:n]}}
			if stream.Send(&polkuv1.IngestBatch{Source: "tapio", Payload: payload}) != nil {
				return
			}
			left = left[n:]
		}
	}()
	for len(s.acked) < len(s.events) && !enough() {
		ack, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, id := range ack.GetEventIds() {
			s.acked[id] = true
		}
		if len(ack.GetErrors()) > 0 {
			return fmt.Errorf("refused: %v", ack.GetErrors()[0])
		}
	}
	return nil
}

func never() bool { return false }

// held opens the log that a polku left and counts the events in it by id.
func held(t *testing.T, dir string) map[string]int {
	t.Helper()
	j, err := journal.Open(t.Context(), journal.Config{
		Dir: dir, MaxBytes: 1 << 30, Registry: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, j.Close()) }()
	count := make(map[string]int)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, j.Recent(ctx, 1<<40, func(entry journal.Entry) error {
		events, err := entry.Events()
		for _, e := range events {
			count[e.GetId()]++
		}
		return err
	}))
	return count
}

// A crash in the middle of a stream loses nothing that was acknowledged, and
// what is sent again, in other batches, is stored once.
func TestACrashLosesNothingThatWasAcked(t *testing.T) {
	dir := t.TempDir()
	s := newSource(8_000)
	for crash := range 2 {
		p := run(t, "--data-dir", dir)
		err := s.send(t.Context(), p.client(t), 37+crash, func() bool { return len(s.acked) > (crash+1)*2000 })
		require.NoError(t, err)
		p.kill(t)
		count := held(t, dir)
		for id := range s.acked {
			require.Equal(t, 1, count[id], "%s is acknowledged", id)
		}
	}
	p := run(t, "--data-dir", dir)
	require.NoError(t, s.send(t.Context(), p.client(t), 101, never))
	p.stop(t)
	count := held(t, dir)
	require.Equal(t, len(s.events), len(count))
	for id, n := range count {
		require.Equal(t, 1, n, id)
	}
}

// lines are the ids of the events that the route stdout wrote, in their order.
func lines(t *testing.T, file *os.File) []string {
	t.Helper()
	text, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	var ids []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasSuffix(line, "\n") {
			break // being written
		}
		var e eventv1.Event
		require.NoError(t, protojson.Unmarshal([]byte(line), &e))
		ids = append(ids, e.GetId())
	}
	return ids
}

// A route goes on after a crash where it was, or a little before, in order.
func TestARouteGoesOnAfterACrash(t *testing.T) {
	dir := t.TempDir()
	out, err := os.CreateTemp(t.TempDir(), "out")
	require.NoError(t, err)
	defer func() { require.NoError(t, out.Close()) }()
	s := newSource(4000)
	p := runIn(t, nil, out, "--data-dir", dir, "--stdout")
	require.NoError(t, s.send(t.Context(), p.client(t), 50, func() bool { return len(s.acked) >= 2000 }))
	p.kill(t)
	p = runIn(t, nil, out, "--data-dir", dir, "--stdout")
	require.NoError(t, s.send(t.Context(), p.client(t), 50, never))
	var got []string
	require.Eventually(t, func() bool {
		got = lines(t, out)
		seen := make(map[string]bool)
		for _, id := range got {
			seen[id] = true
		}
		return len(seen) == len(s.events)
	}, patience, 50*time.Millisecond)
	p.stop(t)

	// Without what was delivered twice, the order is that of the source.
	place := make(map[string]int)
	for i, e := range s.events {
		place[e.GetId()] = i
	}
	next := 0
	for _, id := range got {
		require.LessOrEqual(t, place[id], next, "nothing is left out")
		next = max(next, place[id]+1)
	}
	require.Equal(t, len(s.events), next)
}

// A disk that fills up withholds acks, whoever fills it, and polku goes on when
// there is room again. The disk is one of its own, in a namespace of its own.
func TestAFullDiskWithholdsAcks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs to be root to mount a small disk")
	}
	dir := t.TempDir()
	mount := `mount -t tmpfs -o size=400m tmpfs "$0" && exec "$@"`
	out, err := os.CreateTemp(t.TempDir(), "out")
	require.NoError(t, err)
	defer func() { require.NoError(t, out.Close()) }()
	p := runIn(t, []string{"unshare", "--mount", "sh", "-c", mount, dir}, out, "--data-dir", filepath.Join(dir, "log"), "--stdout")
	inside := fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, dir)
	s := newSource(10_000)
	require.NoError(t, s.send(t.Context(), p.client(t), 50, func() bool { return len(s.acked) >= 1000 }))

	// Somebody fills the disk to the last byte.
	hog, err := os.Create(filepath.Join(inside, "hog"))
	require.NoError(t, err)
	chunk := make([]byte, 1<<20)
	for err == nil {
		_, err = hog.Write(chunk)
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.NoError(t, hog.Close())
	require.Eventually(t, func() bool {
		status, stdout, _ := p.command(t, "status")
		return status == 1 && strings.Contains(stdout, "disk of the log is full")
	}, patience, 50*time.Millisecond)
	late := newSource(100)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	require.Error(t, late.send(ctx, p.client(t), 50, never))
	require.Empty(t, late.acked)

	require.NoError(t, os.Remove(hog.Name()))
	require.NoError(t, late.send(t.Context(), p.client(t), 10, never))
	require.NoError(t, s.send(t.Context(), p.client(t), 70, never))
	require.Eventually(t, func() bool { return len(lines(t, out)) == len(s.events)+len(late.events) }, patience, 50*time.Millisecond)
	p.stop(t)
}
