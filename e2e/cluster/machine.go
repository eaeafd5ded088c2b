package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// workers is how many nodes beside the control plane there are: with two, one can
// be drained or fail while the other goes on.
const workers = 2

// kindConfig makes that many.
const kindConfig = `kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes: [{role: control-plane}, {role: worker}, {role: worker}]
`

// testImage is the application of the scenarios; its two tags are the same program.
const testImage = "tapio-e2e-testapp"

// endWithin is how long a program may take to end when it is asked to.
const endWithin = 5 * time.Second

// leaveWithin is how long taking the cluster away may last.
const leaveWithin = time.Minute

// machine runs the cluster: kind with images of a registry, or a tool that needs
// none.
type machine struct {
	settings
	offline bool
	env     []string // of the programs that talk to the cluster
}

func newMachine(s settings) (*machine, error) {
	m := &machine{settings: s, env: os.Environ()}
	if _, err := os.Stat(s.tool); err == nil && s.image == "" {
		if m.tool, err = filepath.Abs(s.tool); err != nil {
			return nil, fmt.Errorf("find %s: %w", s.tool, err)
		}
		m.offline = true
		return m, nil
	}
	for _, program := range []string{"kind", "kubectl", "docker"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("the suite needs kind, kubectl and docker: %w", err)
		}
	}
	m.env = append(m.env, "KUBECONFIG="+filepath.Join(s.folder, "kubeconfig"))
	return m, nil
}

// up starts the cluster unless it is there.
func (m *machine) up(ctx context.Context) error {
	if m.offline {
		if _, err := m.run(ctx, m.tool, "up", "--name", m.name, "--workers", fmt.Sprint(workers)); err != nil {
			return err
		}
		env, err := m.run(ctx, "sh", "-c", `eval "$("$0" env --name "$1")" && env -0`, m.tool, m.name)
		if err != nil {
			return err
		}
		m.env = slices.DeleteFunc(strings.Split(env, "\x00"), func(e string) bool { return e == "" })
		return nil
	}
	names, err := m.run(ctx, "kind", "get", "clusters")
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(names), m.name) {
		_, err := m.run(ctx, "kind", "export", "kubeconfig", "--name", m.name)
		return err
	}
	args := []string{"create", "cluster", "--name", m.name, "--wait", "3m", "--config", "-"}
	if m.image != "" {
		args = append(args, "--image", m.image)
	}
	_, err = m.feed(ctx, kindConfig, "kind", args...)
	return err
}

// leave takes the cluster away, or says how to look around in it.
func (m *machine) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), leaveWithin)
	defer cancel()
	if m.keep {
		say("the cluster is left as it is:")
		if m.offline {
			fmt.Printf("  eval \"$(%s env --name %s)\"; kubectl get pods -A\n  %s down --name %s\n", m.tool, m.name, m.tool, m.name)
		} else {
			fmt.Printf("  kubectl --context kind-%s get pods -A\n  kind delete cluster --name %s\n", m.name, m.name)
			_, err := m.run(ctx, "kind", "export", "kubeconfig", "--name", m.name, "--kubeconfig", os.ExpandEnv("$HOME/.kube/config"))
			return err
		}
		fmt.Printf("  kubectl -n %s port-forward service/ahti 8090 50052, then bin/ahti incidents\n", namespace)
		return nil
	}
	say("taking the cluster away ...")
	if m.offline {
		_, err := m.run(ctx, m.tool, "down", "--name", m.name)
		return err
	}
	_, err := m.run(ctx, "kind", "delete", "cluster", "--name", m.name)
	return err
}

// images puts the images of the components and of the test application on all
// nodes.
func (m *machine) images(ctx context.Context, project string) error {
	folder, err := os.MkdirTemp("", "tapio-e2e-")
	if err != nil {
		return fmt.Errorf("make images: %w", err)
	}
	defer os.RemoveAll(folder) //nolint:errcheck // only temporary files are left
	app := filepath.Join(folder, "testapp")
	build := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", app, "./e2e/cluster/testapp"}
	if _, err := m.feedIn(ctx, project, []string{"CGO_ENABLED=0"}, "", "go", build...); err != nil {
		return err
	}
	images := []image{{testImage + ":1", app}, {testImage + ":2", app}}
	for _, c := range components() {
		images = append(images, image{c.image, filepath.Join(project, "bin", c.binary)})
	}
	var archives []string
	for i, im := range images {
		archive := filepath.Join(folder, fmt.Sprintf("%d.tar", i))
		if err := m.archive(ctx, im, archive); err != nil {
			return err
		}
		archives = append(archives, archive)
	}
	if m.offline {
		_, err = m.run(ctx, m.tool, append([]string{"load", "--name", m.name}, archives...)...)
		return err
	}
	for _, archive := range archives {
		if _, err := m.run(ctx, "kind", "load", "image-archive", archive, "--name", m.name); err != nil {
			return err
		}
	}
	return nil
}

// image is one that holds a static program and nothing else.
type image struct{ name, binary string }

// archive makes an archive of an image from nothing but a program, which is what the
// Dockerfile of the components ends with, and needs no registry.
func (m *machine) archive(ctx context.Context, im image, archive string) error {
	if _, err := os.Stat(im.binary); err != nil {
		return fmt.Errorf("make image %s: run `make build` first: %w", im.name, err)
	}
	folder, program := filepath.Split(im.binary)
	script := `tar -C "$1" --owner=0 --group=0 --mode=0755 -c "$2" | docker import --change "ENTRYPOINT [\"/$2\"]" --change "USER 65532:65532" - "$3" && docker save -o "$4" "$3" && docker rmi "$3"`
	_, err := m.run(ctx, "sh", "-ec", script, "sh", folder, program, im.name, archive)
	return err
}

// run runs a program in the environment of the cluster and returns what it says.
func (m *machine) run(ctx context.Context, name string, args ...string) (string, error) {
	return m.feed(ctx, "", name, args...)
}

// kubectl is the most used one.
func (m *machine) kubectl(ctx context.Context, args ...string) (string, error) {
	return m.run(ctx, "kubectl", args...)
}

func (m *machine) feed(ctx context.Context, in, name string, args ...string) (string, error) {
	return m.feedIn(ctx, "", nil, in, name, args...)
}

func (m *machine) feedIn(ctx context.Context, dir string, env []string, in, name string, args ...string) (string, error) {
	cmd := m.command(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(slices.Clone(m.env), env...)
	cmd.Stdin = strings.NewReader(in)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, lastLines(complaint.String()))
	}
	return out.String(), nil
}

// command prepares a program; it is found on the PATH of the cluster's environment,
// not of this process.
func (m *machine) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	for i := len(m.env) - 1; i >= 0 && !strings.Contains(name, "/"); i-- {
		list, ok := strings.CutPrefix(m.env[i], "PATH=")
		if !ok {
			continue
		}
		for _, folder := range filepath.SplitList(list) {
			path := filepath.Join(folder, name)
			if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
				name = path
				break
			}
		}
		break
	}
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // kubectl, docker, kind and go
	cmd.Env = m.env
	// They take back what they have begun when they are asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endWithin
	return cmd
}

// complaintLines is how much of what a program complains about is told.
const complaintLines = 6

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-complaintLines):], "\n")
}
