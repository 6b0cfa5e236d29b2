package ruleset

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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
	// Rarely, a UDP socket gets the port of one before it, and goes on with its flow.
	flows := len(b.ctMarks(podAddrs[0], 80)) + len(b.ctMarks(podAddrs[1], 80))
	c, err := r.Counters()
	b.must(err)
	if c.Queued != 4 || c.Admitted != 4 || int(c.Cached) != flows-4 || flows < 4*18 || c.Refused != 0 || c.Invalid != 0 {
		t.Errorf("counters %+v of %d flows", c, flows)
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
