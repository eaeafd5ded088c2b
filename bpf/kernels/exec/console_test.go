package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/bpf/kernels/guest"
)

// serial is text as the serial line of the machine carries it.
func serial(text string) string { return strings.ReplaceAll(text, "\n", "\r\n") }

func TestConsole(t *testing.T) {
	start := guest.StartLine("6.1.0")
	tests := []struct {
		name   string
		in     string
		out    string
		rest   string
		ended  bool
		status int
	}{
		{"a whole run", "SeaBIOS\n" + start + "=== RUN   TestA\nPASS\n" + guest.ExitLine(0), "=== RUN   TestA\nPASS\n", "SeaBIOS\n", true, 0},
		{"a failed one", start + "FAIL\n" + guest.ExitLine(1), "FAIL\n", "", true, 1},
		{"the last line has no end", start + "tail" + guest.ExitLine(7), "tail\n", "", true, 7},
		{"after the end", start + "PASS\n" + guest.ExitLine(0) + "reboot: Restarting\n", "PASS\n", "reboot: Restarting\n", true, 0},
		{"a panic", start + "a\n[ 1.0] Kernel panic\n", "a\n[ 1.0] Kernel panic\n", "", false, 0},
		{"a panic in a line", start + "a[ 1.0] Kernel panic", "a[ 1.0] Kernel panic\n", "", false, 0},
		{"never started", "Kernel panic: no init\nmore", "", "Kernel panic: no init\nmore", false, 0},
		{"an end without a start", guest.ExitLine(0), "", strings.TrimPrefix(guest.ExitLine(0), ""), false, 0},
		{"empty lines", start + "\n\na\n" + guest.ExitLine(0), "\n\na\n", "", true, 0},
		{"a carriage return of the test's own", start + "10%\r20%\n" + guest.ExitLine(0), "10%\r20%\n", "", true, 0},
		{"a line of no end", start + strings.Repeat("x", 3*maxLine) + "\n" + guest.ExitLine(0), strings.Repeat("x", 3*maxLine) + "\n", "", true, 0},
		{"nothing", "", "", "", false, 0},
	}
	for _, tt := range tests {
		for _, chunk := range []int{1, 7, 1 << 20} {
			t.Run(tt.name, func(t *testing.T) {
				var out bytes.Buffer
				c := &console{out: &out}
				for rest := serial(tt.in); rest != ""; {
					n := min(chunk, len(rest))
					written, err := c.Write([]byte(rest[:n]))
					require.NoError(t, err)
					require.Equal(t, n, written)
					rest = rest[n:]
				}
				require.NoError(t, c.flush())
				require.Equal(t, tt.out, out.String())
				require.Equal(t, tt.rest, string(c.rest))
				require.Equal(t, tt.ended, c.ended)
				require.Equal(t, tt.status, c.status)
			})
		}
	}
}

func TestConsoleKeepsABoundedRest(t *testing.T) {
	c := &console{out: &bytes.Buffer{}}
	for range 100 {
		_, err := c.Write(bytes.Repeat([]byte("0123456789abcde\n"), 1<<10))
		require.NoError(t, err)
	}
	require.Len(t, c.rest, maxRest)
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte(serial("boot\n"+guest.StartLine("6.1")+"a\n"+guest.ExitLine(3))), 3)
	f.Fuzz(func(t *testing.T, in []byte, split int) {
		var whole, parts bytes.Buffer
		one, two := &console{out: &whole}, &console{out: &parts}
		_, err := one.Write(in)
		require.NoError(t, err)
		require.NoError(t, one.flush())

		split = max(0, min(split, len(in)))
		for _, part := range [][]byte{in[:split], in[split:]} {
			_, err := two.Write(part)
			require.NoError(t, err)
		}
		require.NoError(t, two.flush())
		if len(in) < maxLine { // longer lines are cut where the chunks end
			require.Equal(t, whole.String(), parts.String())
			require.Equal(t, one.ended, two.ended)
			require.Equal(t, one.status, two.status)
		}
		require.True(t, whole.Len() == 0 || bytes.HasSuffix(whole.Bytes(), []byte("\n")))
	})
}
