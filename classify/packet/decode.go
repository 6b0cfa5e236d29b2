package packet

import (
	"encoding/binary"
	"net/netip"
)

// Fixed header sizes in bytes (RFC 791, section 3.1; RFC 8200, section 3).
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
)

// Next-header values that carry another header behind them, and the one that says there is none (RFC 8200, section 4).
// ESP (50) hides what follows and counts as the upper-layer protocol, as do the mobility, HIP and shim headers, which
// the kernel does not look behind either (linux/net/ipv6/exthdrs_core.c, ipv6_ext_hdr).
const (
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extAuth        = 51
	extNone        = 59
	extDestination = 60
)

// Bytes of an upper-layer header that must be there: all of the fixed header, but of TCP only what reaches the flags,
// since the first fragment of a segment may end behind them.
const (
	tcpNeeds  = 14 // RFC 9293, section 3.1
	udpNeeds  = 8  // RFC 768
	sctpNeeds = 12 // RFC 9260, section 3.1
	icmpNeeds = 4  // RFC 792, RFC 4443, section 2.1
)

// Decode overwrites f with the flow of the packet whose IP header starts at b[0]. It accepts any bytes, never panics,
// allocates nothing and keeps no reference to b.
//
// b may be shorter than the packet (NFQUEUE copies the first bytes only), as long as it holds all headers up to the
// ports: headers cut off, in the copy or in the packet, and headers that contradict themselves make the flow Malformed.
// Bytes behind the length that the IP header states are not looked at. A stated length of 0 says nothing: segmentation
// offload (BIG TCP) and IPv6 jumbograms (RFC 2675) carry it, and the bytes themselves are the bound.
//
// A Malformed flow has Src and Dst when the IP header could be read; all else in it is zero.
func (f *Flow) Decode(b []byte) {
	*f = Flow{}
	if len(b) == 0 {
		return
	}
	switch b[0] >> 4 {
	case 4:
		f.decode4(b)
	case 6:
		f.decode6(b)
	}
}

func (f *Flow) decode4(b []byte) {
	if len(b) < ipv4HeaderLen {
		return
	}
	headerLen := int(b[0]&0x0f) * 4
	if headerLen < ipv4HeaderLen || headerLen > len(b) {
		return
	}
	if total := int(binary.BigEndian.Uint16(b[2:])); total != 0 {
		if total < headerLen {
			return
		}
		b = b[:min(total, len(b))]
	}
	f.Src = netip.AddrFrom4([4]byte(b[12:16]))
	f.Dst = netip.AddrFrom4([4]byte(b[16:20]))
	proto := b[9]
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		f.Proto, f.Form = proto, Fragment
		return
	}
	f.decodeUpper(proto, b[headerLen:])
}

func (f *Flow) decode6(b []byte) {
	if len(b) < ipv6HeaderLen {
		return
	}
	f.Src = netip.AddrFrom16([16]byte(b[8:24]))
	f.Dst = netip.AddrFrom16([16]byte(b[24:40]))
	next := b[6]
	payload := int(binary.BigEndian.Uint16(b[4:]))
	b = b[ipv6HeaderLen:]
	if payload != 0 {
		b = b[:min(payload, len(b))]
	}
	for {
		var size int
		switch next {
		case extHopByHop, extRouting, extDestination:
			if len(b) < 8 {
				return
			}
			size = (int(b[1]) + 1) * 8
		case extAuth: // RFC 4302, section 2.2: in 4-byte units, less 2
			if len(b) < 8 {
				return
			}
			size = (int(b[1]) + 2) * 4
		case extFragment:
			if len(b) < 8 {
				return
			}
			// An offset of 0 is the first fragment, or an atomic one (RFC 6946): the upper-layer header follows.
			if binary.BigEndian.Uint16(b[2:])>>3 != 0 {
				f.Proto, f.Form = b[0], Fragment
				return
			}
			size = 8
		default:
			f.decodeUpper(next, b)
			return
		}
		if size > len(b) {
			return
		}
		next, b = b[0], b[size:]
	}
}

// decodeUpper completes the flow from b, which starts at the header of proto. No Next Header (59) needs no bytes.
func (f *Flow) decodeUpper(proto uint8, b []byte) {
	switch proto {
	case ProtoTCP:
		if len(b) < tcpNeeds || b[12]>>4 < 5 { // a data offset below the fixed header
			return
		}
		f.TCPFlags = b[13]
		f.ports(b)
	case ProtoUDP:
		if len(b) < udpNeeds {
			return
		}
		if length := binary.BigEndian.Uint16(b[4:]); length != 0 && length < udpNeeds { // 0: jumbogram
			return
		}
		f.ports(b)
	case ProtoSCTP:
		if len(b) < sctpNeeds {
			return
		}
		f.ports(b)
	case ProtoICMP, ProtoICMPv6:
		if len(b) < icmpNeeds {
			return
		}
		f.ICMPType, f.ICMPCode = b[0], b[1]
	}
	f.Proto, f.Form = proto, Complete
}

func (f *Flow) ports(b []byte) {
	f.SrcPort = binary.BigEndian.Uint16(b)
	f.DstPort = binary.BigEndian.Uint16(b[2:])
}
