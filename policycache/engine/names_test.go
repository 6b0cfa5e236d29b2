package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// namesOf are the peers of a domainNames entry.
func namesOf(tb testing.TB, patterns ...string) (peers []rule.Peer) {
	tb.Helper()
	for _, s := range patterns {
		p, err := domain.Parse(s)
		if err != nil {
			tb.Fatal(err)
		}
		peers = append(peers, rule.Peer{Kind: rule.Names, Name: p})
	}
	return peers
}

var zero = time.Unix(1_000_000, 0)

// learn has the pod be told that these addresses are those of the names, one after the other in a chain; until is from
// zero on.
func (w *world) learn(pod string, until time.Duration, names string, addrs ...string) {
	a := domain.Answer{Names: strings.Fields(names)}
	for _, s := range addrs {
		a.Addrs = append(a.Addrs, netip.MustParseAddr(s))
	}
	w.Learn(netip.MustParseAddr(pod), a, zero.Add(until))
}

// reaches asks for new connections, and says whether established ones would stay.
func (w *world) reaches(src, dst string) (open, stays bool) {
	f := syn(src, dst, 443)
	return w.judge(f, Forward, true).Action == Allow, w.ev.JudgeEstablished(w.snap, &f, Forward).Action == Allow
}

func (w *world) expect(what, src, dst string, open, stays bool) {
	w.Helper()
	if o, s := w.reaches(src, dst); o != open || s != stays {
		w.Errorf("%s: %s to %s open %t, stays %t, want %t, %t", what, src, dst, o, s, open, stays)
	}
}

func named(d *Delta) string {
	if d == nil {
		return "nothing"
	}
	return fmt.Sprint(d.Affected, d.Named)
}

// namesWorld has two pods that may reach *.example.com and nothing else outside.
func namesWorld(tb testing.TB) *world {
	w := newWorld(tb, "n1")
	w.add(
		podEndpoint("n1", "a", "one", labels("app", "one"), nil, "10.0.1.1", "fd00:1::1"),
		podEndpoint("n1", "a", "two", labels("app", "two"), nil, "10.0.1.2"),
		podEndpoint("n2", "b", "far", labels("app", "far"), nil, "10.0.2.1"),
		nodeEndpoint("n2", labels(), "192.168.0.2"),
	)
	w.SetPodCIDRs(prefixes("10.0.0.0/16"), prefixes("10.0.1.0/24"))
	w.SetPolicy(wide(rule.Admin, 1, "names", nil, rules(
		rule.Rule{Action: rule.Accept, Peers: namesOf(tb, "*.example.com", "exact.org")}, rule.Rule{Action: rule.Deny})))
	w.commit()
	return w
}

func TestNames(t *testing.T) {
	w := namesWorld(t)
	if !w.snap.Subject(netip.MustParseAddr("10.0.1.1")).Names {
		t.Error("the kernel is not told to have the pod followed")
	}
	w.expect("before", "10.0.1.1", "198.51.100.1", false, false)
	w.learn("10.0.1.1", time.Minute, "www.example.com cdn.net", "198.51.100.1", "2001:db8::1")
	if got := named(w.commit()); got != "[] [10.0.1.1 fd00:1::1]" {
		t.Errorf("affected and named %s", got)
	}
	w.expect("the pod that asked", "10.0.1.1", "198.51.100.1", true, true)
	w.expect("its other address", "fd00:1::1", "2001:db8::1", true, true)
	w.expect("another address", "10.0.1.1", "198.51.100.2", false, false)
	w.expect("another pod", "10.0.1.2", "198.51.100.1", false, false)
	w.expect("back", "198.51.100.1", "10.0.1.1", true, true) // nothing is isolated for ingress

	w.learn("10.0.1.1", 2*time.Minute, "www.example.com", "198.51.100.1")
	w.learn("10.0.1.1", 2*time.Minute, "other.net", "198.51.100.3")
	if d := w.commit(); d != nil {
		t.Errorf("a name that holds longer and one that nobody asks for changed %s", named(d))
	}
	w.expect("a name that no policy has", "10.0.1.1", "198.51.100.3", false, false)
	w.Lapse(zero.Add(time.Minute))
	if got := named(w.commit()); got != "[] [10.0.1.1 fd00:1::1]" {
		t.Errorf("what lapsed affected %s", got)
	}
	w.expect("asked for again", "10.0.1.1", "198.51.100.1", true, true)
	w.expect("lapsed", "fd00:1::1", "2001:db8::1", false, true)
	w.Lapse(zero.Add(2 * time.Minute))
	w.commit()
	w.expect("lapsed now", "10.0.1.1", "198.51.100.1", false, true)
	w.learn("10.0.1.1", time.Hour, "exact.org", "198.51.100.1")
	w.commit()
	w.expect("under another name", "10.0.1.1", "198.51.100.1", true, true)
}

