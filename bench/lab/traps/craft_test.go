package traps

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
)

// upper is a transport header, with its checksum over addresses if it has one.
type upper interface {
	gopacket.SerializableLayer
	SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
}

// build makes an IP packet; rest follows the transport header.
func build(t *testing.T, from, to netip.Addr, proto layers.IPProtocol, rest ...gopacket.SerializableLayer) []byte {
	t.Helper()
	var network interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	}
	if from.Is4() {
		network = &layers.IPv4{Version: 4, TTL: 64, Id: 7, Protocol: proto, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
	} else {
		network = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
	}
	all := []gopacket.SerializableLayer{network}
	for _, layer := range rest {
		if u, ok := layer.(upper); ok {
			if err := u.SetNetworkLayerForChecksum(network); err != nil {
				t.Fatal(err)
			}
		}
		all = append(all, layer)
	}
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, all...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

// echo is an ICMP or ICMPv6 echo request.
func echo(t *testing.T, from, to netip.Addr, mark string) []byte {
	if from.Is4() {
		return build(t, from, to, layers.IPProtocolICMPv4,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0), Id: 9, Seq: 1},
			gopacket.Payload(mark))
	}
	return build(t, from, to, layers.IPProtocolICMPv6,
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeEchoRequest, 0)},
		&layers.ICMPv6Echo{Identifier: 9, SeqNumber: 1}, gopacket.Payload(mark))
}

// tcp is a TCP packet with a payload to know it by.
func tcp(t *testing.T, from netip.AddrPort, to netip.AddrPort, mark string, set func(*layers.TCP)) []byte {
	h := &layers.TCP{
		SrcPort: layers.TCPPort(from.Port()), DstPort: layers.TCPPort(to.Port()), Seq: 1000, Window: 1000,
	}
	set(h)
	return build(t, from.Addr(), to.Addr(), layers.IPProtocolTCP, h, gopacket.Payload(mark))
}

func syn(h *layers.TCP) { h.SYN = true }

func udp(t *testing.T, from netip.AddrPort, to netip.AddrPort, payload []byte) []byte {
	h := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	return build(t, from.Addr(), to.Addr(), layers.IPProtocolUDP, h, gopacket.Payload(payload))
}

// insert puts extension headers between an IPv6 header and what follows it.
func insert(packet []byte, first byte, headers []byte) []byte {
	out := bytes.Clone(packet[:40])
	headers = bytes.Clone(headers)
	out[6] = first
	binary.BigEndian.PutUint16(out[4:], uint16(len(packet)-40+len(headers)))
	return append(append(out, headers...), packet[40:]...)
}

// tap is a tap that is closed with the test.
func (b bed) tap(p lab.Place) *wire.Tap {
	b.Helper()
	tap, err := p.Tap()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := tap.Close(); err != nil {
			b.Error(err)
		}
	})
	return tap
}

// crossing is a way for crafted packets from one pod to another.
type crossing struct {
	bed
	from, to lab.Place
	out, in  *wire.Tap
}

func (b bed) crossing(from, to string) crossing {
	b.Helper()
	c := crossing{bed: b, from: b.place(from), to: b.place(to)}
	c.out, c.in = b.tap(c.from), b.tap(c.to)
	return c
}

func (c crossing) addrs(v6 bool) (from, to netip.Addr) {
	from, _ = c.from.Addr(v6)
	to, _ = c.to.Addr(v6)
	return from, to
}

func (c crossing) ports(v6 bool, from, to uint16) (netip.AddrPort, netip.AddrPort) {
	return c.from.At(v6, from), c.to.At(v6, to)
}

// send injects packets at the sender.
func (c crossing) send(packets ...[]byte) {
	c.Helper()
	for _, p := range packets {
		if err := c.from.Inject(c.out, p); err != nil {
			c.Fatal(err)
		}
	}
}

// arrives says whether a packet that carries the mark comes in at the receiver.
func (c crossing) arrives(mark string, wait time.Duration) bool {
	c.Helper()
	_, ok, err := c.in.Next(wait, func(p wire.Packet) bool {
		return !p.Outgoing && bytes.Contains(p.Data, []byte(mark))
	})
	if err != nil {
		c.Fatal(err)
	}
	return ok
}

// passes sends a packet and wants it to arrive; stopped wants it not to.
func (c crossing) passes(what, mark string, packets ...[]byte) {
	c.Helper()
	c.send(packets...)
	if !c.arrives(mark, patience) {
		c.Errorf("%s from %s to %s does not arrive", what, c.from.Name, c.to.Name)
	}
}

func (c crossing) stopped(what, mark string, packets ...[]byte) {
	c.Helper()
	c.send(packets...)
	if c.arrives(mark, silence) {
		c.Errorf("%s from %s to %s arrives", what, c.from.Name, c.to.Name)
	}
}

// familyName is for messages.
func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
