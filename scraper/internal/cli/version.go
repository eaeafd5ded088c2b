package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/yairfalse/tapio/shared/version"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which scheduler-scraper this is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), version.Text("scheduler-scraper"))
			return err
		},
	}
}
