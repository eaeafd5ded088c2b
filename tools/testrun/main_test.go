package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorded returns streams that go test -json printed, one after another.
func recorded(t testing.TB, names ...string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join("testdata", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

func TestRun(t *testing.T) {
	cut := func(s string, lines int) string {
		return strings.Join(strings.SplitAfter(s, "\n")[:lines], "")
	}
	tests := []struct {
		name  string
		args  []string
		input string
		exit  int
		want  []string // in the output
		last  string
	}{
		{
			name: "good", input: recorded(t, "pass"),
			want: []string{"ok    sample/pass: 2 passed, 0 skipped"},
			last: "2 passed, 0 failed, 0 skipped",
		}, {
			name: "failure", input: recorded(t, "fail"), exit: 1,
			want: []string{"FAIL  sample/fail.TestBad failed", "want 1, got 2", "some context", "FAIL  sample/fail: 1 passed, 2 failed, 0 skipped"},
			last: "1 passed, 2 failed, 0 skipped",
		}, {
			name: "panic", input: recorded(t, "panics"), exit: 1,
			want: []string{"FAIL  sample/panics.TestPanics failed", "panic: boom", "sample/panics/a_test.go:4"},
			last: "1 passed, 1 failed, 0 skipped",
		}, {
			name: "exit within a test", input: recorded(t, "exit"), exit: 1,
			want: []string{"FAIL  sample/exit.TestExits did not end"},
			last: "0 passed, 1 failed, 0 skipped",
		}, {
			name: "exit before the first test", input: recorded(t, "testmain"), exit: 1,
			want: []string{"cannot set up: no such device", "sample/tmain failed"},
			last: "0 passed, 1 failed, 0 skipped",
		}, {
			name: "timeout", input: recorded(t, "timeout"), exit: 1,
			want: []string{"panic: test timed out after 50ms", "sample/deadlock.TestHangs"},
			last: "1 passed, 2 failed, 0 skipped",
		}, {
			name: "build failure", input: recorded(t, "build"), exit: 1,
			want: []string{"FAIL  build of sample/build", "a_test.go:3:27: undefined: undefined", "sample/build [sample/build.test] does not build"},
			last: "0 passed, 1 failed, 0 skipped",
		}, {
			name: "build failure beside good packages", input: recorded(t, "pass", "build"), exit: 1,
			want: []string{"ok    sample/pass"},
			last: "2 passed, 1 failed, 0 skipped",
		}, {
			name: "build failure without its package", input: recorded(t, "pass") + cut(recorded(t, "build"), 3), exit: 1,
			want: []string{"does not build"},
			last: "2 passed, 0 failed, 0 skipped",
		}, {
			name: "skips", input: recorded(t, "skips"), exit: 1,
			want: []string{
				"skip  sample/skips.TestSkips: a_test.go:4: kernel has no fentry",
				"sample/skips.TestSkips was skipped, which nothing allows: a_test.go:4: kernel has no fentry",
				"sample/skips.TestParent/child was skipped, which nothing allows: a_test.go:5: needs root",
			},
			last: "2 passed, 0 failed, 2 skipped",
		}, {
			name: "one skip allowed", input: recorded(t, "skips"), exit: 1,
			args: []string{"-allow-skip", `\.TestSkips$`},
			want: []string{"This run is not good:\n  sample/skips.TestParent/child was skipped"},
			last: "2 passed, 0 failed, 2 skipped",
		}, {
			name: "all skips allowed", input: recorded(t, "skips"),
			args: []string{"-allow-skip", `\.TestSkips$`, "-allow-skip", "TestParent/child"},
			want: []string{"skip  sample/skips.TestSkips: a_test.go:4: kernel has no fentry", "skip  sample/skips.TestParent/child: a_test.go:5: needs root"},
			last: "2 passed, 0 failed, 2 skipped",
		}, {
			name: "package without tests beside another", input: recorded(t, "notests", "pass"),
			want: []string{"none  sample/notests has no tests"},
			last: "2 passed, 0 failed, 0 skipped",
		}, {
			name: "only a package without tests", input: recorded(t, "notests"), exit: 1,
			want: []string{"no test ran"},
			last: "0 passed, 0 failed, 0 skipped",
		}, {
			name: "package whose tests were filtered away", input: recorded(t, "filtered", "fail"), exit: 1,
			want: []string{"sample/pass has test files and ran no test"},
			last: "1 passed, 3 failed, 0 skipped",
		}, {
			name: "package with benchmarks only", input: recorded(t, "emptyrun", "pass"), exit: 1,
			want: []string{"sample/emptyrun has test files and ran no test"},
			last: "2 passed, 1 failed, 0 skipped",
		}, {
			name: "nothing", exit: 1,
			want: []string{"no test ran"},
			last: "0 passed, 0 failed, 0 skipped",
		}, {
			name: "text instead of JSON", input: "go: cannot find main module\n", exit: 1,
			want: []string{"go: cannot find main module", "no test ran"},
			last: "0 passed, 0 failed, 0 skipped",
		}, {
			name: "text between JSON", input: "go: downloading a module\n" + recorded(t, "pass"),
			want: []string{"go: downloading a module"},
			last: "2 passed, 0 failed, 0 skipped",
		}, {
			name: "the same package twice", input: recorded(t, "pass", "pass"),
			last: "4 passed, 0 failed, 0 skipped",
		}, {
			name: "cut within a test", input: recorded(t, "pass") + cut(recorded(t, "fail"), 3), exit: 1,
			want: []string{"FAIL  sample/fail.TestGood did not end", "sample/fail: the stream ends before its result"},
			last: "2 passed, 1 failed, 0 skipped",
		}, {
			name: "cut between tests", input: recorded(t, "pass") + cut(recorded(t, "fail"), 5), exit: 1,
			want: []string{"sample/fail: the stream ends before its result"},
			last: "3 passed, 1 failed, 0 skipped",
		}, {
			name: "cut within a line", input: recorded(t, "pass") + `{"Action":"pa`, exit: 1,
			want: []string{`cut or garbled: "{\"Action\":\"pa"`},
			last: "2 passed, 0 failed, 0 skipped",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if exit := run(tt.args, strings.NewReader(tt.input), &out, io.Discard); exit != tt.exit {
				t.Errorf("exit status %d, want %d", exit, tt.exit)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output has no %q", want)
				}
			}
			if !strings.HasSuffix("\n"+out.String(), "\n"+tt.last+"\n") {
				t.Errorf("last line is not %q", tt.last)
			}
			if strings.Contains(out.String(), "=== RUN") {
				t.Error("output has progress lines")
			}
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}

// A stream may be cut anywhere; wherever that is within its tests, it must not
// pass for a good one.
func TestEveryCutFails(t *testing.T) {
	whole := recorded(t, "pass")
	for i := range len(strings.TrimRight(whole, "}\n")) {
		if exit := run(nil, strings.NewReader(whole[:i]), io.Discard, io.Discard); exit != 1 {
			t.Fatalf("exit status %d with the first %d of %d bytes", exit, i, len(whole))
		}
	}
}

func TestReadErrorFails(t *testing.T) {
	broken := io.MultiReader(strings.NewReader(recorded(t, "pass")), brokenReader{})
	var out strings.Builder
	if exit := run(nil, broken, &out, io.Discard); exit != 1 {
		t.Errorf("exit status %d, want 1", exit)
	}
	if !strings.Contains(out.String(), "pipe burst") {
		t.Errorf("output does not name the error:\n%s", out.String())
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("pipe burst") }

func TestBenchmarksAreNoTests(t *testing.T) {
	const stream = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"BenchmarkB"}
{"Action":"output","Package":"p","Test":"BenchmarkB","Output":"BenchmarkB-2 10 1 ns/op\n"}
{"Action":"pass","Package":"p"}
`
	var out strings.Builder
	if exit := run(nil, strings.NewReader(stream), &out, io.Discard); exit != 0 {
		t.Errorf("exit status %d, want 0:\n%s", exit, out.String())
	}
}

func TestWrongArguments(t *testing.T) {
	for _, args := range [][]string{{"-allow-skip", "("}, {"-unknown"}, {"file.json"}} {
		if exit := run(args, strings.NewReader(recorded(t, "pass")), io.Discard, io.Discard); exit != 2 {
			t.Errorf("exit status %d with %q, want 2", exit, args)
		}
	}
}

func FuzzRun(f *testing.F) {
	for _, name := range []string{"pass", "fail", "panics", "build", "skips", "timeout", "exit"} {
		f.Add(recorded(f, name))
	}
	f.Fuzz(func(t *testing.T, stream string) {
		var out strings.Builder
		run(nil, strings.NewReader(stream), &out, io.Discard)
		if lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n"); !strings.HasSuffix(lines[len(lines)-1], " skipped") {
			t.Errorf("last line is %q", lines[len(lines)-1])
		}
	})
}
