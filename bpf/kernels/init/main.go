//go:build linux && amd64

// kernel-init is the first process of the virtual machine in which kernel-exec
// runs a test binary: it makes the machine look like a node (cgroup v2 with its
// controllers, tracefs, bpffs, loopback up), runs the test and reports its
// status twice, on the console and on the debug-exit port, because a machine
// that panics ends QEMU with success.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/yairfalse/tapio/bpf/kernels/guest"
)

func main() {
	status, err := run()
	if err != nil {
		// No status: kernel-exec reports a machine without a result, with this.
		fmt.Println("kernel-init:", err)
	} else {
		fmt.Print(guest.ExitLine(status))
	}
	// The console is a serial line: without the drain the last lines are lost.
	if err := unix.IoctlSetInt(1, unix.TCSBRK, 1); err != nil {
		fmt.Println("kernel-init: drain the console:", err)
	}
	if err == nil {
		fmt.Println("kernel-init:", debugExit(status))
	}
	// With -no-reboot this ends QEMU.
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Println("kernel-init: reboot:", err)
	}
}

func run() (status int, err error) {
	// Before the mounts: a module may bring a file system.
	if err := loadModules(); err != nil {
		return 0, err
	}
	if err := mountAll(); err != nil {
		return 0, err
	}
	if err := enableControllers(); err != nil {
		return 0, err
	}
	if err := raiseLoopback(); err != nil {
		return 0, err
	}
	// Up to 5.10 the kernel charges maps and programs against this limit.
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil {
		return 0, fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return 0, fmt.Errorf("read the kernel release: %w", err)
	}
	fmt.Print(guest.StartLine(unix.ByteSliceToString(name.Release[:])))
	return runTest()
}

// A mount is tried with each of its options in turn: an old kernel refuses an
// option that it does not know.
type mount struct {
	target, fstype string
	options        []string
	optional       bool // the kernel may be without this file system
}

func mountAll() error {
	mounts := []mount{
		{target: "/proc", fstype: "proc"},
		{target: "/sys", fstype: "sysfs"},
		{target: "/dev", fstype: "devtmpfs"},
		{target: "/dev/pts", fstype: "devpts"},
		{target: "/tmp", fstype: "tmpfs"},
		{target: "/run", fstype: "tmpfs"},
		{target: "/sys/fs/cgroup", fstype: "cgroup2", options: []string{"nsdelegate,memory_recursiveprot", "nsdelegate", ""}},
		{target: "/sys/kernel/tracing", fstype: "tracefs"},
		{target: "/sys/fs/bpf", fstype: "bpf"},
		{target: "/sys/kernel/config", fstype: "configfs", optional: true}, // sets up block devices of null_blk
	}
	for _, m := range mounts {
		if err := m.do(); err != nil && !m.optional {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

func (m mount) do() error {
	// Directories in sysfs are there already if the kernel has the file system;
	// no others can be made there.
	if err := os.Mkdir(m.target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	options := m.options
	if options == nil {
		options = []string{""}
	}
	var err error
	for _, o := range options {
		if err = unix.Mount(m.fstype, m.target, m.fstype, 0, o); err == nil {
			return nil
		}
	}
	return err
}

// enableControllers hands the controllers that the observers read to the
// children of the root cgroup.
func enableControllers() error {
	const root = "/sys/fs/cgroup"
	content, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the cgroup controllers: %w", err)
	}
	available := strings.Fields(string(content))
	for _, name := range []string{"memory", "cpu", "pids", "io"} {
		if !slices.Contains(available, name) {
			continue // the test that needs it says so
		}
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+name), 0); err != nil {
			return fmt.Errorf("enable the cgroup controller %s: %w", name, err)
		}
	}
	return nil
}

func loadModules() error {
	// Glob sorts, and the names sort in load order.
	paths, err := filepath.Glob(filepath.Join(guest.Modules, "*.ko"))
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	for _, path := range paths {
		if err := loadModule(path); err != nil {
			return fmt.Errorf("load module %s: %w", path, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // only read
	return unix.FinitModule(int(file.Fd()), "", 0)
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raise the loopback interface: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing is written to it
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("raise the loopback interface: %w", err)
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("raise the loopback interface: %w", err)
	}
	return nil
}

// runTest runs the test to its end and reaps every orphan on the way, as the
// first process must. os/exec would wait for the test alone.
func runTest() (status int, err error) {
	args, err := readList(guest.Args)
	if err != nil {
		return 0, err
	}
	env, err := readList(guest.Env)
	if err != nil {
		return 0, err
	}
	// Nobody types on the console: a test that reads gets the end of file.
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, fmt.Errorf("run the test: %w", err)
	}
	defer func() { _ = null.Close() }() // only read
	pid, err := syscall.ForkExec(guest.Test, append([]string{guest.Test}, args...), &syscall.ProcAttr{
		Dir:   guest.Work,
		Env:   env,
		Files: []uintptr{null.Fd(), os.Stdout.Fd(), os.Stderr.Fd()},
	})
	if err != nil {
		return 0, fmt.Errorf("run the test: %w", err)
	}
	for {
		var wait unix.WaitStatus
		ended, err := unix.Wait4(-1, &wait, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the test: %w", err)
		case ended != pid:
		case wait.Signaled():
			fmt.Printf("kernel-init: the test was killed by a signal: %v\n", wait.Signal())
			return 128 + int(wait.Signal()), nil
		default:
			return wait.ExitStatus(), nil
		}
	}
}

func readList(path string) ([]string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("run the test: %w", err)
	}
	return guest.DecodeList(content), nil
}

// debugExit ends QEMU; it returns only to say why it could not. The cloud kernels have no /dev/port.
func debugExit(status int) error {
	// The privilege belongs to the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Iopl(3); err != nil {
		return fmt.Errorf("report the status: ask for access to I/O ports: %w", err)
	}
	out(guest.DebugExitPort, guest.PortByte(status))
	return errors.New("report the status: QEMU has no isa-debug-exit device")
}
