package main

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// message is a protobuf message as its bytes: what makes the load must not take
// the processors from what is measured.
type message []byte

// discarded is a message that is received and not looked at.
type discarded struct{}

// codec sends and receives messages as they are.
type codec struct{}

// Marshal takes a message.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(m)}, nil
}

// Unmarshal takes a *message, whose memory it uses again, or a *discarded.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *message:
		*m = slices.Grow((*m)[:0], data.Len())[:data.Len()]
		data.CopyTo(*m)
	case *discarded:
	default:
		return fmt.Errorf("%T is no *message", v)
	}
	return nil
}

// Name is that of protobuf, which the bytes are.
func (codec) Name() string { return "proto" }

var errWire = errors.New("a message is not in protobuf encoding")

// eachField calls visit for each field of m that has the number and holds bytes,
// text or a message.
func eachField(m message, number protowire.Number, visit func(value []byte) error) error {
	for len(m) > 0 {
		n, kind, size := protowire.ConsumeTag(m)
		if size < 0 {
			return errWire
		}
		m = m[size:]
		if size = protowire.ConsumeFieldValue(n, kind, m); size < 0 {
			return errWire
		}
		if n == number && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(m)
			if err := visit(value); err != nil {
				return err
			}
		}
		m = m[size:]
	}
	return nil
}
