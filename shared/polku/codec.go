package polku

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// Numbers of the fields of IngestBatch and EventPayload.
const (
	fieldSource  = 1
	fieldCluster = 2
	fieldEvents  = 4
	fieldEvent   = 1
)

// encoded is an IngestBatch in protobuf encoding. It is made once, however
// often the batch is sent.
type encoded []byte

// encode makes a batch of events, without those that cannot be encoded, for
// which it calls bad. It returns what is in it.
func encode(source, cluster string, events []*eventv1.Event, bad func(*eventv1.Event, error)) (encoded, []*eventv1.Event) {
	n := 0
	sizes := make([]int, len(events))
	for i, e := range events {
		sizes[i] = event.WireSize(e)
		n += protowire.SizeTag(fieldEvent) + protowire.SizeBytes(sizes[i])
	}
	const tagsAndSizes = 4 * (1 + 5)
	wire := make([]byte, 0, n+len(source)+len(cluster)+tagsAndSizes)
	wire = protowire.AppendString(protowire.AppendTag(wire, fieldSource, protowire.BytesType), source)
	wire = protowire.AppendString(protowire.AppendTag(wire, fieldCluster, protowire.BytesType), cluster)
	wire = protowire.AppendTag(wire, fieldEvents, protowire.BytesType)
	wire = protowire.AppendVarint(wire, uint64(n))
	good := events[:0]
	for i, e := range events {
		head := len(wire)
		wire = protowire.AppendTag(wire, fieldEvent, protowire.BytesType)
		wire = protowire.AppendVarint(wire, uint64(sizes[i]))
		var err error
		if wire, err = event.AppendWire(wire, e); err != nil {
			wire = wire[:head]
			bad(e, err)
			continue
		}
		good = append(good, e)
	}
	if len(good) < len(events) { // the size of all is in front: again, without them
		return encode(source, cluster, good, bad)
	}
	return wire, good
}

// codec is protobuf, but lets what is encoded pass.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if wire, ok := v.(encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(wire)}, nil
	}
	return c.CodecV2.Marshal(v)
}
