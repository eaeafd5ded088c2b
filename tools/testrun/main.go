// Testrun reads what go test -json prints and tells whether the run proves
// anything. It is stricter than go test: a skip that nobody expected, a package
// whose tests did not run and a stream that ends early are failures too.
//
// Usage: go test -json PACKAGES | testrun [-allow-skip REGEXP]...
//
// It prints one line for each package, failures in full, each skip with its
// reason, and as its last line
//
//	N passed, N failed, N skipped
//
// counting tests and subtests, and as failed also each package that failed
// outside of any test. It exits 0 when the run is good, 1 when it is not and 2
// when it was called wrongly. Several streams may follow one another.
//
// The exit status of go test is lost in a pipe; use pipefail to keep it.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("testrun", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var allowed []*regexp.Regexp
	flags.Func("allow-skip", "`regexp` of tests that may be skipped, searched for in import/path.TestName/subtest (repeatable)",
		func(s string) error {
			re, err := regexp.Compile(s)
			allowed = append(allowed, re)
			return err
		})
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "testrun: unknown argument %q: it reads from standard input\n", flags.Arg(0))
		return 2
	}
	r := newReport(stdout, allowed)
	r.read(stdin)
	if !r.finish() {
		return 1
	}
	return 0
}
