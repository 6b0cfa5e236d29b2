package traps

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

const pingable = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: pingable}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}}]
`

// TestICMPEcho: a rule with ports is never about ICMP, one without is about every protocol.
func TestICMPEcho(t *testing.T) {
	b := newBed(t, lab.Options{})
	client, remote, open := b.crossing("client", "server"), b.crossing("remote", "server"), b.crossing("stranger", "far")
	families(func(v6 bool) {
		for i, c := range []crossing{client, remote} {
			from, to := c.addrs(v6)
			mark := fmt.Sprintf("by ports %t %d", v6, i)
			c.stopped("ping", mark, echo(t, from, to, mark))
		}
		from, to := open.addrs(v6)
		open.passes("ping", "nobody isolated", echo(t, from, to, "nobody isolated"))
	})
	b.apply(pingable)
	stranger := b.crossing("stranger", "server")
	families(func(v6 bool) {
		for i, c := range []crossing{client, remote} {
			from, to := c.addrs(v6)
			mark := fmt.Sprintf("any protocol %t %d", v6, i)
			c.passes("ping", mark, echo(t, from, to, mark))
			if _, ok, err := c.out.Next(patience, func(p wire.Packet) bool {
				return !p.Outgoing && strings.Contains(string(p.Data), mark)
			}); !ok || err != nil {
				t.Errorf("no answer to the ping from %s: %v", c.from.Name, err)
			}
		}
		from, to := stranger.addrs(v6)
		mark := fmt.Sprintf("stranger's ping %t", v6)
		stranger.stopped("ping", mark, echo(t, from, to, mark))
	})
}

// tooBig is the error that a router sends about a packet, whose first bytes it carries.
func tooBig(t *testing.T, v6 bool, c crossing, about []byte) []byte {
	from, to := c.addrs(v6)
	about = about[:min(len(about), 100)]
	if !v6 {
		return build(t, from, to, layers.IPProtocolICMPv4, &layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded),
			Seq:      1300,
		}, gopacket.Payload(about))
	}
	mtu := binary.BigEndian.AppendUint32(nil, 1300)
	return build(t, from, to, layers.IPProtocolICMPv6, &layers.ICMPv6{
		TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypePacketTooBig, 0),
	}, gopacket.Payload(append(mtu, about...)))
}

// TestPMTU: ICMP errors about a flow that was admitted reach its sender, though no rule allows ICMP; errors about
// flows that do not exist do not.
func TestPMTU(t *testing.T) {
	b := newBed(t, lab.Options{}, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Ingress, Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: server}}}]
    ports: [{port: 80}]
`)
	for _, client := range []string{"client", "remote"} {
		back := b.crossing("server", client)
		families(func(v6 bool) {
			flow, r, err := probe.Open(t.Context(), probe.Probe{
				From: b.place(client).NS, To: b.place("server").At(v6, 80), Proto: probe.TCP, Wait: patience,
			})
			if err != nil || r.Outcome != probe.Reached {
				t.Fatal(r, err)
			}
			defer func() {
				if err := flow.Close(); err != nil {
					t.Error(err)
				}
			}()
			const known, unknown = "error about a flow", "error about nothing"
			about := func(sport uint16, mark string) []byte {
				return tcp(t, b.place(client).At(v6, sport), b.place("server").At(v6, 80), mark,
					func(h *layers.TCP) { h.ACK, h.Ack = true, 1 })
			}
			back.passes("ICMP "+known, known, tooBig(t, v6, back, about(flow.Local().Port(), known)))
			back.stopped("ICMP "+unknown, unknown, tooBig(t, v6, back, about(1, unknown)))
		})
	}
}

// TestSCTPInit: SCTP is judged by its port like TCP and UDP.
func TestSCTPInit(t *testing.T) {
	b := newBed(t, lab.Options{})
	initChunk := func(c crossing, v6 bool, port uint16, mark string) []byte {
		from, to := c.addrs(v6)
		tag := binary.BigEndian.Uint32([]byte(mark))
		return build(t, from, to, layers.IPProtocolSCTP,
			&layers.SCTP{SrcPort: 5000, DstPort: layers.SCTPPort(port)},
			&layers.SCTPInit{SCTPChunk: layers.SCTPChunk{Type: layers.SCTPChunkTypeInit}, InitiateTag: tag,
				AdvertisedReceiverWindowCredit: 1500, OutboundStreams: 1, InboundStreams: 1})
	}
	families(func(v6 bool) {
		for _, client := range []string{"client", "remote"} {
			c := b.crossing(client, "server")
			c.passes("SCTP INIT", "good", initChunk(c, v6, 9, "good"))
			c.stopped("SCTP INIT to another port", "port", initChunk(c, v6, 10, "port"))
		}
		for _, stranger := range []string{"stranger", "far"} {
			c := b.crossing(stranger, "server")
			c.stopped("SCTP INIT", "evil", initChunk(c, v6, 9, "evil"))
		}
	})
}

