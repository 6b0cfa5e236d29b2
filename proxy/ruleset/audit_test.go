package ruleset

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// TestAuditRefusesNothing has a table that enforces adopted by an agent that only audits, and adopted back.
func TestAuditRefusesNothing(t *testing.T) {
	for _, how := range []DenyWith{Drop, Reject} {
		t.Run(how.String(), func(t *testing.T) {
			b := newBed(t)
			enforcing := func(c *Config) { c.DenyWith, c.DeniedTimeout = how, time.Hour }
			r := b.install(isolated(true, false), enforcing)
			invalid := b.invalids(r)
			j := b.judge(allow)
			var conns []net.Conn
			everywhere(t, func(_ *testing.T, network string, _ uint8, i int) {
				c, err := dial(b.client, network, netip.AddrPortFrom(podAddrs[i], 80), long)
				b.must(err)
				b.must(talk(c, long))
				conns = append(conns, c)
			})
			b.revoke(nftables.ChainHookPrerouting, 80)
			j.turn(deny)
			for i, pod := range podAddrs {
				if err := probe(b.client, "udp", netip.AddrPortFrom(pod, 81), short); err == nil {
					t.Errorf("v%d: a denied packet passed", 4+2*i)
				}
			}

			audit := b.open(enforcing, func(c *Config) { c.Audit = true })
			state := isolated(true, false)
			b.must(audit.Install(state))
			for _, c := range conns {
				if err := talk(c, long); err != nil {
					t.Errorf("revoked flow to %v: %v", c.RemoteAddr(), err)
				}
			}
			everywhere(t, func(_ *testing.T, network string, _ uint8, i int) {
				b.reaches(b.client, network, podAddrs[i], 81) // a tuple of the denied set, and an answer that denies
			})
			invalid(1)
			if drifts, err := audit.Check(state); err != nil || len(drifts) != 0 {
				t.Errorf("%v, %v", drifts, err)
			}

			b.install(isolated(true, false), enforcing)
			for i, pod := range podAddrs {
				if err := probe(b.client, "udp", netip.AddrPortFrom(pod, 81), short); err == nil {
					t.Errorf("v%d: a denied packet passed after audit", 4+2*i)
				}
			}
			invalid(1) // that of before
		})
	}
}

// TestInvalidPacketsOfAuditedPods: policies in audit mode do not cost a pod the packets that conntrack finds no place
// for. Those are to the pod, so egress has no say.
func TestInvalidPacketsOfAuditedPods(t *testing.T) {
	b := newBed(t)
	state := isolated(true, true)
	r := b.install(state)
	invalid := b.invalids(r)
	var passed uint64
	for _, c := range []struct {
		ingress, egress bool // whether they only audit
		passes          bool
	}{{false, false, false}, {true, false, true}, {false, true, false}, {true, true, true}} {
		u := Update{Generation: generation}
		for i := range state.Subjects {
			s := state.Subjects[i]
			s.IngressAudit, s.EgressAudit = c.ingress, c.egress
			u.Subjects = append(u.Subjects, s)
		}
		b.must(r.Apply(u))
		if c.passes {
			passed++
		}
		invalid(passed)
		want := State{Generation: generation, PodCIDRs: podCIDRs, Subjects: u.Subjects}
		if drifts, err := r.Check(want); err != nil || len(drifts) != 0 {
			t.Errorf("%+v: %v, %v", c, drifts, err)
		}
	}
	b.must(r.Apply(Update{Generation: generation, Removed: podAddrs}))
	invalid(passed) // to addresses that are not known
}

// invalids returns a function that sends an impossible TCP packet of each family to the pod, waits until the table has
// dropped them or let them pass, and compares how many have passed of each family so far.
func (b *bed) invalids(r *Ruleset) func(passed uint64) {
	b.t.Helper()
	add := b.side("passed", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPrioritySecurity)
	for i, f := range families {
		add(join(f.packets().exprs, compare(f.destination(), expr.CmpOpEq, podAddrs[i].AsSlice()),
			stateIs("invalid", expr.CtStateBitINVALID).exprs, []expr.Any{&expr.Counter{}}))
	}
	var sent uint64
	return func(passed uint64) {
		b.t.Helper()
		for i := range families {
			b.send(b.client, clientAddrs[i], podAddrs[i], layers.IPProtocolTCP,
				&layers.TCP{SrcPort: 4000, DstPort: 80, SYN: true, FIN: true})
			sent++
		}
		for end := time.Now().Add(long); ; time.Sleep(time.Millisecond) {
			c, err := r.Counters()
			b.must(err)
			hits := b.hits("passed")
			if c.Invalid+hits[0]+hits[1] == sent {
				if want := []uint64{passed, passed}; !slices.Equal(hits, want) {
					b.t.Errorf("invalid packets that passed: %v, want %v", hits, want)
				}
				return
			}
			if time.Now().After(end) {
				b.t.Fatalf("of %d invalid packets %d were dropped and %v passed", sent, c.Invalid, hits)
			}
		}
	}
}
