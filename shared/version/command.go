package version

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Command returns the command "version" of a program.
func Command(program string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print which " + program + " this is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), Text(program))
			return err
		},
	}
}
