package gateway

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

// The fields that are read and written as bytes have the numbers of the protocol.
func TestNumbersOfFields(t *testing.T) {
	for _, test := range []struct {
		message proto.Message
		fields  map[protoreflect.Name]protowire.Number
	}{
		{&polkuv1.IngestBatch{}, map[protoreflect.Name]protowire.Number{"source": batchSource, "cluster": batchCluster, "raw": batchRaw, "events": batchEvents}},
		{&polkuv1.RawPayload{}, map[protoreflect.Name]protowire.Number{"data": rawData, "format": rawFormat}},
		{&polkuv1.EventPayload{}, map[protoreflect.Name]protowire.Number{"events": payloadEvents}},
		{&polkuv1.Ack{}, map[protoreflect.Name]protowire.Number{"event_ids": ackEventIDs}},
	} {
		for name, number := range test.fields {
			field := test.message.ProtoReflect().Descriptor().Fields().ByName(name)
			require.NotNil(t, field, name)
			require.Equal(t, field.Number(), number, field.FullName())
		}
	}
}
