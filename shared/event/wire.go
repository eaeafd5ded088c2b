package event

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Numbers of the fields of polku.event.v1.Event.
const (
	wireID       = 1
	wireTime     = 2
	wireSource   = 3
	wireType     = 4
	wireMetadata = 5
	wirePayload  = 6
	wireRouteTo  = 7
	wireSeverity = 10
	wireOutcome  = 11
	wireNetwork  = 20
	wireKernel   = 21
	wireCont     = 22
	wireK8s      = 23
	wireProcess  = 24
	wireResource = 25

	wireKey   = 1 // of a metadata entry
	wireValue = 2
)

// Field is one field of an encoded message.
type Field struct {
	Number protowire.Number
	Type   protowire.Type
	// Value is the content of text, bytes or a message, and the encoding of
	// anything else.
	Value []byte
}

// CutField cuts the first field off an encoded message.
// It is not ok where proto.Unmarshal would fail at this field: protowire alone
// takes numbers that are too great for a field.
func CutField(wire []byte) (f Field, rest []byte, ok bool) {
	number, kind, n := protowire.ConsumeTag(wire)
	if n < 0 || number > protowire.MaxValidNumber {
		return Field{}, nil, false
	}
	wire = wire[n:]
	if kind == protowire.BytesType {
		value, n := protowire.ConsumeBytes(wire)
		if n < 0 {
			return Field{}, nil, false
		}
		return Field{number, kind, value}, wire[n:], true
	}
	if n = protowire.ConsumeFieldValue(number, kind, wire); n < 0 {
		return Field{}, nil, false
	}
	return Field{number, kind, wire[:n]}, wire[n:], true
}

// WireSize is the size of an event in protobuf encoding, bytes: what proto.Size
// says, without an allocation for each entry of the metadata.
func WireSize(e *eventv1.Event) int {
	n := textSize(wireID, e.GetId()) + numberSize(wireTime, uint64(e.GetTimestampUnixNs())) +
		textSize(wireSource, e.GetSource()) + textSize(wireType, e.GetEventType()) +
		numberSize(wireSeverity, uint64(e.GetSeverity())) + numberSize(wireOutcome, uint64(e.GetOutcome()))
	for k, v := range e.GetMetadata() {
		n += protowire.SizeTag(wireMetadata) + protowire.SizeBytes(entrySize(k, v))
	}
	if p := e.GetPayload(); len(p) > 0 {
		n += protowire.SizeTag(wirePayload) + protowire.SizeBytes(len(p))
	}
	for _, r := range e.GetRouteTo() {
		n += protowire.SizeTag(wireRouteTo) + protowire.SizeBytes(len(r))
	}
	if number, data := wireData(e); number != 0 {
		n += protowire.SizeTag(number) + protowire.SizeBytes(proto.Size(data))
	}
	return n + len(e.ProtoReflect().GetUnknown())
}

// AppendWire appends an event in protobuf encoding, as proto.Marshal does, at a
// fraction of the cost: reflection over the metadata is most of it. It fails on
// text that is not UTF-8, and then returns dst as it was.
func AppendWire(dst []byte, e *eventv1.Event) ([]byte, error) {
	text := utf8.ValidString(e.GetId()) && utf8.ValidString(e.GetSource()) && utf8.ValidString(e.GetEventType())
	b := appendText(dst, wireID, e.GetId())
	b = appendNumber(b, wireTime, uint64(e.GetTimestampUnixNs()))
	b = appendText(b, wireSource, e.GetSource())
	b = appendText(b, wireType, e.GetEventType())
	for k, v := range e.GetMetadata() {
		text = text && utf8.ValidString(k) && utf8.ValidString(v)
		b = protowire.AppendTag(b, wireMetadata, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(entrySize(k, v)))
		b = protowire.AppendTag(b, wireKey, protowire.BytesType)
		b = protowire.AppendString(b, k)
		b = protowire.AppendTag(b, wireValue, protowire.BytesType)
		b = protowire.AppendString(b, v)
	}
	if p := e.GetPayload(); len(p) > 0 {
		b = protowire.AppendTag(b, wirePayload, protowire.BytesType)
		b = protowire.AppendBytes(b, p)
	}
	for _, r := range e.GetRouteTo() {
		text = text && utf8.ValidString(r)
		b = protowire.AppendTag(b, wireRouteTo, protowire.BytesType)
		b = protowire.AppendString(b, r)
	}
	if !text {
		return dst, fmt.Errorf("encode event %q: it has text that is not UTF-8: replace the bytes that are not", e.GetId())
	}
	b = appendNumber(b, wireSeverity, uint64(e.GetSeverity()))
	b = appendNumber(b, wireOutcome, uint64(e.GetOutcome()))
	if number, data := wireData(e); number != 0 {
		b = protowire.AppendTag(b, number, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(proto.Size(data)))
		var err error
		if b, err = (proto.MarshalOptions{}).MarshalAppend(b, data); err != nil {
			return dst, fmt.Errorf("encode event %q: %w", e.GetId(), err)
		}
	}
	return append(b, e.ProtoReflect().GetUnknown()...), nil
}

// wireData is the field of the oneof that is set, and its number; 0 for none.
func wireData(e *eventv1.Event) (protowire.Number, proto.Message) {
	switch d := e.GetData().(type) {
	case *eventv1.Event_Network:
		return wireNetwork, d.Network
	case *eventv1.Event_Kernel:
		return wireKernel, d.Kernel
	case *eventv1.Event_Container:
		return wireCont, d.Container
	case *eventv1.Event_K8S:
		return wireK8s, d.K8S
	case *eventv1.Event_Process:
		return wireProcess, d.Process
	case *eventv1.Event_Resource:
		return wireResource, d.Resource
	}
	return 0, nil
}

func entrySize(k, v string) int {
	return protowire.SizeTag(wireKey) + protowire.SizeBytes(len(k)) + protowire.SizeTag(wireValue) + protowire.SizeBytes(len(v))
}

func textSize(number protowire.Number, s string) int {
	if s == "" {
		return 0
	}
	return protowire.SizeTag(number) + protowire.SizeBytes(len(s))
}

func appendText(b []byte, number protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), s)
}

func numberSize(number protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(number) + protowire.SizeVarint(v)
}

func appendNumber(b []byte, number protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), v)
}
