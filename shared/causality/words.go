package causality

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// maxTold is how many further symptoms and changed fields a sentence tells.
const maxTold = 3

// summary says what happened and why.
func (e *Engine) summary(g *group, primary *run, believed *candidate, in *ahtiv1.Incident) string {
	var b strings.Builder
	switch {
	case believed != nil && g.change != nil:
		fmt.Fprintf(&b, "%s at %s%s; %s later %s.", upper(e.done(g.change)), clock(g.change.at), told(believed.fieldsOf(g.change)),
			span(time.Duration(primary.first.at-g.change.at)), e.words(primary, g.change.vertex))
	default:
		fmt.Fprintf(&b, "%s at %s.", upper(e.words(primary, nil)), clock(primary.first.at))
		if len(in.GetCauses()) == 0 {
			b.WriteString(" No change that was seen explains it.")
		} else if c := in.GetCauses()[0]; believed == nil {
			fmt.Fprintf(&b, " Not sure why: perhaps because %s at %s (%.0f %%).", c.GetText(), clock(c.GetTimestamp().AsTime().UnixNano()), 100*c.GetConfidence())
		}
	}
	b.WriteString(e.repeats(g, primary))
	if others := e.others(g, primary); others != "" {
		b.WriteString(" Then " + others + ".")
	}
	return b.String()
}

// fieldsOf are the changed fields to tell: those that matter, or all. Of what comes
// or goes no field matters.
func (c *candidate) fieldsOf(ch *change) []field {
	if !strings.HasSuffix(ch.kind, ".updated") {
		return nil
	}
	if c.change == ch && len(c.fields) > 0 {
		return c.fields
	}
	return ch.fields
}

// repeats tells how often the first symptom was seen, and on how many things.
func (e *Engine) repeats(g *group, primary *run) string {
	if len(g.runs) == 1 && primary.times() == 1 {
		return "" // as most are
	}
	// A pod and its containers are one: what the node saw of one, the API tells of
	// the other.
	type sight struct{ own, inside int64 }
	seen := map[*vertex]*sight{}
	last := primary.last.at
	for _, r := range g.runs {
		if r.name != primary.name {
			continue
		}
		thing := cmp.Or(e.podOf(r.vertex), r.vertex)
		if seen[thing] == nil {
			seen[thing] = &sight{}
		}
		if thing == r.vertex {
			seen[thing].own += r.times()
		} else {
			seen[thing].inside += r.times()
		}
		last = max(last, r.last.at)
	}
	total := int64(0)
	for _, s := range seen {
		total += max(s.own, s.inside)
	}
	// Two sources tell of one moment.
	if total < 2 || total == 2 && len(seen) == 1 && last-primary.first.at <= int64(skew) {
		return ""
	}
	on := ""
	if len(seen) > 1 {
		on = fmt.Sprintf(" on %d %s", len(seen), plural(maps.Keys(seen)))
	}
	return fmt.Sprintf(" Seen %d times%s, last at %s.", total, on, clock(last))
}

// plural says what things are together.
func plural(things iter.Seq[*vertex]) string {
	kind := ""
	for v := range things {
		k := strings.ToLower(kindName(v.kind))
		if kind != "" && kind != k {
			return "things"
		}
		kind = k
	}
	return kind + "s"
}

