package humanoutput

import (
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// WantsColor reports whether w is a terminal and environ, in the form of
// os.Environ, has nothing against colors: by the convention of no-color.org a
// NO_COLOR that is set and not empty does.
func WantsColor(w io.Writer, environ []string) bool {
	f, ok := w.(*os.File)
	if !ok || slices.ContainsFunc(environ, noColor) {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func noColor(variable string) bool {
	value, found := strings.CutPrefix(variable, "NO_COLOR=")
	return found && value != ""
}
