package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// verdict judges the run as a whole, and prints everything.
func (j *judge) verdict(ctx context.Context, outcomes []*outcome) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	failed := table(outcomes)
	check := func(what string, problems []string, err error) {
		if err != nil {
			problems = append(problems, err.Error())
		}
		if len(problems) == 0 {
			fmt.Printf("right  %s\n", what)
			return
		}
		failed++
		fmt.Printf("WRONG  %s\n", what)
		for _, p := range problems[:min(len(problems), shownProblems)] {
			fmt.Printf("         %s\n", p)
		}
		if more := len(problems) - shownProblems; more > 0 {
			fmt.Printf("         and %d more\n", more)
		}
	}
	events, err := j.timeline(ctx)
	all := func(*ahtiv1.Incident) bool { return true }
	err = errors.Join(err, j.keepTold(ctx, j.folder, all, func(*ahtiv1.AhtiEvent) bool { return true }), j.logs(j.folder))
	check(fmt.Sprintf("%d events are read back", len(events)), nil, err)
	check("nothing else is told", j.innocents(outcomes), nil)
	what, problems := j.attribution(events)
	check(what, problems, nil)
	what, problems, err = j.leaks(ctx, events)
	check(what, problems, err)
	problems, err = j.figures(ctx)
	check("no component was restarted or lost anything", problems, err)
	what, problems, err = j.watches(ctx)
	check(what, problems, err)
	if failed > 0 {
		return fmt.Errorf("%d answers are wrong", failed)
	}
	return nil
}

// shownProblems is how many problems of a kind are printed.
const shownProblems = 12

// table prints the outcomes and says how many are wrong.
func table(outcomes []*outcome) (failed int) {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "scenario\tanswer\tfault to first symptom\tfirst symptom to explained")
	for _, o := range outcomes {
		verdict, until, after := "right", "", ""
		if len(o.problems) > 0 {
			verdict = "WRONG"
			failed++
		}
		if !o.explained.IsZero() {
			until = fmt.Sprintf("%.1f s", o.delay().Seconds())
			after = fmt.Sprintf("%.1f s", o.explained.Sub(o.symptom).Seconds())
		} else if len(o.want) == 0 && len(o.problems) == 0 {
			until, after = "none", "nothing told"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", o.name, verdict, until, after)
	}
	_ = w.Flush() // standard output
	for _, o := range outcomes {
		for _, p := range append(slices.Clone(o.problems), o.notes...) {
			fmt.Printf("%s: %s\n", o.name, p)
		}
	}
	fmt.Println()
	return failed
}

// innocents lists incidents that belong to no scenario.
func (j *judge) innocents(outcomes []*outcome) []string {
	var all []string
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, t := range j.told {
		// Those of the scenarios are judged with them.
		if !slices.ContainsFunc(outcomes, func(o *outcome) bool { return o.mine(t.in, j.faulty()) }) {
			all = append(all, fmt.Sprintf("%s (told for %.1f s)", t.in.GetSummary(), t.last.Sub(t.first).Seconds()))
		}
	}
	slices.Sort(all)
	return all
}

// attribution compares what the agents say about containers with what the cluster
// knows of them.
func (j *judge) attribution(events []*ahtiv1.AhtiEvent) (string, []string) {
	var problems []string
	attributed, partial := 0, 0
	told := map[string]string{} // who told it, by what was told
	for _, ev := range events {
		if ev.GetSource() != "tapio" || strings.HasPrefix(ev.GetSubtype(), "agent.") {
			continue
		}
		l := ev.GetLabels()
		what := fmt.Sprintf("%s of %s at %s", ev.GetSubtype(), l["process.executable.name"], ev.GetTimestamp().AsTime().Format(time.TimeOnly))
		h, known := j.pods.home(l["container.id"])
		said := home{l["k8s.namespace.name"], l["k8s.pod.name"], l["k8s.pod.uid"], l["k8s.container.name"], l["k8s.node.name"]}
		// A container that ends as it starts has no name yet that the API tells.
		nameless := h
		nameless.container = ""
		switch {
		case known && said == nameless && l["tapio.attribution"] == "partial":
			partial++
		case known && said != h:
			problems = append(problems, fmt.Sprintf("%s: told of %+v, was of %+v", what, said, h))
		case known:
			attributed++
		case said.pod != "" || strings.Contains(l["process.linux.cgroup"], "kubepods"):
			problems = append(problems, fmt.Sprintf("%s: told of %+v (container %.12s, %s), which the cluster does not know", what, said, l["container.id"], l["process.linux.cgroup"]))
		case !slices.Contains(j.nodes, said.node):
			problems = append(problems, fmt.Sprintf("%s: told by an agent on %q", what, said.node))
		}
		// Two agents that tell the same have all of it the same but who they are.
		same := strings.Join([]string{ev.GetSubtype(), l["process.pid"], l["container.id"], l["process.linux.cgroup"], l["network.local.port"], ev.GetTimestamp().AsTime().Format("15:04:05.000")}, " ")
		if by, twice := told[same]; twice && by != said.node {
			problems = append(problems, fmt.Sprintf("%s: told by the agents of %s and %s", what, by, said.node))
		}
		told[same] = said.node
	}
	return fmt.Sprintf("%d events of agents have the right container, %d only its pod, and one agent told each", attributed, partial), problems
}

