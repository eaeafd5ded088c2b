package event

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Limits of one event. They are far above what an observer needs and keep one
// bad sender from filling a gateway.
const (
	// MaxSize is the most that an event may take in protobuf encoding, bytes.
	MaxSize = 256 << 10
	// MaxIDLen is the longest id, bytes. A ULID has 26.
	MaxIDLen = 128
	// MaxSourceLen is the longest source, bytes.
	MaxSourceLen = 128
	// MaxTypeLen is the longest event_type, bytes.
	MaxTypeLen = 256
	// MaxMetadata is the greatest number of metadata entries.
	MaxMetadata = 128
	// MaxKeyLen is the longest metadata key, bytes.
	MaxKeyLen = 256
	// MaxValueLen is the longest metadata value, bytes. Linux paths, the
	// longest values there are, end at 4096.
	MaxValueLen = 4096
	// MaxNameLen is the longest name of a cluster or a namespace, bytes.
	MaxNameLen = 256
	// MaxAhead is how far the time of an event may be ahead of the clock of who
	// takes it: later it would be the newest event for long.
	MaxAhead = 24 * time.Hour
	// MaxRoutes is the greatest number of route_to entries.
	MaxRoutes = 16
	// MaxRouteLen is the longest route_to entry, bytes.
	MaxRouteLen = 256
)

// Timestamps outside of these are not times of events but zeros, times since
// boot, or seconds, milliseconds and microseconds where nanoseconds belong.
var (
	earliest = time.Date(2020, time.January, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2100, time.January, 1, 0, 0, 0, 0, time.UTC)
)

// Validate returns nil when e may be stored and believed, or an error for each
// thing that is wrong, joined. Each names the field and what to do about it.
//
// An event that passes has an id, a source, a plausible time and a kind that is
// in the registry, carries the data and the metadata that its kind requires,
// stays within the limits of this package, and can be encoded as protobuf and
// as JSON. Validate reads no clock: the same event always gets the same answer.
func Validate(e *eventv1.Event) error {
	if e == nil {
		return errors.New("event is nil: pass one")
	}
	// Alone and first: the other checks walk the event.
	if size := proto.Size(e); size > MaxSize {
		return fmt.Errorf("event has %d bytes: send at most %d", size, MaxSize)
	}
	return errors.Join(
		ValidateID(e.GetId()),
		validateTime(e.GetTimestampUnixNs()),
		ValidateSource(e.GetSource()),
		validateClass(e),
		validateKind(e),
		validateMetadata(e.GetMetadata()),
		validateRoutes(e.GetRouteTo()),
		validateValues(e.ProtoReflect()),
	)
}

// ValidateID wants printable ASCII without spaces, because ids stand in headers,
// logs and URLs.
func ValidateID[T string | []byte](id T) error {
	switch {
	case len(id) == 0:
		return errors.New("id is empty: set an id that no other event has")
	case len(id) > MaxIDLen:
		return fmt.Errorf("id has %d bytes: use at most %d", len(id), MaxIDLen)
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] >= 0x7f {
			return fmt.Errorf("id has byte 0x%02x at offset %d: use printable ASCII without spaces", id[i], i)
		}
	}
	return nil
}

func validateTime(ns int64) error {
	if at := time.Unix(0, ns); at.Before(earliest) || !at.Before(latest) {
		return fmt.Errorf("timestamp_unix_ns is %d, which is not between %s and %s: set nanoseconds since the Unix epoch",
			ns, earliest.Format(time.DateOnly), latest.Format(time.DateOnly))
	}
	return nil
}

// ValidateSource wants what can be kept in an index and printed in a log.
func ValidateSource[T string | []byte](source T) error {
	switch {
	case len(source) == 0:
		return errors.New("source is empty: set the name of the program that observed the event")
	case len(source) > MaxSourceLen:
		return fmt.Errorf("source has %d bytes: use at most %d", len(source), MaxSourceLen)
	case hasControl(source):
		return fmt.Errorf("source is %.80q: use no control characters", source)
	}
	return nil
}

// ValidateName wants the same of a cluster or a namespace, which may be empty. The
// error goes on after what has the name.
func ValidateName[T string | []byte](name T) error {
	if len(name) > MaxNameLen || hasControl(name) {
		return fmt.Errorf("is %.80q: use at most %d bytes without control characters", name, MaxNameLen)
	}
	return nil
}

// hasControl finds what no name has and no log should print.
func hasControl[T string | []byte](name T) bool {
	for i := 0; i < len(name); i++ {
		// U+0080 to U+009F are 0xC2 and a byte up to 0x9F in UTF-8.
		if name[i] < ' ' || name[i] == 0x7f || name[i] == 0xc2 && i+1 < len(name) && name[i+1] < 0xa0 {
			return true
		}
	}
	return false
}

// isName reports whether the values of a metadata key are names that a store
// keeps in its index.
func isName[T string | []byte](key T) bool {
	return string(key) == K8sClusterName || string(key) == K8sNamespaceName
}

func validateClass(e *eventv1.Event) error {
	if s := e.GetSeverity(); s <= eventv1.Severity_SEVERITY_UNSPECIFIED || s > eventv1.Severity_SEVERITY_CRITICAL {
		return fmt.Errorf("severity is %s: set one from DEBUG to CRITICAL", s)
	}
	if o := e.GetOutcome(); o < eventv1.Outcome_OUTCOME_UNSPECIFIED || o > eventv1.Outcome_OUTCOME_UNKNOWN {
		return fmt.Errorf("outcome is %s: set one that the protocol names", o)
	}
	return nil
}

