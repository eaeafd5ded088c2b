package bpf

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock turns the kernel's CLOCK_MONOTONIC into the time of day.
type Clock struct{ offset int64 }

// NewClock returns a clock that is right now.
func NewClock() *Clock {
	c := &Clock{}
	c.Sync()
	return c
}

// Sync follows a time of day that was set or slewed. Call it now and then.
func (c *Clock) Sync() {
	c.offset = time.Now().UnixNano() - int64(Now())
}

// Time returns the time of day of a record's TimeNs.
func (c *Clock) Time(ns uint64) time.Time { return time.Unix(0, int64(ns)+c.offset) }

// Now returns CLOCK_MONOTONIC in ns.
func Now() uint64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		// The kernel knows this clock, and t is ours.
		return 0
	}
	return uint64(t.Nano())
}
