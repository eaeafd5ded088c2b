// Package telemetry is what every binary shows of itself: structured logs, and
// an HTTP server for health, readiness and metrics.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
)

// Format is how log records are written. It can be a flag by pflag's TextVar.
type Format string

// The formats of log records.
const (
	Text Format = "text" // key=value
	JSON Format = "json" // one object a line
)

// UnmarshalText accepts the name of a format.
func (f *Format) UnmarshalText(text []byte) error {
	switch format := Format(text); format {
	case Text, JSON:
		*f = format
		return nil
	}
	return fmt.Errorf("log format %q, want %s or %s", text, Text, JSON)
}

// MarshalText returns the name of the format.
func (f Format) MarshalText() ([]byte, error) { return []byte(f), nil }

// NewLogger returns a logger that writes records of at least the given level to
// w, one a line. A *slog.LevelVar lets the level change later.
func NewLogger(w io.Writer, level slog.Leveler, format Format) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == JSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
