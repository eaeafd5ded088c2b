package owner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// node is a made-up node: plain directories have inode numbers too.
type node struct {
	t            testing.TB
	root, procfs string
	mountinfo    string
}

func newNode(t testing.TB) *node {
	dir := t.TempDir()
	n := &node{t: t, root: filepath.Join(dir, "cgroup"), procfs: filepath.Join(dir, "proc")}
	require.NoError(t, os.MkdirAll(n.root, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(n.procfs, "self"), 0o755))
	n.write("cgroup", "9:name=systemd:/\n7:blkio:/\n4:cpuset,memory:/\n0::/\n")
	n.mount("/proc", "", "proc", "rw")
	return n
}

func (n *node) write(file, content string) {
	require.NoError(n.t, os.WriteFile(filepath.Join(n.procfs, "self", file), []byte(content), 0o644))
}

// mount adds a line to mountinfo for the directory at point below the root.
func (n *node) mount(root, point, fstype, options string) {
	path := filepath.Join(n.root, point)
	require.NoError(n.t, os.MkdirAll(path, 0o755))
	n.mountinfo += fmt.Sprintf("31 23 0:28 %s %s rw,nosuid shared:9 - %s %s %s\n", root, path, fstype, fstype, options)
	n.write("mountinfo", n.mountinfo)
}

func (n *node) mkdir(path string) uint64 {
	dir := filepath.Join(n.root, path)
	require.NoError(n.t, os.MkdirAll(dir, 0o755))
	id, err := inode(dir)
	require.NoError(n.t, err)
	return id
}

func (n *node) rmdir(path string) {
	require.NoError(n.t, os.Remove(filepath.Join(n.root, path)))
}

func (n *node) open() *Table {
	table, err := Open(n.root, n.procfs)
	require.NoError(n.t, err)
	return table
}

// clock is a time that stands still until told otherwise.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func stopClock(t *Table) *clock {
	c := &clock{now: time.Unix(1_700_000_000, 0)}
	t.now = func() time.Time {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.now
	}
	return c
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func path(t *testing.T, table *Table, cg Cgroup) string {
	t.Helper()
	e, ok := table.Lookup(cg)
	require.True(t, ok, "%+v is unknown", cg)
	return e.Path
}

const pod = "kubepods/burstable/pod" + uidA

