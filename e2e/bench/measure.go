package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
)

// server is a server under test with what is sent to it.
type server struct {
	process *process
	conns   []*grpc.ClientConn
	ids     *ids
	senders []sender
	sink    *sink
}

// sender sends batches at a pace until its end, and returns when all of them are
// answered.
type sender func(ctx context.Context, t *tally, p pace) error

// phase is what was measured under one load.
type phase struct {
	rate      float64 // events a second that were answered for
	refused   float64 // events a second
	delivered float64 // a second, as the sink counts
	delays    []time.Duration
	cost      time.Duration // processor time of the server for 1000 events
	others    float64       // share of the processors that other programs took
	total     int64         // events that were answered for in all
}

// results are the two ways of a server: nothing is delivered and the backlog
// grows; everything is delivered.
type results struct{ keeps, delivers row }

// row is a line of the table.
type row struct {
	name       string
	full, half phase
	drained    float64 // events a second that are delivered when no more come
	peak       int64   // bytes resident
}

// answerWithin is how long a server may take for what is left at the end.
const answerWithin = time.Minute

// drive puts a load of rate events a second on the server; 0 is as much as it
// takes.
func (s *server) drive(ctx context.Context, load shape, rate float64, warmup, measured time.Duration) (phase, error) {
	ctx, stop := context.WithTimeoutCause(ctx, warmup+measured+answerWithin,
		fmt.Errorf("%s has not answered everything %s after the last was sent", s.process.name, answerWithin))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	began := time.Now()
	t := &tally{ids: s.ids, batch: load.batch}
	ended := make(chan error, len(s.senders))
	for i, send := range s.senders {
		p := pace{began: began, until: began.Add(warmup + measured)}
		if rate > 0 {
			p.every = time.Duration(float64(len(s.senders)*load.batch) / rate * float64(time.Second))
			p.began = began.Add(p.every * time.Duration(i) / time.Duration(len(s.senders)))
		}
		go func() {
			err := send(ctx, t, p)
			if err != nil {
				cancel(err)
			}
			ended <- err
		}()
	}
	first, err := s.sample(ctx, t, began.Add(warmup))
	if err != nil {
		return phase{}, err
	}
	last, err := s.sample(ctx, t, began.Add(warmup+measured))
	if err != nil {
		return phase{}, err
	}
	var errs []error
	for range s.senders {
		errs = append(errs, <-ended)
	}
	if err := errors.Join(errs...); err != nil {
		return phase{}, errors.Join(context.Cause(ctx), err)
	}
	result := last.since(first)
	result.delays = t.since(first.at)
	result.total = t.accepted.Load()
	return result, nil
}

// sample is a reading of all counters.
type sample struct {
	at                           time.Time
	accepted, refused, delivered int64
	server, self, machine        time.Duration // on processors
}

// sample reads the counters at a time.
func (s *server) sample(ctx context.Context, t *tally, at time.Time) (sample, error) {
	select {
	case <-time.After(time.Until(at)):
	case <-s.process.done:
		return sample{}, fmt.Errorf("%s has ended: its last words are %q", s.process.name, s.process.lastWords())
	case <-ctx.Done():
		return sample{}, context.Cause(ctx)
	}
	read := sample{at: time.Now(), accepted: t.accepted.Load(), refused: t.refused.Load(), delivered: s.sink.delivered.Load()}
	var err error
	if read.server, err = s.process.processors(); err != nil {
		return sample{}, err
	}
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return sample{}, fmt.Errorf("read the own processor time: %w", err)
	}
	read.self = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	read.machine, err = busy()
	return read, err
}

func (s sample) since(first sample) phase {
	seconds := s.at.Sub(first.at).Seconds()
	accepted := float64(s.accepted - first.accepted)
	ours := s.server - first.server + s.self - first.self
	p := phase{
		rate:      accepted / seconds,
		refused:   float64(s.refused-first.refused) / seconds,
		delivered: float64(s.delivered-first.delivered) / seconds,
		others:    max(0, (s.machine-first.machine-ours).Seconds()/seconds/float64(processors())),
	}
	if accepted > 0 {
		p.cost = time.Duration(float64(s.server-first.server) / accepted * 1000)
	}
	return p
}

