package cli_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/yairfalse/tapio/portti/internal/cli"
)

func TestSaysWhatIsWrong(t *testing.T) {
	t.Setenv("KUBECONFIG", t.TempDir()+"/none")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for name, test := range map[string]struct {
		args, environ []string
		want          string
	}{
		"no gateway":        {want: "--polku is empty"},
		"both":              {args: []string{"--polku", "http://127.0.0.1:1", "--stdout"}, want: "exclude each other"},
		"unknown kind":      {args: []string{"--stdout", "--kinds", "pod,widget"}, want: `"widget" is none of namespace, node`},
		"no kind":           {args: []string{"--stdout", "--kinds", ""}, want: "--kinds is empty"},
		"files for nothing": {args: []string{"--stdout", "--polku-ca", "x"}, want: "which is empty"},
		"bad gateway":       {environ: []string{"POLKU_ENDPOINT=no port"}, want: "--polku: "},
		"unknown variable":  {args: []string{"--stdout"}, environ: []string{"PORTTI_KIND=pod"}, want: "the nearest that is known is PORTTI_KINDS"},
		"no cluster":        {args: []string{"--stdout"}, want: "no cluster: name a kubeconfig"},
		"no state":          {args: []string{"--stdout", "--state-dir", ""}, want: "--state-dir is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			require.Equal(t, 1, cli.Run(t.Context(), test.args, test.environ, &stdout, &stderr))
			require.Contains(t, stderr.String(), test.want)
		})
	}
}
