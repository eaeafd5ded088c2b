package container

import (
	"bytes"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/bpftest"
	"github.com/yairfalse/tapio/bpf/exit"
	"github.com/yairfalse/tapio/bpf/oom"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/tapio/internal/feed"
	"github.com/yairfalse/tapio/tapio/internal/observer/observertest"
	"github.com/yairfalse/tapio/tapio/internal/owner"
)

func open(t testing.TB, scope Scope) *Observer {
	return New(observertest.New(t).Node, scope)
}

// exited is a record of a process of a container that ended with code 1.
func exited(change func(*exit.Event)) []byte {
	x := &exit.Event{RuntimeNs: uint64(1_234 * time.Millisecond), ParentPid: 4000, Code: 1, ParentComm: observertest.Comm("containerd-shim")}
	*bpf.HeadOf(x) = observertest.Head(bpf.ExitCode, observertest.Pod, "worker")
	if change != nil {
		change(x)
	}
	return bpftest.Bytes(x)
}

// killed is a record of a process of a container that was killed at its limit.
func killed(change func(*oom.Event)) []byte {
	k := &oom.Event{
		MemcgId: observertest.Pod, LimitBytes: 64 << 20, UsageBytes: 64<<20 - 4096,
		AnonBytes: 60 << 20, FileBytes: 1 << 20, ShmemBytes: 4096,
		TriggerPid: 4712, TriggerComm: observertest.Comm("helper"), HasVictim: 1, HasRss: 1,
	}
	*bpf.HeadOf(k) = observertest.Head(bpf.OOMKill, observertest.Pod, "worker")
	if change != nil {
		change(k)
	}
	return bpftest.Bytes(k)
}

func TestEvents(t *testing.T) {
	o := open(t, Scope{All: true})
	bySignal := func(s syscall.Signal) func(*exit.Event) {
		return func(x *exit.Event) { x.Head.Signal, x.Code, x.Signal = uint32(bpf.ExitSignal), 0, uint8(s) }
	}
	tests := []struct {
		name   string
		handle feed.Handler
		record []byte
		absent []string
	}{
		{"exit_code", o.exit, exited(nil), []string{event.TapioProcessSignal, event.TapioProcessCoreDumped, event.TapioSuppressed}},
		{"exit_signal", o.exit, exited(bySignal(syscall.SIGKILL)), nil},
		{"exit_core_dumped", o.exit, exited(func(x *exit.Event) {
			bySignal(syscall.SIGSEGV)(x)
			x.CoreDumped, x.ContainerInit = 1, 1
		}), nil},
		{"exit_real_time_signal", o.exit, exited(bySignal(64)), nil},
		{"exit_service", o.exit, exited(func(x *exit.Event) { x.Head.CgroupId, x.Head.Suppressed = observertest.Service, 3 }), []string{event.ContainerID, event.K8sPodUID}},
		{"exit_unknown_owner", o.exit, exited(func(x *exit.Event) { x.Head.CgroupId = observertest.Unknown }), []string{event.ProcessLinuxCgroup, event.ContainerID}},
		{"exit_without_a_name", o.exit, exited(func(x *exit.Event) { x.Head.Comm = bpf.Comm{} }), []string{event.ProcessExecutableName}},
		{"exit_hostile_names", o.exit, exited(func(x *exit.Event) {
			x.Head.CgroupId, x.Head.Comm, x.ParentComm = observertest.Hostile, observertest.Comm("\xff\x1b]0;"), observertest.Comm("\n\x80")
		}), nil},
		{"oom", o.oomKill, killed(nil), []string{event.TapioAttribution}},
		{"oom_limit_of_the_pod", o.oomKill, killed(func(k *oom.Event) { k.MemcgId = observertest.PodParent }), nil},
		{"oom_of_the_node", o.oomKill, killed(func(k *oom.Event) {
			k.MemcgId, k.LimitBytes, k.UsageBytes = 0, 0, 0
		}), []string{event.TapioOOMLimitBytes, event.TapioOOMUsageBytes, event.TapioOOMCgroup}},
		{"oom_without_rss", o.oomKill, killed(func(k *oom.Event) {
			k.HasRss, k.AnonBytes, k.FileBytes, k.ShmemBytes = 0, 0, 0, 0
		}), []string{event.TapioOOMAnonBytes, event.TapioOOMFileBytes, event.TapioOOMShmemBytes}},
		{"oom_of_memory_and_swap", o.oomKill, killed(func(k *oom.Event) { k.LimitBytes = 0 }), []string{event.TapioOOMLimitBytes}},
		{"oom_unknown_victim", o.oomKill, killed(func(k *oom.Event) {
			*k = oom.Event{Head: k.Head, TriggerPid: k.TriggerPid, TriggerComm: k.TriggerComm}
			k.Head.CgroupId, k.Head.Comm = 0, bpf.Comm{}
		}), []string{event.TapioOOMConstraint, event.TapioOOMAnonBytes, event.TapioOOMUsageBytes, event.TapioOOMLimitBytes, event.ProcessExecutableName}},
		{"oom_owner_from_the_limit", o.oomKill, killed(func(k *oom.Event) { k.Head.CgroupId = observertest.Unknown }), []string{event.TapioAttribution}},
		{"oom_pod_from_the_limit", o.oomKill, killed(func(k *oom.Event) { k.Head.CgroupId, k.MemcgId = observertest.Unknown, observertest.PodParent }), []string{event.TapioAttribution, event.ContainerID}},
		{"oom_unknown_owner", o.oomKill, killed(func(k *oom.Event) { k.Head.CgroupId, k.MemcgId = observertest.Unknown, observertest.Unknown }), []string{event.TapioOOMCgroup}},
		{"oom_hostile_names", o.oomKill, killed(func(k *oom.Event) {
			k.Head.CgroupId, k.MemcgId = observertest.Hostile, observertest.Hostile
			k.Head.Comm, k.TriggerComm = observertest.Comm("\xff"), observertest.Comm("\x1b\x80")
		}), nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e, weight, err := test.handle(test.record)
			require.NoError(t, err)
			assert.Equal(t, uint64(1), weight)
			observertest.Golden(t, test.name, e)
			for _, key := range test.absent {
				assert.NotContains(t, e.GetMetadata(), key, "not known is not zero")
			}
		})
	}
}