// leaks searches everything that left for the secrets that were planted.
func (j *judge) leaks(ctx context.Context, events []*ahtiv1.AhtiEvent) (string, []string, error) {
	var problems []string
	var errs []error
	places := 0
	search := func(where, text string) {
		places++
		for _, token := range j.secrets.tokens {
			for _, form := range []string{token, base64.StdEncoding.EncodeToString([]byte(token))} {
				if at := strings.Index(text, form); at >= 0 {
					problems = append(problems, fmt.Sprintf("%s: ...%s...", where, text[max(0, at-160):min(len(text), at+len(form)+20)]))
					break
				}
			}
		}
	}
	for _, ev := range events {
		line, err := protojson.Marshal(ev)
		errs = append(errs, err)
		search("event "+ev.GetSubtype(), string(line))
		search("payload of event "+ev.GetSubtype(), string(ev.GetPayload()))
	}
	incidents, err := j.system.incidents(ctx)
	errs = append(errs, err)
	for _, in := range incidents {
		search("incident", protojson.Format(in))
	}
	logs, err := filepath.Glob(filepath.Join(j.folder, "logs", "*.log"))
	errs = append(errs, err)
	for _, file := range logs {
		text, err := os.ReadFile(file)
		errs = append(errs, err)
		search(filepath.Base(file), string(text))
	}
	ours, err := j.ours(ctx)
	errs = append(errs, err)
	for _, p := range ours {
		// The volumes of a pod, but for what the kubelet puts there itself.
		folder := "/var/lib/kubelet/pods/" + p.Metadata.UID + "/volumes"
		found, err := j.run(ctx, "docker", "exec", p.Spec.NodeName, "sh", "-c",
			`for t in $2; do grep -rlF -e "$t" "$1" 2>/dev/null | grep -v /kubernetes.io~projected/ | sed "s/^/$t /"; done; true`, "sh", folder, strings.Join(j.secrets.tokens, " "))
		errs = append(errs, err)
		places++
		for line := range strings.Lines(found) {
			problems = append(problems, fmt.Sprintf("on the disk of %s: %s", p.Metadata.Name, strings.TrimSpace(line)))
		}
	}
	return fmt.Sprintf("none of %d planted secrets is in %d places: events, incidents, logs, disks", len(j.secrets.tokens), places), problems, errors.Join(errs...)
}

// figures prints what the components need, and says what they lost.
func (j *judge) figures(ctx context.Context) ([]string, error) {
	ours, err := j.ours(ctx)
	if err != nil {
		return nil, err
	}
	var problems []string
	var errs []error
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "pod\tRSS, MiB\tpeak, MiB\tCPU, s\trestarts\t")
	for _, p := range ours {
		restarts := 0
		for _, c := range p.Status.ContainerStatuses {
			restarts += c.RestartCount
		}
		if restarts > 0 {
			problems = append(problems, fmt.Sprintf("%s was restarted %d times", p.Metadata.Name, restarts))
		}
		rss, peak, cpu, err := j.usage(ctx, p)
		errs = append(errs, err)
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\t%.1f\t%d\t\n", p.Metadata.Name, rss, peak, cpu, restarts)
		lost, err := j.lost(ctx, p)
		errs = append(errs, err)
		problems = append(problems, lost...)
	}
	_ = w.Flush() // standard output
	return problems, errors.Join(errs...)
}

