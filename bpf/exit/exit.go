// Package exit watches processes that fail.
package exit

import (
	"fmt"
	"time"

	"github.com/yairfalse/tapio/bpf"
)

//go:generate bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type exit_event exit exit.bpf.c -- -O2 -Wall -Werror -I../include

// Event is a record of bpf.ExitCode or bpf.ExitSignal.
type Event = exitExitEvent

// Options are the constants of the program; a zero leaves the default of the C source.
type Options struct {
	LimitBurst    uint32        // records that a cgroup may send at once
	LimitInterval time.Duration // and then one each interval
	HabitBurst    uint32        // equal exits of one program in one cgroup that are told
	OOMUntold     bool          // nobody else tells what the OOM killer did
}

// Attach loads the program and attaches it.
func Attach(s *bpf.Shared, o Options) (*bpf.Attachment, error) {
	spec, err := loadExit()
	if err != nil {
		return nil, fmt.Errorf("read the embedded object: %w", err)
	}
	constants := bpf.Constants{}
	constants.Set("limit_burst", o.LimitBurst)
	constants.Set("limit_interval_ns", uint64(o.LimitInterval))
	constants.Set("habit_burst", o.HabitBurst)
	if o.OOMUntold {
		constants["oom_is_told"] = false
	}
	return s.Attach(spec, constants)
}

// Decode views a record as an Event.
func Decode(record []byte) (*Event, error) { return bpf.View[Event](record) }