// fragments cuts a packet after the given number of bytes of its payload, a multiple of 8.
func fragments(packet []byte, at int) [][]byte {
	if packet[0]>>4 == 4 {
		const header, more = 20, 1 << 13
		one, two := append([]byte(nil), packet[:header+at]...), append([]byte(nil), packet[:header]...)
		two = append(two, packet[header+at:]...)
		binary.BigEndian.PutUint16(one[6:], more)
		binary.BigEndian.PutUint16(two[6:], uint16(at/8))
		for _, p := range [][]byte{one, two} {
			binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
			binary.BigEndian.PutUint16(p[10:], 0)
			binary.BigEndian.PutUint16(p[10:], checksum(p[:header]))
		}
		return [][]byte{one, two}
	}
	const header = 40
	fragment := func(payload []byte, offset, more int) []byte {
		h := []byte{packet[6], 0, 0, 0, 0, 0, 0, 42}
		binary.BigEndian.PutUint16(h[2:], uint16(offset|more))
		cut := append(append([]byte(nil), packet[:header]...), payload...)
		return insert(cut, unix.IPPROTO_FRAGMENT, h)
	}
	return [][]byte{fragment(packet[header:header+at], 0, 1), fragment(packet[header+at:], at, 0)}
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// TestFragments: fragments are judged as the packet that they make, in whatever order they come and however small the
// first one is; none of a packet that is not allowed gets through.
func TestFragments(t *testing.T) {
	b := newBed(t, lab.Options{})
	payload := func(who string) (payload []byte, first, last string) {
		return []byte(strings.Repeat(who+" first ", 80) + who + " last"), who + " first", who + " last"
	}
	families(func(v6 bool) {
		for _, at := range []int{8, 800} { // 8: nothing but the UDP header
			for _, client := range []string{"client", "remote"} {
				c := b.crossing(client, "server")
				content, _, last := payload(client)
				from, to := c.ports(v6, uint16(6000+at), 53)
				cut := fragments(udp(t, from, to, content), at)
				c.passes(fmt.Sprintf("fragments cut at %d", at), last, cut...)
				content, _, last = payload("twisted")
				from, to = c.ports(v6, uint16(7000+at), 53)
				cut = fragments(udp(t, from, to, content), at)
				c.passes(fmt.Sprintf("fragments cut at %d, the last first", at), last, cut[1], cut[0])
			}
			for _, stranger := range []string{"stranger", "far"} {
				c := b.crossing(stranger, "server")
				content, first, last := payload(stranger)
				from, to := c.ports(v6, uint16(6000+at), 53)
				cut := fragments(udp(t, from, to, content), at)
				c.stopped(fmt.Sprintf("fragments cut at %d", at), first, cut...)
				c.stopped("a last fragment alone", last, cut[1])
			}
		}
	})
}

// TestIPv6ExtensionHeaders: the port is found behind extension headers of any number and length.
func TestIPv6ExtensionHeaders(t *testing.T) {
	b := newBed(t, lab.Options{})
	// options is one header of so many bytes, a multiple of 8 up to 2048, filled with padding (RFC 8200, section 4.2).
	options := func(next byte, size int) []byte {
		h := make([]byte, size)
		h[0], h[1] = next, byte(size/8-1)
		for at := 2; at < size; {
			n := min(size-at, 255)
			if n == 1 {
				h[at] = 0 // Pad1
			} else {
				h[at], h[at+1] = 1, byte(n-2) // PadN
			}
			at += n
		}
		return h
	}
	tcpAfter := func(size int) []byte { return options(unix.IPPROTO_TCP, size) }
	for name, chain := range map[string]struct {
		first   byte
		headers []byte
	}{
		"destination options":      {unix.IPPROTO_DSTOPTS, tcpAfter(8)},
		"long destination options": {unix.IPPROTO_DSTOPTS, tcpAfter(256)},
		"longer than a queue copy": {unix.IPPROTO_DSTOPTS, tcpAfter(1320)},
		// A router drops hop-by-hop padding beyond 7 bytes by itself (net/ipv6/exthdrs.c, ip6_parse_tlv).
		"hop by hop":                {unix.IPPROTO_HOPOPTS, tcpAfter(8)},
		"two headers":               {unix.IPPROTO_HOPOPTS, slices.Concat(options(unix.IPPROTO_DSTOPTS, 8), tcpAfter(64))},
		"routing of no segments":    {unix.IPPROTO_ROUTING, []byte{unix.IPPROTO_TCP, 0, 0, 0, 0, 0, 0, 0}},
		"eight destination options": {unix.IPPROTO_DSTOPTS, eight(options)},
	} {
		t.Run(name, func(t *testing.T) {
			b := bed{t, b.lab}
			b.forget() // so that all are judged by the agent, and not by the kernel that knows the tuple
			for _, client := range []string{"client", "remote"} {
				c := b.crossing(client, "server")
				from, to := c.ports(true, 4000, 80)
				c.passes("TCP", "allowed", insert(tcp(t, from, to, "allowed", syn), chain.first, chain.headers))
				from, to = c.ports(true, 4000, 81)
				c.stopped("TCP to another port", "other", insert(tcp(t, from, to, "other", syn), chain.first, chain.headers))
			}
			for _, stranger := range []string{"stranger", "far"} {
				c := b.crossing(stranger, "server")
				from, to := c.ports(true, 4000, 80)
				c.stopped("TCP", "denied", insert(tcp(t, from, to, "denied", syn), chain.first, chain.headers))
			}
		})
	}
}

// forget empties the kernel's caches of verdicts, so that agents are asked.
func (b bed) forget() {
	b.Helper()
	layout, err := mark.New(mark.Default)
	if err != nil {
		b.Fatal(err)
	}
	for _, node := range b.lab.Nodes() {
		rules, err := ruleset.Open(ruleset.Config{Mask: layout, NetNS: node.NS.FD()})
		if err == nil {
			err = rules.Flush()
			rules.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func eight(options func(next byte, size int) []byte) []byte {
	var all []byte
	for range 7 {
		all = append(all, options(unix.IPPROTO_DSTOPTS, 24)...)
	}
	return append(all, options(unix.IPPROTO_TCP, 24)...)
}

// TestInvalid: packets that conntrack finds no place for are dropped and counted on their way to isolated pods, and
// are nobody's business elsewhere.
func TestInvalid(t *testing.T) {
	b := newBed(t, lab.Options{})
	flags := map[string]func(*layers.TCP){
		"SYN and FIN":  func(h *layers.TCP) { h.SYN, h.FIN = true, true },
		"no flags":     func(*layers.TCP) {},
		"stray RST":    func(h *layers.TCP) { h.RST, h.ACK = true, true },
		"all of them":  func(h *layers.TCP) { h.SYN, h.FIN, h.RST, h.PSH, h.ACK, h.URG = true, true, true, true, true, true },
		"bad checksum": syn,
	}
	// metric names are of the agent: packets of the counter "invalid".
	dropped := func() float64 {
		m, err := b.lab.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return m.Sum("firstpacket_kernel_packets_total", `="invalid"`)
	}
	before, want := dropped(), 0
	families(func(v6 bool) {
		for name, set := range flags {
			craft := func(c crossing, port uint16, mark string) []byte {
				from, to := c.ports(v6, 4100, port)
				p := tcp(t, from, to, mark, set)
				if name == "bad checksum" {
					p[len(p)-len(mark)-4] ^= 0xff // the checksum is 4 bytes before the end of the header
				}
				return p
			}
			c := b.crossing("client", "server")
			mark := fmt.Sprintf("%s %s", name, familyName(v6))
			c.stopped(mark, mark, craft(c, 80, mark))
			want++
			c = b.crossing("client", "stranger")
			c.passes(mark, mark, craft(c, 80, mark))
		}
	})
	if got := dropped() - before; got < float64(want) {
		t.Errorf("%v packets counted as invalid, want at least %d", got, want)
	}
}