func TestProcessTimes(t *testing.T) {
	e, _, err := open(t, Scope{All: true}).exit(exited(nil))
	require.NoError(t, err)
	p := e.GetProcess()
	assert.Equal(t, e.GetTimestampUnixNs(), p.GetEndTime().AsTime().UnixNano())
	assert.Equal(t, 1_234*time.Millisecond, p.GetEndTime().AsTime().Sub(p.GetStartTime().AsTime()))
	assert.WithinRange(t, p.GetEndTime().AsTime(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

// The runtime kills the sandbox of a pod that has ended; nothing has failed.
func TestSandbox(t *testing.T) {
	sandbox := func(x *exit.Event) {
		x.Head.Signal, x.Code, x.Signal, x.ContainerInit = uint32(bpf.ExitSignal), 0, uint8(syscall.SIGKILL), 1
		x.Head.Comm = observertest.Comm("pause")
	}
	for name, test := range map[string]struct {
		change func(*exit.Event)
		told   bool
	}{
		"killed":       {func(*exit.Event) {}, false},
		"crashed":      {func(x *exit.Event) { x.Signal = uint8(syscall.SIGSEGV) }, true},
		"failed":       {func(x *exit.Event) { x.Signal, x.Code = 0, 1 }, true},
		"another name": {func(x *exit.Event) { x.Head.Comm = observertest.Comm("web") }, true},
		"not the init": {func(x *exit.Event) { x.ContainerInit = 0 }, true},
		"not in a pod": {func(x *exit.Event) { x.Head.CgroupId = observertest.Service }, true},
	} {
		t.Run(name, func(t *testing.T) {
			e, weight, err := open(t, Scope{All: true}).exit(exited(func(x *exit.Event) { sandbox(x); test.change(x) }))
			require.NoError(t, err)
			assert.Equal(t, uint64(1), weight)
			assert.Equal(t, test.told, e != nil)
		})
	}
}

func TestScope(t *testing.T) {
	places := map[string]uint64{
		"container": observertest.Pod, "service": observertest.Service, "session": observertest.Session, "unknown": observertest.Unknown,
	}
	tests := []struct {
		name  string
		scope Scope
		told  string
	}{
		{"all", Scope{All: true}, "container service session unknown"},
		{"containers", Scope{Containers: true}, "container unknown"},
		{"services", Scope{Services: true}, "service unknown"},
		{"both", Scope{Containers: true, Services: true}, "container service unknown"},
		{"neither", Scope{}, "unknown"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o := open(t, test.scope)
			for place, cgroup := range places {
				e, weight, err := o.exit(exited(func(x *exit.Event) { x.Head.CgroupId = cgroup }))
				require.NoError(t, err)
				assert.Equal(t, uint64(1), weight)
				assert.Equal(t, strings.Contains(test.told, place), e != nil, place)

				e, _, err = o.oomKill(killed(func(k *oom.Event) { k.Head.CgroupId, k.MemcgId = cgroup, 0 }))
				require.NoError(t, err)
				assert.NotNil(t, e, "OOM kills are always told (%s)", place)
			}
		})
	}
}

// A cgroup that is gone stays known for its last words.
func TestRemovedCgroup(t *testing.T) {
	o := open(t, Scope{Containers: true})
	o.node.Owners.Removed(owner.Cgroup{ID: observertest.Pod})
	e, _, err := o.exit(exited(nil))
	require.NoError(t, err)
	assert.Equal(t, observertest.ContainerID, e.GetMetadata()[event.ContainerID])
}

func TestShortRecords(t *testing.T) {
	o := open(t, Scope{All: true})
	for name, handle := range map[string]feed.Handler{"exit": o.exit, "oom": o.oomKill} {
		e, weight, err := handle(exited(nil)[:48])
		assert.ErrorContains(t, err, "read kernel record: 48 bytes", name)
		assert.Nil(t, e)
		assert.Equal(t, uint64(1), weight)
	}
}

func fuzz(f *testing.F, handle func(*Observer) feed.Handler) {
	o := open(f, Scope{All: true})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if h, err := bpf.View[bpf.Head](raw); err == nil {
			// Both are refused when the event is sent.
			h.TimeNs = bpf.Now()
			h.Pid = max(h.Pid, 1)
		}
		var e *eventv1.Event
		e, weight, err := handle(o)(raw)
		require.Equal(t, uint64(1), weight)
		if err != nil {
			require.Nil(t, e)
			return
		}
		require.NoError(t, event.Validate(e))
	})
}

func FuzzExit(f *testing.F) {
	f.Add(bytes.Clone(exited(nil)))
	f.Add(bytes.Repeat([]byte{0xff}, len(exited(nil))))
	fuzz(f, func(o *Observer) feed.Handler { return o.exit })
}

func FuzzOOMKill(f *testing.F) {
	f.Add(bytes.Clone(killed(nil)))
	f.Add(bytes.Repeat([]byte{0xff}, len(killed(nil))))
	fuzz(f, func(o *Observer) feed.Handler { return o.oomKill })
}
