package bpf_test

import (
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/bpf/cgroup"
	"github.com/yairfalse/tapio/bpf/exit"
	"github.com/yairfalse/tapio/bpf/oom"
	"github.com/yairfalse/tapio/bpf/tcp"
)

func TestCounters(t *testing.T) {
	s := bpftest.Open(t)
	before, err := s.Counters()
	require.NoError(t, err)
	assert.Equal(t, [bpf.SignalCount]bpf.Counter{}, before)

	sender := bpftest.NewSender(t, s)
	kill := &oom.Event{}
	kill.Head.Signal = uint32(bpf.OOMKill)
	require.Equal(t, 40, sender.Send(bpftest.Bytes(kill), 40))
	sender.Send([]byte("too short for a head"), 1)

	after, err := s.Counters()
	require.NoError(t, err)
	var want [bpf.SignalCount]bpf.Counter
	want[bpf.OOMKill] = bpf.Counter{Seen: 40, Kept: 40}
	assert.Equal(t, want, after)
}

func TestFullRingIsCounted(t *testing.T) {
	s := bpftest.Open(t)
	sender, reader := bpftest.NewSender(t, s), openReader(t, s)
	const n = 10_000
	took := sender.Send(numbered(0), n)
	require.Less(t, took, n, "1 MiB has no room for so many")
	counters, err := s.Counters()
	require.NoError(t, err)
	c := counters[bpf.ConnectRefused]
	assert.Equal(t, bpf.Counter{Seen: n, Kept: uint64(took), Lost: uint64(n - took)}, c)
	read := 0
	require.NoError(t, reader.Drain(func([]byte) { read++ }))
	assert.Equal(t, took, read)
}

func TestClosedMaps(t *testing.T) {
	s, err := bpf.NewShared()
	if err != nil {
		bpftest.Open(t) // says why
	}
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = s.Counters()
	assert.ErrorContains(t, err, "read the counters of connect/refused")
	_, err = s.NewReader()
	assert.ErrorContains(t, err, "open the ring buffer")
	assert.Zero(t, s.Bytes())
}

// attachAll attaches every signal, as the agent does.
func attachAll(t testing.TB, s *bpf.Shared) map[string]*bpf.Attachment {
	t.Helper()
	network, err := tcp.Attach(s, tcp.Options{})
	require.NoError(t, err)
	exits, err := exit.Attach(s, exit.Options{})
	require.NoError(t, err)
	kills, err := oom.Attach(s)
	require.NoError(t, err)
	groups, err := cgroup.Attach(s)
	require.NoError(t, err)
	all := map[string]*bpf.Attachment{"tcp": network.Attachment, "exit": exits, "oom": kills, "cgroup": groups}
	t.Cleanup(func() {
		for name, a := range all {
			assert.NoError(t, a.Close(), name)
		}
	})
	return all
}

// budget is what all maps of the agent may take together.
const budget = 16 << 20

func TestMemoryOfAllMaps(t *testing.T) {
	s := bpftest.Open(t)
	sum := s.Bytes()
	t.Logf("shared by all: %d KiB", sum>>10)
	for name, a := range attachAll(t, s) {
		t.Logf("%s: %d KiB of its own", name, a.Bytes()>>10)
		sum += a.Bytes()
		assert.Zero(t, a.Missed(), name)
	}
	assert.Greater(t, s.Bytes(), uint64(1<<20), "the ring alone has this; is the kernel telling?")
	assert.LessOrEqual(t, sum, uint64(budget))
}

// A signal that failed is attached again when the type information has been
// dropped already.
func TestAttachAfterLoaded(t *testing.T) {
	s := bpftest.Open(t)
	s.Loaded()
	a, err := oom.Attach(s)
	require.NoError(t, err)
	require.NoError(t, a.Detach())
	require.NoError(t, a.Detach(), "twice does no harm")
	assert.Positive(t, a.Bytes(), "maps stay readable")
	require.NoError(t, a.Close())
}

func returnZero(name string, kind ebpf.ProgramType, section, to string) *ebpf.CollectionSpec {
	spec := &ebpf.ProgramSpec{
		Name: name, Type: kind, SectionName: section, AttachTo: to, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}
	if kind == ebpf.Tracing {
		spec.AttachType = ebpf.AttachTraceRawTp
	}
	return &ebpf.CollectionSpec{
		Maps: map[string]*ebpf.MapSpec{
			"events":   {Name: "events", Type: ebpf.RingBuf, MaxEntries: 1 << 20},
			"limits":   {Name: "limits", Type: ebpf.LRUHash, KeySize: 16, ValueSize: 16, MaxEntries: 4096},
			"woken":    {Name: "woken", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1},
			"counters": {Name: "counters", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 40, MaxEntries: uint32(bpf.SignalCount)},
		},
		Programs: map[string]*ebpf.ProgramSpec{name: spec},
	}
}

func TestAttachErrors(t *testing.T) {
	s := bpftest.Open(t)
	t.Run("no such BTF tracepoint", func(t *testing.T) {
		_, err := s.Attach(returnZero("watch", ebpf.Tracing, "tp_btf/no_such_thing", "no_such_thing"), nil)
		require.ErrorContains(t, err, "no_such_thing")
		require.ErrorContains(t, err, "this kernel does not have it")
	})
	t.Run("no such raw tracepoint", func(t *testing.T) {
		_, err := s.Attach(returnZero("watch", ebpf.RawTracepoint, "raw_tp/no_such_thing", ""), nil)
		require.ErrorContains(t, err, "attach watch to raw_tp/no_such_thing")
		require.ErrorContains(t, err, "this kernel does not have it")
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("left out", func(t *testing.T) {
		a, err := s.Attach(returnZero("watch", ebpf.RawTracepoint, "raw_tp/no_such_thing", ""), nil, "watch")
		require.NoError(t, err)
		assert.Nil(t, a.Program("watch"))
		assert.Nil(t, a.Map("none"))
		require.NoError(t, a.Close())
	})
	t.Run("no such constant", func(t *testing.T) {
		_, err := s.Attach(returnZero("watch", ebpf.RawTracepoint, "raw_tp/mark_victim", ""), bpf.Constants{"speed": uint32(1)})
		require.EqualError(t, err, "set speed: the object has no such constant")
	})
	t.Run("refused by the verifier", func(t *testing.T) {
		spec := returnZero("watch", ebpf.RawTracepoint, "raw_tp/mark_victim", "")
		spec.Programs["watch"].Instructions = asm.Instructions{asm.Return()}
		_, err := s.Attach(spec, nil)
		var refused *ebpf.VerifierError
		require.ErrorAs(t, err, &refused)
		require.ErrorContains(t, err, "load: program watch")
	})
}

func TestConstants(t *testing.T) {
	c := bpf.Constants{}
	c.Set("zero", uint32(0))
	c.Set("none", time.Duration(0))
	c.Set("one", uint64(1))
	assert.Equal(t, bpf.Constants{"one": uint64(1)}, c)
}
