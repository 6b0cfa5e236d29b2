package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/classify/packet"
)

// Attributes of linux/netfilter/nfnetlink_conntrack.h: enum ctattr_type, ctattr_tuple, ctattr_ip and ctattr_l4proto.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaMark       = 8
	ctaZone       = 18
	ctaMarkMask   = 21

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaProtoICMPID     = 4
	ctaProtoICMPType   = 5
	ctaProtoICMPCode   = 6
	ctaProtoICMPv6ID   = 7
	ctaProtoICMPv6Type = 8
	ctaProtoICMPv6Code = 9

	ctaProtoInfoTCP     = 1
	ctaTCPFlagsOriginal = 4    // struct nf_ct_tcp_flags: flags, mask
	tcpFlagLiberal      = 0x08 // IP_CT_TCP_FLAG_BE_LIBERAL (linux/netfilter/nf_conntrack_tcp.h)

	nested   = unix.NLA_F_NESTED
	typeMask = 0x3fff // NLA_TYPE_MASK
)

// Status bits, enum ip_conntrack_status of linux/netfilter/nf_conntrack_common.h.
const (
	StatusSeenReply = 1 << 1
	StatusAssured   = 1 << 2
	StatusConfirmed = 1 << 3
	StatusSNAT      = 1 << 4
	StatusDNAT      = 1 << 5
)

// Tuple is one direction of a flow, as its packets look on the wire. Ports are in host order and zero for protocols
// without.
type Tuple struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// Flow is an entry of the conntrack table.
type Flow struct {
	// Original is the direction of the packet that made the entry, before any NAT. Reply is the direction of the
	// answers, before NAT is undone for them: its source is where the flow really went.
	Original, Reply Tuple
	// Proto is the IP protocol number.
	Proto uint8
	// ICMPType, ICMPCode and ICMPID belong to the original direction of ICMP and ICMPv6 flows.
	ICMPType, ICMPCode uint8
	ICMPID             uint16
	// Zone is the conntrack zone, 0 unless the node uses zones. ZoneOriginal says that it holds for the original
	// direction only.
	Zone         uint16
	ZoneOriginal bool
	Mark         uint32
	// Status has the Status bits.
	Status uint32
	// PickedUp says that conntrack first saw this TCP flow in mid-stream, as after a flush, so that Original may be
	// the direction of either side. The kernel tells by the liberal window check that it gives such flows (tcp_new).
	PickedUp bool
}

// String prints the original direction: "proto 6 10.0.0.1:40000 > 10.96.0.1:80".
func (f *Flow) String() string {
	return fmt.Sprintf("proto %d %v > %v", f.Proto, netip.AddrPortFrom(f.Original.Src, f.Original.SrcPort),
		netip.AddrPortFrom(f.Original.Dst, f.Original.DstPort))
}

// Policy returns the flow as policy sees its first packet: DNAT done and SNAT not yet. A TCP flow appears as opened by
// this packet, unless it was picked up in mid-stream.
func (f *Flow) Policy() packet.Flow {
	p := packet.Flow{
		Src: f.Original.Src, Dst: f.Reply.Src,
		SrcPort: f.Original.SrcPort, DstPort: f.Reply.SrcPort,
		Proto: f.Proto, ICMPType: f.ICMPType, ICMPCode: f.ICMPCode,
		Form: packet.Complete,
	}
	if f.Proto == packet.ProtoTCP {
		p.TCPFlags = packet.FlagSYN
		if f.PickedUp {
			p.TCPFlags = packet.FlagACK
		}
	}
	return p
}

