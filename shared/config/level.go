package config

import (
	"fmt"
	"log/slog"
)

// Level is a slog.Level as a flag that says what is allowed.
type Level struct{ slog.Level }

// UnmarshalText accepts what slog does.
func (l *Level) UnmarshalText(text []byte) error {
	if err := l.Level.UnmarshalText(text); err != nil {
		return fmt.Errorf("log level %q, want debug, info, warn or error", text)
	}
	return nil
}
