package bpf

import (
	"fmt"
	"unsafe"
)

// Head begins every record.
type Head = mapsHead

// Comm is a process name as the kernel keeps it: at most 15 bytes, ended by a zero.
type Comm = [16]int8

// CommString copies the name out of the record.
func CommString(c *Comm) string {
	b := unsafe.Slice((*byte)(unsafe.Pointer(c)), len(c))
	for i, x := range b {
		if x == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// View looks at a record as a T without copying it; the result is valid as
// long as the record is. T must be a type that bpf2go made from the record's
// own definition. A record that is too short for it, or not aligned for it, is
// an error: a program of another version wrote it.
func View[T any](record []byte) (*T, error) {
	var t T
	if len(record) < int(unsafe.Sizeof(t)) {
		return nil, fmt.Errorf("read kernel record: %d bytes, want at least %d for %T", len(record), unsafe.Sizeof(t), t)
	}
	p := unsafe.Pointer(unsafe.SliceData(record))
	if uintptr(p)%unsafe.Alignof(t) != 0 {
		return nil, fmt.Errorf("read kernel record: %T at the unaligned address %p", t, p)
	}
	return (*T)(p), nil
}

// HeadOf returns the head of a record that View returned.
func HeadOf[T any](record *T) *Head { return (*Head)(unsafe.Pointer(record)) }
