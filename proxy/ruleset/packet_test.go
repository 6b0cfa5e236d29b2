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

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

// everywhere runs a test for each transport and address family, on one bed.
func everywhere(t *testing.T, f func(t *testing.T, network string, proto uint8, i int)) {
	for i, version := range []string{"4", "6"} {
		for network, proto := range map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP} {
			t.Run(network+version, func(t *testing.T) { f(t, network, proto, i) })
		}
	}
}

func TestOneTupleIsQueuedOnce(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false))
	j := b.judge(allow)
	everywhere(t, func(t *testing.T, network string, proto uint8, i int) {
		for range 20 {
			b.reaches(b.client, network, podAddrs[i], 80)
		}
		seen := j.take()
		want := Tuple{clientAddrs[i], podAddrs[i], proto, 80}
		if len(seen) != 1 || seen[0].tuple() != want || seen[0].hook != unix.NF_INET_FORWARD {
			t.Fatalf("queued %+v, want one packet of %v in forward", seen, want)
		}
		allowed, err := r.Allowed()
		b.must(err)
		if !slices.Contains(allowed, want) {
			t.Errorf("allowed: %v, want %v in it", allowed, want)
		}
		for _, m := range b.ctMarks(podAddrs[i], 80) {
			if m != layoutOfMarks.Admitted() {
				t.Errorf("conntrack mark %#x", m)
			}
		}
	})
	c, err := r.Counters()
	b.must(err)
	if c.Queued != 4 || c.Admitted != 4 || c.Cached != 4*19 || c.Refused != 0 || c.Invalid != 0 {
		t.Errorf("counters %+v", c)
	}
}

func TestStaleGenerationIsQueuedAgain(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false))
	answers := 0
	j := b.judge(func(q queued) (int, uint32) {
		if answers++; answers%3 != 0 { // twice a verdict of the generation before, then one in force
			return nfqueue.NfRepeat, layoutOfMarks.With(q.mark, layoutOfMarks.Allow(generation-1))
		}
		return allow(q)
	})
	everywhere(t, func(t *testing.T, network string, _ uint8, i int) {
		b.reaches(b.client, network, podAddrs[i], 80)
		seen := j.take()
		if len(seen) != 3 {
			t.Fatalf("queued %d times, want 3", len(seen))
		}
		if seen[1].mark != layoutOfMarks.Allow(generation-1) {
			t.Errorf("the stale mark came back as %#x", seen[1].mark)
		}
	})
	if c, err := r.Counters(); err != nil || c.Admitted != 4 {
		t.Errorf("counters %+v, %v", c, err)
	}
}

// A verdict whose generation ends while the packet waits must not count.
func TestVerdictInFlightAcrossAnUpdate(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false))
	current := uint32(generation)
	j := b.judge(func(q queued) (int, uint32) {
		verdict, m := nfqueue.NfRepeat, layoutOfMarks.With(q.mark, layoutOfMarks.Allow(current))
		if current == generation { // the update overtakes this verdict
			current++
			if err := r.Apply(Update{Generation: current}); err != nil {
				t.Error(err)
			}
		}
		return verdict, m
	})
	b.reaches(b.client, "udp", podAddrs[0], 80)
	if n := len(j.take()); n != 2 {
		t.Errorf("queued %d times, want 2", n)
	}
	if g, err := r.Generation(); err != nil || g != generation+1 {
		t.Errorf("generation %d, %v", g, err)
	}
}

func TestFullCacheDoesNotStopTheAccept(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false), func(c *Config) { c.AllowedSize = 2 })
	j := b.judge(allow)
	for i := range podAddrs {
		for port := uint16(80); port < 86; port++ {
			b.reaches(b.client, "tcp", podAddrs[i], port)
			b.reaches(b.client, "udp", podAddrs[i], port)
		}
	}
	if n := len(j.take()); n != 24 {
		t.Errorf("queued %d, want 24", n)
	}
	allowed, err := r.Allowed()
	b.must(err)
	if len(allowed) != 4 {
		t.Errorf("%d tuples in two sets of size 2", len(allowed))
	}
	if n, err := r.Counters(); err != nil || n.Unlearnt != 20 {
		t.Errorf("%d verdicts counted that the cache had no room for, want 20; %v", n.Unlearnt, err)
	}
	// What is not in a full set can still be forgotten, together with what is; and learning is not an error.
	absent := Tuple{clientAddrs[0], podAddrs[0], unix.IPPROTO_TCP, 999}
	present := allowed[1]
	b.must(r.Apply(Update{Generation: generation, Forget: []Tuple{absent, present, absent}, Learn: []Tuple{{
		clientAddrs[1], podAddrs[1], unix.IPPROTO_UDP, 53}}}))
	after, err := r.Allowed()
	b.must(err)
	if want := slices.Concat(allowed[:1], allowed[2:]); !slices.Equal(after, want) {
		t.Errorf("allowed %v, want %v", after, want)
	}
}

