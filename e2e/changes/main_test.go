package changes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/yairfalse/tapio/shared/kube/apiservertest"
)

// binariesVariable is the directory of what was built, which TestMain sets.
const binariesVariable = "CHANGES_BINARIES"

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "changes: %v\n", err)
		status = 1
	}
	os.Exit(status)
}

func run(m *testing.M) (status int, err error) {
	if os.Getenv(apiservertest.AssetsVariable) == "" {
		return m.Run(), nil // the tests tell that they are skipped
	}
	binaries, err := os.MkdirTemp("", "changes-bin-")
	if err != nil {
		return 0, fmt.Errorf("make a place for the binaries: %w", err)
	}
	defer func() {
		if e := os.RemoveAll(binaries); err == nil {
			err = e
		}
	}()
	for _, p := range []string{"./polku/cmd/polku", "./ahti/cmd/ahti", "./portti/cmd/portti"} {
		cmd := exec.Command(goCommand(), "build", "-p", "2", "-o", filepath.Join(binaries, filepath.Base(p)), p)
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("build %s: %w\n%s", p, err, out)
		}
	}
	if err := os.Setenv(binariesVariable, binaries); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// goCommand is the go command that runs this test: sudo has another PATH.
func goCommand() string {
	if root := os.Getenv("GOROOT"); root != "" {
		return filepath.Join(root, "bin", "go")
	}
	return "go"
}
