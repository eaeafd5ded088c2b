package humanoutput_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/shared/humanoutput"
)

func TestColorsAreForTerminalsThatWantThem(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	defer func() { require.NoError(t, terminal.Close()) }()
	file, err := os.Create(t.TempDir() + "/file")
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()

	require.True(t, humanoutput.WantsColor(terminal, nil))
	require.True(t, humanoutput.WantsColor(terminal, []string{"TERM=xterm", "NO_COLOR="}), "it is empty")
	require.False(t, humanoutput.WantsColor(terminal, []string{"TERM=xterm", "NO_COLOR=1"}))
	require.False(t, humanoutput.WantsColor(file, nil))
	require.False(t, humanoutput.WantsColor(&strings.Builder{}, nil))
}
