package causality

import (
	_ "embed"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Modes is the table of known failure modes: what breaks, how it shows, and
// what usually is behind it. modes.yaml explains its columns. It does not
// change after it was read.
type Modes struct {
	fields   []fieldRow
	symptoms []symptomRow
	rows     []modeRow

	byKind    map[string][]int // symptom rows by exact event kind, in the order of the table
	wild      []int            // symptom rows with a pattern for a kind
	overBy    map[string][]int // symptom rows by the kind of event that ends them
	byName    map[string]*symptomRow
	explainer map[string][]*modeRow // by symptom
	longest   time.Duration         // of the rows' within
}

//go:embed modes.yaml
var defaultModes []byte

// DefaultModes returns the table that is built in, as YAML.
func DefaultModes() []byte { return slices.Clone(defaultModes) }

// ReadModes reads a table. Every error names the row that is wrong.
func ReadModes(text []byte) (*Modes, error) {
	var file struct {
		Fields   []fieldRow   `yaml:"fields"`
		Symptoms []symptomRow `yaml:"symptoms"`
		Modes    []modeRow    `yaml:"modes"`
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(text)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return nil, fmt.Errorf("read failure modes: %w", err)
	}
	m := &Modes{
		fields: file.Fields, symptoms: file.Symptoms, rows: file.Modes,
		byKind: map[string][]int{}, overBy: map[string][]int{}, byName: map[string]*symptomRow{}, explainer: map[string][]*modeRow{},
	}
	return m, errors.Join(m.indexFields(), m.indexSymptoms(), m.indexRows())
}

// fieldRow gives a changed field a class and a name for people.
type fieldRow struct {
	Class string `yaml:"class"`
	Name  string `yaml:"name"`
	Path  string `yaml:"path"`

	steps []string
}

// symptomRow says which events mean that something suffers.
type symptomRow struct {
	Name     string     `yaml:"name"`
	On       []sighting `yaml:"on"`
	Over     []sighting `yaml:"over"`
	Opens    int        `yaml:"opens"`
	Normal   bool       `yaml:"normal"`
	Supports []string   `yaml:"supports"`
	Text     string     `yaml:"text"`
	Advice   string     `yaml:"advice"`
}

// sighting matches one event.
type sighting struct {
	Kind    string   `yaml:"kind"`
	Field   string   `yaml:"field"`
	New     []string `yaml:"new"`
	Message []string `yaml:"message"`
	// Labels are the values that some labels of the event may have.
	Labels map[string][]string `yaml:"labels"`

	steps []string
}

// modeRow says what explains a symptom.
type modeRow struct {
	Name     string        `yaml:"name"`
	Explains []string      `yaml:"explains"`
	Cause    causePattern  `yaml:"cause"`
	Where    []Where       `yaml:"where"`
	Prior    float64       `yaml:"prior"`
	Typical  time.Duration `yaml:"typical"`
	Within   time.Duration `yaml:"within"`
	Advice   string        `yaml:"advice"`
}

// causePattern matches a change, or names symptoms.
type causePattern struct {
	Kinds     []string  `yaml:"kinds"`
	Field     oneOrMore `yaml:"field"`
	Direction string    `yaml:"direction"`
	Symptoms  []string  `yaml:"symptoms"`
	wildKinds bool
}

// oneOrMore is a list that may be written as one word.
type oneOrMore []string

// UnmarshalYAML reads a word or a list of words.
func (o *oneOrMore) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*o = oneOrMore{node.Value}
		return nil
	}
	return node.Decode((*[]string)(o))
}

// Where says where a cause is, seen from what suffers.
type Where string

// The places.
const (
	Self      Where = "self"
	Owner     Where = "owner"
	Owned     Where = "owned"
	Config    Where = "config"
	Node      Where = "node"
	Neighbor  Where = "neighbor"
	Service   Where = "service"
	Callee    Where = "callee"
	Namespace Where = "namespace"
	Cluster   Where = "cluster"
)

// sameSymptom in a cause means a symptom of the name that is explained.
const sameSymptom = "same"

// otherSymptom is the name of a symptom that no row names: an event of severity
// ERROR or worse of a kind that nobody described.
const otherSymptom = "other"

func (m *Modes) indexFields() error {
	var errs []error
	for i := range m.fields {
		f := &m.fields[i]
		if f.Class == "" || f.Name == "" || f.Path == "" {
			errs = append(errs, fmt.Errorf("field %d: class, name and path must be there", i+1))
		}
		f.steps = splitPath(f.Path)
	}
	return errors.Join(errs...)
}

func (m *Modes) indexSymptoms() error {
	var errs []error
	for i := range m.symptoms {
		s := &m.symptoms[i]
		if s.Name == "" || s.Name == sameSymptom || s.Name == otherSymptom || m.byName[s.Name] != nil {
			errs = append(errs, fmt.Errorf("symptom %d: the name %q is empty, reserved or taken", i+1, s.Name))
		}
		s.Opens = max(s.Opens, 1)
		m.byName[s.Name] = s
		if len(s.On) == 0 || s.Text == "" && !s.Normal {
			errs = append(errs, fmt.Errorf("symptom %s: on and text must be there", s.Name))
		}
		for j := range s.Over {
			over := &s.Over[j]
			over.steps = splitPath(over.Field)
			if over.Kind == "" || strings.ContainsAny(over.Kind, "*?[") {
				errs = append(errs, fmt.Errorf("symptom %s: over: %q is no kind", s.Name, over.Kind))
			}
			if rows := m.overBy[over.Kind]; !slices.Contains(rows, i) {
				m.overBy[over.Kind] = append(rows, i)
			}
		}
		for j := range s.On {
			on := &s.On[j]
			on.steps = splitPath(on.Field)
			if _, err := path.Match(on.Kind, ""); err != nil || on.Kind == "" {
				errs = append(errs, fmt.Errorf("symptom %s: %q is no pattern of a kind", s.Name, on.Kind))
			}
			if strings.ContainsAny(on.Kind, "*?[") {
				m.wild = append(m.wild, i)
			} else if rows := m.byKind[on.Kind]; len(rows) == 0 || rows[len(rows)-1] != i {
				m.byKind[on.Kind] = append(rows, i)
			}
		}
	}
	m.wild = slices.Compact(m.wild)
	for _, s := range m.symptoms {
		for _, name := range s.Supports {
			if m.byName[name] == nil || name == s.Name {
				errs = append(errs, fmt.Errorf("symptom %s: supports: no other symptom is named %q", s.Name, name))
			}
		}
	}
	return errors.Join(errs...)
}

