// Package ingest takes events from all streams into the store, many streams in
// one transaction, and hands what was stored to the engine.
package ingest

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yairfalse/tapio/ahti/internal/store"
	"github.com/yairfalse/tapio/shared/causality"
)

const (
	// maxCommit is how many events one transaction takes: enough that the sync
	// of the disk is shared by many, few enough that the first does not wait
	// long for the last.
	maxCommit = 8192
	// checkpointEvents and checkpointEvery bound what a restart reads again.
	checkpointEvents = 20_000
	checkpointEvery  = 10 * time.Second
	// retryEvery is how often a store that failed is tried.
	retryEvery = time.Second
	// waiting is how many commits the engine may be behind before the next one
	// waits for it.
	waiting = 2
)

// Batch is what one request asks to store.
type Batch struct {
	Records []*store.Record
	// Release is called as soon as it is known what became of the batch: the
	// memory of its events is free then, whoever reads the answer. It may be nil.
	Release func()
	// Duplicates is how many records were stored already. Read it after Done.
	Duplicates int64
	done       chan struct{}
	err        error
}

// Done is closed when it is known what became of the batch.
func (b *Batch) Done() <-chan struct{} { return b.done }

// Err is nil when everything in the batch is stored. Call it after Done.
func (b *Batch) Err() error { return b.err }

// finish tells what became of the batch. Of its records only the sequences are
// needed from here on.
func (b *Batch) finish(err error) {
	b.err = err
	for _, r := range b.Records {
		if r.Sequence == 0 {
			b.Duplicates++
		}
	}
	b.Records = nil
	close(b.done)
	if b.Release != nil {
		b.Release()
	}
}

// ErrStopped is the error of what came too late.
var ErrStopped = errors.New("ahti is stopping")

// Writer is the only one that appends to the log.
type Writer struct {
	store  *store.Store
	engine *causality.Engine
	log    *slog.Logger
	queue  chan *Batch
	behind chan []*store.Record
	stop   chan struct{}

	metrics *metrics

	mu      sync.Mutex
	failure error
	applied uint64 // events handed to the engine
}

// NewWriter prepares a writer. The engine must have what is stored.
func NewWriter(s *store.Store, engine *causality.Engine, registry prometheus.Registerer, log *slog.Logger) (*Writer, error) {
	m, err := newMetrics(registry)
	if err != nil {
		return nil, err
	}
	return &Writer{
		store: s, engine: engine, log: log, metrics: m,
		queue: make(chan *Batch), behind: make(chan []*store.Record, waiting), stop: make(chan struct{}),
	}, nil
}

// Submit queues a batch and returns without waiting for its commit. It waits
// for room in the queue.
func (w *Writer) Submit(ctx context.Context, b *Batch) error {
	b.done = make(chan struct{})
	select {
	case w.queue <- b:
		return nil
	case <-w.stop:
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Failure says why the store does not take events; nil when it does.
func (w *Writer) Failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failure
}

// Applied counts the events that the engine has seen since the start.
func (w *Writer) Applied() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.applied
}

// Run stores what is submitted until ctx is done, and then what was submitted
// by then. It ends with store.ErrReplaced when another ahti writes.
func (w *Writer) Run(ctx context.Context) error {
	var applier sync.WaitGroup
	applier.Go(w.apply)
	defer applier.Wait()
	defer close(w.behind)
	defer close(w.stop)

	background := context.WithoutCancel(ctx) // a commit that has begun ends
	retry := time.NewTicker(retryEvery)
	defer retry.Stop()
	for {
		select {
		case b := <-w.queue:
			w.commit(background, w.gather(b))
		case <-retry.C:
			w.retry(background)
		case <-ctx.Done():
			return nil
		}
		if err := w.Failure(); errors.Is(err, store.ErrReplaced) {
			return err
		}
	}
}

// gather takes what waits already: while a transaction runs, the next one fills
// up, so nobody needs to wait for company.
func (w *Writer) gather(first *Batch) []*Batch {
	batches, n := []*Batch{first}, len(first.Records)
	for n < maxCommit {
		select {
		case b := <-w.queue:
			batches = append(batches, b)
			n += len(b.Records)
		default:
			return batches
		}
	}
	return batches
}

func (w *Writer) commit(ctx context.Context, batches []*Batch) {
	var records []*store.Record
	for _, b := range batches {
		records = append(records, b.Records...)
	}
	start := time.Now()
	err := w.recover(ctx)
	if err == nil {
		err = w.store.Append(ctx, records)
	}
	if err != nil {
		w.fail(err)
		w.metrics.failures.Inc()
	} else {
		w.metrics.commits.Observe(time.Since(start).Seconds())
	}
	for _, b := range batches {
		b.finish(err)
	}
	if err != nil {
		return
	}
	stored := records[:0]
	for _, r := range records {
		if r.Sequence != 0 {
			stored = append(stored, r)
		}
	}
	w.metrics.ingested.Add(float64(len(stored)))
	w.metrics.duplicates.Add(float64(len(records) - len(stored)))
	if len(stored) > 0 {
		w.behind <- stored
	}
}

// recover finds out what became of a commit that failed.
func (w *Writer) recover(ctx context.Context) error {
	missed, err := w.store.Missed(ctx)
	if err != nil {
		return err
	}
	if len(missed) > 0 {
		w.log.Info("a commit that failed without an answer was done", "events", len(missed))
		w.metrics.ingested.Add(float64(len(missed)))
		w.behind <- missed
	}
	return nil
}

// fail notes a failure, and logs the first of a row.
func (w *Writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failure == nil {
		w.log.Error("the store takes no events; senders keep them and try again", "error", err)
	}
	w.failure = err
}

// retry tries the store after a failure, because nobody may send as long as
// /readyz says no.
func (w *Writer) retry(ctx context.Context) {
	if w.Failure() == nil {
		return
	}
	err := w.recover(ctx)
	if err == nil {
		err = w.store.SetState(ctx, "tried", []byte(time.Now().UTC().Format(time.RFC3339)))
	}
	if err != nil {
		w.fail(err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failure = nil
	w.log.Info("the store takes events again")
}

// apply hands events to the engine behind their commit, and stores what follows
// from them at checkpoints.
func (w *Writer) apply() {
	ctx := context.Background() // the last checkpoint is taken while ahti stops
	tick := time.NewTicker(checkpointEvery)
	defer tick.Stop()
	for {
		select {
		case records, more := <-w.behind:
			if !more {
				w.checkpoint(ctx)
				return
			}
			if w.applyAll(records) >= checkpointEvents {
				w.checkpoint(ctx)
			}
		case <-tick.C:
			w.checkpoint(ctx)
		}
	}
}

func (w *Writer) applyAll(records []*store.Record) (noted int) {
	for _, r := range records {
		delta := w.engine.Apply(r.Event)
		noted = w.store.Note(r, delta.Entities, delta.Relationships)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applied += uint64(len(records))
	return noted
}

func (w *Writer) checkpoint(ctx context.Context) {
	if err := w.store.Checkpoint(ctx); err != nil {
		w.metrics.checkpoints.Inc()
		w.log.Warn("a checkpoint failed; the next one makes up for it", "error", err)
		if errors.Is(err, store.ErrReplaced) {
			w.fail(err)
		}
	}
}
