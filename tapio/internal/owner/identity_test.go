package owner

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

const (
	idA = "3f1d4ea0c1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c"
	idB = "b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4d"

	uidA       = "0f7cb6a1-3b0e-4c1d-9a52-6f0f8a1f2b3c"
	uidSystemd = "0f7cb6a1_3b0e_4c1d_9a52_6f0f8a1f2b3c"
	uidB       = "9d2a6c54-77aa-4b0f-8e11-0a1b2c3d4e5f"
	uidStatic  = "f4d3c2b1a09f8e7d6c5b4a3928171605"
)

func TestParse(t *testing.T) {
	podSlice := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidSystemd + ".slice"
	kindSlice := "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod" + uidSystemd + ".slice"

	containerd := func(id string) Identity {
		return Identity{ContainerID: id, Runtime: "containerd", PodUID: uidA, Unit: "cri-containerd-" + id + ".scope"}
	}

	for name, tt := range map[string]struct {
		path string
		want Identity
	}{
		"cgroupfs burstable":                  {"/kubepods/burstable/pod" + uidA + "/" + idA, Identity{ContainerID: idA, PodUID: uidA}},
		"cgroupfs besteffort":                 {"/kubepods/besteffort/pod" + uidA + "/" + idA, Identity{ContainerID: idA, PodUID: uidA}},
		"cgroupfs guaranteed":                 {"/kubepods/pod" + uidA + "/" + idA, Identity{ContainerID: idA, PodUID: uidA}},
		"cgroupfs cri-o":                      {"/kubepods/burstable/pod" + uidA + "/crio-" + idA, Identity{ContainerID: idA, Runtime: "cri-o", PodUID: uidA}},
		"cgroupfs conmon":                     {"/kubepods/burstable/pod" + uidA + "/crio-conmon-" + idA, Identity{PodUID: uidA}},
		"cgroupfs pod":                        {"/kubepods/burstable/pod" + uidA, Identity{PodUID: uidA}},
		"cgroupfs static pod":                 {"/kubepods/burstable/pod" + uidStatic + "/" + idA, Identity{ContainerID: idA, PodUID: uidStatic}},
		"cgroupfs qos class":                  {"/kubepods/burstable", Identity{}},
		"containerd without a kubelet parent": {"/k8s.io/" + idA, Identity{ContainerID: idA, Runtime: "containerd"}},

		"systemd containerd": {podSlice + "/cri-containerd-" + idA + ".scope", containerd(idA)},
		"systemd guaranteed": {"/kubepods.slice/kubepods-pod" + uidSystemd + ".slice/cri-containerd-" + idA + ".scope", containerd(idA)},
		"systemd cri-o": {
			podSlice + "/crio-" + idA + ".scope",
			Identity{ContainerID: idA, Runtime: "cri-o", PodUID: uidA, Unit: "crio-" + idA + ".scope"},
		},
		"systemd cri-o, container below the scope": {
			podSlice + "/crio-" + idA + ".scope/container",
			Identity{ContainerID: idA, Runtime: "cri-o", PodUID: uidA, Unit: "crio-" + idA + ".scope"},
		},
		"systemd conmon": {
			podSlice + "/crio-conmon-" + idA + ".scope",
			Identity{PodUID: uidA, Unit: "crio-conmon-" + idA + ".scope"},
		},
		"systemd docker": {
			podSlice + "/docker-" + idA + ".scope",
			Identity{ContainerID: idA, Runtime: "docker", PodUID: uidA, Unit: "docker-" + idA + ".scope"},
		},
		"systemd static pod": {
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + uidStatic + ".slice/cri-containerd-" + idA + ".scope",
			Identity{ContainerID: idA, Runtime: "containerd", PodUID: uidStatic, Unit: "cri-containerd-" + idA + ".scope"},
		},
		"systemd pod": {podSlice, Identity{PodUID: uidA}},
		"systemd runtime's own name for a container": {
			podSlice + "/cri-containerd-web.1.scope",
			Identity{ContainerID: "web.1", Runtime: "containerd", PodUID: uidA, Unit: "cri-containerd-web.1.scope"},
		},
		"systemd conmon of a container with its own name": {
			podSlice + "/crio-conmon-web.scope",
			Identity{PodUID: uidA, Unit: "crio-conmon-web.scope"},
		},
		"systemd unknown runtime": {
			podSlice + "/newcri-" + idA + ".scope",
			Identity{ContainerID: idA, PodUID: uidA, Unit: "newcri-" + idA + ".scope"},
		},
		"drivers that disagree": {
			"/system.slice/containerd.service/kubepods-burstable-pod" + uidSystemd + ".slice:cri-containerd:" + idA,
			Identity{ContainerID: idA, Runtime: "containerd", PodUID: uidA},
		},
		"custom parent with an escaped dash": {`/node\x2dpods.slice/node\x2dpods-kubepods.slice/node\x2dpods-kubepods-pod` + uidSystemd + ".slice/cri-containerd-" + idA + ".scope", containerd(idA)},

		"docker cgroupfs":  {"/docker/" + idA, Identity{ContainerID: idA, Runtime: "docker"}},
		"docker systemd":   {"/system.slice/docker-" + idA + ".scope", Identity{ContainerID: idA, Runtime: "docker", Unit: "docker-" + idA + ".scope"}},
		"docker buildkit":  {"/docker/buildkit/" + idA, Identity{ContainerID: idA}},
		"other parent":     {"/ecs/cluster/" + idB[:32] + "/" + idA, Identity{ContainerID: idA}},
		"nerdctl":          {"/system.slice/nerdctl-" + idA + ".scope", Identity{ContainerID: idA, Runtime: "containerd", Unit: "nerdctl-" + idA + ".scope"}},
		"podman":           {"/machine.slice/libpod-" + idA + ".scope/container", Identity{ContainerID: idA, Runtime: "podman", Unit: "libpod-" + idA + ".scope"}},
		"podman conmon":    {"/machine.slice/libpod-conmon-" + idA + ".scope", Identity{Unit: "libpod-conmon-" + idA + ".scope"}},
		"podman cgroupfs":  {"/libpod_parent/libpod-" + idA, Identity{ContainerID: idA, Runtime: "podman"}},
		"podman pod":       {"/machine.slice/machine-libpod_pod_" + idB + ".slice/libpod-" + idA + ".scope", Identity{ContainerID: idA, Runtime: "podman", Unit: "libpod-" + idA + ".scope"}},
		"podman rootless":  {"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + idA + ".scope/container", Identity{ContainerID: idA, Runtime: "podman", Unit: "libpod-" + idA + ".scope"}},
		"podman quadlet":   {"/system.slice/web.service/libpod-payload-" + idA, Identity{ContainerID: idA, Runtime: "podman"}},
		"quadlet's conmon": {"/system.slice/web.service/runtime", Identity{Unit: "web.service"}},
		"podman health check": {
			"/system.slice/" + idA + ".service",
			Identity{Unit: idA + ".service"},
		},
		"rootfs mount": {
			"/system.slice/run-containerd-io.containerd.runtime.v2.task-k8s.io-" + idA + "-rootfs.mount",
			Identity{Unit: "run-containerd-io.containerd.runtime.v2.task-k8s.io-" + idA + "-rootfs.mount"},
		},

		"kind node":                   {kindSlice + "/cri-containerd-" + idA + ".scope", containerd(idA)},
		"kind from the outer host":    {"/docker/" + idB + kindSlice + "/cri-containerd-" + idA + ".scope", containerd(idA)},
		"kind from a systemd host":    {"/system.slice/docker-" + idB + ".scope" + kindSlice + "/cri-containerd-" + idA + ".scope", containerd(idA)},
		"kind node's pod":             {"/docker/" + idB + kindSlice, Identity{PodUID: uidA}},
		"kind node's kubelet":         {"/docker/" + idB + "/kubelet.slice/kubelet.service", Identity{ContainerID: idB, Runtime: "docker", Unit: "kubelet.service"}},
		"kind in a pod":               {"/kubepods/burstable/pod" + uidB + "/" + idB + kindSlice + "/cri-containerd-" + idA + ".scope", containerd(idA)},
		"docker in a pod":             {"/kubepods/burstable/pod" + uidA + "/" + idA + "/docker/" + idB, Identity{ContainerID: idB, Runtime: "docker", PodUID: uidA}},
		"below a cgroupfs container":  {"/kubepods/burstable/pod" + uidA + "/" + idA + "/init", Identity{ContainerID: idA, PodUID: uidA}},
		"systemd inside a container":  {"/docker/" + idA + "/system.slice/nginx.service", Identity{ContainerID: idA, Runtime: "docker", Unit: "nginx.service"}},
		"service below its scope":     {podSlice + "/cri-containerd-" + idA + ".scope/foo.service", Identity{ContainerID: idA, Runtime: "containerd", PodUID: uidA, Unit: "foo.service"}},
		"pod name that is not a uid":  {"/kubepods/burstable/podcast/web", Identity{}},
		"slice that is no pod":        {"/machine.slice/machine-pod.slice", Identity{}},
		"pod with a colon but no id":  {"/x-pod" + uidSystemd + ".slice:cri-containerd:", Identity{PodUID: uidA}},
		"pod with an unknown runtime": {"/x-pod" + uidSystemd + ".slice:other:" + idA, Identity{PodUID: uidA}},

		"service":               {"/system.slice/nginx.service", Identity{Unit: "nginx.service"}},
		"template service":      {"/system.slice/system-getty.slice/getty@tty1.service", Identity{Unit: "getty@tty1.service"}},
		"below a service":       {"/system.slice/systemd-udevd.service/udev", Identity{Unit: "systemd-udevd.service"}},
		"escaped service":       {`/system.slice/system-serial\x2dgetty.slice/serial-getty@ttyS0.service`, Identity{Unit: "serial-getty@ttyS0.service"}},
		"escaped unit":          {`/system.slice/my\x2dapp.service`, Identity{Unit: `my\x2dapp.service`}},
		"controller-like name":  {"/system.slice/_cpu.service", Identity{Unit: "cpu.service"}},
		"mount":                 {`/system.slice/dev-disk-by\x2dlabel-data.mount`, Identity{Unit: `dev-disk-by\x2dlabel-data.mount`}},
		"user service":          {"/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", Identity{Unit: "foo.service"}},
		"user manager":          {"/user.slice/user-1000.slice/user@1000.service/init.scope", Identity{Unit: "init.scope"}},
		"terminal":              {"/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn-2b1f0d3c-5a4e-4f3d-8f0e-1a2b3c4d5e6f.scope", Identity{Unit: "vte-spawn-2b1f0d3c-5a4e-4f3d-8f0e-1a2b3c4d5e6f.scope"}},
		"login session":         {"/user.slice/user-1000.slice/session-3.scope", Identity{Unit: "session-3.scope"}},
		"scope outside a pod":   {"/system.slice/docker-registry.scope", Identity{Unit: "docker-registry.scope"}},
		"slice":                 {"/system.slice", Identity{}},
		"pid 1":                 {"/init.scope", Identity{Unit: "init.scope"}},
		"suffix without a name": {"/system.slice/.service/_.service", Identity{}},

		"deleted":                         {podSlice + "/cri-containerd-" + idA + ".scope (deleted)", containerd(idA)},
		"from a cgroup namespace":         {"/../../.." + podSlice + "/cri-containerd-" + idA + ".scope", containerd(idA)},
		"sibling from a cgroup namespace": {"/../cri-containerd-" + idA + ".scope", Identity{ContainerID: idA, Runtime: "containerd", Unit: "cri-containerd-" + idA + ".scope"}},
		"ancestors only":                  {"/../..", Identity{}},
		"going up after a name":           {"/docker/" + idA + "/..", Identity{}},

		"root":                {"/", Identity{}},
		"empty":               {"", Identity{}},
		"relative":            {"kubepods/pod" + uidA + "/" + idA, Identity{ContainerID: idA, PodUID: uidA}},
		"doubled slashes":     {"//docker//" + idA + "//", Identity{ContainerID: idA, Runtime: "docker"}},
		"63 digits":           {"/docker/" + idA[1:], Identity{}},
		"65 digits":           {"/docker/0" + idA, Identity{}},
		"capital digits":      {"/docker/" + strings.ToUpper(idA), Identity{}},
		"misplaced dash":      {"/kubepods/pod0-f7cb6a13b0e-4c1d-9a52-6f0f8a1f2b3c/web", Identity{}},
		"not a uid":           {"/kubepods/podzf7cb6a1-3b0e-4c1d-9a52-6f0f8a1f2b3c", Identity{}},
		"bytes that are text": {"/\xff\xfe/\x00.service", Identity{Unit: "\x00.service"}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, tt.want, Parse(tt.path), tt.path)
		})
	}
}

