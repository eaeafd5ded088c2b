package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
	"github.com/yairfalse/tapio/shared/event"
)

const (
	// readAhead is how many bytes of messages wait in a reader.
	readAhead = 2 << 20
	// reopenAfter is the pause before a reader that lost the log tries again.
	reopenAfter = 200 * time.Millisecond
	// idleReader is when the server forgets a reader that has gone.
	idleReader = time.Minute
)

// Entry is one message of the log.
type Entry struct {
	Sequence uint64
	Time     time.Time // when it was stored
	Behind   uint64    // how many entries followed it when it was sent
	Body     []byte
}

// Cursor is that of a route which has passed the entry and nothing after it.
func (e Entry) Cursor() Cursor { return Cursor{e.Sequence, e.Time} }

// Events decodes an entry. Each event is complete: the batch's source and
// cluster stand in it where it had none of its own.
func (e Entry) Events() ([]*eventv1.Event, error) {
	var batch polkuv1.IngestBatch
	if err := proto.Unmarshal(e.Body, &batch); err != nil {
		return nil, fmt.Errorf("decode message %d of the log: %w", e.Sequence, err)
	}
	events := batch.GetEvents().GetEvents()
	for _, ev := range events {
		if ev.GetSource() == "" {
			ev.Source = batch.GetSource()
		}
		if batch.GetCluster() != "" && ev.GetMetadata()[event.K8sClusterName] == "" {
			if ev.Metadata == nil {
				ev.Metadata = make(map[string]string, 1)
			}
			ev.Metadata[event.K8sClusterName] = batch.GetCluster()
		}
	}
	return events, nil
}

// Reader reads entries in the order of the log, over restarts of the server. When
// the log was created anew it goes on with the beginning. It is for one
// goroutine.
type Reader struct {
	journal  *Journal
	start    jetstream.OrderedConsumerConfig
	next     uint64 // sequence; 0 until the first entry of a start by time
	life     context.Context
	messages jetstream.MessagesContext
	pending  uint64 // entries when messages was opened
	release  func() bool
}

// ReadFrom returns a reader that begins with the entry of a sequence, or with
// the first that is held after it.
func (j *Journal) ReadFrom(sequence uint64) *Reader {
	return &Reader{journal: j, life: j.Life(), next: max(sequence, 1)}
}

// ReadSince returns a reader that begins with the first entry that was stored at
// a time or later.
func (j *Journal) ReadSince(t time.Time) *Reader {
	return &Reader{journal: j, life: j.Life(), start: jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &t,
	}}
}

// ReadNew returns a reader that begins with the next entry that is stored.
func (j *Journal) ReadNew(ctx context.Context) (*Reader, error) {
	info, err := j.events.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the end of the log: %w", j.explain(err))
	}
	return j.ReadFrom(info.State.LastSeq + 1), nil
}

// Next returns the next entry as soon as there is one. It fails only when ctx
// ends: while the log cannot be read, it waits.
func (r *Reader) Next(ctx context.Context) (Entry, error) {
	for {
		entry, err := r.take(ctx)
		if err == nil {
			return entry, nil
		}
		r.Close()
		if ctx.Err() != nil {
			return Entry{}, ctx.Err()
		}
		r.journal.config.Log.Debug("read the log again", "next", r.next, "error", err)
		select {
		case <-ctx.Done():
			return Entry{}, ctx.Err()
		case <-time.After(reopenAfter):
		}
	}
}

func (r *Reader) take(ctx context.Context) (Entry, error) {
	if r.messages == nil {
		if err := r.open(ctx); err != nil {
			return Entry{}, err
		}
	}
	for {
		msg, err := r.messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return Entry{}, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return Entry{}, err
		}
		if meta.Sequence.Stream < r.next {
			continue
		}
		r.next = meta.Sequence.Stream + 1
		entry := Entry{Sequence: meta.Sequence.Stream, Time: meta.Timestamp, Behind: meta.NumPending, Body: msg.Data()}
		r.journal.see(entry.Cursor())
		return entry, nil
	}
}

func (r *Reader) open(ctx context.Context) error {
	if r.life.Err() != nil {
		r.life, r.next = r.journal.Life(), min(r.next, 1)
	}
	config := r.start
	if r.next > 0 {
		config = jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: r.next}
	}
	config.InactiveThreshold = idleReader
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	consumer, err := r.journal.js.OrderedConsumer(ctx, streamEvents, config)
	if err != nil {
		return err
	}
	messages, err := consumer.Messages(jetstream.PullMaxBytes(readAhead))
	if err != nil {
		return err
	}
	r.pending = consumer.CachedInfo().NumPending
	r.messages, r.release = messages, context.AfterFunc(r.life, messages.Stop)
	return nil
}