// TestNoisySource: the kernel asks about a few packets of a noisy source and drops the rest, and treats others as ever.
func TestNoisySource(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false), func(c *Config) { c.NoisyRate = 10 }) // less than any machine sends
	b.judge(allow)
	var in *net.Interface
	b.must(b.node.Run(func() (err error) { in, err = net.InterfaceByName("cl0"); return err }))
	b.must(r.Limit(nil))
	b.must(r.Limit([]Source{{uint32(in.Index), clientAddrs[0]}, {uint32(in.Index), clientAddrs[1]},
		{uint32(in.Index) + 1000, podAddrs[0]}}))
	for i := range podAddrs {
		const n = 5 * noisyBurst
		before, err := r.Counters()
		b.must(err)
		b.client.Do(func() {
			c, err := net.ListenPacket("udp", netip.AddrPortFrom(clientAddrs[i], 0).String())
			b.must(err)
			defer c.Close()
			for port := range n {
				_, _ = c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(podAddrs[i], uint16(1000+port))))
			}
		})
		after, err := r.Counters()
		b.must(err)
		asked, shed := after.Queued-before.Queued, after.Shed-before.Shed
		if asked+shed != n || asked < noisyBurst || shed == 0 {
			t.Errorf("of %d packets to %v, %d were asked about and %d dropped", n, podAddrs[i], asked, shed)
		}
		b.node.Do(func() { // from the node, by no interface
			c, err := net.Dial("udp", netip.AddrPortFrom(podAddrs[i], 80).String())
			b.must(err)
			defer c.Close()
			b.must(talk(c, long))
		})
	}
	drift, err := r.Check(isolated(true, false))
	b.must(err)
	if len(drift) > 0 {
		t.Errorf("the table is not as it should be: %v", drift)
	}
}

func TestOtherMarkBitsAreKept(t *testing.T) {
	const packetBits, ctBits = 0x800000f5, 0x40000007
	b := newBed(t)
	b.install(isolated(true, false))
	j := b.judge(allow)
	set := func(v uint32, e expr.Any) []expr.Any {
		return []expr.Any{&expr.Immediate{Register: 1, Data: host(v)}, e}
	}
	fresh := stateIs("new", expr.CtStateBitNEW).exprs
	b.side("pre", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityMangle)(
		set(packetBits, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}),
		join(fresh, set(ctBits, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})))
	b.side("post", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPrioritySecurity)(
		join(compare(packetMark, expr.CmpOpNeq, host(packetBits)), []expr.Any{&expr.Counter{}}),
		join(compare(packetMark, expr.CmpOpEq, host(packetBits)), []expr.Any{&expr.Counter{}}))
	everywhere(t, func(t *testing.T, network string, _ uint8, i int) {
		c, err := dial(b.client, network, netip.AddrPortFrom(podAddrs[i], 80), long)
		b.must(err)
		defer c.Close()
		b.must(talk(c, long))
		if seen := j.take(); len(seen) != 1 || seen[0].mark != packetBits {
			t.Errorf("queued %+v", seen)
		}
		got := b.ctMarks(podAddrs[i], 80)
		if slices.ContainsFunc(got, func(m uint32) bool { return m != ctBits|layoutOfMarks.Admitted() }) || len(got) == 0 {
			t.Errorf("conntrack marks %#x", got)
		}
	})
	if n := b.hits("post"); n[0] != 0 || n[1] == 0 {
		t.Errorf("packets with other marks %d, with theirs %d", n[0], n[1])
	}
}

