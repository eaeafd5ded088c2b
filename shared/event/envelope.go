package event

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Envelope is what a gateway must know of an event that it stores without
// decoding it. The slices are parts of the encoded event.
type Envelope struct {
	ID     []byte
	Source []byte // empty when the event leaves it to its batch
	Time   int64  // nanoseconds since the Unix epoch
}

// CheckEnvelope returns nil when wire, the protobuf encoding of an event, may be
// stored: it can be decoded and printed, has an id, a plausible time and an
// event type, and stays within the limits of this package. Otherwise the error
// names the first thing that is wrong and what to do about it.
//
// It is more lenient than Validate, because sources that are not ours have kinds
// and metadata of their own: those are not judged. A source that is set is
// checked; one that is missing is for the caller to judge. The Envelope holds
// what was found by then even beside an error; its ID is empty unless it is good
// to name the event by.
//
// CheckEnvelope reads bytes only and allocates nothing for a good event.
func CheckEnvelope(wire []byte) (Envelope, error) {
	var c envelopeCheck
	err := c.run(wire)
	if ValidateID(c.ID) != nil {
		c.ID = nil
	}
	return c.Envelope, err
}

// envelopeCheck is what was read of an event so far. A field that is encoded
// twice has its last value, as decoders have it.
type envelopeCheck struct {
	Envelope
	kind     []byte
	metadata int
	routes   int
}

func (c *envelopeCheck) run(wire []byte) error {
	if len(wire) > MaxSize {
		c.ID = leadingID(wire)
		return fmt.Errorf("event has %d bytes: send at most %d", len(wire), MaxSize)
	}
	for len(wire) > 0 {
		f, rest, ok := CutField(wire)
		if !ok {
			return errNoEncoding
		}
		if err := c.field(f); err != nil {
			return err
		}
		wire = rest
	}
	if err := ValidateID(c.ID); err != nil {
		return err
	}
	if err := validateTime(c.Time); err != nil {
		return err
	}
	if len(c.Source) > 0 {
		if err := ValidateSource(c.Source); err != nil {
			return err
		}
	}
	switch {
	case len(c.kind) == 0:
		return errors.New("event_type is empty: say what happened")
	case hasControl(c.kind):
		return fmt.Errorf("event_type is %.80q: use no control characters", c.kind)
	case len(c.kind) > MaxTypeLen:
		return fmt.Errorf("event_type has %d bytes: use at most %d", len(c.kind), MaxTypeLen)
	}
	return nil
}

// leadingID is the id of an event that is too large to be walked. Encoders write
// the fields in the order of their numbers.
func leadingID(wire []byte) []byte {
	f, _, ok := CutField(wire)
	if !ok || f.Number != wireID || f.Type != protowire.BytesType {
		return nil
	}
	return f.Value
}

var errNoEncoding = errors.New("event is not in protobuf encoding: encode it as polku.event.v1.Event")

func (c *envelopeCheck) field(f Field) error {
	if f.Number == wireTime && f.Type == protowire.VarintType {
		ns, _ := protowire.ConsumeVarint(f.Value)
		c.Time = int64(ns)
		return nil
	}
	if f.Type != protowire.BytesType {
		return nil // a number, or unknown
	}
	value := f.Value
	switch f.Number {
	case wireID:
		c.ID = value
	case wireSource:
		c.Source = value
	case wireType:
		c.kind = value
	case wireMetadata:
		c.metadata++
		if c.metadata > MaxMetadata {
			return fmt.Errorf("metadata has more than %d entries: send fewer", MaxMetadata)
		}
		return checkEntry(value)
	case wireRouteTo:
		c.routes++
		if c.routes > MaxRoutes {
			return fmt.Errorf("route_to has more than %d entries: send fewer", MaxRoutes)
		}
		if len(value) == 0 || len(value) > MaxRouteLen {
			return fmt.Errorf("route_to has an entry of %d bytes: use 1 to %d", len(value), MaxRouteLen)
		}
	}
	return eventShape.checkField(f.Number, value)
}

// checkEntry checks one entry of metadata, encoded as a message.
func checkEntry(entry []byte) error {
	var key, value []byte
	for len(entry) > 0 {
		f, rest, ok := CutField(entry)
		if !ok {
			return errNoEncoding
		}
		if f.Type == protowire.BytesType && (f.Number == wireKey || f.Number == wireValue) {
			if !utf8.Valid(f.Value) {
				return fmt.Errorf("metadata has %.80q, which is not UTF-8: replace the bytes that are not", f.Value)
			}
			if f.Number == wireKey {
				key = f.Value
			} else {
				value = f.Value
			}
		}
		entry = rest
	}
	return validateEntry(key, value)
}

// shape is what a decoder refuses in the encoding of a message: text that is
// not UTF-8 and messages that are none. Numbers and bytes cannot be wrong.
type shape []shapeField // by field number

type shapeField struct {
	name    string
	text    bool
	time    bool
	message shape
}

// eventShape is made once of the generated descriptor. Nothing changes it.
var eventShape = shapeOf((*eventv1.Event)(nil).ProtoReflect().Descriptor())

func shapeOf(m protoreflect.MessageDescriptor) shape {
	var s shape
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		for len(s) <= int(f.Number()) {
			s = append(s, shapeField{})
		}
		sf := shapeField{name: string(f.Name()), text: f.Kind() == protoreflect.StringKind}
		switch {
		case f.IsMap(): // metadata, the only one, is checked by checkEntry
		case f.Message() != nil && f.Message().FullName() == timestampName:
			sf.time = true
		case f.Message() != nil:
			sf.message = shapeOf(f.Message())
		}
		s[f.Number()] = sf
	}
	return s
}

func (s shape) check(wire []byte) error {
	for len(wire) > 0 {
		f, rest, ok := CutField(wire)
		if !ok {
			return errNoEncoding
		}
		if f.Type == protowire.BytesType {
			if err := s.checkField(f.Number, f.Value); err != nil {
				return err
			}
		}
		wire = rest
	}
	return nil
}

// checkField checks the content of a field of the type bytes.
func (s shape) checkField(number protowire.Number, value []byte) error {
	if int(number) >= len(s) {
		return nil // from a newer version of the protocol
	}
	switch f := &s[number]; {
	case f.text:
		if !utf8.Valid(value) {
			return fmt.Errorf("%s is %.80q, which is not UTF-8: replace the bytes that are not", f.name, value)
		}
	case f.time:
		var ts timestamppb.Timestamp // rare, so decoding it costs nobody
		if proto.Unmarshal(value, &ts) != nil {
			return errNoEncoding
		}
		if err := validateTimestamp(&ts); err != nil {
			return fmt.Errorf("%s %w", f.name, err)
		}
	case f.message != nil:
		if err := f.message.check(value); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}
