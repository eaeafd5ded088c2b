package change

import (
	"math"
	"strconv"
	"strings"

	"github.com/yairfalse/tapio/shared/kube"
)

// Bounds of what an object may look like. The API server stores 1.5 MiB.
const (
	maxDepth  = 32
	maxFields = 20_000
	maxKey    = 256
)

// flattener collects the leaves of an object.
type flattener struct {
	redact *kube.Redactor
	kind   string
	path   []byte
	fields []Field
	depth  int
	lost   int // leaves that were too deep or too many
}

// volatile says whether a field tells nothing: it changes without anything having
// happened, or repeats what the version tells of itself.
func volatile(parent, name string) bool {
	switch name {
	case "managedFields", "selfLink", "resourceVersion", "lastHeartbeatTime", "lastProbeTime", "lastUpdateTime", "stringData":
		return true
	case "uid", "name", "namespace", "ownerReferences":
		return parent == "metadata"
	case "observedGeneration":
		return parent != "status"
	}
	return false
}

// isFreeMap says whether the keys of a map are anybody's, not names of fields.
func isFreeMap(name string) bool {
	switch name {
	case "labels", "annotations", "matchLabels", "nodeSelector", "data", "binaryData", "hard", "used", "capacity", "allocatable",
		"volumeAttributes", "options", "parameters":
		return true
	}
	return false
}

// areQuantities says whether the values of a map or list entry are quantities.
func areQuantities(name string) bool {
	switch name {
	case "limits", "requests", "hard", "used", "capacity", "allocatable", "allocatedResources", "overhead", "min", "max", "default", "defaultRequest", "maxLimitRequestRatio":
		return true
	}
	return false
}

// object walks a map that is the value of a field, or an entry of a list that is
// keyed by one of its fields: the path tells that already.
func (f *flattener) object(name, keyedBy string, m map[string]any) {
	if f.depth >= maxDepth {
		f.lost++
		return
	}
	f.depth++
	defer func() { f.depth-- }()
	free := isFreeMap(name) || name == "selector" && allText(m)
	for key, value := range m {
		if !free && (volatile(name, key) || key == keyedBy && len(m) > 1) {
			continue
		}
		end := len(f.path)
		switch {
		case !free && (isName(key) || areQuantities(name) && isResource(key)):
			if end > 0 {
				f.path = append(f.path, '.')
			}
			f.path = append(f.path, key...)
		default:
			f.entry(key)
		}
		f.value(name, key, value)
		f.path = f.path[:end]
	}
}

// value walks what a key of an object, or of a free map, has.
func (f *flattener) value(parent, key string, value any) {
	switch parent {
	case "annotations":
		if s, ok := value.(string); ok {
			if told, keep := f.redact.Annotation(key, s); keep {
				f.leaf(told)
			}
			return
		}
	case "labels", "matchLabels", "selector", "nodeSelector":
		if s, ok := value.(string); ok {
			f.leaf(f.redact.Label(key, s))
			return
		}
	case "data", "binaryData", "stringData":
		if s, ok := value.(string); ok && f.depth == 2 {
			f.data(parent, key, s)
			return
		}
	case "volumeAttributes", "options", "parameters":
		if s, ok := value.(string); ok {
			f.leaf(f.redact.Setting(key, s))
			return
		}
	}
	switch v := value.(type) {
	case map[string]any:
		if len(v) == 0 {
			if !isNothing(key) {
				f.leaf("{}")
			}
			return
		}
		f.object(key, "", v)
	case []any:
		f.list(parent, key, v)
	default:
		f.scalar(parent, key, value)
	}
}

// data tells an entry of a ConfigMap or a Secret.
func (f *flattener) data(list, key, value string) {
	switch {
	case f.kind == "Secret":
		f.leaf(f.redact.Digest(value))
	case list == "binaryData" || strings.Contains(value, "\n"):
		f.leaf(f.redact.Blob(value))
		if list != "data" {
			return
		}
		for _, line := range f.redact.Lines(value) {
			end := len(f.path)
			f.entry(line.Name)
			f.leaf(line.Value)
			f.path = f.path[:end]
		}
	default:
		f.leaf(f.redact.Setting(key, value))
	}
}

func (f *flattener) list(parent, name string, list []any) {
	switch {
	case f.kind == "Node" && name == "images":
		return // what is in the node's cache
	case len(list) == 0:
		f.leaf("[]")
		return
	case name == "command" || name == "args":
		f.command(name, list)
		return
	}
	var seen map[string]int
	for i, value := range list {
		end := len(f.path)
		entry, ok := value.(map[string]any)
		key, keyedBy := "", ""
		if ok {
			key, keyedBy = entryKey(name, entry)
		}
		if key == "" {
			key = strconv.Itoa(i)
		} else {
			if seen == nil {
				seen = make(map[string]int, len(list))
			}
			if seen[key]++; seen[key] > 1 {
				key += "#" + strconv.Itoa(seen[key])
			}
		}
		f.entry(key)
		switch {
		case !ok:
			if nested, isList := value.([]any); isList {
				if f.depth < maxDepth {
					f.depth++
					f.list(name, "", nested)
					f.depth--
				} else {
					f.lost++
				}
			} else {
				f.scalar(parent, name, value)
			}
		case len(entry) == 0:
			f.leaf("{}")
		case name == "env":
			f.setting(keyedBy, entry)
		case name == "httpHeaders" || name == "sysctls":
			f.header(entry)
		default:
			f.object(name, keyedBy, entry)
		}
		f.path = f.path[:end]
	}
}

