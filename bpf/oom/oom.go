// Package oom watches the kernel's OOM killer.
package oom

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf/btf"

	"github.com/yairfalse/tapio/bpf"
)

//go:generate bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type oom_event oom oom.bpf.c -- -O2 -Wall -Werror -I../include

// Event is a record of bpf.OOMKill. Sizes are in bytes; what could not be had is 0.
type Event = oomOomEvent

// Attach loads the programs and attaches them.
func Attach(s *bpf.Shared) (*bpf.Attachment, error) {
	spec, err := loadOom()
	if err != nil {
		return nil, fmt.Errorf("read the embedded object: %w", err)
	}
	constants := bpf.Constants{"page_bytes": uint64(os.Getpagesize())}
	direct, err := VictimIsHandedOver(s)
	if err != nil {
		return nil, err
	}
	if direct {
		// Every signal of the node would run it, and nobody needs it.
		return s.Attach(spec, constants, "note_kill")
	}
	return s.Attach(spec, constants)
}

// VictimIsHandedOver says whether this kernel's mark_victim has the victim's
// task or only its pid. It was changed inside stable releases, so the version
// says nothing.
func VictimIsHandedOver(s *bpf.Shared) (bool, error) {
	kernel, err := s.Kernel()
	if err != nil {
		return false, err
	}
	var victim *btf.Struct
	err = kernel.TypeByName("trace_event_raw_mark_victim", &victim)
	if errors.Is(err, btf.ErrNotFound) {
		return false, errors.New("this kernel has no tracepoint oom/mark_victim")
	}
	if err != nil {
		return false, fmt.Errorf("look up oom/mark_victim in the kernel's type information: %w", err)
	}
	for _, m := range victim.Members {
		if m.Name == "anon_rss" {
			return true, nil
		}
	}
	return false, nil
}

// Decode views a record as an Event.
func Decode(record []byte) (*Event, error) { return bpf.View[Event](record) }
