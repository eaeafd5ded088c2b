package owner

import (
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxEntries bounds the table. A node runs some hundred pods; a table that
	// is full of live cgroups means that something makes them without end.
	maxEntries = 1 << 16

	// afterlife is how long a removed cgroup can still be looked up: an event
	// about its last moments may be waiting in a buffer behind its removal.
	afterlife = time.Minute

	// rescanEvery is the least time between two walks that unknown ids cause.
	rescanEvery = time.Second
)

// Cgroup names a cgroup as the kernel does.
type Cgroup struct {
	// Hierarchy is 0 for cgroup v2, else the id that /proc/self/cgroup shows for
	// the v1 hierarchy.
	Hierarchy uint32

	// ID is the inode number of the cgroup's directory.
	ID uint64
}

// Entry is what the table knows of a cgroup.
type Entry struct {
	Path string // from the root of the hierarchy
	Identity
}

// Stats are the sizes and counts of a Table; the counts since Open.
type Stats struct {
	Entries int // known cgroups, removed ones included
	Removed int // of them, those that are gone and kept for a while

	Misses    uint64 // lookups that found nothing
	Rescans   uint64 // walks that lookups caused
	ScanFails uint64 // walks, the first included, that could not see everything
	Refused   uint64 // cgroups not added because the table was full
	Evicted   uint64 // removed cgroups that were dropped early to make room

	// Partial says that a hierarchy is mounted here without its root, as in a
	// container with a cgroup namespace of its own: cgroups outside are known
	// only when events tell of them.
	Partial bool

	// Alone says that of a hierarchy nothing is mounted but our own container's
	// cgroup: who owns the others is known only of those that are made from now on.
	Alone bool
}

// Table maps cgroups to their owners. Walking the mounted hierarchies fills it,
// Created and Removed keep it up to date, and a lookup that finds nothing walks
// again. It is safe for concurrent use.
type Table struct {
	hierarchies []*hierarchy // whose prefixes are guarded by mu
	limit       int
	now         func() time.Time
	alone       bool

	misses, rescans, scanFails, refused, evicted atomic.Uint64

	scan     sync.Mutex // one walk at a time; taken before mu
	lastScan time.Time  // guarded by scan

	mu      sync.RWMutex
	entries map[Cgroup]*record
	graves  []grave // in the order of their removal
	epoch   uint64  // counts the walks that have begun
}

// record is an entry with what it takes to end it.
type record struct {
	Entry
	until time.Time // end of the afterlife; zero while the cgroup lives

	// epoch is the one in which the record last changed. What an event said
	// after a walk began is newer than what that walk saw.
	epoch   uint64
	scanned bool // a walk has seen the cgroup
	foreign bool // it does not lie in the part of the hierarchy that is mounted
}

type grave struct {
	cgroup Cgroup
	record *record
}

// Open finds the cgroup hierarchies that are mounted at or below root, usually
// /sys/fs/cgroup, as procfs, usually /proc, shows them: cgroup v2, the v1
// hierarchy of the memory controller, or both. It walks them once.
func Open(root, procfs string) (*Table, error) {
	hierarchies, err := findHierarchies(filepath.Clean(root), procfs)
	if err != nil {
		return nil, err
	}
	t := &Table{
		hierarchies: hierarchies,
		limit:       maxEntries,
		now:         time.Now,
		entries:     make(map[Cgroup]*record),
	}
	for _, h := range hierarchies {
		if _, err := inode(h.dir); err != nil {
			return nil, fmt.Errorf("walk the cgroups: %w", err)
		}
		t.walk(h)
		if h.part && !t.hasCgroups(h) {
			h.part, t.alone = false, true
		}
	}
	return t, nil
}

// hasCgroups says whether there is any cgroup below the one that is mounted. In a
// container to which the node's /sys/fs/cgroup was not given there is none: what is
// mounted is its own cgroup, and it is on a node of which it sees nothing else.
func (t *Table) hasCgroups(h *hierarchy) bool {
	n := 0
	for cg := range t.entries {
		if cg.Hierarchy == h.id {
			n++
		}
	}
	return n > 1
}

// Lookup returns the entry of a cgroup, for a minute longer than the cgroup
// exists. A hit takes no allocation and no system call. An unknown cgroup causes
// a walk of the hierarchies, at most one a second.
func (t *Table) Lookup(cg Cgroup) (Entry, bool) {
	known := t.knows(cg.Hierarchy)
	if cg.ID == rootID && known {
		return Entry{Path: "/"}, true
	}
	e, ok := t.get(cg)
	if !ok && known && cg.ID != 0 { // the kernel gives 0 for want of a cgroup
		e, ok = t.search(cg)
	}
	if !ok {
		t.misses.Add(1)
	}
	return e, ok
}

// Foreign reports whether a cgroup is not of this node although the kernel tells
// of it: it lies outside of the part of its hierarchy that is mounted. Where the
// whole hierarchy is mounted nothing is foreign. What nobody knows is foreign
// where only a part is mounted, because of what lies there everything is known. A
// container that sees only its own cgroup is not a node, and nothing is foreign.
func (t *Table) Foreign(cg Cgroup) bool {
	h := t.hierarchy(cg.Hierarchy)
	if h == nil || !h.part || cg.ID == 0 {
		return false
	}
	if cg.ID == rootID {
		return true
	}
	mine, known := t.mine(cg)
	if !known {
		if _, ok := t.search(cg); ok {
			mine, _ = t.mine(cg)
		}
	}
	return !mine
}

