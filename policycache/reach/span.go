package reach

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Span is a range of destination ports of one protocol.
type Span struct {
	// Proto is the IP protocol number. ICMP stands for all protocols that no rule has ports for; it has no range.
	Proto uint8
	// First and Last are inclusive.
	First, Last uint16
}

// minPort and maxPort bound the ports that connections are opened to.
const minPort, maxPort = 1, 65535

// String prints 80/TCP, 8000-8080/UDP, TCP for all its ports, or ICMP.
func (s Span) String() string {
	name := rule.ProtoName(s.Proto)
	switch {
	case s.Proto == packet.ProtoICMP || s.First <= minPort && s.Last == maxPort:
		return name
	case s.First == s.Last:
		return fmt.Sprintf("%d/%s", s.First, name)
	}
	return fmt.Sprintf("%d-%d/%s", s.First, s.Last, name)
}

// MarshalText makes spans readable in JSON.
func (s Span) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseSpan reads what String prints for a single port, or ICMP; the protocol defaults to TCP.
func ParseSpan(text string) (Span, error) {
	if strings.EqualFold(text, "ICMP") {
		return Span{Proto: packet.ProtoICMP}, nil
	}
	number, protocol, named := strings.Cut(text, "/")
	if !named {
		protocol = "TCP"
	}
	n, err := strconv.ParseUint(number, 10, 16)
	for _, proto := range rule.Protocols {
		if strings.EqualFold(protocol, rule.ProtoName(proto)) && err == nil && n >= minPort {
			return Span{Proto: proto, First: uint16(n), Last: uint16(n)}, nil
		}
	}
	return Span{}, fmt.Errorf("%q is no port; write 80/TCP, 53/UDP, 9/SCTP or ICMP", text)
}

// flow opens a connection to the first port of the span.
func (s Span) flow(src, dst netip.Addr) packet.Flow {
	f := packet.Flow{Src: src, Dst: dst, Proto: s.Proto, Form: packet.Complete}
	switch s.Proto {
	case packet.ProtoICMP:
		if f.ICMPType = 8; src.Is6() { // echo request, RFC 792 and RFC 4443
			f.Proto, f.ICMPType = packet.ProtoICMPv6, 128
		}
		return f
	case packet.ProtoTCP:
		f.TCPFlags = packet.FlagSYN
	}
	f.SrcPort, f.DstPort = 49152, s.First
	return f
}

// distinct returns the spans within each of which no rule of the policies tells two ports apart, in order. Together
// they are everything.
func distinct(worlds []World) []Span {
	starts := map[uint8]map[uint32]bool{}
	for _, proto := range rule.Protocols {
		starts[proto] = map[uint32]bool{minPort: true}
	}
	cut := func(proto uint8, first, last uint16) {
		if at := starts[proto]; at != nil {
			at[max(uint32(first), minPort)] = true
			at[uint32(last)+1] = true
		}
	}
	names := map[string]bool{}
	for _, w := range worlds {
		for p := range w.rules() {
			for _, port := range p.Ports {
				if port.Name == "" {
					cut(port.Proto, port.First, port.Last)
				} else {
					names[port.Name] = true
				}
			}
		}
	}
	if len(names) > 0 {
		cutNamed(worlds, names, cut)
	}
	var spans []Span
	for _, proto := range rule.Protocols {
		var at []uint32
		for start := range starts[proto] {
			if start <= maxPort {
				at = append(at, start)
			}
		}
		slices.Sort(at)
		for i, start := range at {
			last := uint32(maxPort)
			if i+1 < len(at) {
				last = at[i+1] - 1
			}
			spans = append(spans, Span{Proto: proto, First: uint16(start), Last: uint16(last)})
		}
	}
	return append(spans, Span{Proto: packet.ProtoICMP})
}

// cutNamed looks up what numbers the names have on any pod.
func cutNamed(worlds []World, names map[string]bool, cut func(proto uint8, first, last uint16)) {
	seen := map[*endpoint.Ports]bool{nil: true}
	for _, w := range worlds {
		for _, ep := range w.Snapshot.Endpoints() {
			if seen[ep.Ports] {
				continue
			}
			seen[ep.Ports] = true
			for _, n := range ep.Ports.List {
				if names[n.Name] {
					cut(n.Proto, n.Port, n.Port)
				}
			}
		}
	}
}

// judge asks for every span; the answers are in the order of the spans.
func judge(ev *engine.Evaluator, s *engine.Snapshot, src, dst netip.Addr, spans []Span, into []bool) []bool {
	into = into[:0]
	for _, span := range spans {
		f := span.flow(src, dst)
		into = append(into, ev.Judge(s, &f, engine.Forward, true).Action == engine.Allow)
	}
	return into
}

// runs joins neighbouring spans for which same says that they are alike, and calls f with each joint span and the
// index of its first part.
func runs(spans []Span, same func(i, j int) bool, f func(Span, int)) {
	for i := 0; i < len(spans); {
		joint, j := spans[i], i+1
		for ; j < len(spans) && spans[j].Proto == joint.Proto && spans[j].First == joint.Last+1 && same(i, j); j++ {
			joint.Last = spans[j].Last
		}
		f(joint, i)
		i = j
	}
}
