// Package config fills a binary's flags from everywhere a setting may come from:
// the command line, then the environment, then a YAML file, then the default.
// What is set but known to nobody is an error, because a misspelled setting that
// is silently ignored is found in production.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// FileFlag is the flag that names the YAML file, if the binary defines it. It
// can come from the environment as well, but not from the file.
const FileFlag = "config"

// commandLineOnly are flags that ask for an action and set nothing.
var commandLineOnly = []string{"help", "version"}

// Load sets each flag that the command line did not set, from environ or else
// from the file that the flag --config names. Call it after flags.Parse.
//
// environ is in the form of os.Environ. With the prefix TAPIO the flag
// --exit-scope is TAPIO_EXIT_SCOPE; aliases maps further variables to flags,
// such as POLKU_ENDPOINT to polku. The prefixed name wins over an alias. An empty
// variable counts as not set.
//
// Every variable that begins with the prefix must belong to a flag. Exempt are
// the service links that the kubelet sets in each pod of a namespace with a
// Service of that name (TAPIO_SERVICE_HOST, TAPIO_PORT=tcp://…,
// TAPIO_PORT_9465_TCP, TAPIO_METRICS_SERVICE_PORT and so on), and TAPIO_VERSION,
// with which image builds label what they made. A flag that would take such a
// name, --port or --service-host, takes it from the links: name it otherwise.
//
// The file is a mapping from flag names to scalars or lists of scalars.
//
// The error joins all mistakes that were found; flags that are set by then stay
// set.
func Load(flags *pflag.FlagSet, prefix string, environ []string, aliases map[string]string) error {
	set := make(map[string]bool) // by something that goes before
	flags.Visit(func(f *pflag.Flag) { set[f.Name] = true })

	errs := loadEnv(flags, set, prefix, environ, aliases)
	if f := flags.Lookup(FileFlag); f != nil && f.Value.String() != "" {
		errs = append(errs, loadFile(flags, set, f.Value.String())...)
	}
	return errors.Join(errs...)
}

func loadEnv(flags *pflag.FlagSet, set map[string]bool, prefix string, environ []string, aliases map[string]string) []error {
	var errs []error
	env := make(map[string]string, len(environ))
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if _, repeated := env[name]; !repeated { // as os.Getenv has it
			env[name] = value
		}
	}

	variables := make(map[string][]string) // by flag, the strongest first
	known := make(map[string]bool)
	for _, name := range settable(flags) {
		v := variable(prefix, name)
		variables[name] = []string{v}
		known[v] = true
	}
	for _, alias := range slices.Sorted(maps.Keys(aliases)) {
		name := aliases[alias]
		if variables[name] == nil {
			errs = append(errs, fmt.Errorf("environment variable %s is meant for --%s, which is no flag", alias, name))
			continue
		}
		variables[name] = append(variables[name], alias)
		known[alias] = true
	}

	for _, name := range slices.Sorted(maps.Keys(variables)) {
		if set[name] {
			continue
		}
		for _, v := range variables[name] {
			if env[v] == "" {
				continue
			}
			set[name] = true
			if err := flags.Set(name, env[v]); err != nil {
				errs = append(errs, badValue("environment variable "+v, flags.Lookup(name), env[v], err))
			}
			break
		}
	}

	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !strings.HasPrefix(name, prefix+"_") || known[name] || tolerated(prefix, name, env[name]) {
			continue
		}
		err := fmt.Errorf("environment variable %s sets nothing%s", shorten(name), suggest(name, slices.Sorted(maps.Keys(known))))
		errs = append(errs, err)
	}
	return errs
}

func settable(flags *pflag.FlagSet) []string {
	var names []string
	flags.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(commandLineOnly, f.Name) {
			names = append(names, f.Name)
		}
	})
	return names
}

func variable(prefix, flag string) string {
	return prefix + "_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(flag))
}

var (
	// serviceLink matches the variables of a service link after the name of the
	// service, except the one that portLink matches.
	serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

	// portLink alone could be a misspelled setting; its value tells.
	portLink      = regexp.MustCompile(`_PORT$`)
	portLinkValue = regexp.MustCompile(`^(tcp|udp|sctp)://`)
)

// tolerated reports whether a variable with our prefix is not ours.
func tolerated(prefix, name, value string) bool {
	return name == prefix+"_VERSION" ||
		serviceLink.MatchString(name) ||
		portLink.MatchString(name) && portLinkValue.MatchString(value)
}

// badValue says where a value came from, what it is and what it should be.
func badValue(from string, f *pflag.Flag, value string, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		err = invalid.Unwrap() // the rest speaks of the command line
	}
	return fmt.Errorf("%s: --%s is %s, want %s: %w", from, f.Name, shorten(value), want(f.Value.Type()), err)
}

func want(flagType string) string {
	list, isList := strings.CutSuffix(flagType, "Slice")
	if isList {
		return "a list, each item " + want(list)
	}
	switch strings.TrimRight(flagType, "0123456789") {
	case "": // of pflag's TextVar, where the value's own error tells
		return "another value"
	case "string":
		return "a text"
	case "bool":
		return "true or false"
	case "duration":
		return "a duration such as 500ms, 30s or 5m"
	case "int", "count":
		return "a whole number"
	case "uint":
		return "a whole number, not negative"
	case "float":
		return "a number"
	case "ip":
		return "an IP address"
	case "ipNet":
		return "a network such as 10.0.0.0/8"
	}
	return "a value of type " + flagType
}

// shorten quotes what an error shows of a text that may be of any length.
func shorten(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// suggest names the known name that takes the fewest edits to get to.
func suggest(name string, known []string) string {
	const longest = 100 // nobody misspells a name of ours as something longer
	if len(known) == 0 || len(name) > longest {
		return ""
	}
	nearest := slices.MinFunc(known, func(a, b string) int {
		return cmp.Compare(distance(name, a), distance(name, b))
	})
	return "; the nearest that is known is " + nearest
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
