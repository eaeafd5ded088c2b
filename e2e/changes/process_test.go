package changes

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
)

// process is one that runs, is killed, and starts again when it is told to.
type process struct {
	t         *testing.T
	name, url string // url of /metrics and /readyz
	arguments []string
	logFile   string

	mu    sync.Mutex
	cmd   *exec.Cmd
	done  chan struct{}
	kills int
	peak  int64 // largest resident set, bytes
	seen  map[string]float64
	total map[string]float64 // counters of earlier starts
}

func (p *process) start() {
	log, err := os.OpenFile(p.logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(p.t, err)
	cmd := exec.Command(filepath.Join(os.Getenv(binariesVariable), p.name), p.arguments...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // nothing stays when the test is gone
	require.NoError(p.t, cmd.Start())
	require.NoError(p.t, log.Close())
	done := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.done = cmd, done
	p.mu.Unlock()
	go func() {
		_ = cmd.Wait() // killed, or whoever waits for it will tell
		close(done)
	}()
}

// kill ends it at once.
func (p *process) kill() {
	p.observe()
	p.mu.Lock()
	p.kills++
	for name, value := range p.seen {
		p.total[name] += value
	}
	p.seen = map[string]float64{}
	p.mu.Unlock()
	_ = p.cmd.Process.Kill() // it has ended
	<-p.done
}

// stop ends it in peace.
func (p *process) stop() {
	p.observe()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it has ended
	<-p.done
}

func (p *process) running() bool {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// observe notes the resident set and the counters.
func (p *process) observe() {
	p.mu.Lock()
	pid := p.cmd.Process.Pid
	p.mu.Unlock()
	peak, err := residentPeak(pid)
	values, scrapeErr := scrape(p.url + "/metrics")
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.peak = max(p.peak, peak)
	}
	if scrapeErr == nil && p.cmd.Process.Pid == pid {
		p.seen = values
	}
}

// sum is a counter over all starts. What was counted between the last look and a
// kill is missing.
func (p *process) sum(metric string) float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total[metric] + p.seen[metric]
}

// now is the last seen value of a metric.
func (p *process) now(metric string) (float64, bool) {
	p.observe()
	p.mu.Lock()
	defer p.mu.Unlock()
	value, ok := p.seen[metric]
	return value, ok
}

func (p *process) ready() bool {
	response, err := get(p.url + "/readyz")
	if err != nil {
		return false
	}
	return response.Body.Close() == nil && response.StatusCode == http.StatusOK
}

// logEnd is the last part of its log.
func (p *process) logEnd() string {
	const most = 6000
	text, err := os.ReadFile(p.logFile)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}

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

func get(url string) (*http.Response, error) {
	client := http.Client{Timeout: 5 * time.Second}
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody) //nolint:noctx // it has a timeout
	if err != nil {
		return nil, err
	}
	request.Close = true
	return client.Do(request)
}

// scrape reads metrics: the sum of all of a name.
func scrape(url string) (_ map[string]float64, err error) {
	response, err := get(url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	values := map[string]float64{}
	for name, family := range families {
		values[name] = sum(family.GetMetric())
	}
	return values, nil
}

func sum(metrics []*dto.Metric) (total float64) {
	for _, m := range metrics {
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return total
}