func (m *Modes) indexRows() error {
	var errs []error
	places := []Where{Self, Owner, Owned, Config, Node, Neighbor, Service, Callee, Namespace, Cluster}
	names := map[string]bool{}
	for i := range m.rows {
		r := &m.rows[i]
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("mode %s: "+format, append([]any{r.Name}, args...)...))
		}
		if r.Name == "" || names[r.Name] {
			wrong("the name of row %d is empty or taken", i+1)
		}
		names[r.Name] = true
		m.longest = max(m.longest, r.Within)
		if r.Prior <= 0 || r.Prior > 1 {
			wrong("prior is %v, want more than 0 and at most 1", r.Prior)
		}
		if r.Typical <= 0 || r.Within < r.Typical {
			wrong("typical is %s and within %s, want 0 < typical <= within", r.Typical, r.Within)
		}
		if (len(r.Cause.Kinds) == 0) == (len(r.Cause.Symptoms) == 0) {
			wrong("cause must have either kinds or symptoms")
		}
		for _, kind := range r.Cause.Kinds {
			if _, err := path.Match(kind, ""); err != nil {
				wrong("%q is no pattern of a kind", kind)
			}
			r.Cause.wildKinds = r.Cause.wildKinds || strings.ContainsAny(kind, "*?[")
		}
		if !slices.Contains([]string{"", "increased", "decreased", "set", "lost"}, r.Cause.Direction) {
			wrong("direction is %q, want increased, decreased, set or lost", r.Cause.Direction)
		}
		for _, class := range r.Cause.Field {
			if class != "*" && !slices.ContainsFunc(m.fields, func(f fieldRow) bool { return f.Class == class }) {
				wrong("no field has class %q", class)
			}
		}
		for _, w := range r.Where {
			if !slices.Contains(places, w) {
				wrong("where is %q, want some of %v", w, places)
			}
		}
		if len(r.Where) == 0 {
			wrong("where must be there")
		}
		for _, name := range r.Cause.Symptoms {
			if name != sameSymptom && m.byName[name] == nil {
				wrong("no symptom is named %q", name)
			}
		}
		for _, name := range r.Explains {
			if m.byName[name] == nil {
				wrong("no symptom is named %q", name)
			}
			m.explainer[name] = append(m.explainer[name], r)
		}
	}
	return errors.Join(errs...)
}

// field returns the first row that matches a path; nil when none does.
func (m *Modes) field(steps []string) *fieldRow {
	for i := range m.fields {
		if matchPath(m.fields[i].steps, steps) {
			return &m.fields[i]
		}
	}
	return nil
}

// causes says whether a change of this kind is one that the row looks for. The
// fields are looked at elsewhere.
func (r *modeRow) causedBy(kind string) bool {
	if !r.Cause.wildKinds {
		return slices.Contains(r.Cause.Kinds, kind)
	}
	return slices.ContainsFunc(r.Cause.Kinds, func(pattern string) bool {
		ok, err := path.Match(pattern, kind)
		return err == nil && ok
	})
}

// splitPath splits a field's path into steps: names, and list entries or keys
// of maps in brackets, which may contain dots.
func splitPath(p string) []string {
	var steps []string
	for p != "" {
		if p[0] == '[' {
			if end := strings.IndexByte(p, ']'); end > 0 {
				steps = append(steps, p[:end+1])
				p = strings.TrimPrefix(p[end+1:], ".")
				continue
			}
		}
		end := strings.IndexAny(p[1:], ".[") + 1
		if end == 0 {
			return append(steps, p)
		}
		steps = append(steps, p[:end])
		p = strings.TrimPrefix(p[end:], ".")
	}
	return steps
}

// matchPath matches a path against a pattern: * is one name, [*] one entry, and
// ** any number of steps.
func matchPath(pattern, steps []string) bool {
	for len(pattern) > 0 {
		p := pattern[0]
		if p == "**" {
			for i := len(steps); i >= 0; i-- {
				if matchPath(pattern[1:], steps[i:]) {
					return true
				}
			}
			return false
		}
		if len(steps) == 0 {
			return false
		}
		s := steps[0]
		switch {
		case p == "[*]":
			if s[0] != '[' {
				return false
			}
		case p == "*":
			if s[0] == '[' {
				return false
			}
		case p != s:
			return false
		}
		pattern, steps = pattern[1:], steps[1:]
	}
	return len(steps) == 0
}

// entryIn returns the name of the container or list entry that a path goes
// through: that of the first bracket after a step that starts with one of the
// given names.
func entryIn(steps []string, lists ...string) string {
	for i := 1; i < len(steps); i++ {
		if steps[i][0] == '[' && slices.Contains(lists, steps[i-1]) {
			return strings.Trim(steps[i], "[]")
		}
	}
	return ""
}

// containerLists are the fields of a pod that list containers and their states.
func containerLists() []string {
	return []string{
		"containers", "initContainers", "ephemeralContainers",
		"containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses",
	}
}
