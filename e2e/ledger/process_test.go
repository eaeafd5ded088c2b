package ledger

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// restartPause is how long a process that ended by itself stays down, as under
// any supervisor.
const restartPause = 300 * time.Millisecond

// process is one that is started again whenever it ends, until it is told to
// stop or, a source, has done its work.
type process struct {
	name    string
	command func() *exec.Cmd
	metrics string // URL; empty for none
	ready   string // URL that answers 200 when the process works; empty for none
	finite  bool   // ends with status 0 when its work is done
	log     *os.File

	done chan struct{} // closed when it will not run again

	mu       sync.Mutex
	cmd      *exec.Cmd
	starts   int
	kills    int
	pause    time.Duration // before the next start; negative when no kill is due
	stopping bool
	excused  bool     // its disk is full or its servers are away: it may end
	excuses  int      // ends while excused
	faults   []string // ends that nobody ordered
	peak     int64    // largest resident set, bytes
	counters []map[string]float64
}

// start runs the process until stop.
func (p *process) start(logFile string) error {
	var err error
	if p.log, err = os.OpenFile(logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return fmt.Errorf("open the log of %s: %w", p.name, err)
	}
	p.done, p.pause = make(chan struct{}), -1
	go p.supervise()
	return nil
}

func (p *process) supervise() {
	defer close(p.done)
	for {
		p.mu.Lock()
		if p.stopping {
			p.mu.Unlock()
			return
		}
		cmd := p.command()
		cmd.Stdout, cmd.Stderr = p.log, p.log
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // nothing stays when the test is gone
		err := cmd.Start()
		p.cmd = cmd
		p.starts++
		p.counters = append(p.counters, nil)
		p.mu.Unlock()
		if err == nil {
			err = cmd.Wait()
		}
		pause, again := p.ended(err)
		if !again {
			return
		}
		time.Sleep(pause)
	}
}

// ended judges an end and tells how long to wait before the next start.
func (p *process) ended(err error) (pause time.Duration, again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd = nil
	killed := p.pause >= 0
	pause, p.pause = p.pause, -1
	switch {
	case killed:
		return pause, true
	case p.finite && err == nil:
		return 0, false
	case p.stopping:
		if err != nil {
			p.faults = append(p.faults, fmt.Sprintf("%s did not stop well: %v", p.name, err))
		}
		return 0, false
	case p.excused:
		p.excuses++
	default:
		p.faults = append(p.faults, fmt.Sprintf("start %d of %s ended by itself: %v", p.starts, p.name, err))
	}
	return restartPause, true
}

// signal sends a signal if the process runs.
func (p *process) signal(s os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Signal(s) // it has ended, or the supervisor will see it end
	}
}

// kill ends the process at once; it starts again after a pause. It reports
// whether it ran.
func (p *process) kill(pause time.Duration) bool {
	p.observe()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.pause >= 0 {
		return false
	}
	p.pause = pause
	p.kills++
	_ = p.cmd.Process.Kill()
	return true
}

// stop ends the process in peace with a signal.
func (p *process) stop(s os.Signal, within time.Duration) error {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	p.signal(s)
	select {
	case <-p.done:
		return nil
	case <-time.After(within):
		p.signal(os.Kill)
		return fmt.Errorf("%s did not stop within %s", p.name, within)
	}
}

func (p *process) excuse(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.excused = yes
}

func (p *process) finished() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// observe notes the resident set and the counters of the process that runs now.
func (p *process) observe() {
	p.mu.Lock()
	cmd, start := p.cmd, p.starts-1
	p.mu.Unlock()
	if cmd == nil || cmd.Process == nil {
		return
	}
	peak, err := residentPeak(cmd.Process.Pid)
	var counters map[string]float64
	if p.metrics != "" {
		counters, _ = scrape(p.metrics) // it starts, or hangs, or is being killed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.peak = max(p.peak, peak)
	}
	if counters != nil && p.cmd == cmd { // else the next start may have answered
		p.counters[start] = counters
	}
}

// now is the last seen value of a metric of the process that runs; ok is false
// when it was not seen.
func (p *process) now(metric string) (value float64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.counters) == 0 {
		return 0, false
	}
	value, ok = p.counters[len(p.counters)-1][metric]
	return value, ok
}

// total adds up a counter over all starts. What was counted between the last
// look and a kill is missing.
func (p *process) total(metric string) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := 0.0
	for _, counters := range p.counters {
		sum += counters[metric]
	}
	return sum
}

// residentPeak is the most memory that a process has had resident, bytes.
func residentPeak(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, "VmHWM:"); found {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("it has no memory any more")
}
