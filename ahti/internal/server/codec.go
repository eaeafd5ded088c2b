package server

import (
	"errors"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/yairfalse/tapio/shared/event"
)

// encodedRequest is an IngestRequest whose events are still bytes: they are
// stored as they came, so encoding them again would be for nothing.
type encodedRequest struct {
	events [][]byte
}

// codec is protobuf, with a way past its objects for what is ingested.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal decodes a message.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*encodedRequest); ok {
		return r.read(data.Materialize())
	}
	return c.CodecV2.Unmarshal(data, v)
}

// eventsField is the number of IngestRequest.events.
const eventsField = 1

// read cuts the request into its events, which keep the memory of data.
func (r *encodedRequest) read(data []byte) error {
	for len(data) > 0 {
		field, rest, ok := event.CutField(data)
		if !ok {
			return errors.New("read an IngestRequest: it is no protobuf")
		}
		// Any other is a field of a later version of the contract.
		if field.Number == eventsField && field.Type == protowire.BytesType {
			r.events = append(r.events, field.Value)
		}
		data = rest
	}
	return nil
}
