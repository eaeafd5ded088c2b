package event

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// The fields that are read and written as bytes have the numbers of the protocol.
func TestNumbersOfFields(t *testing.T) {
	fields := (*eventv1.Event)(nil).ProtoReflect().Descriptor().Fields()
	for name, number := range map[protoreflect.Name]protowire.Number{
		"id": wireID, "timestamp_unix_ns": wireTime, "source": wireSource, "event_type": wireType,
		"metadata": wireMetadata, "payload": wirePayload, "route_to": wireRouteTo,
		"severity": wireSeverity, "outcome": wireOutcome,
		"network": wireNetwork, "kernel": wireKernel, "container": wireCont, "k8s": wireK8s,
		"process": wireProcess, "resource": wireResource,
	} {
		require.NotNil(t, fields.ByName(name), name)
		require.Equal(t, fields.ByName(name).Number(), number, name)
	}
	entry := fields.ByName("metadata").Message().Fields()
	require.EqualValues(t, wireKey, entry.ByName("key").Number())
	require.EqualValues(t, wireValue, entry.ByName("value").Number())
}