// TestNamesAndPolicies: policies that come later know what was learned, those that go take it away.
func TestNamesAndPolicies(t *testing.T) {
	w := namesWorld(t)
	w.learn("10.0.1.1", time.Hour, "www.late.net", "198.51.100.1")
	w.learn("10.0.1.1", time.Hour, "www.example.com", "198.51.100.2")
	w.commit()
	w.SetPolicy(wide(rule.Admin, 0, "late", nil, rules(rule.Rule{Peers: namesOf(t, "*.late.net")})))
	w.commit()
	w.expect("a later policy", "10.0.1.1", "198.51.100.1", true, true)
	w.expect("and the first", "10.0.1.1", "198.51.100.2", true, true)
	w.DeletePolicy(rule.Ref{Dialect: rule.ClusterNetworkPolicy, Name: "late"})
	w.commit()
	w.expect("after it went", "10.0.1.1", "198.51.100.1", false, false)
	w.expect("beside it", "10.0.1.1", "198.51.100.2", true, true)
	w.SetPolicy(wide(rule.Admin, 1, "names", nil, rules(rule.Rule{Action: rule.Deny})))
	w.commit()
	w.expect("no names any more", "10.0.1.1", "198.51.100.2", false, false)
	if s := w.snap.Subject(netip.MustParseAddr("10.0.1.1")); s.Names || !s.Egress {
		t.Errorf("%+v", s)
	}
}

// TestNamesAreNoWayIntoTheCluster: what pods and nodes own, and the pod CIDRs, is for other peers.
func TestNamesAreNoWayIntoTheCluster(t *testing.T) {
	w := namesWorld(t)
	answer := domain.Answer{Names: []string{"www.example.com"}}
	for _, a := range []string{"10.0.2.1", "192.168.0.2", "10.0.7.7", "198.51.100.1", "10.0.1.2"} {
		answer.Addrs = append(answer.Addrs, netip.MustParseAddr(a))
	}
	pod := netip.MustParseAddr("10.0.1.1")
	if w.snap.Learned(pod, &answer) {
		t.Error("learned before it was told")
	}
	w.Learn(pod, answer, zero.Add(time.Hour))
	if w.snap.Learned(pod, &answer) {
		t.Error("learned before it was committed")
	}
	w.commit()
	if !w.snap.Learned(pod, &answer) {
		t.Error("not learned")
	}
	for _, a := range []string{"10.0.2.1", "192.168.0.2", "10.0.7.7", "10.0.1.2"} {
		w.expect("inside", "10.0.1.1", a, false, false)
	}
	w.expect("outside", "10.0.1.1", "198.51.100.1", true, true)
	// It becomes a node's.
	w.add(nodeEndpoint("n3", labels(), "198.51.100.1"))
	if d := w.commit(); !slices.Contains(d.Affected, netip.MustParseAddr("198.51.100.1")) {
		t.Errorf("affected %s", named(d))
	}
	w.expect("a node's now", "10.0.1.1", "198.51.100.1", false, false)
	// The pod CIDRs grow over what was learned.
	w.learn("10.0.1.1", time.Hour, "www.example.com", "198.51.100.9")
	w.commit()
	w.expect("outside yet", "10.0.1.1", "198.51.100.9", true, true)
	w.SetPodCIDRs(prefixes("10.0.0.0/16", "198.51.100.0/24"), prefixes("10.0.1.0/24"))
	w.commit()
	w.expect("inside now", "10.0.1.1", "198.51.100.9", false, false)
}

// TestNamesBelongToThePod: another pod with its address starts with nothing, a relabelled one keeps what it has.
func TestNamesBelongToThePod(t *testing.T) {
	w := namesWorld(t)
	w.learn("10.0.1.1", time.Hour, "www.example.com", "198.51.100.1")
	w.commit()
	w.add(podEndpoint("n1", "a", "one", labels("app", "renamed"), nil, "10.0.1.1", "fd00:1::1"))
	w.commit()
	w.expect("relabelled", "10.0.1.1", "198.51.100.1", true, true)
	w.add(podEndpoint("n1", "a", "another", labels("app", "renamed"), nil, "10.0.1.1"))
	w.commit()
	w.expect("another pod", "10.0.1.1", "198.51.100.1", false, false)
	w.learn("10.0.1.1", time.Hour, "www.example.com", "198.51.100.1")
	w.commit()
	w.drop(&endpoint.Endpoint{Addrs: []netip.Addr{netip.MustParseAddr("10.0.1.1")}})
	w.commit()
	if n := w.Names(); n != nil {
		t.Errorf("pods are remembered: %v", n)
	}
	remote, nobody := netip.MustParseAddr("10.0.2.1"), netip.MustParseAddr("9.9.9.9")
	if w.Learn(remote, domain.Answer{}, zero) || w.Learn(nobody, domain.Answer{}, zero) {
		t.Error("learned for what is no pod of the node")
	}
}