func TestDenyByDropping(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false), func(c *Config) { c.DeniedTimeout = time.Hour })
	j := b.judge(deny)
	everywhere(t, func(t *testing.T, network string, proto uint8, i int) {
		b.silent(b.client, network, podAddrs[i], 81)
		b.silent(b.client, network, podAddrs[i], 81)
		want := Tuple{clientAddrs[i], podAddrs[i], proto, 81}
		if seen := j.take(); len(seen) != 1 || seen[0].tuple() != want {
			t.Errorf("queued %+v, want one packet of %v", seen, want)
		}
		denied, err := r.Denied()
		b.must(err)
		if !slices.Contains(denied, want) {
			t.Errorf("denied %v", denied)
		}
	})
	if allowed, err := r.Allowed(); err != nil || len(allowed) != 0 {
		t.Errorf("allowed %v, %v", allowed, err)
	}
	if c, err := r.Counters(); err != nil || c.Refused < 8 || c.Admitted != 0 {
		t.Errorf("counters %+v, %v", c, err)
	}
	j.take()
	b.must(r.Apply(Update{Generation: generation, FlushDenied: true}))
	if denied, err := r.Denied(); err != nil || len(denied) != 0 {
		t.Errorf("denied %v, %v", denied, err)
	}
	b.silent(b.client, "udp", podAddrs[0], 81)
	if n := len(j.take()); n != 1 {
		t.Errorf("queued %d after the flush, want 1", n)
	}
	b.must(r.Apply(Update{Generation: generation, Forget: []Tuple{{clientAddrs[0], podAddrs[0], unix.IPPROTO_UDP, 81}}}))
	b.silent(b.client, "udp", podAddrs[0], 81)
	if n := len(j.take()); n != 1 {
		t.Errorf("queued %d after the tuple was forgotten, want 1", n)
	}
}

func TestDeniedTupleIsAskedForAgainAfterItsTime(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false), func(c *Config) { c.DeniedTimeout = 50 * time.Millisecond })
	j := b.judge(deny)
	b.silent(b.client, "udp", podAddrs[0], 81)
	for end := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
		if denied, err := r.Denied(); err != nil || time.Now().After(end) {
			t.Fatalf("denied %v, %v", denied, err)
		} else if len(denied) == 0 {
			break
		}
	}
	b.silent(b.client, "udp", podAddrs[0], 81)
	if n := len(j.take()); n != 2 {
		t.Errorf("queued %d, want 2", n)
	}
}

// refusal is what a socket hears of "administratively prohibited": EHOSTUNREACH for ICMP code 13, EACCES for ICMPv6
// code 1 (net/ipv4/icmp.c, net/ipv6/icmp.c).
var refusal = []error{unix.EHOSTUNREACH, unix.EACCES}

func TestDenyByRejecting(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, false), func(c *Config) { c.DenyWith = Reject; c.DeniedTimeout = time.Hour })
	j := b.judge(deny)
	everywhere(t, func(t *testing.T, network string, proto uint8, i int) {
		want := refusal[i]
		if proto == unix.IPPROTO_TCP {
			want = unix.ECONNREFUSED
		}
		for range 2 { // by userspace, then by the cache
			if err := probe(b.client, network, netip.AddrPortFrom(podAddrs[i], 81), long); !errors.Is(err, want) {
				t.Fatalf("%v, want %v", err, want)
			}
		}
		if n := len(j.take()); n != 1 {
			t.Errorf("queued %d, want 1", n)
		}
	})
	if c, err := r.Counters(); err != nil || c.Refused != 8 {
		t.Errorf("counters %+v, %v", c, err)
	}
}

// revoke marks the node's flows to the port as revoked, as the agent does, before the hook's filter priority.
func (b *bed) revoke(hook *nftables.ChainHook, port uint16) {
	b.t.Helper()
	set := &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}
	dst := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
	add := b.side(fmt.Sprint("revoke", *hook), nftables.ChainTypeFilter, hook, *nftables.ChainPriorityMangle)
	add([]expr.Any{dst, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
		&expr.Immediate{Register: 1, Data: host(layoutOfMarks.Revoked() | 5)}, set})
}

