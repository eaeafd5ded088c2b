// Cluster proves the whole chain on a real Kubernetes cluster: it starts one with
// kind, deploys everything as users do, breaks things for real, and judges only what
// AHTI says about it. It exits with 0 only if every answer is right and in time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// patience is how long a run may take in all.
const patience = 25 * time.Minute

// settings are what the caller may choose.
type settings struct {
	only    []string // names of scenarios; all when empty
	keep    bool     // leave the cluster
	name    string   // of the cluster
	tool    string   // that starts clusters without a registry; used when it is there
	image   string   // of the nodes; kind's own when empty
	folder  string   // for logs and what is found
	atOnce  int      // how many scenarios run at a time
	project string   // root of the project
}

func main() {
	var s settings
	only := flag.String("scenario", os.Getenv("SCENARIO"), "run only these, comma-separated (also SCENARIO)")
	list := flag.Bool("list", false, "print the names of the scenarios")
	flag.BoolVar(&s.keep, "keep", os.Getenv("E2E_KEEP") != "", "leave the cluster for looking around (also E2E_KEEP=1)")
	flag.StringVar(&s.name, "name", "tapio-e2e", "name of the kind cluster; one that is there is used")
	flag.StringVar(&s.image, "node-image", os.Getenv("E2E_NODE_IMAGE"), "image of the nodes (also E2E_NODE_IMAGE); kind's own without")
	flag.StringVar(&s.tool, "tool", "../shared/cluster/cluster", "program that starts kind on a machine without a registry; used when it is there and no node image is named")
	flag.StringVar(&s.folder, "folder", ".cache/e2e", "where logs and findings go, in a folder a run")
	flag.IntVar(&s.atOnce, "at-once", 4, "how many scenarios run at a time")
	flag.Parse()
	if *list {
		for _, c := range scenarios() {
			fmt.Printf("%-18s %s\n", c.name, c.about)
		}
		return
	}
	if *only != "" {
		s.only = strings.Split(*only, ",")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, patience)
	err := run(ctx, s)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		os.Exit(1)
	}
}

// run is the suite from the first image to the last figure.
func run(ctx context.Context, s settings) (err error) {
	began := time.Now()
	chosen, err := choose(scenarios(), s.only)
	if err != nil {
		return err
	}
	if s.project, err = os.Getwd(); err != nil {
		return fmt.Errorf("find the project: %w", err)
	}
	if _, err := os.Stat(filepath.Join(s.project, "deploy", "kustomize")); err != nil {
		return fmt.Errorf("there are no manifests: run this from the root of the project: %w", err)
	}
	if s.folder, err = filepath.Abs(filepath.Join(s.folder, began.Format("2006-01-02T150405"))); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if err := os.MkdirAll(s.folder, 0o755); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	m, err := newMachine(s)
	if err != nil {
		return err
	}
	say("starting the cluster %s ...", m.name)
	if err := m.up(ctx); err != nil {
		return errors.Join(err, m.leave())
	}
	defer func() { err = errors.Join(err, m.leave()) }()
	say("making the images ...")
	if err := m.images(ctx, s.project); err != nil {
		return err
	}
	sys, err := newSystem(ctx, m)
	if err != nil {
		return err
	}
	defer sys.close()
	j := newJudge(sys)
	if err := j.setEarly(ctx, chosen); err != nil {
		return err
	}
	if err := sys.deploy(ctx); err != nil {
		return errors.Join(err, sys.logs(s.folder))
	}
	say("deployed and ready after %s", time.Since(began).Round(time.Second))

	outcomes := j.runAll(ctx, chosen, s.atOnce)
	if ctx.Err() != nil {
		return fmt.Errorf("the run was cut short; what there is is in %s: %w", s.folder, ctx.Err())
	}
	err = j.verdict(context.WithoutCancel(ctx), outcomes)
	say("the suite took %s; logs and findings are in %s", time.Since(began).Round(time.Second), s.folder)
	return err
}

func choose(all []scenario, names []string) ([]scenario, error) {
	if len(names) == 0 {
		return all, nil
	}
	var chosen []scenario
	for _, name := range names {
		found := false
		for _, c := range all {
			if c.name == name {
				chosen, found = append(chosen, c), true
			}
		}
		if !found {
			return nil, fmt.Errorf("there is no scenario %q: -list prints them", name)
		}
	}
	return chosen, nil
}

func say(format string, args ...any) {
	fmt.Printf("%s "+format+"\n", append([]any{time.Now().Format("15:04:05")}, args...)...)
}
