package ruleset

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

// send sends an IP packet as it stands.
func (b *bed) send(from *nstest.NS, src, dst netip.Addr, proto layers.IPProtocol, body ...gopacket.SerializableLayer) {
	b.t.Helper()
	b.must(b.trySend(from, src, dst, proto, body...))
}

func (b *bed) trySend(from *nstest.NS, src, dst netip.Addr, proto layers.IPProtocol,
	body ...gopacket.SerializableLayer) error {
	b.t.Helper()
	var ip gopacket.SerializableLayer
	var to unix.Sockaddr
	domain := unix.AF_INET
	if dst.Is4() {
		ip = &layers.IPv4{Version: 4, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		to = &unix.SockaddrInet4{Addr: dst.As4()}
	} else {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
	}
	for _, l := range body {
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok {
			b.must(c.SetNetworkLayerForChecksum(ip.(gopacket.NetworkLayer)))
		}
	}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	b.must(gopacket.SerializeLayers(buf, opts, append([]gopacket.SerializableLayer{ip}, body...)...))
	return from.Run(func() error {
		fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_RAW) // implies that the header is included
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, buf.Bytes(), 0, to)
	})
}

func (b *bed) sendTCP(from *nstest.NS, src, dst netip.AddrPort, tcp layers.TCP) {
	b.t.Helper()
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(src.Port()), layers.TCPPort(dst.Port())
	tcp.Window, tcp.Seq = 1000, 1
	b.send(from, src.Addr(), dst.Addr(), layers.IPProtocolTCP, &tcp)
}

// counts waits until the counters are as f wants them.
func (b *bed) counts(r *Ruleset, f func(Counters) bool) {
	b.t.Helper()
	for end := time.Now().Add(long); ; time.Sleep(time.Millisecond) {
		c, err := r.Counters()
		b.must(err)
		if f(c) {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("counters %+v", c)
		}
	}
}

// SCTP tuples are cached like those of TCP and UDP. The packets are made by hand: not every kernel has SCTP sockets.
func TestSCTPTuplesAreLearnt(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false))
	j := b.judge(allow)
	for i := range podAddrs {
		for port := uint16(5000); port < 5003; port++ {
			// An INIT chunk with an initiate tag of its own (RFC 9260, section 3.3.2).
			init := gopacket.Payload{1, 0, 0, 20, 0, 0, 0, byte(port), 0, 0, 64, 0, 0, 1, 0, 1, 0, 0, 0, 1}
			b.send(b.client, clientAddrs[i], podAddrs[i], layers.IPProtocolSCTP,
				&layers.SCTP{SrcPort: layers.SCTPPort(port), DstPort: 80}, init)
			b.counts(r, func(c Counters) bool { return c.Admitted+c.Cached == uint64(3*i)+uint64(port-5000)+1 })
		}
		want := Tuple{clientAddrs[i], podAddrs[i], unix.IPPROTO_SCTP, 80}
		if seen := j.take(); len(seen) != 1 || seen[0].tuple() != want {
			t.Errorf("queued %+v, want one packet of %v", seen, want)
		}
	}
}

// Protocols without ports are judged per flow and never cached.
func TestPingIsJudgedPerFlow(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false))
	j := b.judge(allow)
	for id := byte(1); id < 4; id++ {
		b.send(b.client, clientAddrs[0], podAddrs[0], layers.IPProtocolICMPv4,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: uint16(id)})
		b.send(b.client, clientAddrs[1], podAddrs[1], layers.IPProtocolICMPv6,
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, gopacket.Payload{0, id, 0, 1})
		b.counts(r, func(c Counters) bool { return c.Admitted == 2*uint64(id) })
	}
	if n := len(j.take()); n != 6 {
		t.Errorf("queued %d, want 6", n)
	}
	if allowed := b.allowed(r); len(allowed) != 0 {
		t.Errorf("learnt %v", allowed)
	}
	j.turn(deny)
	b.send(b.client, clientAddrs[0], podAddrs[0], layers.IPProtocolICMPv4,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 99})
	b.counts(r, func(c Counters) bool { return c.Refused == 1 })
	if denied, err := r.Denied(); err != nil || len(denied) != 0 {
		t.Errorf("denied %v, %v", denied, err)
	}
}

func TestInvalidPacketsAreDroppedAndCounted(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, true))
	j := b.judge(allow)
	for i := range podAddrs {
		// SYN and FIN at once is nothing that conntrack takes (tcp_error).
		b.sendTCP(b.client, netip.AddrPortFrom(clientAddrs[i], 4000), netip.AddrPortFrom(podAddrs[i], 80),
			layers.TCP{SYN: true, FIN: true})
		b.sendTCP(b.pod, netip.AddrPortFrom(podAddrs[i], 4000), netip.AddrPortFrom(clientAddrs[i], 80),
			layers.TCP{SYN: true, FIN: true})
	}
	b.counts(r, func(c Counters) bool { return c.Invalid == 4 })
	if seen := j.take(); len(seen) != 0 {
		t.Errorf("queued %+v", seen)
	}
}

