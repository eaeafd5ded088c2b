// Package exit watches processes that fail.
package exit

import (
	"fmt"

	"github.com/yairfalse/tapio/bpf"
)

//go:generate bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type exit_event exit exit.bpf.c -- -O2 -Wall -Werror -I../include

// Event is a record of bpf.ExitCode or bpf.ExitSignal.
type Event = exitExitEvent

// Options say what the program leaves to others.
type Options struct {
	OOMUntold bool // nobody else tells what the OOM killer did
}

// Attach loads the program and attaches it.
func Attach(s *bpf.Shared, o Options) (*bpf.Attachment, error) {
	spec, err := loadExit()
	if err != nil {
		return nil, fmt.Errorf("read the embedded object: %w", err)
	}
	constants := bpf.Constants{}
	if o.OOMUntold {
		constants["oom_is_told"] = false
	}
	return s.Attach(spec, constants)
}

// Decode views a record as an Event.
func Decode(record []byte) (*Event, error) { return bpf.View[Event](record) }
