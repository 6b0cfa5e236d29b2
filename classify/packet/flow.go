// Package packet turns the bytes of an IP packet into the flow that policy is asked about.
package packet

import "net/netip"

// IP protocol numbers that policy has ports for, and the ones decoding treats specially (IANA assigned numbers).
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// TCP flag bits (RFC 9293, section 3.1).
const (
	FlagFIN = 0x01
	FlagSYN = 0x02
	FlagRST = 0x04
	FlagACK = 0x10
)

// Form says how much of the flow the bytes could tell.
type Form uint8

const (
	// Malformed packets cannot be judged: truncated or contradictory headers. They are the zero Form on purpose.
	Malformed Form = iota
	// Complete flows have addresses, protocol and, where the protocol has them, ports.
	Complete
	// Fragment is a non-first fragment: addresses and protocol only, no ports.
	Fragment
)

// Flow is what a verdict is asked about. It is owned by the caller and overwritten by each Decode.
type Flow struct {
	// Src and Dst are plain IPv4 or IPv6 addresses, without zone; IPv4-mapped IPv6 addresses stay IPv6.
	Src, Dst netip.Addr
	// SrcPort and DstPort are in host order; zero for protocols without ports.
	SrcPort, DstPort uint16
	// Proto is the upper-layer protocol, after IPv6 extension headers. In an IPv6 Fragment it is what the fragment header
	// names, which may be an extension header of the part that was cut.
	Proto uint8
	// TCPFlags is the flag byte of TCP packets, otherwise 0.
	TCPFlags uint8
	// ICMPType and ICMPCode are set for ICMP and ICMPv6.
	ICMPType, ICMPCode uint8
	Form               Form
}

// MidStream tells whether the packet is TCP but does not open a connection (no SYN, or SYN with ACK).
func (f *Flow) MidStream() bool {
	return f.Proto == ProtoTCP && f.Form == Complete && f.TCPFlags&(FlagSYN|FlagACK) != FlagSYN
}