// The verdict on a flow picked up in the middle holds for either direction, so its tuple must not be learnt: it may be
// the one of the answers.
func TestMidStreamIsNotLearnt(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false))
	j := b.judge(allow)
	for i := range podAddrs {
		b.sendTCP(b.client, netip.AddrPortFrom(clientAddrs[i], 4000), netip.AddrPortFrom(podAddrs[i], 80),
			layers.TCP{ACK: true, Ack: 1})
		if q := j.sees(t); q.dstPort != 80 {
			t.Errorf("queued %+v", q)
		}
		b.counts(r, func(c Counters) bool { return c.Admitted == uint64(i+1) })
	}
	if allowed, err := r.Allowed(); err != nil || len(allowed) != 0 {
		t.Errorf("learnt %v, %v", allowed, err)
	}
}

// notrack takes the packets of UDP port 80, or of all ports, away from conntrack, before it even joins fragments.
func (b *bed) notrack() {
	b.side("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriority(-450))(
		join(compare(l4proto, expr.CmpOpEq, []byte{unix.IPPROTO_UDP}), []expr.Any{&expr.Notrack{}}))
}

func TestUntrackedPacketsDoNotPassUnasked(t *testing.T) {
	b := newBed(t)
	b.notrack()
	r := b.install(isolated(true, false))
	j := b.judge(deny)
	for i := range podAddrs {
		b.silent(b.client, "udp", podAddrs[i], 80)
		if n := len(j.take()); n != 1 {
			t.Errorf("queued %d, want 1", n)
		}
	}
	j.turn(allow)
	for i := range podAddrs {
		for range 3 {
			b.reaches(b.client, "udp", podAddrs[i], 81)
		}
		if n := len(j.take()); n != 1 {
			t.Errorf("queued %d, want 1", n)
		}
		if flows := b.flows(podAddrs[i], 81); len(flows) != 0 {
			t.Errorf("the packets were tracked: %v", flows)
		}
	}
	if allowed, err := r.Allowed(); err != nil || len(allowed) != 2 {
		t.Errorf("allowed %v, %v", allowed, err)
	}
}

// Fragments that conntrack joins have ports; of those that nothing joins only the first has, and the others must not be
// compared with what happens to stand where ports would.
func TestFragments(t *testing.T) {
	msg := make([]byte, 4000)
	for i := range msg {
		msg[i] = 80 * byte(i&1) // ports 80 wherever one reads
	}
	t.Run("tracked", func(t *testing.T) {
		b := newBed(t)
		r := b.install(isolated(true, false))
		j := b.judge(allow)
		b.fragmented(msg)
		if n := len(j.take()); n != 2 {
			t.Errorf("queued %d, want 2", n)
		}
		b.wantAllowed(r, 80)
	})
	t.Run("untracked", func(t *testing.T) {
		b := newBed(t)
		b.notrack()
		r := b.install(isolated(true, false))
		j := b.judge(allow)
		b.fragmented(msg)
		var bare int
		for _, q := range j.take() {
			if q.src.Is4() && q.dstPort == 0 {
				bare++
			}
		}
		if bare != 2 {
			t.Errorf("%d IPv4 fragments without ports were queued, want 2", bare)
		}
		for _, tuple := range b.allowed(r) {
			if tuple.Src.Is4() && tuple.DstPort != 80 {
				t.Errorf("learnt %v", tuple)
			}
		}
	})
}

func (b *bed) fragmented(msg []byte) {
	b.t.Helper()
	for i := range podAddrs {
		c, err := dial(b.client, "udp", netip.AddrPortFrom(podAddrs[i], 80), long)
		b.must(err)
		b.must(talkBytes(c, msg, long))
		_ = c.Close()
	}
}

func (b *bed) allowed(r *Ruleset) []Tuple {
	b.t.Helper()
	allowed, err := r.Allowed()
	b.must(err)
	return allowed
}

// wantAllowed fails the test unless exactly the two UDP tuples of the port are in the cache.
func (b *bed) wantAllowed(r *Ruleset, port uint16) {
	b.t.Helper()
	var want []Tuple
	for i := range podAddrs {
		want = append(want, Tuple{clientAddrs[i], podAddrs[i], unix.IPPROTO_UDP, port})
	}
	if got := b.allowed(r); !slices.Equal(got, want) {
		b.t.Errorf("allowed %v, want %v", got, want)
	}
}
