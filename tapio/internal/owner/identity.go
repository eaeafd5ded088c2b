// Package owner tells whose cgroup it is: the kernel reports a cgroup id,
// Table turns the id into the cgroup's path and Parse turns the path into the
// container, the pod or the systemd unit that the path names.
//
// A path never names a pod or a container by anything but its id; names,
// namespaces and labels come from the Kubernetes API, elsewhere.
package owner

import "strings"

// Identity is what a cgroup path says about who lives in the cgroup. The zero
// value means that the path names nobody known.
type Identity struct {
	// ContainerID is the innermost container: 64 hex digits, or the name that
	// the runtime gave to a cgroup directly below its pod. A pod's sandbox
	// (pause) container looks the same as the others.
	ContainerID string

	// Runtime is containerd, cri-o, docker or podman; empty where the path does
	// not say, which is the rule under the cgroupfs driver.
	Runtime string

	// PodUID is the innermost pod's UID, 8-4-4-4-12 hex digits. A static pod has
	// the hash of its manifest instead, 32 hex digits without dashes: the API
	// server knows that one as the annotation kubernetes.io/config.hash.
	PodUID string

	// Unit is the innermost systemd unit that can hold processes (a service,
	// scope, mount, socket or swap; slices only group), written as systemctl
	// takes it: \x2d and its like belong to the name.
	Unit string
}

// IsContainer reports whether the cgroup is a container or lies inside one.
func (i Identity) IsContainer() bool { return i.ContainerID != "" }

// IsService reports whether the cgroup belongs to a systemd service of the
// node: not to a container or pod, even if systemd runs inside it, and not to
// a scope such as a login session.
func (i Identity) IsService() bool {
	return i.ContainerID == "" && i.PodUID == "" && strings.HasSuffix(i.Unit, ".service")
}

// Parse reads a cgroup path as /proc/PID/cgroup, mountinfo or the kernel's
// cgroup tracepoints show it, under the cgroupfs and the systemd driver alike.
// It needs no root segment: names that only runtimes and the kubelet give
// decide, so custom cgroup parents and nesting (kind, docker in docker) do not
// matter, and of two nested containers or pods the inner one wins.
func Parse(path string) Identity {
	// The kernel marks a removed cgroup that still has processes.
	path = strings.TrimSuffix(path, " (deleted)")

	var (
		id       Identity
		parent   string // the segment above
		belowPod bool   // the segment above is the pod
	)
	for segment := range strings.SplitSeq(path, "/") {
		switch segment {
		case "", ".":
			continue
		case "..":
			// A reader in a cgroup namespace sees what lies outside of it as
			// /../.. and then names. The kernel never goes up after a name.
			if parent != "" {
				return Identity{}
			}
			continue
		}

		if uid, rest, ok := cutPod(segment); ok {
			id = Identity{PodUID: uid} // what encloses the pod is not its owner
			belowPod = true
			// A containerd that disagrees with the kubelet about the driver
			// makes one directory SLICE:cri-containerd:ID.
			if prefix, name, ok := strings.Cut(rest, ":"); ok && validName(name) {
				if runtime, ok := runtimes[prefix]; ok {
					id.ContainerID, id.Runtime = name, runtime
				}
			}
		} else {
			if container, runtime, ok := parseContainer(segment, parent, belowPod); ok {
				id.ContainerID, id.Runtime, id.Unit = container, runtime, ""
			}
			if unit, ok := parseUnit(segment); ok {
				id.Unit = unit
			}
			belowPod = false
		}
		parent = segment
	}
	return id
}

// runtimes maps what stands before the id in a container's cgroup name. The
// monitors that CRI-O and podman run beside a container (crio-conmon-ID.scope,
// libpod-conmon-ID.scope) are not the container and not here.
var runtimes = map[string]string{
	"cri-containerd": "containerd",
	"nerdctl":        "containerd",
	"crio":           "cri-o",
	"docker":         "docker",
	"libpod":         "podman",
	"libpod-payload": "podman", // podman run --cgroups=split
}

// runtimeParents maps the directories in which a runtime keeps containers that
// have a bare id for a name, which says nothing by itself.
var runtimeParents = map[string]string{
	"docker": "docker",
	"k8s.io": "containerd", // containerd's namespace for Kubernetes
}

// parseContainer reads a container's cgroup name: ID, RUNTIME-ID or
// RUNTIME-ID.scope. Directly below a pod an id need not be 64 hex digits,
// because there nobody but the runtime makes scopes.
func parseContainer(segment, parent string, belowPod bool) (id, runtime string, ok bool) {
	name, isScope := strings.CutSuffix(segment, ".scope")
	if isContainerID(name) {
		return name, runtimeParents[parent], true
	}
	if cut := len(name) - containerIDLen - 1; cut > 0 && name[cut] == '-' && isContainerID(name[cut+1:]) {
		prefix, id := name[:cut], name[cut+1:]
		runtime, known := runtimes[prefix]
		if !known && (!isScope || isMonitor(prefix)) {
			return "", "", false
		}
		return id, runtime, true
	}
	if !belowPod || !isScope || isMonitor(name) {
		return "", "", false
	}
	for _, prefix := range [...]string{"cri-containerd", "crio"} {
		if id, ok := strings.CutPrefix(name, prefix+"-"); ok && validName(id) {
			return id, runtimes[prefix], true
		}
	}
	return "", "", false
}

func isMonitor(name string) bool { return strings.Contains(name, "conmon") }

// containerIDLen is the length of the ids that containerd's CRI plugin, CRI-O,
// docker and podman make: 32 random bytes in hex.
const containerIDLen = 64

func isContainerID(s string) bool { return len(s) == containerIDLen && isHex(s) }

// validName accepts what containerd and CRI-O accept as a container's name.
func validName(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return s != ""
}

// cutPod reads a pod's cgroup name: podUID under the cgroupfs driver, and
// PARENTS-podUID.slice, with the dashes of the UID written as underscores,
// under the systemd driver. rest is what follows the first colon.
func cutPod(segment string) (uid, rest string, ok bool) {
	if uid, ok := strings.CutPrefix(segment, "pod"); ok && isPodUID(uid, '-') {
		return uid, "", true
	}
	slice, rest, _ := strings.Cut(segment, ":")
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok {
		return "", "", false
	}
	parents := strings.LastIndex(name, "-pod")
	if parents < 0 {
		return "", "", false
	}
	uid = name[parents+len("-pod"):]
	if !isPodUID(uid, '_') {
		return "", "", false
	}
	return strings.ReplaceAll(uid, "_", "-"), rest, true
}

// isPodUID accepts a UUID written with the separator, and the bare 32 digits of
// a static pod.
func isPodUID(s string, separator byte) bool {
	const digits, uuid = 32, 36
	if len(s) == digits {
		return isHex(s)
	}
	if len(s) != uuid {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != separator {
				return false
			}
		default:
			if !isHexDigit(c) {
				return false
			}
		}
	}
	return true
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if !isHexDigit(c) {
			return false
		}
	}
	return true
}

func isHexDigit(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }

func parseUnit(segment string) (string, bool) {
	dot := strings.LastIndexByte(segment, '.')
	if dot <= 0 {
		return "", false
	}
	switch segment[dot+1:] {
	case "service", "scope", "mount", "socket", "swap":
	default:
		return "", false
	}
	// systemd puts an underscore before a unit whose name could be mistaken for
	// a file of the cgroup filesystem, such as cpu.service.
	unit := strings.TrimPrefix(segment, "_")
	return unit, unit[0] != '.'
}