func TestIdentityKinds(t *testing.T) {
	for path, want := range map[string]struct{ container, service bool }{
		"/docker/" + idA: {container: true},
		"/docker/" + idA + "/system.slice/nginx.service":                          {container: true},
		"/kubepods/pod" + uidA:                                                    {},
		"/kubepods/pod" + uidA + "/foo.service":                                   {},
		"/system.slice/nginx.service":                                             {service: true},
		"/system.slice/nginx.service/worker":                                      {service: true},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service":     {service: true},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn.scope": {},
		"/user.slice/user-1000.slice/session-3.scope":                             {},
		"/system.slice/tmp.mount":                                                 {},
		"/":                                                                       {},
	} {
		id := Parse(path)
		assert.Equal(t, want.container, id.IsContainer(), path)
		assert.Equal(t, want.service, id.IsService(), path)
	}
}

func FuzzParse(f *testing.F) {
	for _, path := range []string{
		"", "/", "/../..", "/docker/" + idA,
		"/kubepods/burstable/pod" + uidA + "/" + idA + "/init",
		"/kubelet.slice/kubelet-kubepods-pod" + uidSystemd + ".slice/crio-conmon-" + idA + ".scope",
		"/system.slice/containerd.service/kubepods-pod" + uidSystemd + ".slice:cri-containerd:web",
		`/system.slice/_a\x2db.service (deleted)`,
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		id := Parse(path)
		assert.Equal(t, id, Parse(path), "the same path has the same owner")
		assert.Contains(t, path, id.ContainerID)
		assert.Contains(t, path, id.Unit)
		assert.Contains(t, strings.ReplaceAll(path, "_", "-"), id.PodUID)
		assert.False(t, id.Runtime != "" && id.ContainerID == "", "a runtime without a container")
		assert.False(t, id.IsContainer() && id.IsService())

		assert.Equal(t, id, Parse("/../../"+path), "seen from inside a cgroup namespace")
		if !strings.HasSuffix(path, " (deleted)") {
			assert.Equal(t, id, Parse(path+" (deleted)"), "deleted")
		}
	})
}
