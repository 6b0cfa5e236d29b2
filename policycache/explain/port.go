package explain

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// port is the port of a question.
type port struct {
	proto  uint8
	number uint16
	// name, if set, is looked up among the destination's named ports.
	name string
}

func (p port) String() string {
	if p.proto == packet.ProtoICMP {
		return "ICMP"
	}
	if p.name != "" {
		return p.name + "/" + rule.ProtoName(p.proto)
	}
	return strconv.Itoa(int(p.number)) + "/" + rule.ProtoName(p.proto)
}

func protoOf(name string) uint8 {
	switch strings.ToUpper(name) {
	case "", "TCP":
		return packet.ProtoTCP
	case "UDP":
		return packet.ProtoUDP
	case "SCTP":
		return packet.ProtoSCTP
	}
	return 0
}

// parsePort reads 80/TCP, 80, http/UDP, http or ICMP.
func parsePort(s string) (port, error) {
	if s == "" {
		return port{}, fmt.Errorf("%w: a port is needed, like 80/TCP, 53/UDP, the name of a port, or ICMP", ErrQuestion)
	}
	if strings.EqualFold(s, "icmp") {
		return port{proto: packet.ProtoICMP}, nil
	}
	word, protocol, _ := strings.Cut(s, "/")
	p := port{proto: protoOf(protocol)}
	if p.proto == 0 {
		return port{}, fmt.Errorf("%w: protocol %q of port %s is none of TCP, UDP and SCTP", ErrQuestion, protocol, s)
	}
	n, err := strconv.ParseUint(word, 10, 16)
	switch {
	case err == nil && n > 0:
		p.number = uint16(n)
	case word == "" || strings.Trim(word, "0123456789") == "":
		return port{}, fmt.Errorf("%w: port %s is not between 1 and 65535", ErrQuestion, s)
	default:
		p.name = word
	}
	return p, nil
}

// resolve gives the port's numbers on its destination.
func (p port) resolve(dst *endpoint.Endpoint, word string) ([]port, error) {
	if p.name == "" {
		return []port{p}, nil
	}
	var list []port
	var has []string
	if dst != nil && dst.Ports != nil {
		for _, n := range dst.Ports.Lookup(p.name, p.proto) {
			list = append(list, port{proto: p.proto, number: n})
		}
		for _, n := range dst.Ports.List {
			has = append(has, fmt.Sprintf("%s (%d/%s)", n.Name, n.Port, rule.ProtoName(n.Proto)))
		}
	}
	if len(list) > 0 {
		return list, nil
	}
	if has == nil {
		has = []string{"none"}
	}
	return nil, fmt.Errorf("port %s of %s: %w; its named ports: %s", p, word, ErrNotFound, strings.Join(has, ", "))
}