// measure puts full load on a server and then half of what it took.
func (s *server) measure(ctx context.Context, p plan, name string) (row, error) {
	syscall.Sync() // what others wrote is not this server's to wait for
	r := row{name: name}
	var err error
	if r.full, err = s.drive(ctx, p.load, 0, p.warmup, p.full); err != nil {
		return r, fmt.Errorf("%s at full load: %w", name, err)
	}
	if r.half, err = s.drive(ctx, p.load, r.full.rate/2, p.warmup, p.half); err != nil {
		return r, fmt.Errorf("%s at half load: %w", name, err)
	}
	if r.drained, err = s.drain(ctx, p.drain); err != nil {
		return r, err
	}
	r.peak, err = s.process.peak()
	return r, err
}

// drain lets the server deliver what it has for some time, or less if that is
// all, and returns how many events a second it delivered; 0 if it had none.
func (s *server) drain(ctx context.Context, most time.Duration) (float64, error) {
	const still, step = time.Second, 50 * time.Millisecond // nothing for so long is all
	began := time.Now()
	moved, first := began, s.sink.delivered.Load()
	last := first
	for now := began; now.Sub(began) < most && now.Sub(moved) < still; now = time.Now() {
		select {
		case <-time.After(step):
		case <-s.process.done:
			return 0, fmt.Errorf("%s has ended: its last words are %q", s.process.name, s.process.lastWords())
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		if n := s.sink.delivered.Load(); n > last {
			moved, last = time.Now(), n
		}
	}
	if last == first {
		return 0, nil
	}
	return float64(last-first) / moved.Sub(began).Seconds(), nil
}

// gatewayLog is room for all that a run sends; the default is 4 GiB.
const gatewayLog = "64GiB"

// measureGateway measures polku first without a route and then, on the log that
// this leaves, with a route that delivers.
func (p plan) measureGateway(ctx context.Context) (results, error) {
	folder := filepath.Join(p.dir, "polku")
	defer os.RemoveAll(folder) //nolint:errcheck // the folder above is removed in the end
	var r results
	made, err := p.startGateway(ctx, folder, false)
	if err != nil {
		return r, err
	}
	if r.keeps, err = p.fill(ctx, made); err != nil {
		made.kill()
		return r, err
	}
	made.stop()
	printRow(os.Stdout, r.keeps)

	if made, err = p.startGateway(ctx, folder, true); err != nil {
		return r, err
	}
	defer made.kill()
	if r.delivers, err = made.measure(ctx, p, "polku, delivers its backlog"); err != nil {
		return r, err
	}
	printRow(os.Stdout, r.delivers)
	return r, nil
}

// fill measures a gateway that keeps everything, and goes on until the backlog
// is as large as it shall be.
func (p plan) fill(ctx context.Context, s *server) (row, error) {
	r, err := s.measure(ctx, p, "polku, keeps everything")
	if err != nil {
		return r, err
	}
	b, err := gatewayBatch(newIDs(), p.load.batch)
	if err != nil {
		return r, err
	}
	size := int64(len(b.wire) / p.load.batch)
	for backlog := (r.full.total + r.half.total) * size; backlog < p.backlog; {
		more, err := s.drive(ctx, p.load, 0, 0, time.Second)
		if err != nil {
			return r, err
		}
		backlog += more.total * size
	}
	r.peak, err = s.process.peak()
	return r, err
}

func (p plan) startGateway(ctx context.Context, folder string, delivers bool) (*server, error) {
	addresses, err := freeAddresses(3)
	if err != nil {
		return nil, err
	}
	s := &server{ids: newIDs()}
	if s.sink, err = newSink(false, p.load.batch); err != nil {
		return nil, err
	}
	args := []string{
		"--listen", addresses[0], "--operator-listen", addresses[1], "--http-listen", addresses[2],
		"--data-dir", folder, "--log-max-bytes", gatewayLog,
	}
	if delivers {
		args = append(args, "--ahti", s.sink.address)
	}
	if s.process, err = start(p.dir, filepath.Join(p.binaries, "polku"), args...); err != nil {
		return nil, err
	}
	if s.conns, err = s.process.connect(ctx, addresses[0], p.load.connections); err != nil {
		s.kill()
		return nil, err
	}
	for _, conn := range s.conns {
		batches := make([]batch, p.load.inFlight)
		for i := range batches {
			if batches[i], err = gatewayBatch(s.ids, p.load.batch); err != nil {
				s.kill()
				return nil, err
			}
		}
		s.senders = append(s.senders, func(ctx context.Context, t *tally, pace pace) error {
			return newStream(t, pace, batches).run(ctx, conn)
		})
	}
	return s, nil
}

// measureCollector measures the collector with a sink that holds its answers and
// then with one that gives them.
func (p plan) measureCollector(ctx context.Context, fsync bool) (results, error) {
	var r results
	for _, way := range []struct {
		name  string
		holds bool
		row   *row
	}{{"keeps everything", true, &r.keeps}, {"delivers", false, &r.delivers}} {
		folder := filepath.Join(p.dir, "otelcol")
		s, err := p.startCollector(ctx, folder, fsync, way.holds)
		if err != nil {
			return r, err
		}
		*way.row, err = s.measure(ctx, p, fmt.Sprintf("collector, fsync: %t, %s", fsync, way.name))
		s.kill()
		if err := errors.Join(err, os.RemoveAll(folder)); err != nil {
			return r, err
		}
		printRow(os.Stdout, *way.row)
	}
	return r, nil
}

// Settings of the collector that matter here. Without room in its queue it would
// refuse; compression would take the time of processors.
const collectorConfig = `
receivers:
  otlp:
    protocols:
      grpc: {endpoint: %q, max_recv_msg_size_mib: 16}
exporters:
  otlp_grpc:
    endpoint: %q
    tls: {insecure: true}
    compression: none
    timeout: 1h
    retry_on_failure: {enabled: true, max_elapsed_time: 0s}
    sending_queue: {enabled: true, storage: file_storage, num_consumers: 10, sizer: requests, queue_size: 10000000}
extensions:
  file_storage: {directory: %q, create_directory: true, fsync: %t}
service:
  extensions: [file_storage]
  pipelines:
    logs: {receivers: [otlp], exporters: [otlp_grpc]}
  telemetry:
    metrics: {level: none}
    logs: {level: warn}
`

func (p plan) startCollector(ctx context.Context, folder string, fsync, holds bool) (*server, error) {
	addresses, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	s := &server{ids: newIDs()}
	if s.sink, err = newSink(holds, p.load.batch); err != nil {
		return nil, err
	}
	config := filepath.Join(p.dir, "otelcol.yaml")
	text := fmt.Sprintf(collectorConfig, addresses[0], s.sink.address, folder, fsync)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write the collector's configuration: %w", err)
	}
	if s.process, err = start(p.dir, p.otelcol, "--config", config); err != nil {
		return nil, err
	}
	if s.conns, err = s.process.connect(ctx, addresses[0], p.load.connections); err != nil {
		s.kill()
		return nil, err
	}
	for _, conn := range s.conns {
		for range p.load.inFlight {
			b, err := collectorBatch(s.ids, p.load.batch)
			if err != nil {
				s.kill()
				return nil, err
			}
			s.senders = append(s.senders, func(ctx context.Context, t *tally, pace pace) error {
				return export(ctx, conn, t, pace, b)
			})
		}
	}
	return s, nil
}

// stop ends the server in order, kill at once. Both end what belongs to it.
func (s *server) stop() {
	_ = closeAll(s.conns) // nothing is under way
	s.process.stop()
	s.sink.stop()
}

func (s *server) kill() {
	s.process.kill()
	_ = closeAll(s.conns)
	s.sink.stop()
}