func TestExplainNames(t *testing.T) {
	w := namesWorld(t)
	w.learn("10.0.1.1", time.Minute, "www.example.com", "198.51.100.1")
	w.learn("10.0.1.1", time.Second, "old.example.com", "198.51.100.2")
	w.Lapse(zero.Add(time.Second))
	w.commit()
	why := func(src, dst string) string {
		f := syn(src, dst, 443)
		x := Explain(w.snap, &f, Forward, true)
		if v := w.judge(f, Forward, true); v.Action != x.Action || v.Egress != x.Egress.Decision {
			t.Errorf("%s to %s: judged %v, explained %v", src, dst, v.Action, x.Action)
		}
		return x.Egress.Policies[0].Rules[0].Why
	}
	for _, c := range []struct{ src, dst, want string }{
		{"10.0.1.1", "198.51.100.1", "names *.example.com: the pod has asked for www.example.com"},
		{"10.0.1.1", "198.51.100.2", "names *.example.com (old.example.com was asked for too long ago)"},
		{"10.0.1.1", "198.51.100.3", "not among names *.example.com, nor names exact.org"},
		{"10.0.1.2", "198.51.100.1", "names *.example.com (the pod has learned none)"},
		{"10.0.1.1", "192.168.0.2", "names *.example.com (which no pods and nodes have)"},
	} {
		if got := why(c.src, c.dst); !strings.Contains(got, c.want) {
			t.Errorf("%s to %s: %q, want %q", c.src, c.dst, got, c.want)
		}
	}
}

// TestNamesAreTheReferences goes through random histories and compares every verdict with a list of all that was said.
func TestNamesAreTheReferences(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	hosts := []string{"www.example.com", "a.b.example.com", "example.com", "exact.org", "x.exact.org", "late.net"}
	patterns := []string{"*.example.com", "exact.org", "*.exact.org", "late.net"}
	pods, addrs := []string{"10.0.1.1", "10.0.1.2"}, []string{"198.51.100.1", "198.51.100.2", "2001:db8::1", "10.0.9.9"}
	type saying struct {
		pod, addr string
		names     string
		until     time.Duration
	}
	allowed := 0
	for round := range 60 {
		w := namesWorld(t)
		accepted := []string{"*.example.com", "exact.org"}
		var said []saying
		now := time.Duration(0)
		for range 40 {
			switch r.IntN(4) {
			case 0, 1:
				s := saying{
					pods[r.IntN(2)], addrs[r.IntN(4)],
					hosts[r.IntN(6)] + " " + hosts[r.IntN(6)], now + time.Duration(1+r.IntN(20))*time.Second,
				}
				said = append(said, s)
				w.learn(s.pod, s.until, s.names, s.addr)
			case 2:
				now += time.Duration(r.IntN(8)) * time.Second
			case 3:
				accepted = nil
				for _, p := range patterns {
					if r.IntN(2) == 0 {
						accepted = append(accepted, p)
					}
				}
				w.SetPolicy(wide(rule.Admin, 1, "names", nil, rules(
					rule.Rule{Action: rule.Accept, Peers: namesOf(t, accepted...)}, rule.Rule{Action: rule.Deny})))
				if len(accepted) == 0 {
					w.SetPolicy(wide(rule.Admin, 1, "names", nil, rules(rule.Rule{Action: rule.Deny})))
				}
			}
			w.Lapse(zero.Add(now))
			w.commit()
			for _, pod := range pods {
				for _, addr := range addrs {
					open, stays := false, false
					for _, s := range said {
						if s.pod != pod || s.addr != addr || addr == "10.0.9.9" {
							continue
						}
						for name := range strings.FieldsSeq(s.names) {
							for _, p := range namesOf(t, accepted...) {
								open = open || p.Name.Matches(name) && s.until > now
								stays = stays || p.Name.Matches(name)
							}
						}
					}
					if strings.Contains(addr, ":") {
						continue // said to its IPv4 address, which cannot connect there
					}
					if open {
						allowed++
					}
					if o, s := w.reaches(pod, addr); o != open || s != stays {
						t.Fatalf("round %d, %s to %s at %v, accepted %v: open %t, stays %t, want %t, %t\n%+v",
							round, pod, addr, now, accepted, o, s, open, stays, said)
					}
				}
			}
		}
	}
	if allowed < 500 {
		t.Errorf("%d connections were allowed: the generator is no good", allowed)
	}
}

// TestClassesAreShared: addresses whose names match the same patterns cost one pair.
func TestClassesAreShared(t *testing.T) {
	w := namesWorld(t)
	for i := range 100 {
		w.learn("10.0.1.1", time.Hour, fmt.Sprintf("h%d.example.com", i), fmt.Sprintf("198.51.100.%d", i))
	}
	w.commit()
	before := w.ev.Stats().Misses
	for i := range 100 {
		w.expect("one of many", "10.0.1.1", fmt.Sprintf("198.51.100.%d", i), true, true)
	}
	if n := w.ev.Stats().Misses - before; n != 1 {
		t.Errorf("%d pairs were compiled", n)
	}
}
