package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/bpf/internal/layout"
)

func TestLayout(t *testing.T) {
	spec, err := loadCgroup()
	require.NoError(t, err)
	assert.NoError(t, layout.Compare(spec.Types, "cgroup_event", reflect.TypeFor[Event]()))
	assert.NoError(t, layout.Compare(spec.Types, "head", reflect.TypeFor[bpf.Head]()))
}

func fill(e *Event, path string) {
	for i := range len(path) {
		e.Path[i] = int8(path[i])
	}
	e.Length = uint32(len(path))
}

func TestPath(t *testing.T) {
	longest := "/" + strings.Repeat("x", 509)
	tests := []struct {
		name  string
		path  string
		whole bool
	}{
		{"usual", "/kubepods/burstable", true},
		{"root", "/", true},
		{"any bytes", "/\xff\n", true},
		{"longest", longest, true},
		{"one more may have been cut off", longest + "x", false},
		{"could not be read", "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var e Event
			fill(&e, test.path)
			path, whole := Path(&e)
			assert.Equal(t, test.path, path)
			assert.Equal(t, test.whole, whole)
		})
	}
	for _, length := range []uint32{511, 512, 513, 1 << 31, 1<<32 - 1} {
		_, whole := Path(&Event{Length: length})
		assert.False(t, whole, "length %d", length)
	}
}

func FuzzDecode(f *testing.F) {
	var e Event
	fill(&e, "/kubepods")
	f.Add(bytes.Clone(bpftest.Bytes(&e)))
	e.Length = 1<<32 - 1
	f.Add(bytes.Clone(bpftest.Bytes(&e)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, record []byte) {
		e, err := Decode(record)
		if err != nil {
			require.Nil(t, e)
			return
		}
		path, whole := Path(e)
		require.LessOrEqual(t, len(path), len(e.Path))
		require.True(t, !whole || path != "" && len(path) < len(e.Path)-1)
	})
}

// hierarchy is one that the kernel tells of: cgroup v2, or v1 with the memory controller.
type hierarchy struct {
	id    uint32
	mount string // its root
	path  string // of a cgroup of ours, from the root
}

