package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	polkuv1 "github.com/yairfalse/tapio/proto/polku/v1"
)

const (
	source    = "tapio"
	cluster   = "prod"
	eventType = "network.connection_refused"
)

// An id is what tells one run from the next and then the number of the event, as
// long as a ULID.
const (
	idPrefix = 14
	idDigits = 12
	idLength = idPrefix + idDigits
)

// ids numbers the events that one server gets, so that no two are the same.
type ids struct {
	prefix  string
	batches atomic.Uint64 // that have numbers
}

func newIDs() *ids { return &ids{prefix: rand.Text()[:idPrefix]} }

func (i *ids) id(n uint64) string { return fmt.Sprintf("%s%0*d", i.prefix, idDigits, n) }

// number is the inverse of id.
func (i *ids) number(id []byte) (uint64, error) {
	if len(id) != idLength || string(id[:idPrefix]) != i.prefix {
		return 0, fmt.Errorf("an answer names %q, which is no event of ours", id)
	}
	return strconv.ParseUint(string(id[idPrefix:]), 10, 64)
}

// batch is an encoded request. Its events get other numbers before each use;
// everything else stays.
type batch struct {
	wire  message
	spots []int // where in wire the digits of each event's id are
}

func newBatch(encoded []byte, numbered *ids, events int) batch {
	b := batch{wire: encoded, spots: make([]int, events)}
	at := 0
	for i := range b.spots {
		at += bytes.Index(encoded[at:], []byte(numbered.prefix)) + idPrefix
		b.spots[i] = at
	}
	return b
}

// number gives the events the numbers from first on.
func (b *batch) number(first uint64) {
	for i, at := range b.spots {
		n := first + uint64(i)
		for d := at + idDigits - 1; d >= at; d-- {
			b.wire[d] = byte('0' + n%10)
			n /= 10
		}
	}
}

// metadata is what the agent says of a connection that was refused.
func metadata(i int) map[string]string {
	return map[string]string{
		"network.peer.address":    fmt.Sprintf("10.0.%d.%d", i/256%256, i%256),
		"network.peer.port":       "5432",
		"error.type":              "ECONNREFUSED",
		"k8s.namespace.name":      "shop",
		"k8s.pod.name":            "checkout-7d4b9c6f5-x2x7k",
		"k8s.node.name":           "node-17",
		"process.pid":             "4711",
		"process.executable.name": "checkout",
		"host.name":               "node-17",
	}
}

func network(i int) *eventv1.NetworkEventData {
	return &eventv1.NetworkEventData{
		Protocol: "tcp", SrcIp: "10.0.0.9", DstIp: fmt.Sprintf("10.0.%d.%d", i/256%256, i%256),
		SrcPort: 40312, DstPort: 5432, Direction: "outbound", TcpState: "SYN_SENT",
	}
}

// gatewayBatch is an IngestBatch.
func gatewayBatch(numbered *ids, events int) (batch, error) {
	payload := &polkuv1.EventPayload{}
	for i := range events {
		payload.Events = append(payload.Events, &eventv1.Event{
			Id: numbered.id(0), TimestampUnixNs: time.Now().UnixNano(), Source: source, EventType: eventType,
			Severity: eventv1.Severity_SEVERITY_ERROR, Outcome: eventv1.Outcome_OUTCOME_FAILURE,
			Metadata: metadata(i), Data: &eventv1.Event_Network{Network: network(i)},
		})
	}
	encoded, err := proto.Marshal(&polkuv1.IngestBatch{
		Source: source, Cluster: cluster, Payload: &polkuv1.IngestBatch_Events{Events: payload},
	})
	return newBatch(encoded, numbered, events), err
}

// collectorBatch is an ExportLogsServiceRequest with the same content.
func collectorBatch(numbered *ids, events int) (batch, error) {
	scope := &logsv1.ScopeLogs{Scope: &commonv1.InstrumentationScope{Name: "github.com/yairfalse/tapio"}}
	for i := range events {
		now := uint64(time.Now().UnixNano())
		record := &logsv1.LogRecord{
			TimeUnixNano: now, ObservedTimeUnixNano: now, EventName: eventType,
			SeverityNumber: logsv1.SeverityNumber_SEVERITY_NUMBER_ERROR, SeverityText: "ERROR",
			Attributes: []*commonv1.KeyValue{text("event.id", numbered.id(0)), text("tapio.outcome", "failure")},
		}
		m := metadata(i)
		for _, key := range slices.Sorted(maps.Keys(m)) {
			record.Attributes = append(record.Attributes, text(key, m[key]))
		}
		n := network(i)
		record.Attributes = append(record.Attributes,
			text("network.transport", n.GetProtocol()), text("source.address", n.GetSrcIp()), text("destination.address", n.GetDstIp()),
			number("source.port", n.GetSrcPort()), number("destination.port", n.GetDstPort()),
			text("network.io.direction", n.GetDirection()), text("tapio.tcp.state", n.GetTcpState()))
		scope.LogRecords = append(scope.LogRecords, record)
	}
	// LogsData has the encoding of an ExportLogsServiceRequest.
	encoded, err := proto.Marshal(&logsv1.LogsData{ResourceLogs: []*logsv1.ResourceLogs{{
		Resource:  &resourcev1.Resource{Attributes: []*commonv1.KeyValue{text("service.name", source), text("k8s.cluster.name", cluster)}},
		ScopeLogs: []*logsv1.ScopeLogs{scope},
	}}})
	return newBatch(encoded, numbered, events), err
}

func text(key, value string) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: value}}}
}

func number(key string, value uint32) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: key, Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_IntValue{IntValue: int64(value)}}}
}
