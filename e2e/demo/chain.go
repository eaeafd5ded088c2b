package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// stopWithin is how long a part may take to end when it is asked to.
const stopWithin = 10 * time.Second

// chain is the three programs on loopback ports of their own.
type chain struct {
	binaries, folder string
	ahti             string // address of its gRPC service
	parts            []*part
}

// part is one program, started again whenever it ends by itself.
type part struct {
	name  string
	args  []string
	ready string // URL
	log   string

	mu      sync.Mutex
	cmd     *exec.Cmd
	stopped bool
	done    chan struct{}
}

func newChain(binaries, folder string) (*chain, error) {
	var ports [9]string
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		// All are held until the last is found, so that no two are the same.
		defer l.Close() //nolint:errcheck // nothing was sent
		ports[i] = l.Addr().String()
	}
	c := &chain{binaries: binaries, folder: folder, ahti: ports[0]}
	add := func(name, health string, args ...string) {
		c.parts = append(c.parts, &part{
			name: name, args: args, ready: "http://" + health + "/readyz",
			log: filepath.Join(folder, name+".log"), done: make(chan struct{}),
		})
	}
	add("ahti", ports[1],
		"--listen", ports[0], "--telemetry-listen", ports[1], "--http-listen", "", "--data-dir", filepath.Join(folder, "ahti"))
	add("polku", ports[3],
		"--listen", ports[2], "--http-listen", ports[3], "--operator-listen", ports[4], "--data-dir", filepath.Join(folder, "polku"),
		"--ahti", "http://"+ports[0])
	add("tapio", ports[5],
		"--listen", ports[5], "--polku", "http://"+ports[2], "--exit-scope", "all", "--output", "none")
	return c, nil
}

// start starts all parts, and returns when each is ready.
func (c *chain) start(ctx context.Context) error {
	for _, p := range c.parts {
		if err := p.start(c.binaries); err != nil {
			return err
		}
		go p.keep(c.binaries)
	}
	for _, p := range c.parts {
		if err := p.await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// stop ends all parts, the agent first.
func (c *chain) stop() {
	for i := len(c.parts) - 1; i >= 0; i-- {
		c.parts[i].stop()
	}
}

// tell prints an incident as its command line does.
func (c *chain) tell(ctx context.Context, id string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.binaries, "ahti"), "incidents", id, "--server", c.ahti) //nolint:gosec // our own program
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("print the incident: %w", err)
	}
	return nil
}

func (p *part) start(binaries string) error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()                                               //nolint:errcheck // the program has its own handle
	cmd := exec.Command(filepath.Join(binaries, p.name), p.args...) //nolint:gosec // our own program
	cmd.Stdout, cmd.Stderr = log, log
	// An interrupt from the terminal is for the demo, which ends them in order.
	// If it is killed, they end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := startOnThread(cmd); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.mu.Lock()
	p.cmd = cmd
	p.mu.Unlock()
	return nil
}

// startOnThread starts a process from a thread of its own, which lives as long as
// the process: the kernel takes the end of the thread for the end of the parent.
func startOnThread(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		select {}
	}()
	return <-started
}

// keep starts the part again when it ends and was not asked to.
func (p *part) keep(binaries string) {
	defer close(p.done)
	for {
		p.mu.Lock()
		cmd := p.cmd
		p.mu.Unlock()
		err := cmd.Wait()
		p.mu.Lock()
		stopped := p.stopped
		p.mu.Unlock()
		if stopped {
			return
		}
		fmt.Printf("%s ended (%v); starting it again ...\n", p.name, err)
		time.Sleep(time.Second) // a part that cannot run must not keep the machine busy
		p.mu.Lock()
		stopped = p.stopped
		p.mu.Unlock()
		if stopped {
			return
		}
		if err := p.start(binaries); err != nil {
			fmt.Fprintf(os.Stderr, "demo: %v\n", err)
			return
		}
	}
}

// await waits until the part says that it is ready.
func (p *part) await(ctx context.Context) error {
	for {
		err := p.ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not get ready (see %s): %w", p.name, p.log, err)
		case <-p.done:
			return fmt.Errorf("%s does not start (see %s)", p.name, p.log)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *part) ask(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.ready, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", p.name, err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", p.name, err)
	}
	defer answer.Body.Close() //nolint:errcheck // nothing is read
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	return nil
}

func (p *part) stop() {
	p.mu.Lock()
	p.stopped = true
	cmd := p.cmd
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(stopWithin):
		fmt.Fprintf(os.Stderr, "demo: %s does not stop; it is killed\n", p.name)
		_ = cmd.Process.Kill()
		<-p.done
	}
}
