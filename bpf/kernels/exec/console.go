package main

import (
	"bytes"
	"io"

	"github.com/yairfalse/tapio/bpf/kernels/guest"
)

// maxLine bounds what console keeps of a line that does not end, bytes.
const maxLine = 64 << 10

// maxRest bounds what console keeps from before and after the test, bytes.
const maxRest = 64 << 10

// A console takes what the virtual machine prints and passes the test's part of
// it on, line by line and without the carriage returns of the serial line. What
// the kernel prints while the test runs is passed on too: with loglevel=3 that
// is a panic or an oops.
type console struct {
	out     io.Writer
	line    []byte
	rest    []byte // from before and after the test
	release string // set when the test has started
	status  int    // valid when ended
	ended   bool
	midLine bool // out does not stand at the start of a line
}

// Write implements io.Writer. The error is that of the writer behind it.
func (c *console) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, complete := bytes.Cut(rest, []byte{'\n'})
		rest = after
		c.line = append(c.line, part...)
		if !complete && len(c.line) < maxLine {
			break
		}
		err := c.take(c.line, complete)
		c.line = c.line[:0]
		if err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// flush passes on the last line when it was not complete, and ends it.
func (c *console) flush() error {
	if err := c.take(c.line, false); err != nil {
		return err
	}
	c.line = c.line[:0]
	if !c.midLine {
		return nil
	}
	c.midLine = false
	_, err := io.WriteString(c.out, "\n")
	return err
}

func (c *console) take(line []byte, complete bool) error {
	if complete {
		line = bytes.TrimRight(line, "\r")
	}
	before, mark, isMark := guest.ParseLine(line)
	switch {
	case isMark && mark.Release != "":
		c.release = mark.Release
		return nil
	case c.release == "" || c.ended:
		c.rest = append(c.rest, line...)
		if complete {
			c.rest = append(c.rest, '\n')
		}
		c.rest = c.rest[max(0, len(c.rest)-maxRest):]
		return nil
	case isMark:
		c.ended, c.status = true, mark.Status
		return c.pass(before)
	case complete:
		return c.pass(append(line, '\n'))
	default:
		return c.pass(line)
	}
}

func (c *console) pass(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	c.midLine = b[len(b)-1] != '\n'
	_, err := c.out.Write(b)
	return err
}
