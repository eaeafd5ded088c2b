package main

import (
	"context"
	"crypto/rand"
	"embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
)

// prefix begins the names of the namespaces of the scenarios.
const prefix = "e2e-"

// What manifests and faults may refer to.
const (
	imageMark  = "${IMAGE}"  // of the test application
	secretMark = "${SECRET}" // another one each time
	nodeMark   = "${NODE}"   // the node that may be broken
)

// laterMark separates what is applied when the rest works already.
const laterMark = "\n--- # later\n"

// settleWithin is how long the pods of a scenario may take to become ready.
const settleWithin = 2 * time.Minute

// manifests are what runs before each fault, by the name of the scenario.
//
//go:embed scenarios/*.yaml
var manifests embed.FS

// scenario is something that happens in a cluster and what is to be made of it.
type scenario struct {
	name, about string
	// faults are commands, as people type them; kubectl's are about the namespace of
	// the scenario. They are given one after the other.
	faults []string
	// mends take back what others would suffer from.
	mends []string
	// want is what is to be told; when it is nothing, nothing may be told for as long
	// as quiet.
	want  []want
	quiet time.Duration
	// onNode says that it breaks a node, with everything that is on it.
	onNode bool
	// unsettled says that pods need not become ready before the fault.
	unsettled bool
	// early says that it is set up before the system: nobody saw what it was made of.
	early bool
	// patient says that the cluster itself takes long to notice. Until then it may be
	// told that nothing explains what suffers already.
	patient bool
	// within is how long the whole may take; a minute and a half if not set.
	within time.Duration
}

// want is one incident as it has to be told. Objects are written kind/name; a name
// may have * for what Kubernetes adds.
type want struct {
	root     string   // the object at fault
	mode     string   // how it leads to the symptom; empty when nothing does
	chain    []string // steps in their order, "event object"; others may be between
	symptoms []string // "event object" that have to be among the symptoms
	first    string   // the symptom from which on time counts; the first of all when empty
	later    []string // the same for what others tell at their own pace
	says     []string // parts of the summary
	ask      string   // what people would ask about; AHTI has to give the same answer
}

// namespace is where a scenario happens.
func (c *scenario) namespace() string { return prefix + c.name }

// involves says whether an incident is about a node.
func involves(in *ahtiv1.Incident, node string) bool {
	return in.GetRoot().GetName() == node || slices.ContainsFunc(sufferers(in), func(e *ahtiv1.Entity) bool { return e.GetName() == node })
}

// wrong says what is wrong with an answer; empty when it is what was wanted.
func (w *want) wrong(in *ahtiv1.Incident) string {
	if !matches(w.root, nameOf(in.GetRoot())) {
		return fmt.Sprintf("the root is %s, not %s", nameOf(in.GetRoot()), w.root)
	}
	mode := ""
	if causes := in.GetCauses(); len(causes) > 0 && in.GetConfidence() > 0 {
		mode = causes[0].GetFailureMode()
	}
	if mode != w.mode {
		return fmt.Sprintf("it is explained by %q, not by %q", mode, w.mode)
	}
	chain := steps(in)
	at := 0
	for _, step := range w.chain {
		next := slices.IndexFunc(chain[at:], func(s string) bool { return matches(step, s) })
		if next < 0 {
			return fmt.Sprintf("the chain has no step %q after the one before: %s", step, strings.Join(chain, ", "))
		}
		at += next + 1
	}
	if missing := lacks(in, w.symptoms); missing != "" {
		return missing
	}
	for _, part := range w.says {
		if !strings.Contains(in.GetSummary(), part) {
			return fmt.Sprintf("the summary does not say %q", part)
		}
	}
	return ""
}

// lacks says which symptom an incident does not have; empty when it has all.
func lacks(in *ahtiv1.Incident, symptoms []string) string {
	for _, symptom := range symptoms {
		if !slices.ContainsFunc(in.GetSymptoms(), func(s *ahtiv1.Symptom) bool {
			return matches(symptom, s.GetKind()+" "+nameOf(s.GetEntity()))
		}) {
			return fmt.Sprintf("%q is not among the symptoms", symptom)
		}
	}
	return ""
}

// matches says whether a text is like a pattern: * is any text, and alternatives
// are separated by |.
func matches(pattern, text string) bool {
	expression := strings.NewReplacer(`\*`, ".*", `\|`, "|").Replace(regexp.QuoteMeta(pattern))
	return regexp.MustCompile("^(?:" + expression + ")$").MatchString(text)
}

// planted makes secrets and remembers them.
type planted struct {
	mu     sync.Mutex
	tokens []string
}

// fill replaces each mark of a secret by a secret of its own, with letters that
// no encoding changes.
func (p *planted) fill(text string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for strings.Contains(text, secretMark) {
		token := "planted" + rand.Text()
		p.tokens = append(p.tokens, token)
		text = strings.Replace(text, secretMark, token, 1)
	}
	return text
}

// stage runs the scenarios' commands.
type stage struct {
	*system
	secrets planted
}

// fill replaces all marks.
func (s *stage) fill(text string) string {
	return s.secrets.fill(strings.NewReplacer(imageMark, testImage+":1", nodeMark, s.faulty()).Replace(text))
}

// setEarly sets up what has to be there before the system is.
func (s *stage) setEarly(ctx context.Context, chosen []scenario) error {
	for i := range chosen {
		if chosen[i].early {
			if err := s.set(ctx, &chosen[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// set makes the namespace of a scenario and what is in it, and waits until it works.
func (s *stage) set(ctx context.Context, c *scenario) error {
	ns := c.namespace()
	if _, err := s.kubectl(ctx, "create", "namespace", ns); err != nil {
		return err
	}
	text, err := manifests.ReadFile("scenarios/" + c.name + ".yaml")
	if err != nil {
		return fmt.Errorf("read the manifests of the scenario: %w", err)
	}
	for part := range strings.SplitSeq(string(text), laterMark) {
		if _, err := s.feed(ctx, s.fill(part), "kubectl", "-n", ns, "apply", "-f", "-"); err != nil {
			return err
		}
		if c.unsettled {
			continue
		}
		names, err := s.kubectl(ctx, "-n", ns, "get", "deployments,daemonsets,statefulsets", "-o", "name")
		if err != nil {
			return err
		}
		for _, w := range strings.Fields(names) {
			if _, err := s.kubectl(ctx, "-n", ns, "rollout", "status", w, "--timeout", settleWithin.String()); err != nil {
				return err
			}
		}
		// kube-proxy writes the rules of a Service a moment after its pods are ready.
		pause(ctx, 2*time.Second)
	}
	return nil
}

// do gives commands.
func (s *stage) do(ctx context.Context, c *scenario, commands []string) error {
	for _, line := range commands {
		words := strings.Fields(s.fill(line))
		if words[0] == "kubectl" {
			words = append([]string{"kubectl", "-n", c.namespace()}, words[1:]...)
		}
		if words[0] == "wait" {
			d, err := time.ParseDuration(words[1])
			if err != nil {
				return fmt.Errorf("scenario %s: %w", c.name, err)
			}
			pause(ctx, d)
			continue
		}
		if _, err := s.run(ctx, words[0], words[1:]...); err != nil {
			return err
		}
	}
	return nil
}
