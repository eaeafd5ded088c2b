package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/yairfalse/tapio/bpf/kernels/guest"
)

const qemu = "qemu-system-x86_64"

// commandLine is the kernel's:
//   - panic=-1 with -no-reboot ends QEMU at a panic;
//   - loglevel=3 keeps the console for the test, up to an oops;
//   - the rest saves time, or trouble with timers, on an emulated processor.
const commandLine = "console=ttyS0 panic=-1 loglevel=3 mitigations=off nokaslr no_timer_check tsc=reliable"

// killDelay is how long QEMU's output is still read after QEMU was killed.
const killDelay = 5 * time.Second

// A machine is a virtual machine that boots once per call of run.
type machine struct {
	kernel    string // path of the vmlinuz
	initramfs string // path
	memory    int    // MiB
}

// errNoResult says that the machine ended and the test did not report a status:
// the kernel panicked, the first process failed, or QEMU could not start.
var errNoResult = errors.New("the virtual machine ended without a result")

// run boots the machine and waits for its end. The test's output goes to
// stdout; what is left to explain an error goes to stderr. The status is the
// test's. A context that ends kills the machine.
func (m machine) run(ctx context.Context, stdout, stderr io.Writer) (status int, release string, err error) {
	screen := &console{out: stdout}
	cmd := exec.CommandContext(ctx, qemu,
		// No KVM: it cannot be counted on where the tests run.
		"-accel", "tcg", "-M", "q35", "-cpu", "max",
		// With two processors a kernel oopsed now and then under emulation.
		"-smp", "1",
		"-m", strconv.Itoa(m.memory),
		"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot",
		"-serial", "stdio",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=0x04", guest.DebugExitPort),
		"-kernel", m.kernel, "-initrd", m.initramfs, "-append", commandLine,
	)
	cmd.Stdout, cmd.Stderr = screen, stderr
	cmd.WaitDelay = killDelay
	// go test kills what overruns its time, and QEMU must not survive that.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	err = cmd.Run()
	if flushErr := screen.flush(); flushErr != nil {
		return 0, screen.release, fmt.Errorf("pass the test's output on: %w", flushErr)
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("the virtual machine was stopped: %w", context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return 0, "", fmt.Errorf("%w (apt-get install --no-install-recommends qemu-system-x86)", err)
	case err != nil && !errors.As(err, &exit):
		return 0, screen.release, fmt.Errorf("run %s: %w", qemu, err)
	case screen.ended && cmd.ProcessState.ExitCode() == guest.QEMUStatus(screen.status):
		return screen.status, screen.release, nil
	default:
		err = fmt.Errorf("%w (%s: %v)", errNoResult, qemu, cmd.ProcessState)
	}
	if rest := bytes.TrimSpace(screen.rest); len(rest) > 0 {
		fmt.Fprintf(stderr, "kernel-exec: before and after the test the console said:\n%s\n", rest)
	}
	return 0, screen.release, err
}
