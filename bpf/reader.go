package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

// The kernel side wakes the reader after a quiet spell of 50 ms and stays
// silent for as long after that (QUIET_NS in include/tapio.h). So after a
// wake-up the reader looks again by itself until a look finds nothing.
const (
	look = 100 * time.Millisecond
	tick = time.Second
)

// busy is after how many records in a row the reader looks up: a ring that is
// filled as fast as it is read is never empty.
const busy = 256

// Reader reads the records of all signals from the shared ring, in the order
// in which they were made. One goroutine may use it.
type Reader struct {
	ring *ringbuf.Reader
	rec  ringbuf.Record
}

// NewReader opens the ring.
func (s *Shared) NewReader() (*Reader, error) {
	ring, err := ringbuf.NewReader(s.maps.Events)
	if err != nil {
		return nil, fmt.Errorf("open the ring buffer: %w", err)
	}
	return &Reader{ring: ring}, nil
}

// Run calls record for every record and idle at least once a second, both on
// the caller's goroutine, until ctx is done; then it hands over what the ring
// still holds and returns nil. The record is valid during the call only.
func (r *Reader) Run(ctx context.Context, record func([]byte), idle func()) error {
	stop := context.AfterFunc(ctx, func() { _ = r.ring.Flush() })
	defer stop()
	next := time.Now().Add(tick)
	r.ring.SetDeadline(next)
	found := 0 // records since the last look
	for {
		err := r.ring.ReadInto(&r.rec)
		switch {
		case err == nil:
			if found == 0 {
				r.ring.SetDeadline(time.Now().Add(look))
			}
			found++
			record(r.rec.RawSample)
			if found%busy != 0 {
				continue
			}
			if ctx.Err() != nil {
				return r.Drain(record)
			}
			if now := time.Now(); !now.Before(next) {
				next = now.Add(tick)
				idle()
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			now := time.Now()
			if !now.Before(next) {
				next = now.Add(tick)
				idle()
			}
			if found > 0 {
				r.ring.SetDeadline(now.Add(look))
			} else {
				r.ring.SetDeadline(next)
			}
			found = 0
		case errors.Is(err, ringbuf.ErrFlushed):
			if ctx.Err() != nil {
				return nil
			}
		default:
			return fmt.Errorf("read the ring buffer: %w", err)
		}
	}
}

// Drain hands over what the ring holds and returns: after one ring full at the
// latest, even if more keeps coming.
func (r *Reader) Drain(record func([]byte)) error {
	r.ring.SetDeadline(time.Unix(0, 1))
	for left := r.ring.BufferSize(); left > 0; {
		switch err := r.ring.ReadInto(&r.rec); {
		case err == nil:
			left -= ringBytes(r.rec.RawSample)
			record(r.rec.RawSample)
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, ringbuf.ErrFlushed):
			return nil
		default:
			return fmt.Errorf("drain the ring buffer: %w", err)
		}
	}
	return nil
}

// ringBytes returns what a record takes in the ring: a header of 8 bytes goes
// before it and it ends on a multiple of 8.
func ringBytes(record []byte) int { return 8 + (len(record)+7)&^7 }

// Close frees the ring's memory map.
func (r *Reader) Close() error { return r.ring.Close() }
