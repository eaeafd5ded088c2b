package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// fault is a server that was killed for memory, and its client that goes on
// calling.
type fault struct {
	server, client *exec.Cmd
	at             time.Time // of the kill
}

// breakServer starts the two, and lets the server use more memory than it may.
func breakServer(ctx context.Context, g *groups) (_ *fault, err error) {
	f := &fault{}
	defer func() {
		if err != nil {
			f.stop()
		}
	}()
	server, err := side(g, serverGroup, "serve")
	if err != nil {
		return nil, err
	}
	f.server = server.cmd
	address, err := server.said()
	if err != nil {
		return nil, err
	}
	client, err := side(g, clientGroup, "call")
	if err != nil {
		return nil, err
	}
	f.client = client.cmd
	if err := client.tell(address); err != nil {
		return nil, err
	}
	if _, err := client.said(); err != nil {
		return nil, err
	}
	fmt.Printf("a server on %s may use 64 MiB and gets greedy; its client calls it all the time ...\n", address)
	if err := server.tell("more"); err != nil {
		return nil, err
	}
	var killed *exec.ExitError
	if err := server.cmd.Wait(); !errors.As(err, &killed) {
		return nil, fmt.Errorf("the server should have been killed for memory, and ended with: %w", err)
	}
	f.at = time.Now()
	if status, ok := killed.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		return nil, fmt.Errorf("the server should have been killed for memory, and ended with: %w", killed)
	}
	return f, ctx.Err()
}

// stop ends both sides.
func (f *fault) stop() {
	for _, c := range []*exec.Cmd{f.server, f.client} {
		if c != nil && c.ProcessState == nil {
			_ = c.Process.Kill() // it may have ended already
			_ = c.Wait()         // and says that it was killed
		}
	}
}

// helper is this program in another role.
type helper struct {
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

// side starts a role inside of its control group.
func side(g *groups, group, role string) (*helper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(self, role)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the %s: %w", group, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the %s: %w", group, err)
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := startOnThread(cmd); err != nil {
		return nil, fmt.Errorf("start the %s: %w", group, err)
	}
	h := &helper{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	// It opens no socket before it is told that it is where it belongs.
	if err = g.put(cmd.Process.Pid, group); err == nil {
		err = h.tell("go")
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	return h, nil
}

func (h *helper) tell(line string) error {
	if _, err := fmt.Fprintln(h.in, line); err != nil {
		return fmt.Errorf("talk to a helper: %w", err)
	}
	return nil
}

func (h *helper) said() (string, error) {
	if !h.out.Scan() {
		return "", errors.New("a helper ended before it was ready")
	}
	return h.out.Text(), nil
}

// serve answers connections, and uses memory without end once it is told to.
func serve(in io.Reader, out io.Writer) error {
	orders := bufio.NewScanner(in)
	if !orders.Scan() {
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	fmt.Fprintln(out, l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c) // until the client has enough
				_ = c.Close()
			}()
		}
	}()
	if !orders.Scan() {
		return nil
	}
	var held [][]byte
	for {
		held = append(held, []byte(strings.Repeat("x", 1<<20)))
		if len(held)%16 == 0 {
			time.Sleep(10 * time.Millisecond) // a leak is not instant
		}
	}
}

// interval is how often the client calls.
const interval = 100 * time.Millisecond

// call calls an address over and over, and keeps one connection open.
func call(in io.Reader, out io.Writer) error {
	orders := bufio.NewScanner(in)
	for range 2 { // to go, and whom to call
		if !orders.Scan() {
			return nil
		}
	}
	address := orders.Text()
	kept, err := net.Dial("tcp", address)
	if err != nil {
		return fmt.Errorf("call: %w", err)
	}
	if _, err := fmt.Fprintln(kept, "hello"); err != nil {
		return fmt.Errorf("call: %w", err)
	}
	fmt.Fprintln(out, "connected")
	// The parent going away ends this one.
	go func() {
		orders.Scan()
		os.Exit(0)
	}()
	for {
		if c, err := net.Dial("tcp", address); err == nil {
			_, _ = fmt.Fprintln(c, "hello") // the server may be gone by now
			_ = c.Close()
		}
		time.Sleep(interval)
	}
}
