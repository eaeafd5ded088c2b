package change

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Version is what is kept of one version of an object: who it is, who owns it, what
// it is tied to, and its fields without secrets. It is its own encoding, in which
// each field's path is told by what it shares with the one before; so ten thousand
// pods fit in a few dozen MiB. A Version is never changed.
type Version struct {
	UID, Namespace, Name, ResourceVersion string
	// Created is metadata.creationTimestamp; zero when the object has none.
	Created time.Time
	// Written is when the object changed last, to a second, as far as it tells in
	// metadata.managedFields or a condition; zero when it does not.
	Written time.Time
	// Generation is metadata.generation; 0 where the kind counts none.
	Generation int64

	wire  string
	ties  string // owners and links, the end of wire but for the fields
	leafs string // the fields, the end of wire
}

// format is the first byte of an encoded Version. A change of the encoding, or of
// what the fields mean, needs another.
const format = 2

// Field is one leaf of an object: a path as event.FieldChange has it, and what is
// told of its value.
type Field struct{ Path, Value string }

// link is what an object is tied to.
type link struct {
	kind   string // type of an eventv1.ObjectLink
	target reference
}

// reference names an object; the uid may be unknown.
type reference struct{ kind, namespace, name, uid string }

func (r reference) proto() *eventv1.ObjectReference {
	return &eventv1.ObjectReference{Kind: r.kind, Namespace: r.namespace, Name: r.name, Uid: r.uid}
}

func (l link) compare(o link) int {
	return cmp.Or(strings.Compare(l.kind, o.kind), strings.Compare(l.target.kind, o.target.kind),
		strings.Compare(l.target.namespace, o.target.namespace), strings.Compare(l.target.name, o.target.name),
		strings.Compare(l.target.uid, o.target.uid))
}

// newVersion encodes a version. The fields are sorted by path, the links by what
// they are; both without duplicates.
func newVersion(head Version, owners []reference, links []link, fields []Field) (*Version, error) {
	b := make([]byte, 0, 4<<10)
	b = append(b, format)
	for _, s := range [...]string{head.UID, head.Namespace, head.Name, head.ResourceVersion} {
		b = appendString(b, s)
	}
	b = appendTime(appendTime(b, head.Created), head.Written)
	b = binary.AppendVarint(b, head.Generation)
	b = binary.AppendUvarint(b, uint64(len(owners)))
	for _, o := range owners {
		b = appendReference(b, o)
	}
	b = binary.AppendUvarint(b, uint64(len(links)))
	for _, l := range links {
		b = appendReference(appendString(b, l.kind), l.target)
	}
	was := ""
	for _, f := range fields {
		shared := sharedLen(was, f.Path)
		b = binary.AppendUvarint(b, uint64(shared))
		b = appendString(b, f.Path[shared:])
		b = appendString(b, f.Value)
		was = f.Path
	}
	v := &Version{}
	if err := v.decode(string(b)); err != nil {
		return nil, err
	}
	return v, nil
}

func sharedLen(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendTime appends a time in seconds, and 0 for none.
func appendTime(b []byte, at time.Time) []byte {
	if at.IsZero() {
		return binary.AppendVarint(b, 0)
	}
	return binary.AppendVarint(b, at.Unix())
}

func appendReference(b []byte, r reference) []byte {
	for _, s := range [...]string{r.kind, r.namespace, r.name, r.uid} {
		b = appendString(b, s)
	}
	return b
}

// AppendBinary appends the encoded version to b.
func (v *Version) AppendBinary(b []byte) ([]byte, error) { return append(b, v.wire...), nil }

// MarshalBinary returns the encoded version.
func (v *Version) MarshalBinary() ([]byte, error) { return []byte(v.wire), nil }

// UnmarshalBinary reads an encoded version. It fails when the data is of another
// format, or damaged.
func (v *Version) UnmarshalBinary(data []byte) error {
	var read Version
	if err := read.decode(string(data)); err != nil {
		return fmt.Errorf("read a kept version of an object: %w", err)
	}
	*v = read
	return nil
}

var errDamaged = errors.New("it is damaged")

func (v *Version) decode(wire string) error {
	if wire == "" {
		return errDamaged
	}
	if wire[0] != format {
		return fmt.Errorf("it has format %d, and this program knows format %d only", wire[0], format)
	}
	r := reader{rest: wire[1:]}
	v.wire = wire
	v.UID, v.Namespace, v.Name, v.ResourceVersion = r.text(), r.text(), r.text(), r.text()
	v.Created, v.Written = r.time(), r.time()
	v.Generation = r.signed()
	v.ties = r.rest
	for range r.count() {
		r.reference()
	}
	for range r.count() {
		r.text()
		r.reference()
	}
	v.ties = v.ties[:len(v.ties)-len(r.rest)]
	v.leafs = r.rest
	var path, was []byte
	for first := true; r.rest != "" && !r.bad; first = false {
		was = append(was[:0], path...)
		path, _ = r.field(path)
		// Two versions are compared by walking both in order.
		r.bad = r.bad || !first && bytes.Compare(path, was) <= 0
	}
	if r.bad || v.UID == "" || v.ResourceVersion == "" {
		return errDamaged
	}
	return nil
}

// reader reads the encoding of a version. After a mistake it reads nothing more.
type reader struct {
	rest string
	bad  bool
}

func (r *reader) uvarint() uint64 {
	var n uint64
	for i := 0; i < len(r.rest) && i < binary.MaxVarintLen64; i++ {
		c := r.rest[i]
		n |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			r.rest = r.rest[i+1:]
			return n
		}
	}
	r.bad, r.rest = true, ""
	return 0
}