func (f *Flow) family() uint8 {
	if f.Original.Src.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// decode reads the attributes of a message. It accepts any bytes, and returns false unless they hold both directions.
func (f *Flow) decode(b []byte) bool {
	*f = Flow{}
	for a, rest, ok := nextAttr(b); ok; a, rest, ok = nextAttr(rest) {
		switch a.kind {
		case ctaTupleOrig:
			f.decodeTuple(&f.Original, a.data, true)
		case ctaTupleReply:
			f.decodeTuple(&f.Reply, a.data, false)
		case ctaStatus:
			f.Status = a.uint32()
		case ctaMark:
			f.Mark = a.uint32()
		case ctaZone:
			f.Zone = a.uint16()
		case ctaProtoInfo:
			f.PickedUp = pickedUp(a.data)
		}
	}
	return f.Original.complete() && f.Reply.complete() && f.Original.Src.Is4() == f.Reply.Src.Is4()
}

// pickedUp reads the attributes in CTA_PROTOINFO.
func pickedUp(b []byte) bool {
	for a, rest, ok := nextAttr(b); ok; a, rest, ok = nextAttr(rest) {
		if a.kind != ctaProtoInfoTCP {
			continue
		}
		for tcp, more, ok := nextAttr(a.data); ok; tcp, more, ok = nextAttr(more) {
			if tcp.kind == ctaTCPFlagsOriginal && len(tcp.data) == 2 {
				return tcp.data[0]&tcpFlagLiberal != 0
			}
		}
	}
	return false
}

func (t *Tuple) complete() bool {
	return t.Src.IsValid() && t.Dst.IsValid() && t.Src.Is4() == t.Dst.Is4()
}

func (f *Flow) decodeTuple(t *Tuple, b []byte, original bool) {
	for a, rest, ok := nextAttr(b); ok; a, rest, ok = nextAttr(rest) {
		switch a.kind {
		case ctaTupleIP:
			t.decodeAddresses(a.data)
		case ctaTupleProto:
			f.decodeProto(t, a.data, original)
		case ctaTupleZone:
			if original {
				f.Zone, f.ZoneOriginal = a.uint16(), true
			}
		}
	}
}

func (t *Tuple) decodeAddresses(b []byte) {
	for a, rest, ok := nextAttr(b); ok; a, rest, ok = nextAttr(rest) {
		addr, ok := netip.AddrFromSlice(a.data)
		if !ok || addr.Is4() != (a.kind == ctaIPv4Src || a.kind == ctaIPv4Dst) {
			continue
		}
		switch a.kind {
		case ctaIPv4Src, ctaIPv6Src:
			t.Src = addr
		case ctaIPv4Dst, ctaIPv6Dst:
			t.Dst = addr
		}
	}
}

func (f *Flow) decodeProto(t *Tuple, b []byte, original bool) {
	for a, rest, ok := nextAttr(b); ok; a, rest, ok = nextAttr(rest) {
		switch a.kind {
		case ctaProtoSrcPort:
			t.SrcPort = a.uint16()
		case ctaProtoDstPort:
			t.DstPort = a.uint16()
		}
		if !original {
			continue
		}
		switch a.kind {
		case ctaProtoNum:
			f.Proto = a.uint8()
		case ctaProtoICMPID, ctaProtoICMPv6ID:
			f.ICMPID = a.uint16()
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			f.ICMPType = a.uint8()
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			f.ICMPCode = a.uint8()
		}
	}
}

// attr is a netlink attribute; numbers in it are in network order.
type attr struct {
	kind uint16
	data []byte
}

func (a attr) uint8() uint8 {
	if len(a.data) != 1 {
		return 0
	}
	return a.data[0]
}

func (a attr) uint16() uint16 {
	if len(a.data) != 2 {
		return 0
	}
	return binary.BigEndian.Uint16(a.data)
}

func (a attr) uint32() uint32 {
	if len(a.data) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a.data)
}