// Empty reports whether there is no entry for a reader that has just begun.
// Sequences do not tell: any message may have been deleted.
func (r *Reader) Empty(ctx context.Context) (bool, error) {
	if err := r.open(ctx); err != nil {
		return false, fmt.Errorf("read the log: %w", r.journal.explain(err))
	}
	return r.pending == 0, nil
}

// Close lets go of the server's side of the reader. Next opens it again.
func (r *Reader) Close() {
	if r.messages != nil {
		r.release()
		r.messages.Stop()
		r.messages = nil
	}
}

// Recent calls visit with the newest entries that have about the given number
// of bytes together, in their order.
func (j *Journal) Recent(ctx context.Context, bytes uint64, visit func(Entry) error) error {
	info, err := j.events.Info(ctx)
	if err != nil {
		return fmt.Errorf("read the end of the log: %w", j.explain(err))
	}
	s := info.State
	if s.Msgs == 0 {
		return nil
	}
	from := s.FirstSeq
	if s.Bytes > bytes {
		from = s.LastSeq - min(bytes/(s.Bytes/s.Msgs), s.LastSeq-s.FirstSeq)
	}
	r := j.ReadFrom(from)
	defer r.Close()
	if empty, err := r.Empty(ctx); err != nil || empty {
		return err
	}
	for {
		entry, err := r.Next(ctx)
		if err != nil {
			return fmt.Errorf("read the end of the log: %w", err)
		}
		if err := visit(entry); err != nil {
			return err
		}
		if entry.Sequence >= s.LastSeq || entry.Behind == 0 {
			return nil
		}
	}
}

// Cursor is how far a route is.
type Cursor struct {
	// Sequence of the last entry that the route has passed; 0 before the first.
	Sequence uint64
	// Time is when that entry was stored. In a log that was created anew, or that
	// lost its end, other entries have the sequence, of other times.
	Time time.Time
}

// Cursor returns how far a route is in the log that there is now.
func (j *Journal) Cursor(ctx context.Context, route string) (Cursor, error) {
	info, err := j.events.Info(ctx)
	if err != nil {
		return Cursor{}, fmt.Errorf("read the state of the log for route %s: %w", route, j.explain(err))
	}
	entry, err := j.cursors.Get(ctx, route)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return Cursor{}, nil
	}
	if err != nil {
		return Cursor{}, fmt.Errorf("read the cursor of route %s: %w", route, j.explain(err))
	}
	var c Cursor
	var stored int64
	if _, err := fmt.Sscan(string(entry.Value()), &c.Sequence, &stored); err != nil {
		return Cursor{}, fmt.Errorf("read the cursor of route %s, which is %.40q: %w", route, entry.Value(), err)
	}
	if c.Sequence > 0 {
		c.Time = time.Unix(0, stored).UTC()
	}
	held, err := j.holds(ctx, info.State, c)
	if err != nil {
		return Cursor{}, fmt.Errorf("compare the cursor of route %s with the log: %w", route, j.explain(err))
	}
	if !held {
		j.config.Log.Warn("the cursor is of a log that is lost: the route begins with all that the log holds",
			"route", route, "cursor", c.Sequence, "last", info.State.LastSeq)
		return Cursor{}, nil
	}
	return c, nil
}

// holds reports whether a cursor is of a log in a state: all that it has passed
// is gone, or its own entry is there. An entry that somebody deleted counts as
// another: to deliver again is better than to leave out.
func (j *Journal) holds(ctx context.Context, s jetstream.StreamState, c Cursor) (bool, error) {
	switch {
	case c.Sequence == 0 || c.Sequence < s.FirstSeq:
		return true, nil
	case c.Sequence > s.LastSeq:
		return false, nil
	case c.Sequence == s.LastSeq: // which may have been deleted
		return c.Time.Equal(s.LastTime), nil
	}
	msg, err := j.events.GetMsg(ctx, c.Sequence)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read message %d of the log: %w", c.Sequence, err)
	}
	return c.Time.Equal(msg.Time), nil
}

// SetCursor stores what Cursor returns.
func (j *Journal) SetCursor(ctx context.Context, route string, c Cursor) error {
	if _, err := j.cursors.PutString(ctx, route, fmt.Sprint(c.Sequence, c.Time.UnixNano())); err != nil {
		return fmt.Errorf("write the cursor of route %s: %w", route, j.explain(err))
	}
	return nil
}
