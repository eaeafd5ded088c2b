// Package cgroup tells which path a control group's id stands for, from the
// moment it is made.
package cgroup

import (
	"fmt"
	"unsafe"

	"github.com/yairfalse/tapio/bpf"
)

//go:generate bpf2go -cc clang-16 -strip llvm-strip-16 -target bpfel -type cgroup_event cgroup cgroup.bpf.c -- -O2 -Wall -Werror -I../include

// Event is a record of bpf.Cgroup; Head.CgroupId and Head.Hierarchy are those
// of the directory that was made or removed.
type Event = cgroupCgroupEvent

// Attach loads the programs and attaches them.
func Attach(s *bpf.Shared) (*bpf.Attachment, error) {
	spec, err := loadCgroup()
	if err != nil {
		return nil, fmt.Errorf("read the embedded object: %w", err)
	}
	return s.Attach(spec, nil)
}

// Decode views a record as an Event.
func Decode(record []byte) (*Event, error) { return bpf.View[Event](record) }

// Path copies the path out of the record, from the root of its hierarchy. ok
// is false when it was too long for the record and is cut off, or could not be
// read.
func Path(e *Event) (path string, ok bool) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(&e.Path)), len(e.Path))
	n := int(min(e.Length, uint32(len(b))))
	return string(b[:n]), n > 0 && n < len(b)-1
}
