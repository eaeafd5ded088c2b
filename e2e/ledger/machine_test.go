package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// enterMachine prepares the namespaces that this process was started in, after
// it made sure that they are not those of the machine.
func enterMachine(outside string) error {
	inside, err := namespaces()
	if err != nil {
		return err
	}
	for i, id := range strings.Fields(inside) {
		if id == strings.Fields(outside)[i] {
			return fmt.Errorf("%s is that of the machine: nothing was touched", id)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read the mounts: %w", err)
	}
	if strings.Contains(string(mounts), " shared:") {
		return errors.New("mounts would be seen outside of the namespace: nothing was touched")
	}
	return setNetwork(true)
}

// namespaces names those that must be private.
func namespaces() (string, error) {
	var ids []string
	for _, kind := range []string{"mnt", "net", "ipc"} {
		id, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			return "", fmt.Errorf("name the namespaces: %w", err)
		}
		ids = append(ids, id)
	}
	return strings.Join(ids, " "), nil
}

// setNetwork brings the loopback of the namespace, its only network, up or down.
// Packets are lost while it is down; connections stay.
func setNetwork(up bool) (err error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set the network: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(s)) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("set the network: %w", err)
	}
	if up {
		lo.SetUint16(unix.IFF_UP)
	}
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("set the network: %w", err)
	}
	return nil
}

// disk is a small file system of its own.
type disk struct{ dir string }

func mountDisk(dir string, bytes int64) (disk, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return disk{}, err
	}
	if err := unix.Mount("ledger", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%d,mode=755", bytes)); err != nil {
		return disk{}, fmt.Errorf("mount a disk on %s: %w", dir, err)
	}
	return disk{dir}, nil
}

func (d disk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill takes all space that is free, also that which is given back meanwhile.
func (d disk) fill() (err error) {
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("fill a disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for chunk := int64(64 << 20); chunk >= 4096; {
		info, err := f.Stat()
		if err != nil {
			return fmt.Errorf("fill a disk: %w", err)
		}
		switch err := unix.Fallocate(int(f.Fd()), 0, info.Size(), chunk); {
		case errors.Is(err, unix.ENOSPC):
			chunk /= 2
		case err != nil:
			return fmt.Errorf("fill a disk: %w", err)
		}
	}
	return nil
}

func (d disk) free() error {
	if err := os.Remove(d.ballast()); err != nil {
		return fmt.Errorf("empty a disk: %w", err)
	}
	return nil
}