func TestRevokedFlowIsRefused(t *testing.T) {
	for _, how := range []DenyWith{Drop, Reject} {
		t.Run(how.String(), func(t *testing.T) {
			b := newBed(t)
			r := b.install(isolated(true, true), func(c *Config) { c.DenyWith = how })
			j := b.judge(allow)
			type open struct {
				c    net.Conn
				want error
			}
			var conns []open
			everywhere(t, func(t *testing.T, network string, proto uint8, i int) {
				c, err := dial(b.client, network, netip.AddrPortFrom(podAddrs[i], 80), long)
				b.must(err)
				b.must(talk(c, long))
				want := refusal[i]
				if proto == unix.IPPROTO_TCP {
					want = unix.ECONNRESET
				}
				conns = append(conns, open{c, want})
			})
			before, err := r.Counters()
			b.must(err)
			j.take()
			b.revoke(nftables.ChainHookPrerouting, 80)
			for _, o := range conns {
				err := talk(o.c, short)
				if how == Reject && !errors.Is(err, o.want) {
					t.Errorf("%v: %v, want %v", o.c.RemoteAddr(), err, o.want)
				}
				if ne := net.Error(nil); how == Drop && (!errors.As(err, &ne) || !ne.Timeout()) {
					t.Errorf("%v: %v, want a time-out", o.c.RemoteAddr(), err)
				}
				_ = o.c.Close()
			}
			if n := len(j.take()); n != 0 {
				t.Errorf("%d packets of revoked flows were queued", n)
			}
			if c, err := r.Counters(); err != nil || c.Refused < before.Refused+4 {
				t.Errorf("counters %+v, %v", c, err)
			}
			if denied, err := r.Denied(); err != nil || len(denied) != 0 {
				t.Errorf("revoked flows fed the cache: %v, %v", denied, err)
			}
		})
	}
}

// In each hook, an admitted flow goes on without the verdict cache, until it is revoked.
func TestAdmittedFlowsAndTheirEnd(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, true))
	j := b.judge(allow)
	for i := range podAddrs {
		for _, c := range []struct {
			hook uint8
			from *nstest.NS
			src  netip.Addr
			dst  netip.Addr
		}{
			{unix.NF_INET_FORWARD, b.client, clientAddrs[i], podAddrs[i]},
			{unix.NF_INET_LOCAL_IN, b.pod, podAddrs[i], gateways[i]},
			// A proxy on the node that speaks in the client's name. Only the node's own addresses go unasked.
			{unix.NF_INET_LOCAL_OUT, b.node, addr([]string{"10.0.2.9", "fd00:2::9"}[i]), podAddrs[i]},
		} {
			t.Run(fmt.Sprintf("v%d hook %d", 4+2*i, c.hook), func(t *testing.T) {
				port := 7000 + uint16(c.hook)*2 + uint16(i)
				trySend := func() error {
					return b.trySend(c.from, c.src, c.dst, layers.IPProtocolUDP,
						&layers.UDP{SrcPort: 4000, DstPort: layers.UDPPort(port)}, gopacket.Payload("x"))
				}
				send := func() { b.must(trySend()) }
				before, err := r.Counters()
				b.must(err)
				send()
				b.counts(r, func(c Counters) bool { return c.Admitted == before.Admitted+1 })
				if q := j.sees(t); q.hook != c.hook || q.src != c.src || q.dstPort != port {
					t.Fatalf("queued %+v", q)
				}
				b.must(r.Apply(Update{Generation: generation, FlushAllowed: true}))
				send()
				hook := nftables.ChainHookPrerouting
				if c.hook == unix.NF_INET_LOCAL_OUT {
					hook = nftables.ChainHookOutput
				}
				b.revoke(hook, port)
				// A sender hears of a drop in its own output.
				if err := trySend(); err != nil && (c.hook != unix.NF_INET_LOCAL_OUT || !errors.Is(err, unix.EPERM)) {
					t.Fatal(err)
				}
				b.counts(r, func(c Counters) bool { return c.Refused > before.Refused })
				if seen := j.take(); len(seen) != 0 {
					t.Errorf("queued again: %+v", seen)
				}
			})
		}
	}
}

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

// Two queues share the packets, and --fail-open lets them pass while nobody listens.
func TestNobodyListens(t *testing.T) {
	b := newBed(t)
	b.install(isolated(true, false))
	b.silent(b.client, "udp", podAddrs[0], 80)
	b.silent(b.client, "tcp", podAddrs[1], 80)
	b.install(isolated(true, false), func(c *Config) { c.FailOpen = true; c.QueueCount = 2 })
	b.reaches(b.client, "udp", podAddrs[0], 80)
	b.reaches(b.client, "tcp", podAddrs[1], 80)
}
