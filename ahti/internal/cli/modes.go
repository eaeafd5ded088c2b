package cli

import (
	"github.com/spf13/cobra"

	"github.com/yairfalse/tapio/shared/causality"
)

func newFailureModes() *cobra.Command {
	return &cobra.Command{
		Use:   "failure-modes",
		Short: "Print the table of failure modes that is built in",
		Long: `failure-modes prints what ahti knows of causes before it has learned anything: which
events are symptoms, what explains them, and how sure that is. Change it and hand it
over by --failure-modes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(causality.DefaultModes())
			return err
		},
	}
}
