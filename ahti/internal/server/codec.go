package server

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
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
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return fmt.Errorf("read an IngestRequest: %w", protowire.ParseError(n))
		}
		data = data[n:]
		if number == eventsField && kind == protowire.BytesType {
			event, n := protowire.ConsumeBytes(data)
			if n < 0 {
				return fmt.Errorf("read an IngestRequest: %w", protowire.ParseError(n))
			}
			r.events = append(r.events, event)
			data = data[n:]
			continue
		}
		// A field of a later version of the contract.
		n = protowire.ConsumeFieldValue(number, kind, data)
		if n < 0 {
			return fmt.Errorf("read an IngestRequest: %w", protowire.ParseError(n))
		}
		data = data[n:]
	}
	return nil
}
