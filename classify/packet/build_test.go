package packet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// The addresses of all crafted packets.
var (
	src4 = netip.MustParseAddr("10.1.2.3")
	dst4 = netip.MustParseAddr("10.9.8.7")
	src6 = netip.MustParseAddr("fd00:1::3")
	dst6 = netip.MustParseAddr("fd00:9::7")
)

func ip4(proto uint8) *layers.IPv4 {
	return &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocol(proto),
		SrcIP: net.IP(src4.AsSlice()), DstIP: net.IP(dst4.AsSlice()),
	}
}

func ip6(next uint8) *layers.IPv6 {
	return &layers.IPv6{
		Version: 6, HopLimit: 64, NextHeader: layers.IPProtocol(next),
		SrcIP: net.IP(src6.AsSlice()), DstIP: net.IP(dst6.AsSlice()),
	}
}

// ext is an IPv6 options or routing header of n*8 bytes: its content is padding (RFC 8200, section 4.2), or an unknown
// routing type with no segments left.
func ext(kind, next uint8, n int) gopacket.Payload {
	b := make([]byte, n*8)
	b[0], b[1] = next, uint8(n-1)
	if kind == extRouting {
		b[2] = 253
		return b
	}
	for pad := b[2:]; len(pad) > 0; {
		size := min(len(pad), 257)
		if len(pad)-size == 1 {
			size--
		}
		pad[0], pad[1] = 1, uint8(size-2) // PadN
		pad = pad[size:]
	}
	return b
}

// ah is an authentication header with icv bytes of integrity check value (RFC 4302, section 2).
func ah(next uint8, icv int) gopacket.Payload {
	b := make([]byte, 12+icv)
	b[0], b[1] = next, uint8(len(b)/4-2)
	return b
}

// frag is an IPv6 fragment header; offset is in units of 8 bytes.
func frag(next uint8, offset uint16, more bool) gopacket.Payload {
	b := make([]byte, 8)
	b[0] = next
	binary.BigEndian.PutUint16(b[2:], offset<<3)
	if more {
		b[3] |= 1
	}
	return b
}

func tcp(flags uint8) *layers.TCP {
	return &layers.TCP{
		SrcPort: 40000, DstPort: 443, SYN: flags&FlagSYN != 0, ACK: flags&FlagACK != 0,
		RST: flags&FlagRST != 0, FIN: flags&FlagFIN != 0,
	}
}

func udp() *layers.UDP { return &layers.UDP{SrcPort: 40000, DstPort: 53} }

func sctp() *layers.SCTP { return &layers.SCTP{SrcPort: 40000, DstPort: 3868} }

// build serializes the layers, outermost first, with all lengths fixed.
func build(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	for _, l := range ls {
		if l, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			if err := l.SetNetworkLayerForChecksum(ls[0].(gopacket.NetworkLayer)); err != nil {
				t.Fatal(err)
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// edit returns b after f changed it.
func edit(b []byte, f func(b []byte)) []byte {
	f(b)
	return b
}

// oracle is gopacket's reading of the packet; ok is false where gopacket cannot tell, because it rejects the packet or
// does not look for what Decode looks for.
func oracle(b []byte) (f Flow, ok bool) {
	first := layers.LayerTypeIPv4
	if len(b) > 0 && b[0]>>4 == 6 {
		first = layers.LayerTypeIPv6
	}
	for _, l := range gopacket.NewPacket(b, first, gopacket.NoCopy).Layers() {
		if len(l.LayerContents()) == 0 { // rejected
			return f, false
		}
		if layers.LayerClassIPv6Extension.Contains(l.LayerType()) && !f.Src.Is6() {
			return f, false // gopacket looks behind extension headers in IPv4, too
		}
		switch l := l.(type) {
		case *layers.IPv4:
			if f.Src.IsValid() { // a tunnel: the inner packet is none of ours
				return f, false
			}
			f.Src, f.Dst, f.Proto = addr(l.SrcIP), addr(l.DstIP), uint8(l.Protocol)
			if l.FragOffset != 0 {
				f.Form = Fragment
				return f, true
			}
		case *layers.IPv6:
			if f.Src.IsValid() || l.Length == 0 {
				return f, false
			}
			f.Src, f.Dst, f.Proto = addr(l.SrcIP), addr(l.DstIP), uint8(l.NextHeader)
		case *layers.IPv6HopByHop:
			f.Proto = uint8(l.NextHeader)
		case *layers.IPv6Destination:
			f.Proto = uint8(l.NextHeader)
		case *layers.IPv6Routing:
			f.Proto = uint8(l.NextHeader)
		case *layers.IPv6Fragment:
			f.Proto, f.Form = uint8(l.NextHeader), Fragment
			return f, l.FragmentOffset != 0
		case *layers.TCP:
			f.SrcPort, f.DstPort, f.TCPFlags = uint16(l.SrcPort), uint16(l.DstPort), l.Contents[13]
			f.Form = Complete
			return f, true
		case *layers.UDP:
			f.SrcPort, f.DstPort, f.Form = uint16(l.SrcPort), uint16(l.DstPort), Complete
			return f, true
		case *layers.SCTP:
			f.SrcPort, f.DstPort, f.Form = uint16(l.SrcPort), uint16(l.DstPort), Complete
			return f, true
		case *layers.ICMPv4:
			f.ICMPType, f.ICMPCode, f.Form = l.TypeCode.Type(), l.TypeCode.Code(), Complete
			return f, true
		case *layers.ICMPv6:
			f.ICMPType, f.ICMPCode, f.Form = l.TypeCode.Type(), l.TypeCode.Code(), Complete
			return f, true
		default:
			return f, false
		}
	}
	return f, false
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}
