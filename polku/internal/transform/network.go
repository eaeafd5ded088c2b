package transform

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"

	ahtiv1 "github.com/yairfalse/tapio/proto/ahti/v1"
	eventv1 "github.com/yairfalse/tapio/proto/polku/event/v1"
	"github.com/yairfalse/tapio/shared/event"
)

// addFlow ties the subject to the address that the flow goes to. A client
// connects to it and its server exposes it; both write it the same way, and that
// is how the two find each other.
func (g *graph) addFlow(e *eventv1.Event, subject *thing) {
	n := e.GetNetwork()
	switch roleOf(e) {
	case event.RoleClient:
		address := cmp.Or(g.labels[event.NetworkPeerAddress], n.GetDstIp())
		server := g.addEndpoint(address, port(g.labels[event.NetworkPeerPort], n.GetDstPort()))
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_CONNECTS_TO, subject, server)
	case event.RoleServer:
		address := cmp.Or(g.labels[event.NetworkLocalAddress], n.GetDstIp())
		server := g.addEndpoint(address, port(g.labels[event.NetworkLocalPort], n.GetDstPort()))
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES, subject, server)
		// The port of the client is another one for each connection: only its
		// address means something later.
		client := g.addEndpoint(cmp.Or(g.labels[event.NetworkPeerAddress], n.GetSrcIp()), 0)
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_CONNECTS_TO, client, server)
	default:
		// Which of the two ports is a service is not known, and neither is who
		// depends on whom.
		g.addEndpoint(g.labels[event.NetworkPeerAddress], 0)
	}
}

// roleOf tells on which side of the flow the subject is; empty when nobody
// knows.
func roleOf(e *eventv1.Event) string {
	if role := e.GetMetadata()[event.TapioNetworkRole]; role != "" {
		return role
	}
	switch e.GetNetwork().GetDirection() {
	case "outbound":
		return event.RoleClient
	case "inbound":
		return event.RoleServer
	}
	// Only who asks sees how it was answered.
	switch e.GetEventType() {
	case event.KindNetworkConnectionRefused, event.KindNetworkPortExhausted,
		event.KindNetworkDNSFailure, event.KindNetworkDNSTimeout, event.KindNetworkDNSSlow:
		return event.RoleClient
	}
	return ""
}

// port returns the port in text, else the number; 0 when neither is a port.
func port(text string, number uint32) uint16 {
	if text != "" {
		p, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return 0
		}
		return uint16(p)
	}
	if number > 1<<16-1 {
		return 0
	}
	return uint16(number)
}

// addEndpoint adds an address with a port, tied to the address alone, by which
// pods and services are known; or only that when the port is 0. It returns nil
// when text is no address of one machine.
func (g *graph) addEndpoint(text string, port uint16) *thing {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.IsUnspecified() {
		return nil
	}
	ip = ip.Unmap().WithZone("")
	if ip.IsMulticast() {
		return nil // nobody's address
	}
	var prefix string
	switch {
	case ip.IsLinkLocalUnicast():
		// Each link has these, such as the one that a name server of the node
		// listens on.
		if g.host == "" {
			return nil
		}
		prefix = g.host + "/"
	case ip.IsLoopback():
		// Every network namespace has this address: the containers of a pod share
		// one, other containers have their own, and the rest is the node's.
		where := cmp.Or(g.labels[event.K8sPodUID], g.labels[event.ContainerID], g.host)
		if where == "" {
			return nil
		}
		prefix = where + "/"
	}
	address := ip.String()
	if port == 0 {
		return g.add(ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT, prefix+address, address, "")
	}
	name := joinPort(address, port)
	endpoint := g.add(ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT, prefix+name, name, "")
	if prefix == "" { // else it belongs to no pod or service
		whole := g.add(ahtiv1.EntityType_ENTITY_TYPE_ENDPOINT, address, address, "")
		g.tie(ahtiv1.RelationshipType_RELATIONSHIP_TYPE_EXPOSES, whole, endpoint)
	}
	return endpoint
}

func joinPort(address string, port uint16) string {
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	return address + ":" + strconv.Itoa(int(port))
}
