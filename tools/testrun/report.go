package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// line is one line of go test -json, as cmd/test2json and go help buildjson
// describe it.
type line struct {
	Action     string
	Package    string
	ImportPath string // of a build, in place of Package
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// pkg is one run of one package's tests.
type pkg struct {
	name    string
	output  []byte            // printed outside of any test
	running map[string][]byte // tests that have not ended, with their output
	order   []string          // names in running, as they started
	passed  int
	failed  int
	skipped int
}

// report follows a run. Output of a test is kept until the test ends.
type report struct {
	w       io.Writer
	allowed []*regexp.Regexp

	open   map[string]*pkg // packages that have not ended
	builds map[string][]byte

	passed, failed, skipped int
	problems                []string
}

func newReport(w io.Writer, allowed []*regexp.Regexp) *report {
	return &report{w: w, allowed: allowed, open: map[string]*pkg{}, builds: map[string][]byte{}}
}

// read takes the whole stream. What is wrong with it becomes a problem of the
// report.
func (r *report) read(stream io.Reader) {
	// Not a bufio.Scanner: a test may print a line of any length.
	in := bufio.NewReader(stream)
	for {
		text, err := in.ReadBytes('\n')
		if len(bytes.TrimSpace(text)) > 0 {
			r.text(text)
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			r.problem("reading the stream of go test -json failed: %v", err)
			return
		}
	}
}

// text takes one line of the stream. Lines that are not JSON are what the go
// command says on standard error, such as what it downloads.
func (r *report) text(text []byte) {
	if text[0] != '{' {
		fmt.Fprintf(r.w, "%s\n", bytes.TrimRight(text, "\r\n"))
		return
	}
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		r.problem("the stream has a line that is cut or garbled: %.80q", text)
		return
	}
	switch l.Action {
	case "build-output":
		r.builds[l.ImportPath] = append(r.builds[l.ImportPath], l.Output...)
		return
	case "build-fail":
		// Counted where the package whose build it is fails.
		fmt.Fprintf(r.w, "FAIL  build of %s\n%s", l.ImportPath, r.builds[l.ImportPath])
		r.problem("%s does not build", l.ImportPath)
		return
	}
	if l.Package == "" {
		return
	}
	p := r.open[l.Package]
	if p == nil {
		p = &pkg{name: l.Package, running: map[string][]byte{}}
		r.open[l.Package] = p
	}
	switch {
	case strings.HasPrefix(l.Test, "Benchmark"):
		// Benchmarks are no tests, and their end is not in the stream. A
		// failed one fails its package.
		p.output = append(p.output, l.Output...)
	case l.Test == "":
		r.packageLine(p, l)
	default:
		r.testLine(p, l)
	}
}

func (r *report) testLine(p *pkg, l line) {
	if _, known := p.running[l.Test]; !known {
		p.running[l.Test] = nil
		p.order = append(p.order, l.Test)
	}
	switch l.Action {
	case "output":
		if !isProgress(l.Output) {
			p.running[l.Test] = append(p.running[l.Test], l.Output...)
		}
		return
	case "pass":
		p.passed++
	case "fail":
		p.failed++
		r.failure(p, l.Test, "failed")
	case "skip":
		p.skipped++
		r.skip(p, l.Test)
	default:
		return
	}
	delete(p.running, l.Test)
	p.order = slices.DeleteFunc(p.order, func(name string) bool { return name == l.Test })
}

// isProgress tells lines that only say where a test is.
func isProgress(output string) bool {
	for _, prefix := range []string{"=== RUN ", "=== PAUSE ", "=== CONT ", "=== NAME "} {
		if strings.HasPrefix(output, prefix) {
			return true
		}
	}
	return false
}

func (r *report) failure(p *pkg, test, how string) {
	fmt.Fprintf(r.w, "FAIL  %s.%s %s\n%s", p.name, test, how, p.running[test])
	r.problem("%s.%s %s", p.name, test, how)
}

func (r *report) skip(p *pkg, test string) {
	var reason []string
	for l := range strings.Lines(string(p.running[test])) {
		l = strings.TrimSpace(l)
		if !strings.HasPrefix(l, "--- SKIP:") {
			reason = append(reason, l)
		}
	}
	if len(reason) == 0 {
		reason = []string{"no reason given"}
	}
	name := p.name + "." + test
	fmt.Fprintf(r.w, "skip  %s: %s\n", name, strings.Join(reason, " "))
	if !slices.ContainsFunc(r.allowed, func(re *regexp.Regexp) bool { return re.MatchString(name) }) {
		r.problem("%s was skipped, which nothing allows: %s", name, strings.Join(reason, " "))
	}
}

func (r *report) packageLine(p *pkg, l line) {
	switch l.Action {
	case "output":
		p.output = append(p.output, l.Output...)
		return
	case "pass", "fail", "skip":
		r.close(p)
	default:
		return
	}
	ran := p.passed + p.failed + p.skipped
	switch {
	case l.Action == "skip":
		fmt.Fprintf(r.w, "none  %s has no tests\n", p.name)
	case l.Action == "fail":
		if p.failed == 0 {
			r.failed++ // a build, a panic outside of any test, an exit
		}
		fmt.Fprintf(r.w, "%s", p.output)
		fmt.Fprintf(r.w, "FAIL  %s: %d passed, %d failed, %d skipped\n", p.name, p.passed, p.failed, p.skipped)
		r.problem("%s failed", p.name)
	case ran == 0:
		r.failed++
		fmt.Fprintf(r.w, "FAIL  %s has test files and ran no test\n", p.name)
		r.problem("%s has test files and ran no test", p.name)
	default:
		fmt.Fprintf(r.w, "ok    %s: %d passed, %d skipped, %.1f s\n", p.name, p.passed, p.skipped, l.Elapsed)
	}
}

// close counts a package that has ended, in whatever way. Tests of it that have
// not ended never will: the process is gone.
func (r *report) close(p *pkg) {
	for _, test := range p.order {
		p.failed++
		r.failure(p, test, "did not end")
	}
	r.passed += p.passed
	r.failed += p.failed
	r.skipped += p.skipped
	delete(r.open, p.name)
}

func (r *report) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// finish prints what is left to say and returns whether the run is good.
func (r *report) finish() bool {
	var cut []string
	for name := range r.open {
		cut = append(cut, name)
	}
	slices.Sort(cut)
	for _, name := range cut {
		p := r.open[name]
		r.close(p)
		if p.failed == 0 {
			r.failed++
		}
		fmt.Fprintf(r.w, "FAIL  %s: the stream ends before its result\n%s", name, p.output)
		r.problem("%s: the stream ends before its result", name)
	}
	if r.passed+r.failed == 0 {
		r.problem("no test ran")
	}
	if len(r.problems) > 0 {
		fmt.Fprintf(r.w, "\nThis run is not good:\n")
		for _, problem := range r.problems {
			fmt.Fprintf(r.w, "  %s\n", problem)
		}
	}
	fmt.Fprintf(r.w, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return len(r.problems) == 0
}
