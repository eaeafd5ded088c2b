// Package observertest is a node for tests of observers: real maps and a real
// ring in the kernel, and a table of cgroups that the test fills.
package observertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/tapio/internal/feed"
	"github.com/yairfalse/tapio/tapio/internal/observer"
	"github.com/yairfalse/tapio/tapio/internal/owner"
)

// The cgroups that a Node knows.
const (
	Pod       = 1001 // a container of a pod
	Service   = 1002 // a systemd service
	Session   = 1003 // a login
	Hostile   = 1004 // a service whose name is no text
	PodParent = 1005 // the pod itself, the parent of Pod
	Unknown   = 9999 // one that it does not know
)

// ContainerID is that of Pod.
const ContainerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// Node is an observer.Node with what it has emitted.
type Node struct {
	*observer.Node
	Sender  *bpftest.Sender
	Emitted []*eventv1.Event
}

// New returns a node that ends with the test. Without the right to make kernel
// maps the test is skipped.
func New(t testing.TB) *Node {
	t.Helper()
	shared := bpftest.Open(t)
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	n := &Node{Sender: bpftest.NewSender(t, shared)}
	stream, err := feed.Open(shared, log, func(e *eventv1.Event) error {
		n.Emitted = append(n.Emitted, e)
		return nil
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, stream.Close()) })
	n.Node = &observer.Node{
		Feed: stream, Owners: owners(t), Events: event.NewFactory(), Log: log,
		Attached: func(string, uint64) {}, Unavailable: func(string, error) {},
	}
	return n
}

// owners has a hierarchy of its own, so that no id of the machine is in the way.
func owners(t testing.TB) *owner.Table {
	dir := t.TempDir()
	root, proc := filepath.Join(dir, "cgroup"), filepath.Join(dir, "proc")
	require.NoError(t, os.MkdirAll(root, 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(proc, "self"), 0o755))
	mount := fmt.Sprintf("31 23 0:28 / %s rw - cgroup2 cgroup2 rw\n", root)
	require.NoError(t, os.WriteFile(filepath.Join(proc, "self", "mountinfo"), []byte(mount), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "self", "cgroup"), []byte("0::/\n"), 0o644))
	table, err := owner.Open(root, proc)
	require.NoError(t, err)
	pod := "/kubepods.slice/kubepods-pod3f2a1b4c_5d6e_7f80_9a0b_1c2d3e4f5a6b.slice"
	for id, path := range map[uint64]string{
		Pod:       pod + "/cri-containerd-" + ContainerID + ".scope",
		PodParent: pod,
		Service:   "/system.slice/postgresql.service",
		Session:   "/user.slice/user-1000.slice/session-3.scope",
		Hostile:   "/system.slice/\xff\x1b.service",
	} {
		table.Created(owner.Cgroup{ID: id}, path)
	}
	return table
}

// Head returns the head of a record of process 4711, made now.
func Head(s bpf.Signal, cgroup uint64, comm string) bpf.Head {
	h := bpf.Head{TimeNs: bpf.Now(), CgroupId: cgroup, Signal: uint32(s), Pid: 4711}
	h.Comm = Comm(comm)
	return h
}

// Comm returns a process name as the kernel keeps it.
func Comm(name string) bpf.Comm {
	var c bpf.Comm
	for i := range min(len(name), len(c)-1) {
		c[i] = int8(name[i])
	}
	return c
}

// at is the time of every golden event.
var at = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// Golden compares an event with testdata/<name>.json. The id and the time, which
// differ from run to run, are replaced. With UPDATE_GOLDEN=1 it writes the file.
// It must be an event that may be sent.
func Golden(t *testing.T, name string, e *eventv1.Event) {
	t.Helper()
	require.NoError(t, event.Validate(e))
	e, ok := proto.Clone(e).(*eventv1.Event)
	require.True(t, ok)
	e.Id = "id"
	shift := at.Sub(time.Unix(0, e.GetTimestampUnixNs()))
	e.TimestampUnixNs = at.UnixNano()
	if p := e.GetProcess(); p != nil {
		p.StartTime = timestamppb.New(p.GetStartTime().AsTime().Add(shift))
		p.EndTime = timestamppb.New(p.GetEndTime().AsTime().Add(shift))
	}
	line, err := event.AppendJSON(nil, e)
	require.NoError(t, err)
	var got bytes.Buffer
	require.NoError(t, json.Indent(&got, line, "", "  "))
	got.WriteByte('\n')

	file := filepath.Join("testdata", name+".json")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, got.Bytes(), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "write it with UPDATE_GOLDEN=1")
	assert.Equal(t, string(want), got.String())
}
