package deliver

import (
	"context"
	"fmt"
	"io"
	"sync"

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

// Send implements Sender.
func (w *Writer) Send(_ context.Context, e *eventv1.Event) error {
	if err := w.write(e); err != nil {
		return fmt.Errorf("write event %s: %w", e.GetId(), err)
	}
	w.book.Acked([]*eventv1.Event{e})
	return nil
}

func (w *Writer) write(e *eventv1.Event) (err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.buf, err = event.AppendJSON(w.buf[:0], e); err != nil {
		return err
	}
	w.buf = append(w.buf, '\n')
	_, err = w.to.Write(w.buf)
	return err
}