// others tells what else the root led to: each kind of symptom once.
func (e *Engine) others(g *group, primary *run) string {
	type entry struct {
		run   *run
		count int64
		more  int
	}
	var entries []*entry
	byName := map[string]*entry{}
	for _, r := range g.runs {
		if r == primary || r.name == primary.name {
			continue
		}
		if known := byName[r.name]; known != nil {
			known.count += r.times()
			known.more++
			continue
		}
		byName[r.name] = &entry{run: r, count: r.times()}
		entries = append(entries, byName[r.name])
	}
	// The worst first; of equals the first.
	slices.SortStableFunc(entries, func(a, b *entry) int { return int(b.run.worst) - int(a.run.worst) })
	var parts []string
	for i, en := range entries {
		if i == maxTold {
			parts = append(parts, fmt.Sprintf("%d other kinds of symptoms", len(entries)-maxTold))
			break
		}
		text := e.words(en.run, nil)
		if en.more > 0 {
			text += fmt.Sprintf(", and %d more such", en.more)
		}
		if en.count > 1 {
			text += fmt.Sprintf(" (%d times)", en.count)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

// done says what a change was, as a clause.
func (e *Engine) done(c *change) string {
	thing := e.phrase(c.vertex)
	has := func(class ...string) bool {
		return slices.ContainsFunc(c.fields, func(f field) bool { return slices.Contains(class, f.class) })
	}
	inTemplate := slices.ContainsFunc(c.fields, field.inTemplate)
	switch {
	case strings.HasSuffix(c.kind, ".created"):
		return thing + " was created"
	case strings.HasSuffix(c.kind, ".deleted"):
		return thing + " was deleted"
	case inTemplate:
		return thing + " was rolled out"
	case has("replicas"):
		return thing + " was scaled"
	case has("cordon"):
		if slices.ContainsFunc(c.fields, func(f field) bool { return f.class == "cordon" && f.GetNew() == "true" }) {
			return thing + " was cordoned"
		}
		return thing + " was uncordoned"
	default:
		return thing + " was changed"
	}
}

// told lists changed fields in brackets, with a space before.
func told(fields []field) string {
	var parts []string
	for i, f := range fields {
		if f.class == "cordon" {
			continue // the sentence says it
		}
		if i == maxTold {
			parts = append(parts, fmt.Sprintf("and %d more", len(fields)-maxTold))
			break
		}
		name := f.name
		switch f.class {
		case "env", "data", "selector", "pod_labels", "labels", "quota":
			if entry := f.entry(); entry != "" {
				name += " " + entry
			}
		}
		if isDigest(f.GetOld()) || isDigest(f.GetNew()) {
			parts = append(parts, name) // which says nothing to people but that it was changed
			continue
		}
		parts = append(parts, fmt.Sprintf("%s %s → %s", name, value(f.GetOld()), value(f.GetNew())))
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// isDigest says whether a value stands for one that is kept secret.
func isDigest(value string) bool { return strings.HasPrefix(value, event.DigestPrefix) }

// entry is the last list entry or key of the field's path. Where keys are written
// with dots, it is what the pattern leaves open.
func (f field) entry() string {
	for _, s := range slices.Backward(splitPath(f.GetPath())) {
		if s[0] == '[' {
			return strings.Trim(s, "[]")
		}
	}
	if open, ok := strings.CutSuffix(f.pattern, "**"); ok {
		entry, _ := strings.CutPrefix(f.GetPath(), open)
		return entry
	}
	return ""
}

// maxValue is how much of a value a sentence shows, in runes.
const maxValue = 80

func value(v string) string {
	if v == "" {
		return "none"
	}
	if runes := []rune(v); len(runes) > maxValue {
		return string(runes[:maxValue]) + "…"
	}
	return v
}

// words says what a run is, as a clause. What belongs to a thing that the
// sentence has named is called its.
func (e *Engine) words(r *run, named *vertex) string {
	text := "{subject} reports " + r.first.kind
	if row := e.modes.byName[r.name]; row != nil {
		text = row.Text
	}
	return fill(text, func(name string) string {
		switch name {
		case "subject":
			return e.subject(r, named)
		case "peer":
			if r.peer != nil {
				return e.peerPhrase(r.peer, r.first.at)
			}
			return r.first.labels["network.peer.address"]
		case "exit":
			return exitOf(r.first.labels)
		case "ending":
			return endingOf(r.first.labels)
		default:
			return r.first.labels[name]
		}
	})
}

// endingOf says which process ended and how, as far as it is known: the API does not
// tell the name.
func endingOf(labels map[string]string) string {
	exit := exitOf(labels)
	if name := labels[event.ProcessExecutableName]; name != "" && exit != "" {
		return name + ": " + exit
	}
	return exit
}

// fill puts values into a text: {name} or {name|bytes}; [a part] of which a
// value is missing is left out.
func fill(text string, value func(name string) string) string {
	var b strings.Builder
	for text != "" {
		open := strings.IndexByte(text, '[')
		if open < 0 {
			part, _ := fillPart(text, value)
			b.WriteString(part)
			break
		}
		part, _ := fillPart(text[:open], value)
		b.WriteString(part)
		shut := strings.IndexByte(text[open:], ']')
		if shut < 0 {
			break
		}
		if part, complete := fillPart(text[open+1:open+shut], value); complete {
			b.WriteString(part)
		}
		text = text[open+shut+1:]
	}
	return b.String()
}

func fillPart(text string, value func(name string) string) (filled string, complete bool) {
	var b strings.Builder
	complete = true
	for {
		open := strings.IndexByte(text, '{')
		shut := strings.IndexByte(text, '}')
		if open < 0 || shut < open {
			b.WriteString(text)
			return b.String(), complete
		}
		b.WriteString(text[:open])
		name, format, _ := strings.Cut(text[open+1:shut], "|")
		v := value(name)
		complete = complete && v != ""
		if format == "bytes" {
			v = size(v)
		}
		b.WriteString(v)
		text = text[shut+1:]
	}
}

// size writes bytes as Kubernetes does: 67108864 is 64Mi.
func size(bytes string) string {
	n, err := strconv.ParseFloat(bytes, 64)
	if err != nil {
		return bytes
	}
	units := []string{"", "Ki", "Mi", "Gi", "Ti", "Pi"}
	i := 0
	for n >= 1024 && i < len(units)-1 {
		n /= 1024
		i++
	}
	return strings.TrimSuffix(strconv.FormatFloat(n, 'f', 1, 64), ".0") + units[i]
}

// subject names what suffers.
func (e *Engine) subject(r *run, named *vertex) string {
	if named != nil && named != r.vertex && e.owned(r.vertex, named) {
		switch r.vertex.kind {
		case ahtiv1.EntityType_ENTITY_TYPE_CONTAINER:
			return "its container" + spaced(r.vertex.name.value)
		case ahtiv1.EntityType_ENTITY_TYPE_POD:
			if r.first.container != "" {
				return "its container " + r.first.container
			}
			return "its pod " + r.vertex.displayName()
		default:
		}
	}
	if named == r.vertex && named != nil {
		return "it"
	}
	if r.vertex.kind == ahtiv1.EntityType_ENTITY_TYPE_POD && r.first.container != "" {
		return "container " + r.first.container + " of " + e.phrase(r.vertex)
	}
	return e.phrase(r.vertex)
}

func spaced(s string) string {
	if s == "" {
		return ""
	}
	return " " + s
}

// owned says whether a thing belongs to another, through however many owners.
func (e *Engine) owned(v, by *vertex) bool {
	for range maxSteps {
		owner := e.ownerOf(v)
		if owner == nil {
			return false
		}
		if owner == by {
			return true
		}
		v = owner
	}
	return false
}

// phrase names a thing for people.
func (e *Engine) phrase(v *vertex) string {
	name := v.displayName()
	full := name
	if v.namespace.value != "" {
		full = v.namespace.value + "/" + name
	}
	switch v.kind {
	case ahtiv1.EntityType_ENTITY_TYPE_CONTAINER:
		if pod := e.ownerOf(v); pod != nil && pod.kind == ahtiv1.EntityType_ENTITY_TYPE_POD {
			return "container " + short(name) + " of " + e.phrase(pod)
		}
		if host, group, ok := strings.Cut(v.id, "/"); ok && group != "" {
			return "control group /" + strings.TrimPrefix(group, "/") + " on " + host
		}
		return "container " + short(name)
	case ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT:
		return name
	case ahtiv1.EntityType_ENTITY_TYPE_SERVICE_UNIT:
		if host, _, ok := strings.Cut(v.id, "/"); ok {
			return name + " on " + host
		}
		return name
	case ahtiv1.EntityType_ENTITY_TYPE_OBJECT, ahtiv1.EntityType_ENTITY_TYPE_UNSPECIFIED:
		return full
	default:
		return kindName(v.kind) + " " + full
	}
}

// fullID and shortID are how long a container's id is, and how much of it people
// are shown, as runtimes do.
const fullID, shortID = 64, 12

func short(id string) string {
	if len(id) == fullID {
		return strings.ToValidUTF8(id[:shortID], "")
	}
	return id
}

// peerPhrase names the other end of a connection with what is behind it.
func (e *Engine) peerPhrase(v *vertex, at int64) string {
	if v.kind != ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT {
		return e.phrase(v)
	}
	address := v.displayName()
	if i := strings.LastIndexByte(address, '/'); i >= 0 {
		address = address[i+1:]
	}
	if b := e.behind(v, at); b != v && b.kind != ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT {
		return e.phrase(b) + " (" + address + ")"
	}
	return address
}

// kindName is the name of a type as Kubernetes writes it.
func kindName(t ahtiv1.EntityType) string {
	switch t {
	case ahtiv1.EntityType_ENTITY_TYPE_POD:
		return "Pod"
	case ahtiv1.EntityType_ENTITY_TYPE_NODE:
		return "Node"
	case ahtiv1.EntityType_ENTITY_TYPE_DEPLOYMENT:
		return "Deployment"
	case ahtiv1.EntityType_ENTITY_TYPE_STATEFULSET:
		return "StatefulSet"
	case ahtiv1.EntityType_ENTITY_TYPE_DAEMONSET:
		return "DaemonSet"
	case ahtiv1.EntityType_ENTITY_TYPE_SERVICE:
		return "Service"
	case ahtiv1.EntityType_ENTITY_TYPE_CONFIGMAP:
		return "ConfigMap"
	case ahtiv1.EntityType_ENTITY_TYPE_SECRET:
		return "Secret"
	case ahtiv1.EntityType_ENTITY_TYPE_PVC:
		return "PersistentVolumeClaim"
	case ahtiv1.EntityType_ENTITY_TYPE_NAMESPACE:
		return "Namespace"
	case ahtiv1.EntityType_ENTITY_TYPE_REPLICASET:
		return "ReplicaSet"
	case ahtiv1.EntityType_ENTITY_TYPE_JOB:
		return "Job"
	case ahtiv1.EntityType_ENTITY_TYPE_CRONJOB:
		return "CronJob"
	case ahtiv1.EntityType_ENTITY_TYPE_INGRESS:
		return "Ingress"
	case ahtiv1.EntityType_ENTITY_TYPE_PV:
		return "PersistentVolume"
	case ahtiv1.EntityType_ENTITY_TYPE_HPA:
		return "HorizontalPodAutoscaler"
	case ahtiv1.EntityType_ENTITY_TYPE_PDB:
		return "PodDisruptionBudget"
	case ahtiv1.EntityType_ENTITY_TYPE_NETWORKPOLICY:
		return "NetworkPolicy"
	case ahtiv1.EntityType_ENTITY_TYPE_RESOURCEQUOTA:
		return "ResourceQuota"
	case ahtiv1.EntityType_ENTITY_TYPE_LIMITRANGE:
		return "LimitRange"
	case ahtiv1.EntityType_ENTITY_TYPE_SCHEDULER:
		return "Scheduler"
	default:
		return strings.ToLower(strings.TrimPrefix(t.String(), "ENTITY_TYPE_"))
	}
}

// clock writes a time of day; an incident is about now, so the date is left out.
func clock(at int64) string { return time.Unix(0, at).UTC().Format("15:04:05") + " UTC" }

// span writes a delay as people say it: 41 s, 3 min, 2 h 5 min.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return "less than 1 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	default:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
}

func upper(s string) string {
	first, size := utf8.DecodeRuneInString(s)
	if size == 0 {
		return s
	}
	return string(unicode.ToUpper(first)) + s[size:]
}
