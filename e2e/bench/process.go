package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	startWithin = time.Minute
	stopWithin  = 20 * time.Second
)

// process is a server under test.
type process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
}

// start starts a program whose output goes to a file. It must be called by the
// goroutine of main.
func start(folder, program string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(program), done: make(chan struct{})}
	p.log = filepath.Join(folder, p.name+".log")
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()                      //nolint:errcheck // the program has its own handle
	p.cmd = exec.Command(program, args...) //nolint:gosec // the program to measure
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ends is in its log
		close(p.done)
	}()
	return p, nil
}

// connect opens connections to a server that may still be starting.
func (p *process) connect(ctx context.Context, address string, connections int) ([]*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	conns := make([]*grpc.ClientConn, connections)
	for i := range conns {
		conn, err := grpc.NewClient(address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(16<<20)))
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", p.name, err)
		}
		conns[i] = conn
		conn.Connect()
		for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
			if s == connectivity.Idle {
				conn.Connect()
			}
			if !conn.WaitForStateChange(ctx, s) {
				return nil, errors.Join(fmt.Errorf("%s does not start: its last words are %q", p.name, p.lastWords()), closeAll(conns))
			}
		}
	}
	return conns, nil
}

func closeAll(conns []*grpc.ClientConn) error {
	var errs []error
	for _, c := range conns {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

func (p *process) lastWords() string {
	const enough = 600
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-enough):])
}

// stop ends the process.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(stopWithin):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// kill ends the process now: what it holds is of no use any more.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// peak is the most memory that the process had resident at once, bytes.
func (p *process) peak() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of %s: %w", p.name, err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no VmHWM", p.name)
}

// processors is the time that the process had on processors.
func (p *process) processors() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read the processor time of %s: %w", p.name, err)
	}
	// The name of the program, which is in parentheses, may have spaces.
	fields := strings.Fields(string(text[strings.LastIndex(string(text), ")")+1:]))
	const user, system, tick = 11, 12, 10 * time.Millisecond
	u, err := strconv.Atoi(fields[user])
	if err != nil {
		return 0, fmt.Errorf("read the processor time of %s: %w", p.name, err)
	}
	s, err := strconv.Atoi(fields[system])
	return time.Duration(u+s) * tick, err
}

// freeAddresses finds addresses on loopback that nobody has.
func freeAddresses(n int) ([]string, error) {
	found := make([]string, n)
	for i := range found {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		// All are held until the last is found, so that no two are the same.
		defer l.Close() //nolint:errcheck // nothing was sent
		found[i] = l.Addr().String()
	}
	return found, nil
}
