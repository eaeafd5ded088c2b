package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGuestArguments(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want []string
		err  string
	}{
		{"none", nil, nil, ""},
		{
			"what go test passes",
			[]string{"-test.paniconexit0", "-test.timeout=10m0s", "-test.v=test2json", "-test.run=^TestA$", "-test.count=1"},
			[]string{"-test.paniconexit0", "-test.timeout=10m0s", "-test.v=test2json", "-test.run=^TestA$", "-test.count=1"},
			"",
		},
		{
			"folders of the host",
			[]string{"-test.testlogfile=/tmp/b001/testlog.txt", "-test.v=true", "-test.outputdir=/src", "-test.gocoverdir=/tmp/b001/gocoverdir", "-test.fuzzcachedir=/root/.cache"},
			[]string{"-test.v=true"},
			"",
		},
		{"value apart", []string{"-test.outputdir", "/src", "-test.v"}, []string{"-test.v"}, ""},
		{"value missing", []string{"-test.v", "-test.outputdir"}, []string{"-test.v"}, ""},
		{"two dashes", []string{"--test.outputdir=/src", "--test.v"}, []string{"--test.v"}, ""},
		{"the test's own flags", []string{"-trace=x", "-cluster"}, []string{"-trace=x", "-cluster"}, ""},
		{"the test's own arguments", []string{"-test.v", "--", "-test.outputdir=/src"}, []string{"-test.v", "--", "-test.outputdir=/src"}, ""},
		{"cover profile", []string{"-test.coverprofile=/tmp/c.out"}, nil, "-test.coverprofile"},
		{"processor profile", []string{"-test.v", "-test.cpuprofile=cpu.out"}, nil, "-test.cpuprofile"},
		{"trace", []string{"-test.trace=t.out"}, nil, "-test.trace"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := guestArguments(tt.args)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestGuestEnvironment(t *testing.T) {
	got := guestEnvironment([]string{
		"PATH=/host/bin", "HOME=/root", "TMPDIR=/host", "GODEBUG=x",
		"TAPIO_A=1", "KERNEL_TEST_B=2=3", "XTAPIO_C=1", "KERNEL_TEST_NAME=of another",
	}, "6.1")
	require.Equal(t, []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=/tmp", "HOME=/tmp",
		"TAPIO_A=1", "KERNEL_TEST_B=2=3", "KERNEL_TEST_NAME=6.1",
	}, got)
}
