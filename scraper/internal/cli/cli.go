// Package cli is the command line of scheduler-scraper.
package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Run runs the command line and returns the exit status: 0, or 1 after an error
// that was written to stderr.
func Run(ctx context.Context, args, _ []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{Use: "scheduler-scraper", SilenceUsage: true, SilenceErrors: true}
	root.AddCommand(newVersion())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "scheduler-scraper: %v\n", err)
		return 1
	}
	return 0
}
