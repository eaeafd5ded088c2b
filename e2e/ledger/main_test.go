package ledger

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// The test binary is started again as the test in its namespaces, and as each
// source; these variables tell it which.
const (
	sourceVariable     = "LEDGER_SOURCE"     // order of a source
	namespacesVariable = "LEDGER_NAMESPACES" // those of the machine
	binariesVariable   = "LEDGER_BINARIES"   // directory of what was built
)

func TestMain(m *testing.M) {
	if order := os.Getenv(sourceVariable); order != "" {
		os.Exit(sourceMain(order))
	}
	if outside := os.Getenv(namespacesVariable); outside != "" {
		if err := enterMachine(outside); err != nil {
			fmt.Fprintf(os.Stderr, "ledger: %v\n", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	status, err := runInside()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ledger: %v\n", err)
		status = 1
	}
	os.Exit(status)
}

// runInside builds the binaries, because only outside there is a network to
// fetch modules from, and runs the tests in namespaces of their own.
func runInside() (status int, err error) {
	if os.Getuid() != 0 {
		return 0, fmt.Errorf("uid %d cannot mount the disks that the test fills: run it as root, as `make ledger` does", os.Getuid())
	}
	outside, err := namespaces()
	if err != nil {
		return 0, err
	}
	binaries, err := os.MkdirTemp("", "ledger-bin-")
	if err != nil {
		return 0, fmt.Errorf("make a place for the binaries: %w", err)
	}
	defer func() {
		if e := os.RemoveAll(binaries); err == nil {
			err = e
		}
	}()
	if err := build(binaries); err != nil {
		return 0, err
	}
	inside := exec.Command("/proc/self/exe", os.Args[1:]...)
	inside.Args[0] = os.Args[0]
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, os.Stderr
	inside.Env = append(os.Environ(), namespacesVariable+"="+outside, binariesVariable+"="+binaries)
	inside.SysProcAttr = &syscall.SysProcAttr{
		// Go makes the mounts of a new namespace private before it runs anything.
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:    syscall.SIGKILL,
	}
	if err := inside.Run(); inside.ProcessState == nil {
		return 0, fmt.Errorf("start the test in namespaces of its own: %w", err)
	}
	if status = inside.ProcessState.ExitCode(); status < 0 {
		return 0, fmt.Errorf("the test ended: %s", inside.ProcessState)
	}
	return status, nil
}

// build builds polku, ahti, and the servers that the variants need.
func build(to string) error {
	packages := []string{"./polku/cmd/polku", "./ahti/cmd/ahti"}
	if os.Getenv(natsVariable) != "" {
		packages = append(packages, "github.com/nats-io/nats-server/v2")
	}
	for _, p := range packages {
		name := filepath.Base(p)
		if name == "v2" {
			name = natsServer
		}
		cmd := exec.Command(goCommand(), "build", "-p", "2", "-o", filepath.Join(to, name), p)
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p, err, out)
		}
	}
	return nil
}

// goCommand is the go command that runs this test: sudo has another PATH.
func goCommand() string {
	if root := os.Getenv("GOROOT"); root != "" {
		return filepath.Join(root, "bin", "go")
	}
	return "go"
}