// usage returns the resident set of a pod's process and its peak, MiB, and the
// processor time that it took, seconds.
func (j *judge) usage(ctx context.Context, p pod) (rss, peak, cpu float64, err error) {
	if len(p.Status.ContainerStatuses) == 0 {
		return 0, 0, 0, fmt.Errorf("%s has no container", p.Metadata.Name)
	}
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	// The ticks of /proc are hundredths of a second everywhere.
	const script = `pid=$(grep -ls "$1" /proc/[0-9]*/cgroup | head -n1 | cut -d/ -f3); awk '/^VmRSS|^VmHWM/ {print $2}' /proc/$pid/status; cut -d' ' -f14,15 /proc/$pid/stat`
	out, err := j.run(ctx, "docker", "exec", p.Spec.NodeName, "sh", "-c", script, "sh", id)
	if err != nil {
		return 0, 0, 0, err
	}
	var numbers []float64
	for _, f := range strings.Fields(out) {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("read what %s uses: %w", p.Metadata.Name, err)
		}
		numbers = append(numbers, n)
	}
	if len(numbers) != 4 {
		return 0, 0, 0, fmt.Errorf("read what %s uses: it said %q", p.Metadata.Name, out)
	}
	return numbers[1] / 1024, numbers[0] / 1024, (numbers[2] + numbers[3]) / 100, nil
}

// lost lists the counters of a pod that say that something was lost.
func (j *judge) lost(ctx context.Context, p pod) ([]string, error) {
	port := ""
	for _, c := range components() {
		if c.binary == p.Metadata.Labels["app.kubernetes.io/name"] {
			port = c.port
		}
	}
	body, err := get(ctx, fmt.Sprintf("%s/api/v1/namespaces/%s/pods/%s:%s/proxy/metrics", j.api, namespace, p.Metadata.Name, port))
	if err != nil {
		return nil, err
	}
	if err := keep(filepath.Join(j.folder, "metrics", p.Metadata.Name+".txt"), string(body)); err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(body)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		name, _, _ := strings.Cut(series, "{")
		if ok && !strings.HasPrefix(line, "#") && isLoss(name) && value != "0" {
			all = append(all, fmt.Sprintf("%s: %s is %s", p.Metadata.Name, series, value))
		}
	}
	return all, nil
}

// isLoss says whether a counter counts what should never happen.
func isLoss(name string) bool {
	return strings.HasSuffix(name, "_lost_total") || strings.HasSuffix(name, "_dropped_total") || strings.HasSuffix(name, "_refused_total") ||
		strings.HasSuffix(name, "_rejected_total")
}

// watchesSettle is how long the API server may take to notice that agents are gone.
const watchesSettle = 30 * time.Second

// watches counts how many watches the API server holds for an agent: by how many
// there are less without agents. That is done last.
func (j *judge) watches(ctx context.Context) (string, []string, error) {
	before, err := j.held(ctx)
	if err != nil {
		return "one watch of an agent", nil, err
	}
	if _, err := j.kubectl(ctx, "-n", namespace, "patch", "daemonset", "tapio", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"e2e":"nowhere"}}}}}`); err != nil {
		return "one watch of an agent", nil, err
	}
	after := before
	expected := before - len(j.nodes)
	err = until(ctx, watchesSettle, "the agents' watches are gone", func() error {
		var err error
		if after, err = j.held(ctx); err == nil && after > expected {
			err = fmt.Errorf("%d of %d are left", after, before)
		}
		return err
	})
	pause(ctx, 2*time.Second) // should there be fewer yet
	if n, e := j.held(ctx); e == nil {
		after = n
	}
	what := fmt.Sprintf("%d watches for %d agents", before-after, len(j.nodes))
	var problems []string
	if err == nil && before-after != len(j.nodes) {
		problems = append(problems, fmt.Sprintf("the API server holds %d with agents and %d without", before, after))
	}
	if j.keep {
		_, undo := j.kubectl(ctx, "-n", namespace, "rollout", "undo", "daemonset/tapio")
		err = errors.Join(err, undo)
	}
	return what, problems, err
}

// held is how many watches the API server holds, without those by which the kubelets
// follow what pods mount.
func (j *judge) held(ctx context.Context) (int, error) {
	body, err := get(ctx, j.api+"/metrics")
	if err != nil {
		return 0, err
	}
	count := 0
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "apiserver_longrunning_requests{") && strings.Contains(line, `verb="WATCH"`) &&
			!strings.Contains(line, `resource="configmaps"`) && !strings.Contains(line, `resource="secrets"`) {
			series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
			n, err := strconv.Atoi(value)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", series, err)
			}
			count += n
		}
	}
	return count, nil
}
