package ruleset

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What the node says to itself is not asked about, be the address in the pod CIDR and not known yet.
func TestLoopbackPasses(t *testing.T) {
	b := newBed(t)
	b.install(State{Generation: generation, PodCIDRs: podCIDRs})
	j := b.judge(deny)
	for _, a := range gateways {
		var p net.PacketConn
		b.must(b.node.Run(func() (err error) {
			p, err = net.ListenPacket("udp", netip.AddrPortFrom(a, 0).String())
			return err
		}))
		defer p.Close()
		_, err := p.WriteTo([]byte("x"), p.LocalAddr())
		b.must(err)
		b.must(p.SetReadDeadline(time.Now().Add(long)))
		if _, _, err := p.ReadFrom(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	if seen := j.take(); len(seen) != 0 {
		t.Errorf("queued %+v", seen)
	}
}

func TestWhoIsJudged(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(false, false))
	j := b.judge(allow)
	quiet := func(what string) {
		t.Helper()
		if seen := j.take(); len(seen) != 0 {
			t.Errorf("%s: queued %+v", what, seen)
		}
	}
	serve := func(a netip.Addr) { // on the node, for what pods send to it
		p, err := net.ListenPacket("udp", netip.AddrPortFrom(a, 90).String())
		b.must(err)
		t.Cleanup(func() { _ = p.Close() })
		go func() {
			buf := make([]byte, 64)
			for {
				n, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = p.WriteTo(buf[:n], from)
			}
		}()
	}
	b.node.Do(func() {
		for _, a := range gateways {
			serve(a)
		}
	})
	step := func(what string, s []Subject, removed ...netip.Addr) {
		t.Helper()
		b.must(r.Apply(Update{Generation: generation, Subjects: s, Removed: removed, FlushAllowed: true}))
		if seen := j.take(); len(seen) != 0 {
			t.Fatalf("before %s: queued %+v", what, seen)
		}
	}
	// The client speaks UDP: the end of a TCP connection would be judged by the state after it.
	for i, pod := range podAddrs {
		t.Run(fmt.Sprint("v", 4+2*i), func(t *testing.T) {
			b.reaches(b.client, "udp", pod, 80)
			b.reaches(b.pod, "udp", gateways[i], 90)
			quiet("a pod that nobody selects")

			step("ingress", []Subject{{Addr: pod, Pod: true, Ingress: true}})
			b.reaches(b.node, "tcp", pod, 80)
			b.reaches(b.node, "udp", pod, 80)
			quiet("the node to its pod")
			b.reaches(b.pod, "udp", gateways[i], 90)
			quiet("egress of a pod isolated for ingress")
			b.reaches(b.client, "udp", pod, 82)
			if seen := j.take(); len(seen) != 1 {
				t.Errorf("ingress: queued %+v", seen)
			}

			step("egress", []Subject{{Addr: pod, Pod: true, Egress: true}})
			b.reaches(b.client, "udp", pod, 83)
			b.reaches(b.node, "udp", pod, 83)
			quiet("answers of a pod isolated for egress")
			b.reaches(b.pod, "udp", gateways[i], 90)
			if seen := j.take(); len(seen) != 1 || seen[0].hook != unix.NF_INET_LOCAL_IN {
				t.Errorf("pod to node: queued %+v, want one in input", seen)
			}

			step("unknown", nil, pod)
			b.reaches(b.client, "udp", pod, 84)
			if seen := j.take(); len(seen) != 1 {
				t.Errorf("to an unknown pod: queued %+v", seen)
			}
			b.reaches(b.pod, "udp", gateways[i], 90)
			if seen := j.take(); len(seen) != 1 || seen[0].src != pod {
				t.Errorf("from an unknown pod: queued %+v", seen)
			}
			b.must(r.Apply(Update{Generation: generation, SetPodCIDRs: true, FlushAllowed: true}))
			b.reaches(b.client, "udp", pod, 85)
			quiet("an address outside the pod CIDRs")
			b.must(r.Apply(Update{Generation: generation, SetPodCIDRs: true, PodCIDRs: podCIDRs,
				Subjects: []Subject{{Addr: pod, Pod: true}}}))
		})
	}
	if drifts, err := r.Check(isolated(false, false)); err != nil || len(drifts) != 0 {
		t.Errorf("after all updates: %v, %v", drifts, err)
	}
}

// A pod isolated for egress answers with an ICMP error when it has nothing on a port; it belongs to the client's flow.
func TestICMPErrorsOfKnownFlowsPass(t *testing.T) {
	b := newBed(t)
	b.install(isolated(true, true))
	j := b.judge(func(q queued) (int, uint32) {
		if hasPorts(q.proto) {
			return nfqueue.NfAccept, q.mark // without a mark, so that only the rule for errors lets the answer pass
		}
		return deny(q)
	})
	for i, pod := range podAddrs {
		err := probe(b.client, "udp", netip.AddrPortFrom(pod, 99), long)
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("v%d: %v, want connection refused", 4+2*i, err)
		}
	}
	if n := len(j.take()); n != 2 {
		t.Errorf("queued %d, want the 2 requests", n)
	}
	// The other way: the pod's answer finds nothing on the client's port.
	after := b.side("after", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPrioritySecurity)
	for i, f := range families {
		after(join(compare(l4proto, expr.CmpOpEq, []byte{f.icmp}),
			compare(f.source(), expr.CmpOpEq, clientAddrs[i].AsSlice()), []expr.Any{&expr.Counter{}}))
		b.send(b.client, clientAddrs[i], podAddrs[i], layers.IPProtocolUDP, &layers.UDP{SrcPort: 4000, DstPort: 80},
			gopacket.Payload("x"))
	}
	for end := time.Now().Add(long); !slices.Equal(b.hits("after"), []uint64{1, 1}); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("errors that passed: %v, want 1 and 1", b.hits("after"))
		}
	}
	if n := len(j.take()); n != 2 {
		t.Errorf("queued %d, want the 2 requests", n)
	}
}

// The pod reaches itself through a service address; the packet comes back with its own address as source.
func TestHairpinPasses(t *testing.T) {
	b := newBed(t)
	b.install(isolated(true, true))
	j := b.judge(deny)
	nat := b.side("nat", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest)
	post := b.side("post", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, *nftables.ChainPriorityFilter)
	for i, f := range families {
		vip := []netip.Addr{addr("10.96.0.1"), addr("fd00:96::1")}[i]
		proto := []uint32{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}[i]
		nat(join(f.packets().exprs, compare(f.destination(), expr.CmpOpEq, vip.AsSlice()), []expr.Any{
			&expr.Immediate{Register: 1, Data: podAddrs[i].AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: proto, RegAddrMin: 1},
		}))
		post(join(f.packets().exprs, compare(f.source(), expr.CmpOpEq, podAddrs[i].AsSlice()),
			compare(f.destination(), expr.CmpOpEq, podAddrs[i].AsSlice()), []expr.Any{&expr.Counter{}}))
		c, err := dial(b.pod, "udp", netip.AddrPortFrom(vip, 80), long)
		b.must(err)
		_, err = c.Write([]byte("x"))
		b.must(err)
		_ = c.Close()
	}
	for end := time.Now().Add(long); !slices.Equal(b.hits("post"), []uint64{1, 1}); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("packets to oneself: %v, want 1 and 1", b.hits("post"))
		}
	}
	if seen := j.take(); len(seen) != 0 {
		t.Errorf("queued %+v", seen)
	}
}
