// Package bpftest is for tests that need the real maps and the real ring
// buffer of package bpf without waiting for something to go wrong on the node.
package bpftest

import (
	"errors"
	"os"
	"sync"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/yairfalse/tapio/bpf"
)

// Open makes the shared maps and closes them with the test. It skips the test
// when this process may not make any.
func Open(t testing.TB) *bpf.Shared {
	t.Helper()
	s, err := bpf.NewShared()
	if errors.Is(err, os.ErrPermission) {
		t.Skipf("needs CAP_BPF and CAP_PERFMON, run as root: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the shared maps: %v", err)
		}
	})
	return s
}

// MaxRecord is the largest record that a Sender sends, in bytes.
const MaxRecord = 1024

// perRun is how many records one run of the program sends at most. The
// verifier walks through every round.
const perRun = 32

// Sender is a program in the kernel that sends the records it is told to. It is
// safe for concurrent use.
type Sender struct {
	t       testing.TB
	mu      sync.Mutex // between what to send and sending it
	order   *ebpf.Map
	program *ebpf.Program
}

// NewSender loads the program with the shared maps; it goes with the test.
func NewSender(t testing.TB, s *bpf.Shared) *Sender {
	t.Helper()
	a, err := s.Attach(spec(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Errorf("detach the sender: %v", err)
		}
	})
	return &Sender{t: t, order: a.Map("order"), program: a.Program("send")}
}

// Send sends the record n times, on the caller's CPU, and keeps the books of its signal as the real
// programs do: seen, then kept or lost. It returns how many the ring took.
// A record that is too short for a head or of an unknown signal is in no books.
func (s *Sender) Send(record []byte, n int) int {
	s.t.Helper()
	if len(record) > MaxRecord {
		s.t.Fatalf("a record of %d bytes: send at most %d", len(record), MaxRecord)
	}
	o := order{Length: uint64(len(record)), Signal: uint64(bpf.SignalCount)}
	copy(o.Record[:], record)
	if head, err := bpf.View[bpf.Head](o.Record[:len(record)]); err == nil {
		o.Signal = uint64(head.Signal)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := 0
	for ; n > 0; n -= perRun {
		o.Rounds = uint64(min(n, perRun))
		if err := s.order.Put(uint32(0), &o); err != nil {
			s.t.Fatalf("tell the sender what to send: %v", err)
		}
		took, err := s.program.Run(&ebpf.RunOptions{Context: []uint64{magic}})
		if err != nil {
			s.t.Fatalf("run the sender: %v", err)
		}
		sent += int(took)
	}
	return sent
}

// order is what the program finds in its map.
type order struct {
	Record [MaxRecord]byte
	Length uint64 // of the record
	Rounds uint64 // how many to send
	Signal uint64 // whose books to keep
}

// Bytes returns the memory of a record that a test has filled in.
func Bytes[T any](record *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(record)), unsafe.Sizeof(*record))
}

// magic tells our own runs from those of the tracepoint that the program has
// to be attached to. It is the one that runs least.
const magic = 0x7461_7069_6f

// Offsets of struct counter in include/tapio.h.
const (
	seen = 0
	kept = 8
	lost = 32
)

// spec is the program.
func spec() *ebpf.CollectionSpec {
	const (
		todo     = asm.R6 // *order
		counters = asm.R9 // of the signal, NULL when it is none of ours
		round    = asm.R8

		// In the order, and on the stack.
		length, rounds, signal = MaxRecord, MaxRecord + 8, MaxRecord + 16
		key, took              = -4, -16
	)
	lookup := func(name string) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, 0).WithReference(name),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, key),
			asm.FnMapLookupElem.Call(),
		}
	}
	count := func(field int16, n int32, done string) asm.Instructions {
		return asm.Instructions{
			asm.JEq.Imm(counters, 0, done),
			asm.Mov.Imm(asm.R1, n),
			asm.AddAtomic.Mem(counters, asm.R1, asm.DWord, field),
		}
	}
	var code asm.Instructions
	add := func(more ...asm.Instruction) { code = append(code, more...) }

	add(asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord),
		asm.LoadImm(asm.R3, magic, asm.DWord),
		asm.JNE.Reg(asm.R2, asm.R3, "nothing"),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, took, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, key, asm.R1, asm.Word))
	add(lookup("order")...)
	add(asm.JEq.Imm(asm.R0, 0, "nothing"),
		asm.Mov.Reg(todo, asm.R0),
		asm.LoadMem(asm.R1, todo, signal, asm.DWord),
		asm.StoreMem(asm.RFP, key, asm.R1, asm.Word))
	add(lookup("counters")...)
	add(asm.Mov.Reg(counters, asm.R0),
		asm.Mov.Imm(round, 0))

	add(asm.LoadMem(asm.R1, todo, rounds, asm.DWord).WithSymbol("next"),
		asm.JGE.Reg(round, asm.R1, "done"))
	// Kept before the reader can see it, as the real programs do.
	add(count(seen, 1, "output")...)
	add(count(kept, 1, "output")...)
	add(asm.LoadMem(asm.R3, todo, length, asm.DWord).WithSymbol("output"),
		asm.JGT.Imm(asm.R3, MaxRecord, "nothing"),
		asm.LoadMapPtr(asm.R1, 0).WithReference("events"),
		asm.Mov.Reg(asm.R2, todo),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
		asm.JNE.Imm(asm.R0, 0, "full"),
		asm.LoadMem(asm.R1, asm.RFP, took, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.RFP, took, asm.R1, asm.DWord),
		asm.Ja.Label("sent"))
	full := append(count(kept, -1, "sent"), count(lost, 1, "sent")...)
	full[0] = full[0].WithSymbol("full")
	add(full...)
	add(asm.Add.Imm(round, 1).WithSymbol("sent"),
		asm.JLT.Imm(round, perRun, "next"))

	add(asm.LoadMem(asm.R0, asm.RFP, took, asm.DWord).WithSymbol("done"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("nothing"),
		asm.Return())

	return &ebpf.CollectionSpec{
		Maps: map[string]*ebpf.MapSpec{
			"order":  {Name: "order", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(unsafe.Sizeof(order{})), MaxEntries: 1},
			"events": {Name: "events", Type: ebpf.RingBuf, MaxEntries: ringBytes},
			// Not used, but every object has them.
			"limits":   {Name: "limits", Type: ebpf.LRUHash, KeySize: 16, ValueSize: 16, MaxEntries: 4096},
			"woken":    {Name: "woken", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1},
			"counters": {Name: "counters", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 40, MaxEntries: uint32(bpf.SignalCount)},
		},
		Programs: map[string]*ebpf.ProgramSpec{
			"send": {
				Name: "send", Type: ebpf.RawTracepoint, SectionName: "raw_tp/mark_victim",
				Instructions: code, License: "Dual BSD/GPL",
			},
		},
	}
}

// ringBytes is RING_BYTES of include/tapio.h.
const ringBytes = 1 << 20
