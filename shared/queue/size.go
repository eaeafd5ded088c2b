package queue

import (
	"google.golang.org/protobuf/proto"

	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
)

// Size is about how much memory an event takes, bytes. It is never less than
// its size on the wire. proto.Size would be exact for the wire, but it costs an
// allocation or two for each entry of the metadata.
func Size(e *eventv1.Event) int {
	// Beside the text: the message, its measurements and its place in the
	// queue; two string headers and a share of the free slots an entry of a map.
	const message, entry = 400, 48
	n := message + len(e.GetId()) + len(e.GetSource()) + len(e.GetEventType()) + len(e.GetPayload())
	for k, v := range e.GetMetadata() {
		n += entry + len(k) + len(v)
	}
	for _, r := range e.GetRouteTo() {
		n += entry + len(r)
	}
	return n + dataSize(e)
}

func dataSize(e *eventv1.Event) int {
	switch d := e.GetData().(type) {
	case *eventv1.Event_Network:
		return proto.Size(d.Network)
	case *eventv1.Event_Kernel:
		return proto.Size(d.Kernel)
	case *eventv1.Event_Container:
		return proto.Size(d.Container)
	case *eventv1.Event_K8S:
		return proto.Size(d.K8S)
	case *eventv1.Event_Process:
		return proto.Size(d.Process)
	case *eventv1.Event_Resource:
		return proto.Size(d.Resource)
	}
	return 0
}
