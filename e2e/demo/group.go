package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Names of the control groups of the two sides.
const (
	serverGroup = "server"
	clientGroup = "client"
)

// memoryLimit is that of the server, bytes.
const memoryLimit = 64 << 20

// groups are the demo's own control groups, in each hierarchy that matters: the
// one that counts memory, and the unified one, which the kernel knows sockets by.
type groups struct {
	name  string
	roots []string
}

// makeGroups makes the groups and sets the server's limit.
func makeGroups(name string) (*groups, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("find the control groups: %w", err)
	}
	g := &groups{name: name}
	limit := ""
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		switch {
		case fields[2] == "cgroup2":
			g.roots = append(g.roots, fields[1])
			if hasMemory(fields[1]) {
				limit = filepath.Join(fields[1], name, serverGroup, "memory.max")
			}
		case fields[2] == "cgroup" && strings.Contains(","+fields[3]+",", ",memory,"):
			g.roots = append(g.roots, fields[1])
			limit = filepath.Join(fields[1], name, serverGroup, "memory.limit_in_bytes")
		}
	}
	if limit == "" {
		return nil, errors.New("no hierarchy of control groups can limit memory: the cgroup2 root needs +memory in cgroup.subtree_control")
	}
	for _, root := range g.roots {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make a control group: %w", err), g.remove())
		}
		if hasMemory(root) {
			if err := write(filepath.Join(root, name, "cgroup.subtree_control"), "+memory"); err != nil {
				return nil, errors.Join(err, g.remove())
			}
		}
		for _, side := range []string{serverGroup, clientGroup} {
			if err := os.Mkdir(filepath.Join(root, name, side), 0o755); err != nil {
				return nil, errors.Join(fmt.Errorf("make a control group: %w", err), g.remove())
			}
		}
	}
	if err := write(limit, strconv.Itoa(memoryLimit)); err != nil {
		return nil, errors.Join(err, g.remove())
	}
	// Without this the server would swap for a while before it is killed. There
	// is no such file where swap is not counted.
	swap := filepath.Join(filepath.Dir(limit), "memory.swap.max")
	if err := write(swap, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errors.Join(err, g.remove())
	}
	return g, nil
}

func hasMemory(root string) bool {
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	return err == nil && strings.Contains(" "+strings.TrimSpace(string(controllers))+" ", " memory ")
}

func write(file, value string) error {
	// Not created: where a kernel lacks a file it says so.
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set up a control group: %w", err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set up a control group: %w", err)
	}
	return nil
}

// path of a side's group, from the root of its hierarchy, without the slash.
func (g *groups) path(side string) string { return g.name + "/" + side }

// put moves a process into a side's group.
func (g *groups) put(pid int, side string) error {
	for _, root := range g.roots {
		if err := write(filepath.Join(root, g.name, side, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

// remove removes the groups. Processes that were just killed may still be
// leaving.
func (g *groups) remove() error {
	var errs []error
	for _, root := range g.roots {
		for _, folder := range []string{filepath.Join(root, g.name, serverGroup), filepath.Join(root, g.name, clientGroup), filepath.Join(root, g.name)} {
			err := os.Remove(folder)
			for end := time.Now().Add(5 * time.Second); err != nil && !errors.Is(err, fs.ErrNotExist) && time.Now().Before(end); err = os.Remove(folder) {
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove a control group: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
