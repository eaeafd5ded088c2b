// Package guest is what kernel-exec, on the host, and kernel-init, in the
// virtual machine, agree on: where things lie in the initramfs, the lines that
// mark the test's output on the console, and the status on the debug-exit port.
package guest

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Paths in the initramfs.
const (
	Init    = "/init"    // the first process
	Test    = "/test"    // the test binary
	Args    = "/args"    // its arguments, a list
	Env     = "/env"     // its environment, a list of NAME=value
	Work    = "/work"    // its working directory, which holds testdata
	Modules = "/modules" // *.ko, loaded in the order of their names
)

// DebugExitPort is the I/O port of QEMU's isa-debug-exit device. A byte written
// there ends QEMU with the exit status byte<<1 | 1.
const DebugExitPort = 0xf4

// portMark is set in every byte for the port. Without it the status 0 would end
// QEMU with 1, which is also how it ends when it cannot start at all.
const portMark = 0x40

// PortByte returns what to write to the port for a test that ended with status.
// The port has room for the low six bits only.
func PortByte(status int) byte {
	return byte(status)&(portMark-1) | portMark
}

// QEMUStatus returns the exit status of a QEMU whose guest wrote PortByte(status).
func QEMUStatus(status int) int {
	return int(PortByte(status))<<1 | 1
}

// mark opens the lines of kernel-init. The control character (record separator)
// keeps them apart from whatever a test or the kernel prints on the same console.
const mark = "\x1ekernel-init: "

const (
	startVerb = "start "
	exitVerb  = "exit "
)

// StartLine is printed before the test starts. What stands before it on the
// console is the kernel's, what follows is the test's.
func StartLine(release string) string { return mark + startVerb + release + "\n" }

// ExitLine is printed after the test ended with status, 128+n when signal n
// killed it.
func ExitLine(status int) string { return mark + exitVerb + strconv.Itoa(status) + "\n" }

// Mark is a line of kernel-init, as read from the console.
type Mark struct {
	Release string // from StartLine; empty for ExitLine
	Status  int    // from ExitLine
}

// ParseLine looks for a mark in a line without its line end. Text that was
// printed on the same line before the mark is returned as before.
func ParseLine(line []byte) (before []byte, m Mark, ok bool) {
	before, rest, found := bytes.Cut(line, []byte(mark))
	if !found {
		return line, Mark{}, false
	}
	if release, found := strings.CutPrefix(string(rest), startVerb); found && release != "" {
		return before, Mark{Release: release}, true
	}
	if number, found := strings.CutPrefix(string(rest), exitVerb); found {
		if status, err := strconv.ParseUint(number, 10, 8); err == nil {
			return before, Mark{Status: int(status)}, true
		}
	}
	return line, Mark{}, false
}

// EncodeList returns the content of Args or Env. No entry may hold a NUL byte;
// neither can an argument or a variable of a process.
func EncodeList(list []string) ([]byte, error) {
	var b bytes.Buffer
	for _, entry := range list {
		if strings.ContainsRune(entry, 0) {
			return nil, fmt.Errorf("encode list: %q holds a NUL byte", entry)
		}
		b.WriteString(entry)
		b.WriteByte(0)
	}
	return b.Bytes(), nil
}

// DecodeList is the reverse of EncodeList.
func DecodeList(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
}
