package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

// A gateway that gets an event twice stores it once: a load whose ids are not
// all different would measure that.
func TestNumberingABatchChangesItsIDsOnly(t *testing.T) {
	const events = 300
	numbered := newIDs()
	b, err := gatewayBatch(numbered, events)
	require.NoError(t, err)
	var before, after polkuv1.IngestBatch
	require.NoError(t, proto.Unmarshal(b.wire, &before))
	b.number(12_345)
	require.NoError(t, proto.Unmarshal(b.wire, &after))
	for i, e := range after.GetEvents().GetEvents() {
		n, err := numbered.number([]byte(e.GetId()))
		require.NoError(t, err)
		require.EqualValues(t, 12_345+i, n)
		e.Id = before.GetEvents().GetEvents()[i].GetId()
	}
	require.True(t, proto.Equal(&before, &after))
}

func TestTheCollectorGetsTheSameContent(t *testing.T) {
	const events = 300
	numbered := newIDs()
	sent, err := gatewayBatch(numbered, events)
	require.NoError(t, err)
	var batch polkuv1.IngestBatch
	require.NoError(t, proto.Unmarshal(sent.wire, &batch))

	b, err := collectorBatch(numbered, events)
	require.NoError(t, err)
	b.number(12_345)
	var logs logsv1.LogsData
	require.NoError(t, proto.Unmarshal(b.wire, &logs))
	records := logs.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords()
	require.Len(t, records, events)
	for i, r := range records {
		attributes := map[string]string{}
		for _, a := range r.GetAttributes() {
			attributes[a.GetKey()] = a.GetValue().GetStringValue()
		}
		n, err := numbered.number([]byte(attributes["event.id"]))
		require.NoError(t, err)
		require.EqualValues(t, 12_345+i, n)
		e := batch.GetEvents().GetEvents()[i]
		require.Equal(t, e.GetEventType(), r.GetEventName())
		for key, value := range e.GetMetadata() {
			require.Equal(t, value, attributes[key], key)
		}
	}
}