// hierarchies makes a directory in each for the test to work in.
func hierarchies(t *testing.T) map[string]hierarchy {
	all := map[string]hierarchy{}
	name := fmt.Sprintf("tapio-test-%d", os.Getpid())
	mounts, err := os.Open("/proc/self/mountinfo")
	require.NoError(t, err)
	defer mounts.Close()
	for scan := bufio.NewScanner(mounts); scan.Scan(); {
		before, after, _ := strings.Cut(scan.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if fields[3] != "/" { // not the root of the hierarchy: its paths are not what the kernel says
			continue
		}
		h := hierarchy{mount: fields[4], path: "/" + name}
		switch {
		case kind[0] == "cgroup2":
			all["v2"] = h
		case kind[0] == "cgroup" && slices.Contains(strings.Split(kind[2], ","), "memory"):
			h.id = memoryHierarchy(t)
			all["v1"] = h
		}
	}
	for _, h := range all {
		dir := h.mount + h.path
		require.NoError(t, os.Mkdir(dir, 0o755))
		t.Cleanup(func() { assert.NoError(t, os.Remove(dir)) })
	}
	return all
}

func memoryHierarchy(t *testing.T) uint32 {
	mine, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	for line := range strings.Lines(string(mine)) {
		id, controllers, _ := strings.Cut(line, ":")
		controllers, _, _ = strings.Cut(controllers, ":")
		if slices.Contains(strings.Split(controllers, ","), "memory") {
			n, err := strconv.ParseUint(id, 10, 32)
			require.NoError(t, err)
			return uint32(n)
		}
	}
	t.Fatal("the v1 memory hierarchy is mounted, and not in /proc/self/cgroup")
	return 0
}

func inode(t *testing.T, dir string) uint64 {
	info, err := os.Stat(dir)
	require.NoError(t, err)
	return info.Sys().(*syscall.Stat_t).Ino
}

// record is what an Event says, to compare.
type record struct {
	id        uint64
	hierarchy uint32
	path      string
	removed   bool
}

// The kernel tells of every cgroup that is made and removed, in order, under
// the id that processes in it have.
func TestCgroups(t *testing.T) {
	s := bpftest.Open(t)
	all := hierarchies(t)
	if len(all) == 0 {
		t.Skip("needs a cgroup hierarchy that is mounted with its root: cgroup2, or cgroup with the memory controller")
	}
	for version, h := range all {
		t.Run(version, func(t *testing.T) {
			a, err := Attach(s)
			require.NoError(t, err)
			defer func() { assert.NoError(t, a.Close()) }()
			reader, err := s.NewReader()
			require.NoError(t, err)
			defer func() { assert.NoError(t, reader.Close()) }()

			var want []record
			make := func(path string) {
				require.NoError(t, os.Mkdir(h.mount+path, 0o755))
				want = append(want, record{inode(t, h.mount+path), h.id, path, false})
			}
			remove := func(path string) {
				id := inode(t, h.mount+path)
				require.NoError(t, os.Remove(h.mount+path))
				want = append(want, record{id, h.id, path, true})
			}
			make(h.path + "/a")
			make(h.path + "/a/b b")
			remove(h.path + "/a/b b")
			for i := range 5 {
				path := h.path + "/a/" + strconv.Itoa(i)
				make(path)
				remove(path)
			}
			remove(h.path + "/a")

			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var got []record
			var last uint64
			require.NoError(t, reader.Run(ctx, func(raw []byte) {
				e, err := Decode(raw)
				require.NoError(t, err)
				path, whole := Path(e)
				require.True(t, whole, path)
				// In a cgroup namespace the kernel's path is longer than ours.
				_, below, ours := strings.Cut(path, h.path+"/")
				if !ours || e.Head.Hierarchy != h.id {
					return
				}
				assert.Equal(t, uint32(bpf.Cgroup), e.Head.Signal)
				assert.GreaterOrEqual(t, e.Head.TimeNs, last, "time goes on")
				last = e.Head.TimeNs
				got = append(got, record{e.Head.CgroupId, e.Head.Hierarchy, h.path + "/" + below, e.Removed != 0})
				if len(got) == len(want) {
					cancel()
				}
			}, func() {}))
			assert.Equal(t, want, got)

			counters, err := s.Counters()
			require.NoError(t, err)
			c := counters[bpf.Cgroup]
			assert.GreaterOrEqual(t, c.Seen, uint64(len(want)))
			assert.Equal(t, c.Seen, c.Kept+c.Lost)
		})
	}
}

// A path that the record has no room for is said to be cut off.
func TestLongPath(t *testing.T) {
	s := bpftest.Open(t)
	h, ok := hierarchies(t)["v2"]
	if !ok {
		t.Skip("needs cgroup2, mounted with its root")
	}
	a, err := Attach(s)
	require.NoError(t, err)
	defer func() { assert.NoError(t, a.Close()) }()
	reader, err := s.NewReader()
	require.NoError(t, err)
	defer func() { assert.NoError(t, reader.Close()) }()

	segment := "/" + strings.Repeat("x", 200)
	dir := h.mount + h.path
	var dirs []string
	for range 3 {
		dir += segment
		require.NoError(t, os.Mkdir(dir, 0o755))
		dirs = append(dirs, dir)
	}
	deepest := inode(t, dir)
	for _, d := range slices.Backward(dirs) {
		require.NoError(t, os.Remove(d))
	}

	seen := 0
	require.NoError(t, reader.Drain(func(raw []byte) {
		e, err := Decode(raw)
		require.NoError(t, err)
		if e.Head.CgroupId != deepest {
			return
		}
		seen++
		path, whole := Path(e)
		assert.False(t, whole)
		assert.Len(t, path, 511)
	}))
	assert.Equal(t, 2, seen, "made and removed")
}
