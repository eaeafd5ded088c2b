package privilege

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// child is set in the process that the tests start without privileges.
const child = "TAPIO_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) == "" {
		os.Exit(m.Run())
	}
	missing, err := Missing(BPF, Perfmon)
	fmt.Println(missing, err)
	if err := Check(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// asNobody runs this program again without privileges.
func asNobody(t *testing.T, ambient ...uintptr) (output string, status int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs to be root to become somebody else")
	}
	// Not by its path: it lies in a directory that only root may enter.
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = []string{child + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: ambient}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil {
		require.True(t, errors.As(err, &exit), "%v", err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func TestNobody(t *testing.T) {
	out, status := asNobody(t)
	assert.Equal(t, 1, status)
	assert.Contains(t, out, "[CAP_BPF CAP_PERFMON] <nil>\n")
	assert.Contains(t, out, "cannot load kernel programs: user 65534 lacks CAP_BPF and CAP_PERFMON\n")
	self, err := os.Executable()
	require.NoError(t, err)
	assert.Contains(t, out, "sudo "+self+"\n")
	assert.Contains(t, out, "sudo setcap cap_bpf,cap_perfmon+ep "+self+"\n")
	assert.Contains(t, out, "securityContext.capabilities.add: [BPF, PERFMON]")
}

func TestHalfOfIt(t *testing.T) {
	out, status := asNobody(t, unix.CAP_BPF)
	assert.Equal(t, 1, status)
	assert.Contains(t, out, "user 65534 lacks CAP_PERFMON\n")
}

// Enough is these two, root or not.
func TestEnough(t *testing.T) {
	for name, capabilities := range map[string][]uintptr{
		"both":          {unix.CAP_BPF, unix.CAP_PERFMON},
		"CAP_SYS_ADMIN": {unix.CAP_SYS_ADMIN},
	} {
		t.Run(name, func(t *testing.T) {
			out, status := asNobody(t, capabilities...)
			assert.Equal(t, "[] <nil>\n", out)
			assert.Zero(t, status)
		})
	}
}

func TestRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	require.NoError(t, Check())
	missing, err := Missing(BPF, Perfmon, unix.CAP_NET_RAW)
	require.NoError(t, err)
	assert.Empty(t, missing)
}

func TestName(t *testing.T) {
	assert.Equal(t, "CAP_BPF", name(BPF))
	assert.Equal(t, "CAP_PERFMON", name(Perfmon))
	assert.Equal(t, "capability 13", name(unix.CAP_NET_RAW))
}
