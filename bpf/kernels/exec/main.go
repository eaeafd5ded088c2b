// kernel-exec runs a test binary on another kernel, in a virtual machine:
//
//	go test -exec "$PWD/bin/kernel-exec -kernel $PWD/.cache/kernels/6.1" ./...
//
// (Absolute paths: go test runs it in the folder of each package.) The binary
// must be static, CGO_ENABLED=0. It runs as root beside a copy of the package's
// testdata. The folder of the kernel comes from bpf/kernels/fetch.
//
// The exit status is the test's; 124 when the time is over and 125 when there
// is no status of the test, as of timeout(1).
package main

import (
	"context"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/yairfalse/tapio/bpf/kernels/guest"
)

// Exit statuses that are not the test's, as of timeout(1).
const (
	exitTimeout  = 124
	exitNoResult = 125
)

func main() {
	// The kernel sends the parent-death signal of QEMU when the thread ends that
	// started it, so this thread has to live as long as the program.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()

	cfg, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case err != nil:
		fmt.Fprintln(os.Stderr, "kernel-exec:", err)
		os.Exit(exitNoResult)
	}
	status, err := run(ctx, cfg, os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "kernel-exec: kernel %s: %v\n", filepath.Base(cfg.kernel), err)
	}
	os.Exit(status)
}

type config struct {
	kernel  string        // folder made by fetch
	init    string        // path of kernel-init
	memory  int           // MiB
	timeout time.Duration // of everything, retry included
	test    string        // path of the test binary
	args    []string      // its arguments, as go test gave them
	environ []string      // the host's environment
}

func parse(args []string, stderr io.Writer) (config, error) {
	cfg := config{environ: os.Environ()}
	flags := flag.NewFlagSet("kernel-exec", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: kernel-exec -kernel FOLDER [flags] TEST-BINARY [arguments]")
		flags.PrintDefaults()
	}
	flags.StringVar(&cfg.kernel, "kernel", "", "`folder` of the kernel, made by bpf/kernels/fetch")
	flags.StringVar(&cfg.init, "init", "", "`path` of kernel-init (default: beside kernel-exec)")
	flags.IntVar(&cfg.memory, "memory", 768, "memory of the virtual machine, `MiB`")
	flags.DurationVar(&cfg.timeout, "timeout", 5*time.Minute, "end the virtual machine after this `duration`")
	if err := flags.Parse(args); err != nil {
		return config{}, err
	}
	if cfg.kernel == "" || flags.NArg() == 0 {
		flags.Usage()
		return config{}, errors.New("a kernel and a test binary are needed")
	}
	cfg.kernel = filepath.Clean(cfg.kernel)
	cfg.test, cfg.args = flags.Arg(0), flags.Args()[1:]
	if cfg.init == "" {
		self, err := os.Executable()
		if err != nil {
			return config{}, fmt.Errorf("find kernel-init: %w", err)
		}
		cfg.init = filepath.Join(filepath.Dir(self), "kernel-init")
	}
	return cfg, nil
}

// run returns the status to exit with. With an error it is not the test's.
func run(ctx context.Context, cfg config, stdout, stderr io.Writer) (status int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.timeout,
		fmt.Errorf("no end after %v (-timeout)", cfg.timeout))
	defer cancel()

	image, err := buildInitramfs(cfg)
	if err != nil {
		return exitNoResult, err
	}
	defer func() { _ = image.Close() }() // without a name: gone with it
	vm := machine{
		kernel:    filepath.Join(cfg.kernel, "vmlinuz"),
		initramfs: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), image.Fd()),
		memory:    cfg.memory,
	}
	status, release, err := vm.run(ctx, stdout, stderr)
	if errors.Is(err, errNoResult) {
		// Emulation fails now and then; a test that brings the kernel down does so again.
		fmt.Fprintf(stderr, "kernel-exec: kernel %s: %v; running it once more\n", filepath.Base(cfg.kernel), err)
		status, release, err = vm.run(ctx, stdout, stderr)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return exitTimeout, err
	case err != nil:
		return exitNoResult, err
	}
	fmt.Fprintf(stderr, "kernel-exec: ran on Linux %s\n", release)
	return status, nil
}

// buildInitramfs returns a file without a name: nothing has to be removed,
// however the program ends.
func buildInitramfs(cfg config) (_ *os.File, err error) {
	if _, err := os.Stat(filepath.Join(cfg.kernel, "vmlinuz")); err != nil {
		return nil, fmt.Errorf("%w (run bpf/kernels/fetch)", err)
	}
	if err := checkStatic(cfg.test); err != nil {
		return nil, err
	}
	args, err := guestArguments(cfg.args)
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp("", "kernel-exec-initramfs-")
	if err != nil {
		return nil, fmt.Errorf("build the initramfs: %w", err)
	}
	defer func() {
		if err != nil {
			_ = file.Close() // err says more
		}
	}()
	if err := os.Remove(file.Name()); err != nil {
		return nil, fmt.Errorf("build the initramfs: %w", err)
	}
	if err := writeInitramfs(newArchive(file), cfg, args); err != nil {
		return nil, fmt.Errorf("build the initramfs: %w", err)
	}
	return file, nil
}

// checkStatic refuses a test binary that needs a dynamic linker. In the machine
// there is none, and the kernel's "no such file" would not say so.
func checkStatic(test string) error {
	file, err := elf.Open(test)
	if err != nil {
		return fmt.Errorf("read the test binary: %w", err)
	}
	defer func() { _ = file.Close() }() // only read
	for _, program := range file.Progs {
		if program.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not static: build it with CGO_ENABLED=0", test)
		}
	}
	return nil
}

func writeInitramfs(a *archive, cfg config, args []string) error {
	encodedArgs, err := guest.EncodeList(args)
	if err != nil {
		return err
	}
	encodedEnv, err := guest.EncodeList(guestEnvironment(cfg.environ, filepath.Base(cfg.kernel)))
	if err != nil {
		return err
	}
	modules, err := filepath.Glob(filepath.Join(cfg.kernel, "modules", "*.ko"))
	if err != nil {
		return err
	}
	// The kernel opens it for the first process, before anything is mounted.
	a.device("dev/console", 5, 1)
	a.file(name(guest.Init), cfg.init)
	a.file(name(guest.Test), cfg.test)
	a.content(name(guest.Args), encodedArgs)
	a.content(name(guest.Env), encodedEnv)
	for _, module := range modules {
		a.file(name(guest.Modules, filepath.Base(module)), module)
	}
	a.dir(name(guest.Work))
	// go test runs this program in the package's folder.
	if info, err := os.Stat("testdata"); err == nil && info.IsDir() {
		a.tree(name(guest.Work, "testdata"), "testdata")
	}
	return a.close()
}

// name turns a path in the virtual machine into a name in the archive.
func name(elements ...string) string {
	return strings.TrimPrefix(path.Join(elements...), "/")
}
