// Package privilege tells whether this process may do what the agent does.
package privilege

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The capabilities of the agent's programs.
const (
	BPF     = unix.CAP_BPF
	Perfmon = unix.CAP_PERFMON
)

func name(capability int) string {
	switch capability {
	case BPF:
		return "CAP_BPF"
	case Perfmon:
		return "CAP_PERFMON"
	}
	return fmt.Sprintf("capability %d", capability)
}

// Missing returns which of the capabilities this process does not have in
// effect. CAP_SYS_ADMIN includes them all.
func Missing(capabilities ...int) ([]string, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return nil, fmt.Errorf("read the capabilities of this process: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) {
		return nil, nil
	}
	var missing []string
	for _, c := range capabilities {
		if !has(c) {
			missing = append(missing, name(c))
		}
	}
	return missing, nil
}

// Check returns an error that says what is missing and how to get it, for an
// agent that cannot do anything without.
func Check() error {
	missing, err := Missing(BPF, Perfmon)
	if err != nil || len(missing) == 0 {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		self = "tapio"
	}
	return fmt.Errorf(`cannot load kernel programs: user %d lacks %s
  as root:             sudo %s
  as any user, once:   sudo setcap cap_bpf,cap_perfmon+ep %s
  in Kubernetes:       securityContext.capabilities.add: [BPF, PERFMON]`,
		os.Geteuid(), strings.Join(missing, " and "), self, self)
}
