package agent

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/yairfalse/tapio/bpf"
	"github.com/yairfalse/tapio/tapio/internal/feed"
)

// writeSummary tells what became of everything that was seen, a line for each
// signal of which there was any, and a line for each place that events were
// sent to.
func writeSummary(w io.Writer, lines []feed.Line, sinks []sink) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "signal\tseen\tkept\tsuppressed\tlost\t")
	for _, l := range lines {
		if l.Seen == 0 || l.Signal == bpf.Cgroup {
			continue
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t\n", l.Signal, l.Seen, l.Kept, l.Suppressed(), l.Lost())
	}
	if len(sinks) > 0 {
		fmt.Fprintln(t, "sent to\tdelivered\tnot delivered\tlost\t")
	}
	for _, s := range sinks {
		delivered, waiting, lost := s.Totals()
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t\n", s.name, delivered, waiting, lost)
	}
	// What cannot be written to a terminal cannot be reported there either.
	_ = t.Flush()
}
