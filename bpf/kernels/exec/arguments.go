package main

import (
	"fmt"
	"strings"
)

// guestArguments maps what `go test` passes to the test binary to what makes
// sense in the virtual machine, where the host's folders do not exist.
//
// Dropped: what go test adds by itself and does not miss. Refused: what a user
// asked for and would not get, because files written in the machine end with it.
func guestArguments(args []string) ([]string, error) {
	var mapped []string
	for i := 0; i < len(args); i++ {
		name, _, hasValue := strings.Cut(args[i], "=")
		if name == "-args" || name == "--args" || name == "--" {
			return append(mapped, args[i:]...), nil // the rest is the test's own
		}
		switch hostFile(name) {
		case drop:
			if !hasValue {
				i++ // -name value
			}
		case refuse:
			return nil, fmt.Errorf("%s: a file written in the virtual machine ends with it; run without this flag, or on the host", name)
		default:
			mapped = append(mapped, args[i])
		}
	}
	return mapped, nil
}

type action int

const (
	keep action = iota
	drop
	refuse
)

func hostFile(name string) action {
	// Package flag takes one dash or two.
	if strings.HasPrefix(name, "--") {
		name = name[1:]
	}
	switch name {
	case "-test.testlogfile", "-test.outputdir", "-test.gocoverdir", "-test.fuzzcachedir":
		return drop
	case "-test.coverprofile", "-test.cpuprofile", "-test.memprofile", "-test.blockprofile", "-test.mutexprofile", "-test.trace":
		return refuse
	}
	return keep
}

// environmentPrefixes name the variables that reach the test. The others
// describe the host.
var environmentPrefixes = []string{"TAPIO_", "KERNEL_TEST_"}

// guestEnvironment returns the variables of environ that reach the test, and
// fixed ones. KERNEL_TEST_NAME tells it which kernel was asked for.
func guestEnvironment(environ []string, kernel string) []string {
	env := []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"TMPDIR=/tmp",
		"HOME=/tmp",
	}
	for _, variable := range environ {
		for _, prefix := range environmentPrefixes {
			if strings.HasPrefix(variable, prefix) && !strings.HasPrefix(variable, "KERNEL_TEST_NAME=") {
				env = append(env, variable)
			}
		}
	}
	return append(env, "KERNEL_TEST_NAME="+kernel)
}
