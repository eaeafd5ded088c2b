package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// namespace is where the system runs, and overlay what describes it.
	namespace = "tapio-system"
	overlay   = "deploy/kustomize/overlays/kind"
	// readyWithin is how long the system may take to become ready.
	readyWithin = 3 * time.Minute
	// apiPort is where AHTI answers in JSON.
	apiPort = "8090"
)

// component is one of our programs.
type component struct {
	binary string
	image  string // as the overlay names it
	port   string // of its metrics
}

func components() []component {
	return []component{
		{"tapio", "tapio:dev", "9465"},
		{"polku", "polku:dev", "9466"},
		{"ahti", "ahti:dev", "9467"},
		{"portti", "portti:dev", "9468"},
		{"scheduler-scraper", "scheduler-scraper:dev", "9469"},
	}
}

// system is what was deployed, and the ways to look at it.
type system struct {
	*machine
	since time.Time // when it was deployed
	nodes []string  // all, the control plane first
	api   string    // URL of the API server, through a proxy
	ahti  string    // URL of AHTI
	pods  *pods

	children context.Context // of the programs that look
	stop     context.CancelFunc
	done     sync.WaitGroup
}

// faulty is the node that scenarios may break.
func (s *system) faulty() string { return s.nodes[len(s.nodes)-1] }

// newSystem prepares a cluster, and watches its pods.
func newSystem(ctx context.Context, m *machine) (_ *system, err error) {
	children, stop := context.WithCancel(ctx)
	s := &system{machine: m, children: children, stop: stop}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	names, err := m.kubectl(ctx, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	if s.nodes = strings.Fields(names); len(s.nodes) != workers+1 {
		return nil, fmt.Errorf("the cluster %s has %d nodes, the suite needs %d: delete it, a new one is made", m.name, len(s.nodes), workers+1)
	}
	if err := s.clean(ctx); err != nil {
		return nil, err
	}
	if s.api, err = s.proxy(children); err != nil {
		return nil, err
	}
	s.pods = newPods(s.api)
	s.done.Go(func() { s.pods.follow(children) })
	return s, nil
}

// deploy applies the manifests and waits until everything is ready.
func (s *system) deploy(ctx context.Context) error {
	say("deploying %s ...", overlay)
	s.since = time.Now()
	// What is judged must not be on the node that breaks.
	if _, err := s.kubectl(ctx, "cordon", s.faulty()); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-k", filepath.Join(s.project, overlay)); err != nil {
		return err
	}
	workloads, err := s.kubectl(ctx, "-n", namespace, "get", "daemonsets,deployments,statefulsets", "-o", "name")
	if err != nil {
		return err
	}
	for _, w := range strings.Fields(workloads) {
		if _, err := s.kubectl(ctx, "-n", namespace, "rollout", "status", w, "--timeout", readyWithin.String()); err != nil {
			return err
		}
	}
	if _, err := s.kubectl(ctx, "uncordon", s.faulty()); err != nil {
		return err
	}
	return s.forward(s.children)
}

// clean removes what an earlier run left in a cluster that was kept.
func (s *system) clean(ctx context.Context) error {
	old, err := s.kubectl(ctx, "get", "namespaces", "-o", "name")
	if err != nil {
		return err
	}
	var args []string
	for _, ns := range strings.Fields(old) {
		if name := strings.TrimPrefix(ns, "namespace/"); name == namespace || strings.HasPrefix(name, prefix) {
			args = append(args, name)
		}
	}
	if _, err := s.kubectl(ctx, "uncordon", s.faulty()); err != nil {
		return err
	}
	if len(args) == 0 {
		return nil
	}
	say("removing what an earlier run left ...")
	_, err = s.kubectl(ctx, append([]string{"delete", "namespace", "--timeout=2m"}, args...)...)
	return err
}

// close ends the programs that were started to look at the system.
func (s *system) close() {
	s.stop()
	s.done.Wait()
}

// proxy starts a proxy to the API server and returns its URL.
func (s *system) proxy(ctx context.Context) (string, error) {
	cmd := s.command(ctx, "kubectl", "proxy", "--port=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", fmt.Errorf("start kubectl proxy: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start kubectl proxy: %w", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	s.done.Go(func() { _ = cmd.Wait() }) // it ends when it is told to
	_, address, ok := strings.Cut(strings.TrimSpace(line), "Starting to serve on ")
	if err != nil || !ok {
		return "", fmt.Errorf("start kubectl proxy: it said %q: %w", line, err)
	}
	return "http://" + address, nil
}

// forward keeps a way to AHTI open, and returns once it answers.
func (s *system) forward(ctx context.Context) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	s.ahti = "http://127.0.0.1:" + port
	s.done.Go(func() {
		for ctx.Err() == nil {
			// It ends whenever the pod does.
			_ = s.command(ctx, "kubectl", "-n", namespace, "port-forward", "statefulset/ahti", port+":"+apiPort).Run()
			pause(ctx, 200*time.Millisecond)
		}
	})
	return until(ctx, 30*time.Second, "AHTI answers", func() error {
		_, err := get(ctx, s.ahti+"/v1/incidents")
		return err
	})
}

// until asks again and again until the answer is nil.
func until(ctx context.Context, within time.Duration, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		if pause(ctx, 200*time.Millisecond); ctx.Err() != nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// get returns what a URL answers.
func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	defer answer.Body.Close() //nolint:errcheck // everything was read
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", url, err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask %s: %s: %.300s", url, answer.Status, body)
	}
	return body, nil
}

// ours lists the pods of the system.
func (s *system) ours(ctx context.Context) ([]pod, error) {
	body, err := get(ctx, s.api+"/api/v1/namespaces/"+namespace+"/pods")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []pod }
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("list the pods of the system: %w", err)
	}
	return list.Items, nil
}

// logs keeps what our pods logged, also before a restart.
func (s *system) logs(folder string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	names, err := s.kubectl(ctx, "-n", namespace, "get", "pods", "-o", "name")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range strings.Fields(names) {
		text, err := s.kubectl(ctx, "-n", namespace, "logs", name, "--all-containers")
		errs = append(errs, err, keep(filepath.Join(folder, "logs", filepath.Base(name)+".log"), text))
		// There is none when it was never restarted.
		if text, err := s.kubectl(ctx, "-n", namespace, "logs", name, "--all-containers", "--previous"); err == nil {
			errs = append(errs, keep(filepath.Join(folder, "logs", filepath.Base(name)+".previous.log"), text))
		}
	}
	text, err := s.kubectl(ctx, "-n", namespace, "describe", "pods")
	return errors.Join(append(errs, err, keep(filepath.Join(folder, "logs", "describe.txt"), text))...)
}

// keep writes a file that people may want to look at.
func keep(file, text string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("keep what was found: %w", err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return fmt.Errorf("keep what was found: %w", err)
	}
	return nil
}
