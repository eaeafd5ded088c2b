package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// maxFileSize is in bytes; a file with every setting has a few thousand.
const maxFileSize = 1 << 20

func loadFile(flags *pflag.FlagSet, set map[string]bool, file string) []error {
	data, err := readFile(file)
	if err != nil {
		return []error{fmt.Errorf("read the file that --%s names: %w", FileFlag, err)}
	}
	return loadYAML(flags, set, file, data)
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("%s is larger than %d bytes", file, maxFileSize)
	}
	return data, err
}

func loadYAML(flags *pflag.FlagSet, set map[string]bool, file string, data []byte) []error {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil // nothing but comments
	} else if err != nil {
		return []error{fmt.Errorf("%s: %w", file, err)}
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return []error{fmt.Errorf("%s: more than one YAML document", file)}
	}
	root := document.Content[0]
	if isNull(root) {
		return nil // an empty document
	}
	if root.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("%s:%d: want a mapping from flag names to values", file, root.Line)}
	}

	f := yamlFile{
		name:  file,
		flags: flags,
		set:   set,
		known: slices.DeleteFunc(settable(flags), func(name string) bool { return name == FileFlag }),
		lines: make(map[string]int),
	}
	var errs []error
	for pair := range slices.Chunk(root.Content, 2) {
		if err := f.load(pair[0], pair[1]); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

type yamlFile struct {
	name  string
	flags *pflag.FlagSet
	set   map[string]bool
	known []string
	lines map[string]int // of the keys so far
}

// load sets one flag.
func (f *yamlFile) load(key, value *yaml.Node) error {
	where := fmt.Sprintf("%s:%d", f.name, key.Line)
	name := key.Value
	if key.Kind != yaml.ScalarNode || !slices.Contains(f.known, name) {
		return fmt.Errorf("%s: unknown key %s%s", where, shorten(name), suggest(name, f.known))
	}
	if line, ok := f.lines[name]; ok {
		return fmt.Errorf("%s: %s stands on line %d already", where, name, line)
	}
	f.lines[name] = key.Line

	if value = resolve(value); isNull(value) {
		return fmt.Errorf("%s: %s has no value: give one, or leave the key out for the default", where, name)
	}
	flag := f.flags.Lookup(name)
	switch value.Kind {
	case yaml.ScalarNode:
		if f.set[name] {
			return nil
		}
		if err := f.flags.Set(name, value.Value); err != nil {
			return badValue(where, flag, value.Value, err)
		}
	case yaml.SequenceNode:
		list, ok := flag.Value.(pflag.SliceValue)
		if !ok {
			return fmt.Errorf("%s: --%s is a list, want %s", where, name, want(flag.Value.Type()))
		}
		items := make([]string, 0, len(value.Content))
		for _, item := range value.Content {
			if item = resolve(item); item.Kind != yaml.ScalarNode || isNull(item) {
				return fmt.Errorf("%s:%d: --%s: want a scalar for each item of the list", f.name, item.Line, name)
			}
			items = append(items, item.Value)
		}
		if f.set[name] {
			return nil
		}
		if err := list.Replace(items); err != nil {
			return badValue(where, flag, fmt.Sprint(items), err)
		}
		flag.Changed = true
	default:
		return fmt.Errorf("%s: --%s is a mapping, want %s", where, name, want(flag.Value.Type()))
	}
	return nil
}

// resolve follows a YAML alias, which never points at another alias.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}
