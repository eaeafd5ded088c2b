package config_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/shared/config"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]string{
		"0": "0", "17": "17", "1024": "1KiB", "10GiB": "10GiB", "3 TiB": "3TiB", "512MiB": "512MiB", "100B": "100",
	} {
		var s config.Size
		require.NoError(t, s.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, s.String(), text)
	}
	for _, text := range []string{"", "GiB", "1.5GiB", "9999999TiB", "0x10", "1 PiB", "-1"} {
		var s config.Size
		require.ErrorContains(t, s.UnmarshalText([]byte(text)), "want bytes or a unit", text)
	}
}
