package rule

import (
	"fmt"
	"strconv"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/packet"
)

// Port selects destination ports of TCP, UDP or SCTP.
type Port struct {
	// Proto is the IP protocol number. 0 with a Name is any of the three protocols.
	Proto uint8
	// First and Last bound the range, both inclusive. A port that matches every number is 0 to 65535.
	First, Last uint16
	// Name, if set, is looked up among the named ports of the destination pod, and First and Last have no meaning.
	// An address that is not a pod's has no named ports.
	Name string
}

// Protocols are the protocols that ports exist for.
var Protocols = [...]uint8{packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP}

// AllPorts gives every port of a protocol.
func AllPorts(proto uint8) Port { return Port{Proto: proto, Last: 65535} }

// Matches tells whether the port is selected on a destination with these named ports.
func (p *Port) Matches(proto uint8, port uint16, named *endpoint.Ports) bool {
	if p.Name == "" {
		return p.Proto == proto && p.First <= port && port <= p.Last
	}
	if named == nil || p.Proto != 0 && p.Proto != proto {
		return false
	}
	for _, n := range named.List {
		if n.Name == p.Name && n.Proto == proto && n.Port == port {
			return true
		}
	}
	return false
}

// String prints 80/TCP, 8000-8080/UDP, http/TCP or TCP.
func (p *Port) String() string {
	proto := ProtoName(p.Proto)
	switch {
	case p.Name != "" && p.Proto == 0:
		return p.Name
	case p.Name != "":
		return p.Name + "/" + proto
	case p.First == 0 && p.Last == 65535:
		return proto
	case p.First == p.Last:
		return strconv.Itoa(int(p.First)) + "/" + proto
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, proto)
}

// ProtoName gives the name that the API uses for an IP protocol number, or the number.
func ProtoName(proto uint8) string {
	switch proto {
	case packet.ProtoTCP:
		return "TCP"
	case packet.ProtoUDP:
		return "UDP"
	case packet.ProtoSCTP:
		return "SCTP"
	case packet.ProtoICMP:
		return "ICMP"
	case packet.ProtoICMPv6:
		return "ICMPv6"
	}
	return strconv.Itoa(int(proto))
}
