package ruleset

import (
	"errors"
	"fmt"
	"net"
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
