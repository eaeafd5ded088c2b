package event_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

func TestAppendJSONIsOneStableLine(t *testing.T) {
	e := refused()
	e.Metadata[event.TapioReason] = "two\nlines, a \"quote\" and <html>"
	// protojson chooses its random spaces by a hash of the binary, so a fixed
	// expectation fails in some builds unless the spaces are taken out.
	const want = `{"id":"01ARZ3NDEKTSV4RRFFQ69G5FAV","timestamp_unix_ns":"1772600767891234567","source":"tapio",` +
		`"event_type":"network.connection_refused","metadata":{"error.type":"ECONNREFUSED","network.peer.address":"10.0.0.7",` +
		`"network.peer.port":"5432","tapio.reason":"two\nlines, a \"quote\" and <html>"},` +
		`"severity":"SEVERITY_ERROR","outcome":"OUTCOME_FAILURE",` +
		`"network":{"protocol":"tcp","dst_ip":"10.0.0.7","dst_port":5432}}`
	got, err := event.AppendJSON([]byte("before "), e)
	require.NoError(t, err)
	require.Equal(t, "before "+want, string(got))

	var back eventv1.Event
	require.NoError(t, protojson.Unmarshal(got[len("before "):], &back))
	require.True(t, proto.Equal(e, &back))
}

func TestAppendJSONLeavesDstOnError(t *testing.T) {
	e := refused()
	e.Source = "\xff"
	got, err := event.AppendJSON([]byte("before"), e)
	require.ErrorContains(t, err, "encode event")
	require.Equal(t, "before", string(got))
}
