package cli

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/yairfalse/tapio/tapio/internal/probe"
)

func newProbe() *cobra.Command {
	return &cobra.Command{
		Use:   "probe",
		Short: "Say what this kernel can and cannot do for the agent",
		Long: `probe tries everything that the agent needs of this kernel, by really loading
and attaching its programs for a moment, and gives the reason for each "no".
It exits with 1 when the agent could observe nothing here.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answers := probe.Run("/sys/fs/cgroup", "/proc")
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			usable := false
			for _, a := range answers {
				verdict := "yes"
				if !a.OK {
					verdict = "no"
				}
				usable = usable || a.OK && a.Signal
				fmt.Fprintf(w, "%s\t%s\t%s\n", verdict, a.What, a.Why)
			}
			if err := w.Flush(); err != nil {
				return fmt.Errorf("write the answers: %w", err)
			}
			if !usable {
				return errors.New("the agent can observe nothing on this kernel")
			}
			return nil
		},
	}
}
