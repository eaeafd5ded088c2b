package owner

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// rootID is the id of every hierarchy's root cgroup, whatever is mounted where.
const rootID = 1

// hierarchy is one cgroup hierarchy as it is mounted here.
type hierarchy struct {
	id   uint32
	dir  string // where it is mounted
	base string // the path, in the hierarchy, of the cgroup that is mounted there

	// whole says that the root of the hierarchy is mounted, so that a cgroup
	// that is not below dir does not exist.
	whole bool

	// part says that more of the hierarchy exists than is mounted: the node that
	// we observe is itself a container, as in kind, and the kernel tells of its
	// neighbors, too.
	part bool

	// prefix is the true path of the mounted cgroup where only a part is
	// mounted, as the kernel's events have it; empty until one tells.
	prefix string
}

// learn finds out where the mounted part lies in the hierarchy, from a cgroup
// that exists and the path that the kernel gave it: what stands before the path
// that leads to it from the mount. It reports whether it did. Names repeat on
// every node, so only the id counts.
func (h *hierarchy) learn(id uint64, path string) bool {
	for i := 1; i < len(path); i++ {
		next := strings.IndexByte(path[i:], '/')
		if next < 0 {
			return false
		}
		i += next
		if got, err := inode(h.dir + path[i:]); err == nil && got == id {
			h.prefix = path[:i]
			return true
		}
	}
	return false
}

// within returns a path of the kernel as it is seen from the mount, and whether
// it lies there.
func (h *hierarchy) within(path string) (string, bool) {
	if h.prefix == "" {
		return path, false
	}
	rest, ok := strings.CutPrefix(path, h.prefix)
	if !ok || rest == "" || rest[0] != '/' {
		return path, false
	}
	return rest, true
}

// findHierarchies reads from procfs what is mounted at or below root: cgroup v2
// and, on a v1 or hybrid node, the hierarchy of the memory controller. The
// others of v1 repeat the same cgroups.
func findHierarchies(root, procfs string) ([]*hierarchy, error) {
	mountinfo := filepath.Join(procfs, "self", "mountinfo")
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil, fmt.Errorf("find the cgroup mounts: %w", err)
	}
	defer func() { _ = f.Close() }() // only read

	var v2, v1 *mount
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		m, ok := parseMount(lines.Text())
		if !ok || !below(root, m.point) {
			continue
		}
		switch {
		case m.fstype == "cgroup2":
			v2 = outermost(v2, m)
		case m.fstype == "cgroup" && hasField(m.options, "memory"):
			v1 = outermost(v1, m)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", mountinfo, err)
	}

	var found []*hierarchy
	if v2 != nil {
		found = append(found, v2.hierarchy(0))
	}
	if v1 != nil {
		id, err := memoryHierarchy(filepath.Join(procfs, "self", "cgroup"))
		if err != nil {
			return nil, fmt.Errorf("find the id of the cgroup hierarchy mounted on %s: %w", v1.point, err)
		}
		found = append(found, v1.hierarchy(id))
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s shows neither cgroup v2 nor the v1 memory controller at or below %s: mount the node's /sys/fs/cgroup there, read-only", mountinfo, root)
	}
	return found, nil
}

func below(root, point string) bool {
	rel, err := filepath.Rel(root, point)
	return err == nil && filepath.IsLocal(rel)
}

// outermost prefers the mount that shows most: container runtimes mount parts of
// a hierarchy again inside of it. On the same point the later mount hides the
// earlier one.
func outermost(old *mount, m mount) *mount {
	if old != nil && len(old.point) < len(m.point) {
		return old
	}
	return &m
}

// mount is the part of a line of mountinfo that matters here, see proc(5).
type mount struct {
	root    string // the directory of the filesystem that is mounted
	point   string
	fstype  string
	options string // of the filesystem; they name the controllers of cgroup v1
}

func parseMount(line string) (mount, bool) {
	// ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG...] - FSTYPE SOURCE OPTIONS
	before, after, ok := strings.Cut(line, " - ")
	if !ok {
		return mount{}, false
	}
	left, right := strings.Fields(before), strings.Fields(after)
	if len(left) < 6 || len(right) < 3 {
		return mount{}, false
	}
	return mount{
		root:    unescape(left[3]),
		point:   filepath.Clean(unescape(left[4])),
		fstype:  right[0],
		options: right[2],
	}, true
}

// unescape undoes the kernel's \ooo for blanks and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		if s[0] == '\\' && len(s) >= 4 {
			if c, err := strconv.ParseUint(s[1:4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				s = s[4:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

func hasField(list, want string) bool {
	for field := range strings.SplitSeq(list, ",") {
		if field == want {
			return true
		}
	}
	return false
}

func (m mount) hierarchy(id uint32) *hierarchy {
	h := &hierarchy{id: id, dir: m.point, base: m.root}
	// A mount from above our cgroup namespace shows as /../..: what is below it
	// is named as if it were the root, which it is when the node's own
	// /sys/fs/cgroup is mounted into our container.
	for h.base == "/.." || strings.HasPrefix(h.base, "/../") {
		h.base = h.base[len("/.."):]
	}
	if h.base == "" {
		h.base = "/"
	}
	if id, err := inode(m.point); err == nil {
		h.whole = id == rootID
		h.part = !h.whole && isCgroupFS(m.point)
	}
	return h
}

func isCgroupFS(dir string) bool {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false
	}
	return fs.Type == unix.CGROUP2_SUPER_MAGIC || fs.Type == unix.CGROUP_SUPER_MAGIC
}

// memoryHierarchy reads the id of the memory controller's v1 hierarchy from a
// file such as /proc/self/cgroup, whose lines are ID:CONTROLLERS:PATH.
func memoryHierarchy(file string) (uint32, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		number, rest, _ := strings.Cut(line, ":")
		controllers, _, ok := strings.Cut(rest, ":")
		if !ok || !hasField(controllers, "memory") {
			continue
		}
		id, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%s: line %q: %w", file, strings.TrimSpace(line), err)
		}
		return uint32(id), nil
	}
	return 0, fmt.Errorf("%s has no line for the memory controller", file)
}

func inode(dir string) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(dir, &st); err != nil {
		return 0, &os.PathError{Op: "lstat", Path: dir, Err: err}
	}
	return st.Ino, nil
}

// found is a cgroup that a walk came across.
type found struct {
	id   uint64
	path string
}

// errTooMany ends a walk that has found as many cgroups as it was told to.
var errTooMany = errors.New("too many cgroups")

// walk lists the cgroups of a hierarchy, at most limit of them, parents first.
// What it returns is good even when it returns an error too: then there may be
// more.
func (h *hierarchy) walk(limit int) ([]found, error) {
	var all []found
	var visit func(dir, path string) error
	visit = func(dir, path string) error {
		var st syscall.Stat_t
		if err := syscall.Lstat(dir, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: dir, Err: err}
		}
		if len(all) == limit {
			return errTooMany
		}
		all = append(all, found{st.Ino, path})
		// Most cgroups are leaves, and the link count tells: it saves reading
		// the dozens of control files that each directory holds.
		if st.Nlink == 2 {
			return nil
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if path == "/" {
			path = ""
		}
		var errs []error
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			err := visit(dir+"/"+e.Name(), path+"/"+e.Name())
			switch {
			case errors.Is(err, errTooMany):
				return err
			case errors.Is(err, os.ErrNotExist): // removed meanwhile
			case err != nil:
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
	err := visit(h.dir, h.base)
	return all, err
}
