// Package container observes processes that fail and processes that the kernel
// kills for want of memory.
package container

import (
	"context"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/exit"
	"github.com/yairfalse/tapio/bpf/oom"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/tapio/internal/feed"
	"github.com/yairfalse/tapio/tapio/internal/observer"
	"github.com/yairfalse/tapio/tapio/internal/owner"
)

// Name is the observer's name on the command line and in messages.
const Name = "container"

// Scope says whose failed exits are told. OOM kills always are.
type Scope struct {
	All, Containers, Services bool
}

// covers says whether an exit there is to be told. What nobody could attribute
// is told: it may have been a container that lived for a moment.
func (s Scope) covers(who owner.Entry, known bool) bool {
	return s.All || !known || s.Containers && who.IsContainer() || s.Services && who.IsService()
}

// Observer is the container observer.
type Observer struct {
	node  *observer.Node
	scope Scope
}

// New returns the observer.
func New(node *observer.Node, scope Scope) *Observer {
	return &Observer{node: node, scope: scope}
}

// Run observes until ctx is done.
func (o *Observer) Run(ctx context.Context, ready func()) error {
	sub := &feed.Subscriber{Handlers: map[bpf.Signal]feed.Handler{
		bpf.ExitCode:   o.exit,
		bpf.ExitSignal: o.exit,
		bpf.OOMKill:    o.oomKill,
	}}
	return o.node.Watch(ctx, Name, ready, sub, func(s *bpf.Shared) ([]*bpf.Attachment, error) {
		// OOM first: an exit that it explains is left to it from the start.
		var attached []*bpf.Attachment
		options := exit.Options{}
		kills, err := oom.Attach(s)
		if err != nil {
			o.node.Unavailable("oom", fmt.Errorf("watch the OOM killer: %w", err))
			options.OOMUntold = true
		} else {
			attached = append(attached, kills)
		}
		exits, err := exit.Attach(s, options)
		if err != nil {
			return attached, fmt.Errorf("watch exits: %w", err)
		}
		return append(attached, exits), nil
	})
}

func (o *Observer) exit(record []byte) (*eventv1.Event, uint64, error) {
	x, err := exit.Decode(record)
	if err != nil {
		return nil, 1, err
	}
	if o.node.Foreign(bpf.HeadOf(x)) {
		return nil, 1, feed.ErrForeign
	}
	e, who := o.node.NewEvent(event.KindContainerExitError, bpf.HeadOf(x))
	_, unknown := e.Metadata[event.TapioAttribution]
	if !o.scope.covers(who, !unknown) || isSandboxStop(x, who) {
		return nil, 1, nil
	}
	m := e.Metadata
	end := time.Unix(0, e.GetTimestampUnixNs())
	runtime := time.Duration(x.RuntimeNs)
	m[event.ProcessExitCode] = strconv.Itoa(int(x.Code))
	m[event.ProcessParentPID] = strconv.FormatUint(uint64(x.ParentPid), 10)
	m[event.TapioProcessParentName] = observer.Comm(&x.ParentComm)
	m[event.TapioProcessRuntimeS] = strconv.FormatFloat(float64(x.RuntimeNs)/1e9, 'f', 3, 64)
	m[event.TapioProcessContainerInit] = strconv.FormatBool(x.ContainerInit != 0)
	status := int32(x.Code)
	if x.Signal != 0 {
		m[event.TapioProcessSignal] = signalName(x.Signal)
		m[event.TapioProcessCoreDumped] = strconv.FormatBool(x.CoreDumped != 0)
		// As a shell and every container runtime report it.
		status = 128 + int32(x.Signal)
	}
	e.Data = &eventv1.Event_Process{Process: &eventv1.ProcessEventData{
		Pid:       x.Head.Pid,
		Ppid:      x.ParentPid,
		Command:   m[event.ProcessExecutableName],
		ExitCode:  status,
		StartTime: timestamppb.New(end.Add(-runtime)),
		EndTime:   timestamppb.New(end),
	}}
	return e, 1, nil
}

// isSandboxStop says whether this is how a container runtime takes down the
// sandbox of a pod that has ended: its process, pause by convention, does nothing
// and is killed without being asked first.
func isSandboxStop(x *exit.Event, who owner.Entry) bool {
	return who.PodUID != "" && x.ContainerInit != 0 && syscall.Signal(x.Signal) == unix.SIGKILL && observer.Comm(&x.Head.Comm) == "pause"
}

func (o *Observer) oomKill(record []byte) (*eventv1.Event, uint64, error) {
	k, err := oom.Decode(record)
	if err != nil {
		return nil, 1, err
	}
	if o.node.Foreign(bpf.HeadOf(k)) {
		return nil, 1, feed.ErrForeign
	}
	e, _ := o.node.NewEvent(event.KindContainerOOMKill, bpf.HeadOf(k))
	m := e.Metadata
	m[event.TapioOOMTriggerPID] = strconv.FormatUint(uint64(k.TriggerPid), 10)
	m[event.TapioOOMTriggerName] = observer.Comm(&k.TriggerComm)
	if k.HasRss != 0 {
		m[event.TapioOOMAnonBytes] = strconv.FormatUint(k.AnonBytes, 10)
		m[event.TapioOOMFileBytes] = strconv.FormatUint(k.FileBytes, 10)
		m[event.TapioOOMShmemBytes] = strconv.FormatUint(k.ShmemBytes, 10)
	}
	// Which limit was hit is known by way of the victim only.
	if k.HasVictim != 0 {
		m[event.TapioOOMConstraint] = event.OOMConstraintSystem
	}
	if k.MemcgId != 0 {
		m[event.TapioOOMConstraint] = event.OOMConstraintMemcg
		m[event.TapioOOMUsageBytes] = strconv.FormatUint(k.UsageBytes, 10)
		if k.LimitBytes != 0 {
			m[event.TapioOOMLimitBytes] = strconv.FormatUint(k.LimitBytes, 10)
		}
		o.describeMemcg(m, k)
	}
	e.Data = &eventv1.Event_Kernel{Kernel: &eventv1.KernelEventData{
		EventType:     "oom_kill",
		Pid:           k.TriggerPid,
		Command:       m[event.TapioOOMTriggerName],
		OomVictimPid:  k.Head.Pid,
		OomVictimComm: m[event.ProcessExecutableName],
		Signal:        uint32(unix.SIGKILL),
	}}
	return e, 1, nil
}

// describeMemcg names the memory cgroup that hit its limit, and takes the
// container from it where the victim's own cgroup did not tell.
func (o *Observer) describeMemcg(m map[string]string, k *oom.Event) {
	who, ok := o.node.Owners.Lookup(owner.Cgroup{Hierarchy: k.MemcgHierarchy, ID: k.MemcgId})
	if !ok {
		return
	}
	m[event.TapioOOMCgroup] = observer.Text(who.Path)
	if m[event.ContainerID] == "" && who.ContainerID != "" {
		m[event.ContainerID] = who.ContainerID
		delete(m, event.TapioAttribution)
	}
	if m[event.K8sPodUID] == "" && who.PodUID != "" {
		m[event.K8sPodUID] = who.PodUID
		delete(m, event.TapioAttribution)
	}
}

func signalName(signal uint8) string {
	if name := unix.SignalName(syscall.Signal(signal)); name != "" {
		return name
	}
	return "signal " + strconv.Itoa(int(signal))
}
