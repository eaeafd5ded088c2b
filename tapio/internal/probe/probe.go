// Package probe finds out what the running kernel can do for the agent.
package probe

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/bpf/cgroup"
	"github.com/yairfalse/tapio/bpf/exit"
	"github.com/yairfalse/tapio/bpf/oom"
	"github.com/yairfalse/tapio/bpf/tcp"
	"github.com/yairfalse/tapio/tapio/internal/owner"
	"github.com/yairfalse/tapio/tapio/internal/privilege"
)

// Answer is one thing that the agent would like to have.
type Answer struct {
	What   string
	OK     bool
	Why    string // the reason for a no, a detail of a yes
	Signal bool   // observing something, not a condition for it
}

// Run asks everything. cgroupFS and procFS are where these are mounted.
func Run(cgroupFS, procFS string) []Answer {
	answers := []Answer{kernel(), capabilities()}
	shared, err := bpf.NewShared()
	if err != nil {
		return append(answers, Answer{What: "kernel maps", Why: err.Error()})
	}
	defer func() { _ = shared.Close() }() // they go with the process
	answers = append(answers,
		types(shared),
		Answer{What: "kernel maps", OK: true, Why: fmt.Sprintf("%d KiB shared by all signals", shared.Bytes()/1024)},
		signal("TCP failures, slow and lossy peers", func() (*bpf.Attachment, error) {
			s, err := tcp.Attach(shared, tcp.Options{})
			if err != nil {
				return nil, err
			}
			return s.Attachment, nil
		}),
		signal("failing processes", func() (*bpf.Attachment, error) { return exit.Attach(shared, exit.Options{}) }),
		signal("OOM kills", func() (*bpf.Attachment, error) { return oom.Attach(shared) }),
		signal("control groups as they are made", func() (*bpf.Attachment, error) { return cgroup.Attach(shared) }),
		victim(shared),
		owners(cgroupFS, procFS),
	)
	return answers
}

func kernel() Answer {
	a := Answer{What: "kernel"}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		a.Why = err.Error()
		return a
	}
	a.OK = true
	a.Why = unix.ByteSliceToString(name.Release[:])
	return a
}

func capabilities() Answer {
	a := Answer{What: "capabilities"}
	missing, err := privilege.Missing(privilege.BPF, privilege.Perfmon)
	switch {
	case err != nil:
		a.Why = err.Error()
	case len(missing) > 0:
		a.Why = fmt.Sprintf("user %d lacks %s", os.Geteuid(), strings.Join(missing, " and "))
	default:
		a.OK, a.Why = true, "CAP_BPF and CAP_PERFMON"
	}
	return a
}

func types(s *bpf.Shared) Answer {
	a := Answer{What: "type information"}
	if _, err := s.Kernel(); err != nil {
		a.Why = err.Error()
		return a
	}
	a.OK, a.Why = true, "BTF of the running kernel"
	return a
}

// signal loads and attaches for a moment: nothing else proves that it can be done.
func signal(what string, attach func() (*bpf.Attachment, error)) Answer {
	a := Answer{What: what, Signal: true}
	attachment, err := attach()
	if err != nil {
		a.Why = strings.Join(strings.Fields(err.Error()), " ")
		return a
	}
	a.OK = true
	a.Why = fmt.Sprintf("attached; %d KiB of maps", attachment.Bytes()/1024)
	if err := attachment.Close(); err != nil {
		a.Why += "; detach: " + err.Error()
	}
	return a
}

func victim(s *bpf.Shared) Answer {
	a := Answer{What: "OOM victim handed over"}
	direct, err := oom.VictimIsHandedOver(s)
	switch {
	case err != nil:
		a.Why = err.Error()
	case !direct:
		a.Why = "mark_victim gives only a pid; the victim is known by the SIGKILL that it is sent"
	default:
		a.OK, a.Why = true, "mark_victim gives the task"
	}
	return a
}

func owners(cgroupFS, procFS string) Answer {
	a := Answer{What: "control groups"}
	table, err := owner.Open(cgroupFS, procFS)
	if err != nil {
		a.Why = err.Error()
		return a
	}
	a.OK, a.Why = true, fmt.Sprintf("%d under %s", table.Stats().Entries, cgroupFS)
	return a
}