// validateKind checks what follows from the kind: required metadata and data.
func validateKind(e *eventv1.Event) error {
	k, ok := Lookup(e.GetEventType())
	if !ok {
		return fmt.Errorf("event_type %.80q is not in the registry: use one that docs/events.md lists", e.GetEventType())
	}
	var errs []error
	for _, key := range k.Required {
		if e.GetMetadata()[key] == "" {
			errs = append(errs, fmt.Errorf("metadata %q is missing: %s requires it", key, k.Type))
		}
	}
	if data := dataOf(e); data != k.Data {
		errs = append(errs, fmt.Errorf("data carries %s: %s requires %s", data, k.Type, k.Data))
	}
	return errors.Join(errs...)
}

// dataOf tells which field of the oneof is set. A field that is set to nil, as
// only Go code can do, carries nothing.
func dataOf(e *eventv1.Event) Data {
	m := e.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("data"))
	if field == nil || !m.Get(field).Message().IsValid() {
		return DataNone
	}
	return Data(field.Name())
}

func validateMetadata(metadata map[string]string) error {
	if len(metadata) > MaxMetadata {
		return fmt.Errorf("metadata has %d entries: send at most %d", len(metadata), MaxMetadata)
	}
	var errs []error
	for name, value := range metadata {
		if err := validateEntry(name, value); err != nil {
			errs = append(errs, err)
		}
		key, _ := LookupKey(name)
		switch {
		case key.Values != nil && !slices.Contains(key.Values, value):
			errs = append(errs, fmt.Errorf("metadata %q is %.80q: use one of %s", name, value, strings.Join(key.Values, ", ")))
		case key.Unit != UnitNone && !isDecimal(value):
			errs = append(errs, fmt.Errorf("metadata %q is %.80q: use a decimal number of %s such as 12.5", name, value, key.Unit))
		}
	}
	return joinSorted(errs)
}

func validateEntry[T string | []byte](key, value T) error {
	switch {
	case len(key) == 0:
		return errors.New("metadata has an empty key: name it")
	case len(key) > MaxKeyLen:
		return fmt.Errorf("metadata key %.80q has %d bytes: use at most %d", key, len(key), MaxKeyLen)
	case len(value) > MaxValueLen:
		return fmt.Errorf("metadata %q has %d bytes: use at most %d", key, len(value), MaxValueLen)
	case isName(key):
		if err := ValidateName(value); err != nil {
			return fmt.Errorf("metadata %q %w", key, err)
		}
	}
	return nil
}

// isDecimal accepts digits with at most one point between them. Signs,
// exponents, infinity and the other things that strconv reads as numbers are
// not what a consumer expects after a unit.
func isDecimal(s string) bool {
	whole, fraction, point := strings.Cut(s, ".")
	return isDigits(whole) && (!point || isDigits(fraction))
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func validateRoutes(routes []string) error {
	if len(routes) > MaxRoutes {
		return fmt.Errorf("route_to has %d entries: send at most %d", len(routes), MaxRoutes)
	}
	for i, route := range routes {
		if route == "" || len(route) > MaxRouteLen {
			return fmt.Errorf("route_to[%d] has %d bytes: use 1 to %d", i, len(route), MaxRouteLen)
		}
	}
	return nil
}

// validateValues finds the values that an encoder refuses or that mean nothing:
// invalid UTF-8, numbers that are none, impossible times.
func validateValues(m protoreflect.Message) error {
	var errs []error
	walk("", m, func(name string, v protoreflect.Value) {
		if err := validateValue(v); err != nil {
			errs = append(errs, fmt.Errorf("%s %w", name, err))
		}
	})
	return joinSorted(errs)
}

// walk calls visit for each value in m that is set, times and map keys
// included, with the path that leads to it.
func walk(path string, m protoreflect.Message, visit func(name string, v protoreflect.Value)) {
	m.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := path + string(field.Name())
		switch {
		case field.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				visit(name+" key", k.Value())
				visit(fmt.Sprintf("%s %.80q", name, k.String()), v)
				return true
			})
		case field.IsList():
			for i := range v.List().Len() {
				visit(fmt.Sprintf("%s[%d]", name, i), v.List().Get(i))
			}
		case field.Message() == nil || field.Message().FullName() == timestampName:
			visit(name, v)
		default:
			walk(name+".", v.Message(), visit)
		}
		return true
	})
}

var timestampName = (*timestamppb.Timestamp)(nil).ProtoReflect().Descriptor().FullName()

func validateValue(v protoreflect.Value) error {
	switch v := v.Interface().(type) {
	case string:
		if !utf8.ValidString(v) {
			return fmt.Errorf("is %.80q, which is not UTF-8: replace the bytes that are not", v)
		}
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("is %v: leave it unset when it could not be measured", v)
		}
	case protoreflect.Message:
		if ts, ok := v.Interface().(*timestamppb.Timestamp); ok {
			return validateTimestamp(ts)
		}
	}
	return nil
}

func validateTimestamp(ts *timestamppb.Timestamp) error {
	if ts.CheckValid() != nil {
		return fmt.Errorf("is %d s and %d ns, which is no time: leave it unset or set a real one", ts.GetSeconds(), ts.GetNanos())
	}
	return nil
}

// joinSorted joins errors that were found in the order of a map. An error that
// changes from call to call cannot be compared or counted.
func joinSorted(errs []error) error {
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}
