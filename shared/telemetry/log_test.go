package telemetry

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNewLogger(t *testing.T) {
	var text, object bytes.Buffer
	NewLogger(&text, slog.LevelInfo, Text).Info("attached", "signal", "oom kill")
	assert.Contains(t, text.String(), `level=INFO msg=attached signal="oom kill"`)

	level := new(slog.LevelVar)
	logger := NewLogger(&object, level, JSON)
	logger.Debug("hidden")
	require.Empty(t, object.String())
	level.Set(slog.LevelDebug)
	logger.Debug("shown", "count", 3)
	var record map[string]any
	require.NoError(t, json.Unmarshal(object.Bytes(), &record))
	assert.Equal(t, "shown", record["msg"])
	assert.Equal(t, "DEBUG", record["level"])
	assert.EqualValues(t, 3, record["count"])
}

func TestFormatFlag(t *testing.T) {
	var format Format
	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	flags.TextVar(&format, "log-format", Text, "")
	assert.Equal(t, Text, format)
	require.NoError(t, flags.Set("log-format", "json"))
	assert.Equal(t, JSON, format)
	require.ErrorContains(t, flags.Set("log-format", "xml"), `log format "xml", want text or json`)
	assert.Equal(t, JSON, format)
}