func TestOpenLayouts(t *testing.T) {
	t.Run("v2", func(t *testing.T) {
		n := newNode(t)
		n.mount("/", "", "cgroup2", "rw,nsdelegate")
		root, leaf := n.mkdir(""), n.mkdir(pod+"/"+idA+"/init")
		table := n.open()
		assert.Equal(t, "/", path(t, table, Cgroup{0, 1}))
		assert.Equal(t, "/", path(t, table, Cgroup{0, root}))
		e, ok := table.Lookup(Cgroup{0, leaf})
		require.True(t, ok)
		assert.Equal(t, "/"+pod+"/"+idA+"/init", e.Path)
		assert.Equal(t, Identity{ContainerID: idA, PodUID: uidA}, e.Identity)
		assert.Equal(t, 6, table.Stats().Entries)
	})

	t.Run("v1", func(t *testing.T) {
		n := newNode(t)
		n.mount("/", "", "tmpfs", "rw,mode=755")
		n.mount("/", "blkio", "cgroup", "rw,blkio")
		n.mount("/", "memory", "cgroup", "rw,cpuset,memory")
		n.mount("/", "systemd", "cgroup", "rw,xattr,name=systemd")
		other, memory := n.mkdir("blkio/docker"), n.mkdir("memory/docker")
		table := n.open()
		assert.Equal(t, "/docker", path(t, table, Cgroup{4, memory}))
		_, ok := table.Lookup(Cgroup{7, other})
		assert.False(t, ok, "only the memory controller's hierarchy is of interest")
		_, ok = table.Lookup(Cgroup{0, memory})
		assert.False(t, ok, "there is no v2 on this node")
		_, ok = table.Lookup(Cgroup{0, 1})
		assert.False(t, ok, "not even its root")
		assert.Zero(t, table.Stats().Rescans, "no walk can find what is in no hierarchy")
	})

	t.Run("hybrid", func(t *testing.T) {
		n := newNode(t)
		n.mount("/", "memory", "cgroup", "rw,memory")
		n.mount("/", "unified", "cgroup2", "rw")
		v1, v2 := n.mkdir("memory/system.slice/a.service"), n.mkdir("unified/system.slice/b.service")
		table := n.open()
		assert.Equal(t, "/system.slice/a.service", path(t, table, Cgroup{4, v1}))
		assert.Equal(t, "/system.slice/b.service", path(t, table, Cgroup{0, v2}))
		assert.Equal(t, "/", path(t, table, Cgroup{4, 1}))
	})

	t.Run("a part of the hierarchy", func(t *testing.T) {
		n := newNode(t)
		n.mount(`/docker\134x2d/`+idB, "memory", "cgroup", "rw,memory")
		id := n.mkdir("memory/kubelet.slice")
		table := n.open()
		assert.Equal(t, `/docker\x2d/`+idB+"/kubelet.slice", path(t, table, Cgroup{4, id}))
		assert.Equal(t, "/", path(t, table, Cgroup{4, 1}), "the root's id is always 1")
		assert.True(t, table.Stats().Partial)
	})

	t.Run("from above our cgroup namespace", func(t *testing.T) {
		n := newNode(t)
		n.mount("/../../..", "", "cgroup2", "rw")
		id := n.mkdir(pod)
		assert.Equal(t, "/"+pod, path(t, n.open(), Cgroup{0, id}))
	})

	t.Run("below the root of a sibling", func(t *testing.T) {
		n := newNode(t)
		n.mount("/../..data", "", "cgroup2", "rw")
		id := n.mkdir("a")
		assert.Equal(t, "/..data/a", path(t, n.open(), Cgroup{0, id}))
	})

	t.Run("mounted again further in, and over itself", func(t *testing.T) {
		n := newNode(t)
		n.mount("/hidden", "", "cgroup2", "rw")
		n.mount("/", "", "cgroup2", "rw")
		n.mount("/docker/"+idA, "docker/"+idA, "cgroup2", "rw")
		id := n.mkdir("docker/" + idA)
		assert.Equal(t, "/docker/"+idA, path(t, n.open(), Cgroup{0, id}))
	})

	t.Run("blanks in the mount point", func(t *testing.T) {
		n := newNode(t)
		n.root = filepath.Join(n.root, "a b")
		n.mkdir("")
		n.write("mountinfo", "1 2 0:3 / "+strings.ReplaceAll(n.root, " ", `\040`)+" rw - cgroup2 cgroup2 rw\n")
		id := n.mkdir("c")
		assert.Equal(t, "/c", path(t, n.open(), Cgroup{0, id}))
	})
}