// setting tells an environment variable.
func (f *flattener) setting(keyedBy string, entry map[string]any) {
	name, _ := entry["name"].(string)
	value, ok := entry["value"]
	if ok {
		end := len(f.path)
		f.path = append(f.path, ".value"...)
		if s, isText := value.(string); isText {
			f.leaf(f.redact.Setting(name, s))
		} else {
			f.leaf(f.redact.Digest(text(value)))
		}
		f.path = f.path[:end]
	}
	rest := make(map[string]any, len(entry))
	for k, v := range entry {
		if k == "value" || ok && k == keyedBy {
			continue
		}
		rest[k] = v
	}
	f.object("env", keyedBy, rest)
}

// header tells a header of a probe, of which only the name is harmless.
func (f *flattener) header(entry map[string]any) {
	name, _ := entry["name"].(string)
	end := len(f.path)
	f.path = append(f.path, ".value"...)
	f.leaf(f.redact.Setting(name, text(entry["value"])))
	f.path = f.path[:end]
}

// command tells a command line.
func (f *flattener) command(name string, list []any) {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = text(w)
	}
	for i, told := range f.redact.Arguments(words, name == "command") {
		end := len(f.path)
		f.entry(strconv.Itoa(i))
		f.leaf(told)
		f.path = f.path[:end]
	}
}

// scalar tells a leaf.
func (f *flattener) scalar(parent, name string, value any) {
	s, ok := value.(string)
	switch {
	case value == nil:
	case areQuantities(parent):
		f.leaf(f.redact.Quantity(text(value)))
	case !ok:
		f.leaf(text(value))
	case name == "message" || name == "note":
		f.leaf(f.redact.Text(s))
	case name == "path" || strings.Contains(s, "://"):
		f.leaf(f.redact.Path(s))
	default:
		f.leaf(f.redact.Value(s))
	}
}

// text writes a scalar as the API does.
func text(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case int:
		return strconv.Itoa(v)
	case int32:
		return strconv.FormatInt(int64(v), 10)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return strconv.FormatInt(int64(v), 10)
		}
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return ""
}

// entry goes to an entry of a list or map.
func (f *flattener) entry(key string) {
	if f.redact.Value(key) != key || strings.ContainsAny(key, "[]") {
		key = f.redact.Digest(key)
	}
	if len(key) > maxKey {
		key = strings.ToValidUTF8(key[:maxKey], "") // it may end within a letter
	}
	f.path = append(f.path, '[')
	f.path = append(f.path, key...)
	f.path = append(f.path, ']')
}

func (f *flattener) leaf(value string) {
	if len(f.fields) >= maxFields {
		f.lost++
		return
	}
	f.fields = append(f.fields, Field{string(f.path), value})
}

// entryKey returns what tells the entries of a list apart, which is what the API
// merges them by, and the field that it is. Empty where it has nothing.
func entryKey(list string, entry map[string]any) (key, field string) {
	of := func(name string) (key, field string) {
		s, _ := entry[name].(string)
		return s, name
	}
	switch list {
	case "conditions", "addresses", "limits":
		return of("type")
	case "taints":
		key, _ := of("key")
		effect, _ := of("effect")
		return key + ":" + effect, "" // as kubectl writes it
	case "volumeMounts":
		return of("mountPath")
	case "volumeDevices":
		return of("devicePath")
	case "rules":
		return of("host")
	case "paths":
		return of("path")
	case "matchExpressions", "items":
		return of("key")
	case "topologySpreadConstraints":
		return of("topologyKey")
	case "hostAliases":
		return of("ip")
	case "endpoints":
		target, _ := entry["targetRef"].(map[string]any)
		if name, _ := target["name"].(string); name != "" {
			return name, ""
		}
		if addresses, _ := entry["addresses"].([]any); len(addresses) > 0 {
			return text(addresses[0]), ""
		}
		return "", ""
	case "volumeClaimTemplates":
		metadata, _ := entry["metadata"].(map[string]any)
		name, _ := metadata["name"].(string)
		return name, ""
	}
	return of("name")
}

// isNothing says whether a field means nothing when it is empty: some clients write
// it and some do not.
func isNothing(name string) bool {
	switch name {
	case "resources", "securityContext", "lastState", "status", "loadBalancer", "strategy", "metadata", "labels", "annotations":
		return true
	}
	return false
}

func allText(m map[string]any) bool {
	for _, v := range m {
		if _, ok := v.(string); !ok {
			return false
		}
	}
	return true
}

// isName says whether a key is as the names of fields are.
func isName(key string) bool {
	const longest = 64
	if key == "" || len(key) > longest || key[0] < 'a' || key[0] > 'z' {
		return false
	}
	for i := range len(key) {
		switch c := key[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		default:
			return false
		}
	}
	return true
}

// isResource says whether a key is the name of a resource of Kubernetes itself,
// such as ephemeral-storage.
func isResource(key string) bool {
	return isName(strings.ReplaceAll(key, "-", ""))
}
