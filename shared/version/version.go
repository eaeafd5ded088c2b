// Package version tells which program this is, from what was stamped into the binary.
package version

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
)

// The linker sets these, by -ldflags "-X github.com/yairfalse/tapio/shared/version.number=...":
// the toolchain itself knows no version in a workspace, and in an image no commit.
var number, revision string

// Number is the version that the build was given, else that of the main module, or
// "(devel)".
func Number() string {
	if number != "" {
		return number
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// Text tells version, commit and toolchain of a program in three lines.
func Text(program string) string {
	commit, modified := cmp.Or(revision, "unknown"), ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				modified = " (modified)"
			}
		}
	}
	return fmt.Sprintf("%s %s\ncommit %s%s\nbuilt with %s for %s/%s\n",
		program, Number(), commit, modified, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