func TestOpenErrors(t *testing.T) {
	t.Run("no mountinfo", func(t *testing.T) {
		_, err := Open(t.TempDir(), filepath.Join(t.TempDir(), "proc"))
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("no cgroup mounted here", func(t *testing.T) {
		n := newNode(t)
		n.mount("/", "", "tmpfs", "rw")
		n.mount("/", "../elsewhere", "cgroup2", "rw")
		_, err := Open(n.root, n.procfs)
		require.ErrorContains(t, err, n.root)
	})
	t.Run("garbage", func(t *testing.T) {
		n := newNode(t)
		n.write("mountinfo", "cgroup2\n - \n1 2 3 4 5 - cgroup2 b c\n1 2 3 4 5 6 - cgroup2\n\xff\n")
		_, err := Open(n.root, n.procfs)
		require.ErrorContains(t, err, "neither cgroup v2 nor")
	})
	t.Run("no id for the hierarchy", func(t *testing.T) {
		n := newNode(t)
		n.mount("/", "memory", "cgroup", "rw,memory")
		n.write("cgroup", "3:cpuset:/\n0::/\n")
		_, err := Open(n.root, n.procfs)
		require.ErrorContains(t, err, "memory controller")
		n.write("cgroup", "x:memory:/\n")
		_, err = Open(n.root, n.procfs)
		require.ErrorContains(t, err, `"x:memory:/"`)
	})
	t.Run("mount that is not there", func(t *testing.T) {
		n := newNode(t)
		n.mount("/", "memory", "cgroup", "rw,memory")
		n.rmdir("memory")
		_, err := Open(n.root, n.procfs)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}

func openV2(t testing.TB) (*node, *Table, *clock) {
	n := newNode(t)
	n.mount("/", "", "cgroup2", "rw")
	table := n.open()
	return n, table, stopClock(table)
}

func TestEvents(t *testing.T) {
	_, table, clock := openV2(t)
	cg := Cgroup{0, 1 << 40}
	table.Created(cg, "/docker/"+idA)
	e, ok := table.Lookup(cg)
	require.True(t, ok)
	assert.Equal(t, Entry{"/docker/" + idA, Identity{ContainerID: idA, Runtime: "docker"}}, e)

	table.Removed(cg)
	clock.add(afterlife - 1)
	table.Removed(cg) // a second removal does not prolong anything
	assert.Equal(t, "/docker/"+idA, path(t, table, cg))
	assert.Equal(t, 1, table.Stats().Removed)
	clock.add(1)
	_, ok = table.Lookup(cg)
	assert.False(t, ok)
	assert.Equal(t, Stats{Entries: 1, Misses: 1, Rescans: 1, Partial: true}, table.Stats())

	table.Created(Cgroup{7, 8}, "/other")
	table.Removed(Cgroup{7, 8})
	table.Removed(Cgroup{0, 99})
	assert.Equal(t, 1, table.Stats().Entries, "hierarchies that are not ours, cgroups never heard of")
}

func TestIDUsedAgain(t *testing.T) {
	_, table, clock := openV2(t)
	cg := Cgroup{0, 1 << 40}
	table.Created(cg, "/old")
	table.Removed(cg)
	table.Created(cg, "/new")
	assert.Equal(t, Stats{Entries: 2, Partial: true}, table.Stats())
	clock.add(2 * afterlife)
	assert.Equal(t, "/new", path(t, table, cg), "the grave of the old one is empty")
}

func TestRescan(t *testing.T) {
	n, table, clock := openV2(t)

	id := n.mkdir("missed.service")
	assert.Equal(t, "/missed.service", path(t, table, Cgroup{0, id}), "an event was lost")

	// A flood of unknown ids.
	for i := range uint64(10_000) {
		_, ok := table.Lookup(Cgroup{0, 1<<40 + i})
		require.False(t, ok)
	}
	_, ok := table.Lookup(Cgroup{0, 0})
	assert.False(t, ok)
	assert.Equal(t, Stats{Entries: 2, Misses: 10_001, Rescans: 1, Partial: true}, table.Stats())

	second := n.mkdir("second")
	_, ok = table.Lookup(Cgroup{0, second})
	assert.False(t, ok, "no second walk within a second")
	clock.add(rescanEvery)
	assert.Equal(t, "/second", path(t, table, Cgroup{0, second}))

	// A lost removal ends with the next walk, and the minute with it.
	n.rmdir("missed.service")
	clock.add(rescanEvery)
	table.Lookup(Cgroup{0, 1 << 40})
	assert.Equal(t, "/missed.service", path(t, table, Cgroup{0, id}))
	assert.Equal(t, 1, table.Stats().Removed)
	clock.add(afterlife)
	assert.Equal(t, 2, table.Stats().Entries)
}

func TestRescanJudgesEvents(t *testing.T) {
	for _, whole := range []bool{true, false} {
		t.Run(fmt.Sprintf("whole %t", whole), func(t *testing.T) {
			n, table, clock := openV2(t)
			table.hierarchies[0].whole = whole
			unseen, seen := Cgroup{0, 1 << 40}, Cgroup{0, n.mkdir("ns")}
			table.Created(unseen, "/gone")
			table.Created(seen, "/kubepods/ns")
			table.Lookup(Cgroup{0, 1 << 41})

			assert.Equal(t, whole, table.Stats().Removed == 1, "nothing is gone that cannot be seen")
			if whole {
				assert.Equal(t, "/ns", path(t, table, seen))
			} else {
				assert.Equal(t, "/kubepods/ns", path(t, table, seen), "the kernel knows the full path")
			}
			clock.add(afterlife)
			_, ok := table.Lookup(unseen)
			assert.Equal(t, !whole, ok)
		})
	}
}

// A walk takes time: what events say meanwhile must outlast what it saw.
func TestEventsDuringWalk(t *testing.T) {
	n, table, _ := openV2(t)
	table.hierarchies[0].whole = true
	id := n.mkdir("a")
	table.Created(Cgroup{0, id}, "/a")

	// Both happen after the walk has begun, which only the epoch tells.
	table.Removed(Cgroup{0, id})
	table.Created(Cgroup{0, 1 << 40}, "/b")
	for _, r := range table.entries {
		r.epoch = table.epoch + 1
	}
	table.walk(table.hierarchies[0])
	assert.Equal(t, "/b", path(t, table, Cgroup{0, 1 << 40}))
	assert.Equal(t, 1, table.Stats().Removed)
}

func TestUnreadable(t *testing.T) {
	n, table, clock := openV2(t)
	id := n.mkdir("a")
	require.Equal(t, "/a", path(t, table, Cgroup{0, id}))
	require.NoError(t, os.Rename(n.root, n.root+".away"))
	clock.add(rescanEvery)
	_, ok := table.Lookup(Cgroup{0, 1 << 40})
	assert.False(t, ok)
	s := table.Stats()
	assert.EqualValues(t, 1, s.ScanFails)
	assert.Zero(t, s.Removed, "a walk that failed proves nothing gone")
}

func TestCap(t *testing.T) {
	n, table, _ := openV2(t)
	table.limit = 4 // the root and three more
	for i := range uint64(3) {
		table.Created(Cgroup{0, 1<<40 + i}, fmt.Sprintf("/%d", i))
	}
	table.Created(Cgroup{0, 1 << 41}, "/refused")
	assert.Equal(t, Stats{Entries: 4, Refused: 1, Partial: true}, table.Stats())

	table.Created(Cgroup{0, 1 << 40}, "/renamed")
	assert.Equal(t, "/renamed", path(t, table, Cgroup{0, 1 << 40}), "a known id needs no room")

	table.Removed(Cgroup{0, 1<<40 + 1})
	table.Removed(Cgroup{0, 1 << 40})
	table.Created(Cgroup{0, 1 << 41}, "/added")
	assert.Equal(t, "/added", path(t, table, Cgroup{0, 1 << 41}))
	assert.Equal(t, "/renamed", path(t, table, Cgroup{0, 1 << 40}), "the longest gone makes room")
	assert.Equal(t, Stats{Entries: 4, Removed: 1, Refused: 1, Evicted: 1, Partial: true}, table.Stats())

	for i := range 5 {
		n.mkdir(fmt.Sprint("dir", i))
	}
	table.Lookup(Cgroup{0, 1 << 42})
	s := table.Stats()
	assert.Equal(t, 4, s.Entries, "a walk is bounded as well")
	assert.EqualValues(t, 1, s.ScanFails)
}

func TestConcurrent(t *testing.T) {
	n, table, clock := openV2(t)
	known := Cgroup{0, n.mkdir("known")}
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			for j := range uint64(300) {
				cg := Cgroup{0, 1<<40 + i<<20 + j}
				table.Created(cg, "/docker/"+idA)
				table.Lookup(cg)
				table.Removed(cg)
				table.Lookup(known)
				table.Lookup(Cgroup{0, 1 << 50})
				clock.add(rescanEvery / 10)
				table.Stats()
			}
		})
	}
	wg.Wait()
	assert.Equal(t, "/known", path(t, table, known))
	clock.add(afterlife)
	assert.Equal(t, 2, table.Stats().Entries)
}

// TestKernel checks against the cgroups of this machine, whatever their layout.
func TestKernel(t *testing.T) {
	table, err := Open("/sys/fs/cgroup", "/proc")
	if err != nil {
		t.Skipf("no cgroup hierarchy to test on: %v", err)
	}
	clock := stopClock(table)
	for _, h := range table.hierarchies {
		t.Run(fmt.Sprintf("hierarchy %d", h.id), func(t *testing.T) {
			name := fmt.Sprintf("tapio-owner-test-%d", os.Getpid())
			dir := filepath.Join(h.dir, name)
			if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
				t.Skipf("cannot make a cgroup: %v", err)
			} else {
				require.NoError(t, err)
			}
			inner := filepath.Join(dir, "docker-"+idA+".scope")
			t.Cleanup(func() {
				_ = os.Remove(inner)
				_ = os.Remove(dir)
			})
			require.NoError(t, os.Mkdir(inner, 0o755))
			id, err := inode(inner)
			require.NoError(t, err)

			clock.add(rescanEvery)
			e, ok := table.Lookup(Cgroup{h.id, id})
			require.True(t, ok)
			assert.Equal(t, strings.TrimSuffix(h.base, "/")+"/"+name+"/docker-"+idA+".scope", e.Path)
			assert.Equal(t, idA, e.ContainerID)
			assert.Equal(t, "/", path(t, table, Cgroup{h.id, rootID}))

			require.NoError(t, os.Remove(inner))
			clock.add(rescanEvery)
			table.Lookup(Cgroup{h.id, 1 << 60})
			assert.Equal(t, e.Path, path(t, table, Cgroup{h.id, id}), "kept for a minute")
			clock.add(afterlife)
			_, ok = table.Lookup(Cgroup{h.id, id})
			assert.False(t, ok)
		})
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw`)
	f.Add(`35 31 0:32 /../a\134x2db /sys/fs/c\040d rw shared:1 master:2 - cgroup cgroup rw,memory`)
	f.Add(`\0 \777 \`)
	f.Fuzz(func(t *testing.T, line string) {
		m, ok := parseMount(line)
		if !ok {
			assert.Zero(t, m)
			return
		}
		h := m.hierarchy(0)
		assert.NotEmpty(t, h.base)
		assert.NotEqual(t, "/..", h.base)
		assert.False(t, strings.HasPrefix(h.base, "/../"))
	})
}

func BenchmarkLookup(b *testing.B) {
	_, table, _ := openV2(b)
	table.now = time.Now
	const cgroups = 1024
	for i := range uint64(cgroups) {
		table.Created(Cgroup{0, 1<<40 + i}, "/"+pod+"/"+idA)
	}
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		if _, ok := table.Lookup(Cgroup{0, 1<<40 + i%cgroups}); !ok {
			b.Fatal("unknown")
		}
	}
}

func TestLookupDoesNotAllocate(t *testing.T) {
	_, table, _ := openV2(t)
	cg := Cgroup{0, 1 << 40}
	table.Created(cg, "/"+pod+"/"+idA)
	assert.Zero(t, testing.AllocsPerRun(100, func() { table.Lookup(cg) }))
}

// BenchmarkWalk is what a lookup of an unknown id costs, at most once a second,
// on a node with 300 pods of two containers.
func BenchmarkWalk(b *testing.B) {
	n, table, _ := openV2(b)
	for i := range 300 {
		uid := fmt.Sprintf("%08x%s", i, uidA[8:])
		n.mkdir("kubepods/burstable/pod" + uid + "/" + idA)
		n.mkdir("kubepods/burstable/pod" + uid + "/" + idB)
	}
	b.ReportAllocs()
	for b.Loop() {
		table.walk(table.hierarchies[0])
	}
	b.ReportMetric(float64(table.Stats().Entries), "cgroups")
}

// A node that is itself a container sees a part of the hierarchy, and the kernel
// tells of all of it.
func TestForeign(t *testing.T) {
	const outside = "/docker/worker"
	n, table, clock := openV2(t)
	old := Cgroup{0, n.mkdir("kubelet.slice")}
	assert.False(t, table.Foreign(Cgroup{0, 1 << 50}), "with the whole hierarchy nothing is")
	table.hierarchies[0].part = true

	clock.add(rescanEvery)
	assert.False(t, table.Foreign(old), "what a walk finds is ours")
	assert.True(t, table.Foreign(Cgroup{0, rootID}), "the machine's own root")
	assert.False(t, table.Foreign(Cgroup{0, 0}), "the kernel did not say")
	assert.False(t, table.Foreign(Cgroup{9, 77}), "nobody watches that hierarchy")

	// A neighbor has the same names; what is gone already proves nothing.
	neighbor, gone := Cgroup{0, 1 << 40}, Cgroup{0, 1 << 41}
	table.Created(neighbor, "/docker/neighbor/kubelet.slice")
	table.Created(gone, outside+"/kubelet.slice/gone")
	assert.True(t, table.Foreign(neighbor))
	assert.True(t, table.Foreign(gone))

	// From the first that is there on it is known where we are.
	pod := Cgroup{0, n.mkdir("kubelet.slice/pod")}
	table.Created(pod, outside+"/kubelet.slice/pod")
	assert.Equal(t, "/kubelet.slice/pod", path(t, table, pod))
	short := Cgroup{0, 1 << 42}
	table.Created(short, outside+"/kubelet.slice/pod/"+idA)
	table.Removed(short)
	assert.False(t, table.Foreign(short), "although it was gone before anybody could look")
	assert.Equal(t, "/kubelet.slice/pod/"+idA, path(t, table, short))
	table.Created(neighbor, "/docker/neighbor/kubelet.slice")
	table.Created(Cgroup{0, 1 << 43}, outside+"-2/kubelet.slice")
	assert.True(t, table.Foreign(neighbor))
	assert.True(t, table.Foreign(Cgroup{0, 1 << 43}), "a longer name")
}

// A container to which nobody gave the node's cgroups sees its own and nothing
// else. It is not a node in a container, whose neighbors it would have to ignore.
func TestAlone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a control group")
	}
	mounted, err := findHierarchies("/sys/fs/cgroup", "/proc")
	require.NoError(t, err)
	dir := filepath.Join(mounted[0].dir, fmt.Sprintf("tapio-owner-%d", os.Getpid()))
	require.NoError(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(dir)) })
	n := newNode(t)
	n.write("mountinfo", fmt.Sprintf("31 23 0:28 / %s rw - cgroup2 cgroup2 rw\n", dir))
	n.root = dir
	other := Cgroup{0, 1 << 50}
	table := n.open()
	assert.True(t, table.Stats().Alone)
	assert.False(t, table.Foreign(other))
	assert.False(t, table.Foreign(Cgroup{0, rootID}))
	table.Created(other, "/kubepods/pod"+uidA+"/"+idA)
	assert.Equal(t, "/kubepods/pod"+uidA+"/"+idA, path(t, table, other))

	require.NoError(t, os.Mkdir(dir+"/kubelet.slice", 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(dir+"/kubelet.slice")) })
	table = n.open()
	assert.False(t, table.Stats().Alone)
	assert.True(t, table.Foreign(other))
}
