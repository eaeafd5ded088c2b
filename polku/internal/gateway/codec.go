package gateway

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// frame is a received IngestBatch as its bytes. What arrives is stored as it is
// wherever possible, so decoding it into objects would be for nothing.
type frame struct {
	mem.Buffer // to be freed
}

// encodedAck is an Ack that is encoded already.
type encodedAck []byte

// Codec is protobuf, with a way past its objects for batches and acks. The
// server of a Gateway must use it.
type Codec struct {
	encoding.CodecV2

	frames mem.BufferPool
}

// NewCodec returns the codec.
func NewCodec() Codec {
	// The default pool has nothing between 32 KiB and 1 MiB, where batches are:
	// each would hold a megabyte while it waits.
	var sizes []int
	for size := 4 << 10; size <= 4<<20; size *= 2 {
		sizes = append(sizes, size)
	}
	return Codec{encoding.GetCodecV2(proto.Name), mem.NewTieredBufferPool(sizes...)}
}

// Marshal encodes a message.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	if ack, ok := v.(encodedAck); ok {
		return mem.BufferSlice{mem.SliceBuffer(ack)}, nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal decodes a message.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frame); ok {
		f.Buffer = data.MaterializeToBuffer(c.frames)
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
