package bpf

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Counter is the accounting of one signal since the maps were made:
// Seen = Kept + Normal + Limited + Lost.
type Counter struct {
	Seen    uint64 // decisions made
	Kept    uint64 // records sent
	Normal  uint64 // suppressed: not an anomaly
	Limited uint64 // suppressed: the cgroup had its share
	Lost    uint64 // the ring buffer was full
}

// Shared owns the maps that all signals use. A node has one.
type Shared struct {
	maps  mapsMaps
	cache atomic.Pointer[btf.Cache] // the kernel's types, while programs are being loaded
}

// NewShared creates the maps. It fails without CAP_BPF.
func NewShared() (*Shared, error) {
	// Up to 5.10 maps count against RLIMIT_MEMLOCK. Where it cannot be raised
	// and matters, creating the first map says so.
	_ = rlimit.RemoveMemlock()
	s := &Shared{}
	s.cache.Store(btf.NewCache())
	spec, err := loadMaps()
	if err != nil {
		return nil, fmt.Errorf("read the embedded object of the shared maps: %w", err)
	}
	if err := spec.LoadAndAssign(&s.maps, nil); err != nil {
		return nil, fmt.Errorf("create the shared maps: %w", err)
	}
	return s, nil
}

// Close frees the maps; programs that still use them keep theirs.
func (s *Shared) Close() error { return s.maps.Close() }

// Loaded drops the kernel's type information, tens of megabytes, when no more
// programs are to be loaded soon. A later Attach reads it again.
func (s *Shared) Loaded() { s.cache.Store(btf.NewCache()) }

// Counters returns the accounting of all signals, indexed by Signal.
func (s *Shared) Counters() ([SignalCount]Counter, error) {
	var all [SignalCount]Counter
	var perCPU []mapsCounter
	for i := range all {
		if err := s.maps.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return all, fmt.Errorf("read the counters of %s: %w", Signal(i), err)
		}
		for _, c := range perCPU {
			all[i].Seen += c.Seen
			all[i].Kept += c.Kept
			all[i].Normal += c.Normal
			all[i].Limited += c.Limited
			all[i].Lost += c.Lost
		}
	}
	return all, nil
}

// Bytes returns the memory of the shared maps.
func (s *Shared) Bytes() uint64 {
	return mapBytes(s.maps.Counters) + mapBytes(s.maps.Events) + mapBytes(s.maps.Limits) + mapBytes(s.maps.Woken)
}

// Kernel returns the kernel's type information.
func (s *Shared) Kernel() (*btf.Spec, error) {
	kernel, err := s.cache.Load().Kernel()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's type information (/sys/kernel/btf/vmlinux; the kernel needs CONFIG_DEBUG_INFO_BTF=y): %w", err)
	}
	return kernel, nil
}

// Constants are the values of an object's const volatile variables by name.
type Constants map[string]any

// Set sets a constant unless the value is zero, which leaves the C source's own.
func (c Constants) Set(name string, value any) {
	if !reflect.ValueOf(value).IsZero() {
		c[name] = value
	}
}

// Attachment is one signal's programs, loaded and attached.
type Attachment struct {
	coll  *ebpf.Collection
	links []link.Link
	own   []*ebpf.Map
}

// Attach loads an object with the shared maps in place of its own, sets its
// constants (const volatile in C) and attaches its programs; those named in
// without are left out. When one cannot be attached none stays attached.
func (s *Shared) Attach(spec *ebpf.CollectionSpec, constants Constants, without ...string) (*Attachment, error) {
	for _, name := range without {
		delete(spec.Programs, name)
	}
	for name, value := range constants {
		v := spec.Variables[name]
		if v == nil {
			return nil, fmt.Errorf("set %s: the object has no such constant", name)
		}
		if err := v.Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	shared := map[string]*ebpf.Map{
		mapsMapCounters: s.maps.Counters,
		mapsMapEvents:   s.maps.Events,
		mapsMapLimits:   s.maps.Limits,
		mapsMapWoken:    s.maps.Woken,
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared, Cache: s.cache.Load()})
	if err != nil {
		return nil, explain(fmt.Errorf("load: %w", err))
	}
	a := &Attachment{coll: coll}
	for name, m := range coll.Maps {
		if shared[name] == nil {
			a.own = append(a.own, m)
		}
	}
	for name, p := range coll.Programs {
		l, err := attach(p, spec.Programs[name])
		if err != nil {
			_ = a.Close()
			return nil, explain(fmt.Errorf("attach %s to %s: %w", name, spec.Programs[name].SectionName, err))
		}
		a.links = append(a.links, l)
	}
	return a, nil
}

func attach(p *ebpf.Program, spec *ebpf.ProgramSpec) (link.Link, error) {
	if spec.Type == ebpf.Tracing {
		return link.AttachTracing(link.TracingOptions{Program: p})
	}
	_, name, _ := strings.Cut(spec.SectionName, "/")
	return link.AttachRawTracepoint(link.RawTracepointOptions{Name: name, Program: p})
}

// explain adds what can be done to an error of the kernel that does not say so.
func explain(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w (run as root, or grant CAP_BPF and CAP_PERFMON)", err)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, btf.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w (this kernel does not have it)", err)
	}
	return err
}

// Map returns one of the object's own maps, nil when it has none of that name.
func (a *Attachment) Map(name string) *ebpf.Map { return a.coll.Maps[name] }

// Program returns one of the object's programs, nil when it has none of that name.
func (a *Attachment) Program(name string) *ebpf.Program { return a.coll.Programs[name] }

// Bytes returns the memory of the object's own maps.
func (a *Attachment) Bytes() uint64 {
	var sum uint64
	for _, m := range a.own {
		sum += mapBytes(m)
	}
	return sum
}

// Missed returns how many runs the kernel skipped because a program
// interrupted itself; such a run is in no counter. 0 on kernels that do not say.
func (a *Attachment) Missed() uint64 {
	var sum uint64
	for _, p := range a.coll.Programs {
		stats, err := p.Stats()
		if err == nil {
			sum += stats.RecursionMisses
		}
	}
	return sum
}

// Detach stops the programs; their maps stay readable.
func (a *Attachment) Detach() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	a.links = nil
	return errors.Join(errs...)
}

// Close detaches the programs and frees their maps.
func (a *Attachment) Close() error {
	err := a.Detach()
	a.coll.Close()
	return err
}

// mapBytes is what the kernel tells, but not less than the content must take:
// kernels up to 6.3 leave things out, the ring buffer's pages among them. It is
// 0 when the kernel does not answer at all.
func mapBytes(m *ebpf.Map) uint64 {
	info, err := m.Info()
	if err != nil {
		return 0
	}
	entry := uint64(m.KeySize()) + uint64(m.ValueSize())
	switch m.Type() {
	case ebpf.RingBuf:
		entry = 1
	case ebpf.PerCPUArray:
		entry = uint64(m.ValueSize()) * uint64(ebpf.MustPossibleCPU())
	}
	told, _ := info.Memlock()
	return max(told, uint64(m.MaxEntries())*entry)
}
