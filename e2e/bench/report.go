package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What the gateway has to reach.
const (
	wantRate  = 150_000 // events a second
	wantDelay = 50 * time.Millisecond
	wantPeak  = 150 << 20 // bytes
	wantRatio = 3         // times the collector
)

// describe says what is measured, on what.
func (p plan) describe(w io.Writer) error {
	took, err := diskDelay(p.dir)
	if err != nil {
		return err
	}
	numbered := newIDs()
	gateway, err := gatewayBatch(numbered, p.load.batch)
	if err != nil {
		return err
	}
	collector, err := collectorBatch(numbered, p.load.batch)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, `machine    %d processors (%s), Linux %s; %s: a write of 100 KiB with fsync takes %s (median), %s (p99)
load       %d connections, %d batches in flight on each, %d events a batch: %d B an event, %d B as a log record;
           %s after %s at full load, %s after %s at half of what was accepted
polku      no flags but addresses, --data-dir and --log-max-bytes %s; then started on that backlog with --ahti
collector  otlp receiver, otlp exporter {compression: none, sending_queue: {storage: file_storage, num_consumers: 10,
           sizer: requests, queue_size: 10000000}}, no processor; to keep everything, its sink holds the answers
columns    accepted: named in an Ack, or answered with OK; drained: delivered a second when no more comes;
           half load: from when a batch was due to its answer; other load: of the processors, by other programs

`, processors(), model(), release(), filesystem(p.dir),
		quantile(took, 0.5).Round(10*time.Microsecond), quantile(took, 0.99).Round(10*time.Microsecond),
		p.load.connections, p.load.inFlight, p.load.batch, len(gateway.wire)/p.load.batch, len(collector.wire)/p.load.batch,
		p.full, p.warmup, p.half, p.warmup, gatewayLog)
	return err
}

const (
	headFormat = "%-41s %9s %9s %10s %9s  %24s %9s %10s %6s\n"
	rowFormat  = "%-41s %9.0f %9.0f %10.0f %9.0f  %8.1f/%6.1f/%8.1f %9.0f %10.1f %5.0f%%\n"
)

func printHead(w io.Writer) {
	fmt.Fprintf(w, headFormat, "", "accepted", "refused", "delivered", "drained", "half load: p50/p99/max", "peak RSS", "processor", "other")
	fmt.Fprintf(w, headFormat, "", "events/s", "events/s", "events/s", "events/s", "ms", "MiB", "µs/event", "load")
}

func printRow(w io.Writer, r row) {
	ms := func(share float64) float64 { return float64(quantile(r.half.delays, share).Microseconds()) / 1000 }
	fmt.Fprintf(w, rowFormat, r.name, r.full.rate, r.full.refused, r.full.delivered, r.drained, ms(0.5), ms(0.99), ms(1),
		float64(r.peak)/(1<<20), float64(r.full.cost.Nanoseconds())/1e6, 100*max(r.full.others, r.half.others))
}

// judge says how the gateway stands to what it has to reach.
func judge(w io.Writer, gateway results, collector map[bool]results) {
	verdict := func(reached bool) string {
		if reached {
			return "reached"
		}
		return "NOT REACHED"
	}
	rate, delay := gateway.keeps.full.rate, max(quantile(gateway.keeps.half.delays, 0.99), quantile(gateway.delivers.half.delays, 0.99))
	peak := max(gateway.keeps.peak, gateway.delivers.peak)
	fmt.Fprintf(w, "\naccepted and on disk  %8.0f events/s (wanted %d: %s)\n", rate, wantRate, verdict(rate >= wantRate))
	fmt.Fprintf(w, "p99 at half load      %8.1f ms       (wanted %d: %s)\n", delay.Seconds()*1000, wantDelay.Milliseconds(), verdict(delay < wantDelay))
	fmt.Fprintf(w, "peak RSS              %8.0f MiB      (wanted %d: %s)\n", float64(peak)/(1<<20), wantPeak>>20, verdict(peak <= wantPeak))
	for _, fsync := range []bool{true, false} {
		c := collector[fsync]
		keeps, delivers := rate/c.keeps.full.rate, gateway.delivers.full.rate/c.delivers.full.rate
		fmt.Fprintf(w, "polku / collector     %.1f keeping, %.1f delivering, fsync: %t (wanted %d: %s)\n",
			keeps, delivers, fsync, wantRatio, verdict(min(keeps, delivers) >= wantRatio))
	}
}

func quantile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

func processors() int { return runtime.NumCPU() }

// model is the kind of processor.
func model() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer file.Close() //nolint:errcheck // it was only read
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func release() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

// filesystem is the kind of the one that dir is on.
func filesystem(dir string) string {
	names := map[int64]string{0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs, which is no disk", 0x794C7630: "overlay"}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return "unknown file system"
	}
	if name, known := names[int64(fs.Type)]; known { //nolint:unconvert // its type depends on the architecture
		return name
	}
	return fmt.Sprintf("file system %#x", fs.Type)
}

// diskDelay is how long writes of the size of a batch take with fsync, the
// shortest first.
func diskDelay(dir string) ([]time.Duration, error) {
	file, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return nil, fmt.Errorf("try the disk: %w", err)
	}
	defer os.Remove(file.Name()) //nolint:errcheck // the folder is removed in the end
	defer file.Close()           //nolint:errcheck // what it has does not matter
	took := make([]time.Duration, 300)
	data := make([]byte, 100<<10)
	for i := range took {
		began := time.Now()
		if _, err := file.Write(data); err != nil {
			return nil, fmt.Errorf("try the disk: %w", err)
		}
		if err := file.Sync(); err != nil {
			return nil, fmt.Errorf("try the disk: %w", err)
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took, nil
}

// busy is the time that all processors have worked since the start of the
// machine.
func busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the processor time of the machine: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	const idle, iowait, steal, tick = 4, 5, 8, 10 * time.Millisecond
	var sum time.Duration
	for i, field := range strings.Fields(line) {
		if i == 0 || i == idle || i == iowait || i > steal {
			continue
		}
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the processor time of the machine: %w", err)
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
