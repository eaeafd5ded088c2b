package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Writer is a Sender that writes events as JSON, one a line. An event is safe when
// it is written.
type Writer struct {
	book *Book

	mu  sync.Mutex
	to  io.Writer
	buf []byte
}

// NewWriter returns a Writer that tells the book.
func NewWriter(to io.Writer, book *Book) *Writer { return &Writer{to: to, book: book} }

// Send implements Sender. What cannot be written, as to a full disk, is tried again
// until ctx is done.
func (w *Writer) Send(ctx context.Context, e *eventv1.Event) error {
	if err := w.write(ctx, e); err != nil {
		return fmt.Errorf("write event %s: %w", e.GetId(), err)
	}
	w.book.Acked([]*eventv1.Event{e})
	return nil
}

func (w *Writer) write(ctx context.Context, e *eventv1.Event) (err error) {
	const pause = time.Second
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.buf, err = event.AppendJSON(w.buf[:0], e); err != nil {
		return err
	}
	w.buf = append(w.buf, '\n')
	for rest := w.buf; ; {
		n, err := w.to.Write(rest)
		if err == nil {
			return nil
		}
		rest = rest[n:] // what is there needs its end, not another beginning
		w.book.log.Warn("cannot write to standard output", "error", err, "next_try_in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}