func (t *Table) mine(cg Cgroup) (mine, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.entries[cg]
	return r != nil && !r.foreign, r != nil
}

// Created adds a cgroup that the kernel has just made. The table keeps path,
// which starts at the root of the hierarchy; where only a part of that is
// mounted, from there. Hierarchies other than those that Open found are ignored.
func (t *Table) Created(cg Cgroup, path string) {
	h := t.hierarchy(cg.Hierarchy)
	if h == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if !h.part {
		t.add(cg, path, false)
		return
	}
	if h.prefix == "" && !h.learn(cg.ID, path) {
		return // if it is ours and lives, a walk finds it
	}
	path, mine := h.within(path)
	t.add(cg, path, false)
	if r := t.entries[cg]; r != nil {
		r.foreign = !mine
	}
}

// Removed ends a cgroup that the kernel has just removed.
func (t *Table) Removed(cg Cgroup) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	if r := t.entries[cg]; r != nil {
		t.bury(cg, r)
	}
}

// Stats returns the table's sizes and counts.
func (t *Table) Stats() Stats {
	s := Stats{
		Misses:    t.misses.Load(),
		Rescans:   t.rescans.Load(),
		ScanFails: t.scanFails.Load(),
		Refused:   t.refused.Load(),
		Evicted:   t.evicted.Load(),
		Alone:     t.alone,
	}
	for _, h := range t.hierarchies {
		s.Partial = s.Partial || !h.whole
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	s.Entries = len(t.entries)
	for _, g := range t.graves {
		if t.entries[g.cgroup] == g.record {
			s.Removed++
		}
	}
	return s
}

func (t *Table) knows(id uint32) bool { return t.hierarchy(id) != nil }

func (t *Table) hierarchy(id uint32) *hierarchy {
	for _, h := range t.hierarchies {
		if h.id == id {
			return h
		}
	}
	return nil
}

func (t *Table) get(cg Cgroup) (Entry, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	r := t.entries[cg]
	if r == nil || !r.until.IsZero() && !t.now().Before(r.until) {
		return Entry{}, false
	}
	return r.Entry, true
}

// search walks the hierarchy of an unknown cgroup, unless a walk has just been.
func (t *Table) search(cg Cgroup) (Entry, bool) {
	t.scan.Lock()
	defer t.scan.Unlock()
	if e, ok := t.get(cg); ok { // found by the walk that we waited for
		return e, true
	}
	now := t.now()
	if now.Sub(t.lastScan) < rescanEvery {
		return Entry{}, false
	}
	t.lastScan = now
	t.rescans.Add(1)
	for _, h := range t.hierarchies {
		t.walk(h)
	}
	return t.get(cg)
}

// walk brings the entries of one hierarchy in line with its directories. The
// file system is read without the lock, so that lookups go on meanwhile.
func (t *Table) walk(h *hierarchy) {
	t.mu.Lock()
	t.epoch++
	epoch := t.epoch
	t.mu.Unlock()

	all, err := h.walk(t.limit)
	if err != nil {
		t.scanFails.Add(1)
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire()
	seen := make(map[uint64]struct{}, len(all))
	for _, f := range all {
		seen[f.id] = struct{}{}
	}
	// What events say is not for a walk to judge that cannot see all, and that
	// may see the root of a cgroup namespace where the kernel sees a path.
	outdated := func(r *record) bool { return r.epoch < epoch && (r.scanned || h.whole) }
	// The gone first: they make room.
	for cg, r := range t.entries {
		if _, alive := seen[cg.ID]; cg.Hierarchy == h.id && !alive && err == nil && outdated(r) {
			t.bury(cg, r)
		}
	}
	for _, f := range all {
		cg := Cgroup{h.id, f.id}
		if r := t.entries[cg]; r == nil || outdated(r) {
			t.add(cg, f.path, true)
		}
	}
}

// add needs mu.
func (t *Table) add(cg Cgroup, path string, scanned bool) {
	if r := t.entries[cg]; r != nil {
		if r.Path == path && r.until.IsZero() {
			r.epoch = t.epoch
			r.scanned = r.scanned || scanned
			return
		}
	} else if len(t.entries) >= t.limit && !t.evict() {
		t.refused.Add(1)
		return
	}
	t.entries[cg] = &record{
		Entry:   Entry{Path: path, Identity: Parse(path)},
		epoch:   t.epoch,
		scanned: scanned,
	}
}

// bury needs mu.
func (t *Table) bury(cg Cgroup, r *record) {
	if !r.until.IsZero() {
		return
	}
	r.until = t.now().Add(afterlife)
	r.epoch = t.epoch
	t.graves = append(t.graves, grave{cg, r})
}

// expire drops the cgroups whose afterlife is over. It needs mu.
func (t *Table) expire() {
	if len(t.graves) == 0 {
		return
	}
	now := t.now()
	for len(t.graves) > 0 && !now.Before(t.graves[0].record.until) {
		t.dig()
	}
}

// evict drops the cgroup that has been gone for longest and reports whether
// there was one. It needs mu.
func (t *Table) evict() bool {
	for len(t.graves) > 0 {
		if t.dig() {
			t.evicted.Add(1)
			return true
		}
	}
	return false
}

// dig empties the oldest grave and reports whether that took an entry out of
// the table: a new cgroup with the same id may stand there.
func (t *Table) dig() bool {
	g := t.graves[0]
	t.graves[0] = grave{}
	t.graves = t.graves[1:]
	if t.entries[g.cgroup] != g.record {
		return false
	}
	delete(t.entries, g.cgroup)
	return true
}