// nextAttr splits the first attribute off. ok is false at the end and where the bytes are no attribute.
func nextAttr(b []byte) (a attr, rest []byte, ok bool) {
	if len(b) < unix.SizeofNlAttr {
		return attr{}, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < unix.SizeofNlAttr || n > len(b) {
		return attr{}, nil, false
	}
	a = attr{binary.NativeEndian.Uint16(b[2:]) & typeMask, b[unix.SizeofNlAttr:n]}
	return a, b[min(align(n), len(b)):], true
}

// message begins a message and returns where; end completes it.
func (c *Conn) message(kind, flags uint16, family uint8) int {
	at := len(c.out)
	c.out = append(c.out, 0, 0, 0, 0) // the length
	c.out = binary.NativeEndian.AppendUint16(c.out, kind)
	c.out = binary.NativeEndian.AppendUint16(c.out, flags)
	c.out = binary.NativeEndian.AppendUint32(c.out, c.seq)
	c.out = append(c.out, 0, 0, 0, 0)                      // the port: the kernel knows who sends
	c.out = append(c.out, family, unix.NFNETLINK_V0, 0, 0) // struct nfgenmsg
	return at
}

func (c *Conn) end(at int) { binary.NativeEndian.PutUint32(c.out[at:], uint32(len(c.out)-at)) }

// open begins a nested attribute and returns where; shut completes it.
func (c *Conn) open(kind uint16) int {
	at := len(c.out)
	c.out = append(c.out, 0, 0)
	c.out = binary.NativeEndian.AppendUint16(c.out, kind|nested)
	return at
}

func (c *Conn) shut(at int) { binary.NativeEndian.PutUint16(c.out[at:], uint16(len(c.out)-at)) }

// plain begins an attribute of size bytes, and pad fills up after it.
func (c *Conn) plain(kind uint16, size int) {
	c.out = binary.NativeEndian.AppendUint16(c.out, uint16(unix.SizeofNlAttr+size))
	c.out = binary.NativeEndian.AppendUint16(c.out, kind)
}

func (c *Conn) pad() {
	for len(c.out)%4 != 0 {
		c.out = append(c.out, 0)
	}
}

func (c *Conn) attr8(kind uint16, v uint8) {
	c.plain(kind, 1)
	c.out = append(c.out, v)
	c.pad()
}

func (c *Conn) attr16(kind, v uint16) {
	c.plain(kind, 2)
	c.out = binary.BigEndian.AppendUint16(c.out, v)
	c.pad()
}

func (c *Conn) attr32(kind uint16, v uint32) {
	c.plain(kind, 4)
	c.out = binary.BigEndian.AppendUint32(c.out, v)
}

func (c *Conn) attrAddr(kind uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		c.plain(kind, len(b))
		c.out = append(c.out, b[:]...)
		return
	}
	b := a.As16()
	c.plain(kind, len(b))
	c.out = append(c.out, b[:]...)
}

// encodeKey writes what the kernel finds the entry by: the original direction and the zone.
func (c *Conn) encodeKey(f *Flow) {
	t := &f.Original
	tuple := c.open(ctaTupleOrig)
	ip := c.open(ctaTupleIP)
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if !t.Src.Is4() {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	c.attrAddr(src, t.Src)
	c.attrAddr(dst, t.Dst)
	c.shut(ip)
	proto := c.open(ctaTupleProto)
	c.attr8(ctaProtoNum, f.Proto)
	switch f.Proto {
	case packet.ProtoICMP:
		c.attr16(ctaProtoICMPID, f.ICMPID)
		c.attr8(ctaProtoICMPType, f.ICMPType)
		c.attr8(ctaProtoICMPCode, f.ICMPCode)
	case packet.ProtoICMPv6:
		c.attr16(ctaProtoICMPv6ID, f.ICMPID)
		c.attr8(ctaProtoICMPv6Type, f.ICMPType)
		c.attr8(ctaProtoICMPv6Code, f.ICMPCode)
	default:
		c.attr16(ctaProtoSrcPort, t.SrcPort)
		c.attr16(ctaProtoDstPort, t.DstPort)
	}
	c.shut(proto)
	if f.ZoneOriginal {
		c.attr16(ctaTupleZone, f.Zone)
	}
	c.shut(tuple)
	if f.Zone != 0 && !f.ZoneOriginal {
		c.attr16(ctaZone, f.Zone)
	}
}
