// Package version tells which program this is, from what the Go toolchain stamped
// into the binary.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Number is the version of the main module, or "(devel)".
func Number() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Text tells version, commit and toolchain of a program in three lines.
func Text(program string) string {
	revision, modified := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				revision = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = " (modified)"
			}
		}
	}
	return fmt.Sprintf("%s %s\ncommit %s%s\nbuilt with %s for %s/%s\n",
		program, Number(), revision, modified, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
