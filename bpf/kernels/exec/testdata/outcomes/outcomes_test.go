// Package outcomes is what the tests of kernel-exec run in a virtual machine:
// one test for each way in which a test binary can end.
package outcomes

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

func TestPass(t *testing.T) {
	fmt.Println("a line of a test")
}

func TestFail(t *testing.T) {
	t.Error("wanted")
}

func TestExit(t *testing.T) {
	fmt.Print("no line end")
	os.Exit(7)
}

func TestKilled(t *testing.T) {
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {}
}

func TestHang(t *testing.T) {
	fmt.Print("hanging")
	// The runtime ends a program in which nothing can happen any more.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
	select {}
}

func TestKernelPanic(t *testing.T) {
	if os.Getenv("KERNEL_TEST_NAME") == "" {
		t.Fatal("not in a virtual machine")
	}
	fmt.Println("before the panic")
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		t.Fatal(err)
	}
	select {}
}

// TestOrphan leaves a process behind whose parent is gone; the machine has to
// end all the same.
func TestOrphan(t *testing.T) {
	if os.Getenv("OUTCOMES_CHILD") == "1" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestHang$")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOrphan$")
	cmd.Env = append(os.Environ(), "OUTCOMES_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestNode checks what the tests of the observers rely on.
func TestNode(t *testing.T) {
	for _, path := range []string{
		"/sys/kernel/btf/vmlinux",
		"/sys/kernel/tracing/events/oom/mark_victim/format",
		"/sys/kernel/config/nullb",
		"/dev/net/tun",
		"/sys/fs/bpf",
		"testdata/golden.txt",
	} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	content, err := os.ReadFile("/sys/fs/cgroup/cgroup.subtree_control")
	if err != nil {
		t.Fatal(err)
	}
	for _, controller := range []string{"memory", "cpu", "pids", "io"} {
		if !strings.Contains(" "+strings.TrimSpace(string(content))+" ", " "+controller+" ") {
			t.Errorf("no controller %s in %q", controller, content)
		}
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	tun.Close()
	var limit syscall.Rlimit
	const memlock = 8
	if err := syscall.Getrlimit(memlock, &limit); err != nil || limit.Cur != ^uint64(0) {
		t.Errorf("limit of locked memory: %d (%v)", limit.Cur, err)
	}
	if os.Getpid() == 1 {
		t.Error("the test is the first process")
	}
	if got := os.Getenv("TAPIO_OUTCOME"); got != "passed on" {
		t.Errorf("TAPIO_OUTCOME: %q", got)
	}
	if got := os.Getenv("USER"); got != "" {
		t.Errorf("USER of the host: %q", got)
	}
}
