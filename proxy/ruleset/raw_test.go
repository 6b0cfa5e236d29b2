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

// sendTCP sends a TCP segment as it stands.
func (b *bed) sendTCP(from *nstest.NS, src, dst netip.AddrPort, tcp layers.TCP) {
	b.t.Helper()
	tcp.SrcPort, tcp.DstPort = layers.TCPPort(src.Port()), layers.TCPPort(dst.Port())
	tcp.Window, tcp.Seq = 1000, 1
	ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(),
		DstIP: dst.Addr().AsSlice()}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: src.Addr().AsSlice(),
		DstIP: dst.Addr().AsSlice()}
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	var to unix.Sockaddr
	domain := unix.AF_INET
	if dst.Addr().Is4() {
		b.must(tcp.SetNetworkLayerForChecksum(ip4))
		b.must(gopacket.SerializeLayers(buf, opts, ip4, &tcp))
		to = &unix.SockaddrInet4{Addr: dst.Addr().As4()}
	} else {
		b.must(tcp.SetNetworkLayerForChecksum(ip6))
		b.must(gopacket.SerializeLayers(buf, opts, ip6, &tcp))
		domain, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.Addr().As16()}
	}
	b.must(from.Run(func() error {
		fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_RAW) // implies a header included
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, buf.Bytes(), 0, to)
	}))
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
	for end := time.Now().Add(long); ; time.Sleep(time.Millisecond) {
		c, err := r.Counters()
		b.must(err)
		if c.Invalid == 4 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("counters %+v, want 4 invalid packets", c)
		}
	}
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
		for end := time.Now().Add(long); ; time.Sleep(time.Millisecond) {
			c, err := r.Counters()
			b.must(err)
			if c.Admitted == uint64(i+1) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("counters %+v, want %d admitted", c, i+1)
			}
		}
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
