package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCommittedDocumentIsCurrent(t *testing.T) {
	committed, err := os.ReadFile("../../../../docs/events.md")
	require.NoError(t, err)
	require.Equal(t, string(render()), string(committed),
		"docs/events.md is not what the registry gives: run go generate ./... in shared/event")
}

func TestRowKeepsTheTableWhole(t *testing.T) {
	require.Equal(t, "`a`, `b`", codes([]string{"a", "b"}))
	require.Empty(t, codes(nil))
	require.Empty(t, enum("OUTCOME_", "OUTCOME_UNSPECIFIED"))
	require.Equal(t, "error", enum("SEVERITY_", "SEVERITY_ERROR"))
}
