// Package sink holds the places that events go to.
package sink

import (
	"fmt"
	"io"
	"sync"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
	"github.com/yairfalse/tapio/shared/humanoutput"
)

// Lines writes one line an event, each with a single write, so that a reader
// of a pipe never sees half of one.
type Lines struct {
	mu     sync.Mutex
	w      io.Writer
	buf    []byte
	format func(dst []byte, e *eventv1.Event) ([]byte, error)
}

// NewJSON writes protojson with the names of the proto fields.
func NewJSON(w io.Writer) *Lines { return &Lines{w: w, format: event.AppendJSON} }

// NewText writes for people.
func NewText(w io.Writer, style humanoutput.Style) *Lines {
	return &Lines{w: w, format: func(dst []byte, e *eventv1.Event) ([]byte, error) {
		return append(dst, style.Line(e)...), nil
	}}
}

// Send writes the event. It is safe for concurrent use.
func (l *Lines) Send(e *eventv1.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line, err := l.format(l.buf[:0], e)
	if err != nil {
		return fmt.Errorf("format %s: %w", e.GetEventType(), err)
	}
	line = append(line, '\n')
	l.buf = line
	if _, err := l.w.Write(line); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}