func (r *reader) signed() int64 {
	n := r.uvarint()
	return int64(n>>1) ^ -int64(n&1)
}

func (r *reader) time() time.Time {
	if seconds := r.signed(); seconds != 0 {
		return time.Unix(seconds, 0).UTC()
	}
	return time.Time{}
}

// count reads how many things follow, each of which has at least one byte.
func (r *reader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.rest)) {
		r.bad, r.rest = true, ""
		return 0
	}
	return int(n)
}

func (r *reader) text() string {
	n := r.count()
	s := r.rest[:n]
	r.rest = r.rest[n:]
	return s
}

func (r *reader) reference() reference {
	return reference{r.text(), r.text(), r.text(), r.text()}
}

// field reads a field whose path begins as the one before, which is overwritten.
func (r *reader) field(path []byte) (next []byte, value string) {
	shared := r.uvarint()
	if shared > uint64(len(path)) {
		r.bad, r.rest = true, ""
		return path[:0], ""
	}
	path = append(path[:shared], r.text()...)
	return path, r.text()
}

// owners returns the owners that the object itself names, its controller first.
func (v *Version) owners() []reference {
	r := reader{rest: v.ties}
	owners := make([]reference, 0, 1)
	for range r.count() {
		owners = append(owners, r.reference())
	}
	return owners
}

// links returns what the object is tied to, sorted.
func (v *Version) links() []link {
	r := reader{rest: v.ties}
	for range r.count() {
		r.reference()
	}
	n := r.count()
	links := make([]link, 0, n)
	for range n {
		links = append(links, link{r.text(), r.reference()})
	}
	return links
}

// Owner returns the controller of the object, or else the first of its owners;
// false when it has none.
func (v *Version) Owner() (*eventv1.ObjectReference, bool) {
	owners := v.owners()
	if len(owners) == 0 {
		return nil, false
	}
	return owners[0].proto(), true
}

// Fields returns the fields of the object, sorted by path.
func (v *Version) Fields() iter.Seq[Field] {
	return func(yield func(Field) bool) {
		r := reader{rest: v.leafs}
		var path []byte
		for r.rest != "" {
			var value string
			if path, value = r.field(path); r.bad || !yield(Field{string(path), value}) {
				return
			}
		}
	}
}

// Field returns the value of a field; empty when the object does not have it.
func (v *Version) Field(path string) string {
	r := reader{rest: v.leafs}
	var at []byte
	for r.rest != "" {
		var value string
		at, value = r.field(at)
		if string(at) == path {
			return value
		}
		if string(at) > path || r.bad {
			return ""
		}
	}
	return ""
}

// diff calls told for each field that differs; a nil Version has none.
func diff(older, newer *Version, told func(path, was, is string)) {
	a, b := cursorOf(older), cursorOf(newer)
	for a.ok || b.ok {
		var order int
		switch {
		case !a.ok:
			order = 1
		case !b.ok:
			order = -1
		default:
			order = bytes.Compare(a.path, b.path)
		}
		switch {
		case order < 0:
			told(string(a.path), a.value, "")
			a.next()
		case order > 0:
			told(string(b.path), "", b.value)
			b.next()
		default:
			if a.value != b.value {
				told(string(a.path), a.value, b.value)
			}
			a.next()
			b.next()
		}
	}
}

// cursor is one of two walks over fields.
type cursor struct {
	reader reader
	path   []byte
	value  string
	ok     bool
}

func cursorOf(v *Version) *cursor {
	c := &cursor{}
	if v != nil {
		c.reader.rest = v.leafs
	}
	c.next()
	return c
}

func (c *cursor) next() {
	if c.ok = c.reader.rest != ""; c.ok {
		c.path, c.value = c.reader.field(c.path)
		c.ok = !c.reader.bad
	}
}

// sortFields sorts fields by path. Of two with one path the first stays: lists may
// name an entry twice, which the caller made unique already.
func sortFields(fields []Field) []Field {
	slices.SortStableFunc(fields, func(a, b Field) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(fields, func(a, b Field) bool { return a.Path == b.Path })
}
