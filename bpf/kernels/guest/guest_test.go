package guest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseLine(t *testing.T) {
	tests := []struct {
		name   string
		line   string
		before string
		mark   Mark
		ok     bool
	}{
		{"start", StartLine("6.1.0-56-cloud-amd64"), "", Mark{Release: "6.1.0-56-cloud-amd64"}, true},
		{"exit", ExitLine(7), "", Mark{Status: 7}, true},
		{"killed by a signal", ExitLine(137), "", Mark{Status: 137}, true},
		{"after output without a line end", "tail" + ExitLine(0), "tail", Mark{}, true},
		{"plain output", "--- PASS: TestA", "--- PASS: TestA", Mark{}, false},
		{"the words without the control character", "kernel-init: exit 0", "kernel-init: exit 0", Mark{}, false},
		{"no number", mark + "exit x", mark + "exit x", Mark{}, false},
		{"too large", mark + "exit 256", mark + "exit 256", Mark{}, false},
		{"cut off", mark + "exit ", mark + "exit ", Mark{}, false},
		{"no release", mark + "start ", mark + "start ", Mark{}, false},
		{"empty", "", "", Mark{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before, m, ok := ParseLine([]byte(strings.TrimSuffix(tt.line, "\n")))
			require.Equal(t, tt.ok, ok)
			require.Equal(t, tt.mark, m)
			require.Equal(t, tt.before, string(before))
		})
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte(StartLine("6.1")))
	f.Add([]byte("ok" + ExitLine(255)))
	f.Fuzz(func(t *testing.T, line []byte) {
		before, m, ok := ParseLine(line)
		if !ok {
			require.Equal(t, string(line), string(before))
			return
		}
		require.LessOrEqual(t, m.Status, 255)
		require.Less(t, len(before), len(line))
	})
}

// Every status must be told from every way in which QEMU ends on its own: 0
// after a guest panic or reboot, 1 when it cannot start.
func TestQEMUStatusIsNoneOfQEMUsOwn(t *testing.T) {
	for status := range 256 {
		require.Greater(t, QEMUStatus(status), 1)
		require.LessOrEqual(t, QEMUStatus(status), 255)
		require.Equal(t, QEMUStatus(status), QEMUStatus(status&0x3f))
	}
	require.NotEqual(t, QEMUStatus(0), QEMUStatus(1))
}

func TestList(t *testing.T) {
	for _, list := range [][]string{nil, {"a"}, {""}, {"a", "", "b c", "d\ne"}, {"a", ""}} {
		b, err := EncodeList(list)
		require.NoError(t, err)
		require.Equal(t, list, DecodeList(b))
	}
	_, err := EncodeList([]string{"a\x00b"})
	require.ErrorContains(t, err, "NUL")
}
