package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// TestTiers walks through the order of evaluation (ClusterNetworkPolicySpec.Tier, Priority, and the rules' Action).
func TestTiers(t *testing.T) {
	everyone := func(a rule.Action) *rule.Direction { return rules(rule.Rule{Action: a}) }
	on := func(a rule.Action, port uint16) rule.Rule { return rule.Rule{Action: a, Ports: tcpPorts(port, port)} }
	for _, c := range []struct {
		name     string
		policies func(w *world) []*rule.Policy
		port     uint16
		want     Action
		reason   Reason
		tier     rule.Tier
		policy   string
	}{
		{"no policy", func(*world) []*rule.Policy { return nil }, 80, Allow, NotIsolated, 0, ""},
		{"admin accepts what NetworkPolicy would refuse", func(w *world) []*rule.Policy {
			return []*rule.Policy{wide(rule.Admin, 5, "adm", everyone(rule.Accept), nil), w.netpol("a", "np", rules(), nil)}
		}, 80, Allow, AllowedByRule, rule.Admin, "adm"},
		{"admin denies what NetworkPolicy would allow", func(w *world) []*rule.Policy {
			return []*rule.Policy{
				wide(rule.Admin, 5, "adm", everyone(rule.Deny), nil), w.netpol("a", "np", everyone(rule.Accept), nil),
			}
		}, 80, Deny, DeniedByRule, rule.Admin, "adm"},
		{"the lower priority value comes first", func(*world) []*rule.Policy {
			return []*rule.Policy{
				wide(rule.Admin, 9, "a-late", everyone(rule.Accept), nil), wide(rule.Admin, 3, "z-early", everyone(rule.Deny), nil),
			}
		}, 80, Deny, DeniedByRule, rule.Admin, "z-early"},
		{"at the same priority the name decides", func(*world) []*rule.Policy {
			return []*rule.Policy{
				wide(rule.Admin, 3, "b", everyone(rule.Accept), nil), wide(rule.Admin, 3, "a", everyone(rule.Deny), nil),
			}
		}, 80, Deny, DeniedByRule, rule.Admin, "a"},
		{"the first rule of a policy comes first", func(*world) []*rule.Policy {
			return []*rule.Policy{wide(rule.Admin, 3, "adm", rules(on(rule.Accept, 80), on(rule.Deny, 80)), nil)}
		}, 80, Allow, AllowedByRule, rule.Admin, "adm"},
		{"pass skips the rest of the tier", func(w *world) []*rule.Policy {
			return []*rule.Policy{
				wide(rule.Admin, 1, "pass", everyone(rule.Pass), nil), wide(rule.Admin, 2, "deny", everyone(rule.Deny), nil),
				w.netpol("a", "np", rules(on(rule.Accept, 80)), nil),
			}
		}, 80, Allow, AllowedByRule, rule.Namespaced, "np"},
		{"pass leaves other ports to the tier", func(*world) []*rule.Policy {
			return []*rule.Policy{
				wide(rule.Admin, 1, "pass", rules(on(rule.Pass, 80)), nil), wide(rule.Admin, 2, "deny", everyone(rule.Deny), nil),
			}
		}, 81, Deny, DeniedByRule, rule.Admin, "deny"},
		{"NetworkPolicy has the last word where it isolates", func(w *world) []*rule.Policy {
			return []*rule.Policy{
				w.netpol("a", "np", rules(on(rule.Accept, 81)), nil), wide(rule.Baseline, 1, "base", everyone(rule.Accept), nil),
			}
		}, 80, Deny, NoRuleMatches, rule.Namespaced, "np"},
		{"baseline where no NetworkPolicy isolates", func(w *world) []*rule.Policy {
			return []*rule.Policy{
				w.netpol("b", "np", rules(), nil), wide(rule.Baseline, 1, "base", everyone(rule.Deny), nil),
			}
		}, 80, Deny, DeniedByRule, rule.Baseline, "base"},
		{"a NetworkPolicy of the other direction does not stop baseline", func(w *world) []*rule.Policy {
			return []*rule.Policy{
				w.netpol("a", "np", nil, rules()), wide(rule.Baseline, 1, "base", everyone(rule.Deny), nil),
			}
		}, 80, Deny, DeniedByRule, rule.Baseline, "base"},
		{"pass in the last tier allows", func(*world) []*rule.Policy {
			return []*rule.Policy{
				wide(rule.Baseline, 1, "pass", everyone(rule.Pass), nil), wide(rule.Baseline, 2, "deny", everyone(rule.Deny), nil),
			}
		}, 80, Allow, NotIsolated, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, "n1")
			w.add(podEndpoint("n1", "a", "one", labels("app", "x"), nil, "10.0.1.1"))
			for _, p := range c.policies(w) {
				w.SetPolicy(p)
			}
			w.commit()
			f := syn("8.8.8.8", "10.0.1.1", c.port)
			v := w.judge(f, Forward, false)
			if v.Action != c.want || v.Reason != c.reason || v.Ingress.Tier != c.tier {
				t.Fatalf("%s %s, %+v", v.Action, v.Reason, v.Ingress)
			}
			if c.policy != "" && (len(v.Ingress.Policies) != 1 || v.Ingress.Policies[0].Name != c.policy) {
				t.Errorf("decided by %v, want %s", v.Ingress.Policies, c.policy)
			}
			if x := Explain(w.snap, &f, Forward, false); x.Action != v.Action || x.Ingress.Decision != v.Ingress {
				t.Errorf("explained as %+v", x.Ingress)
			}
		})
	}
}

// TestOwnNodeAndTiers: the node's own traffic is not subject to NetworkPolicy, but to the other tiers.
func TestOwnNodeAndTiers(t *testing.T) {
	w := newWorld(t, "n1")
	w.add(podEndpoint("n1", "a", "one", labels("app", "x"), nil, "10.0.1.1"),
		nodeEndpoint("n1", labels("zone", "z"), "192.168.0.1"), nodeEndpoint("n2", labels(), "192.168.0.2"))
	w.SetPolicy(w.netpol("a", "np", rules(), rules()))
	w.commit()
	expect := func(what string, f packet.Flow, hook Hook, want Action, reason Reason) {
		t.Helper()
		v := w.judge(f, hook, false)
		if v.Action != want || v.Reason != reason {
			t.Errorf("%s: %s %s, want %s %s", what, v.Action, v.Reason, want, reason)
		}
		if x := Explain(w.snap, &f, hook, false); x.Action != v.Action || x.Reason != v.Reason {
			t.Errorf("%s: explained as %s %s, judged %s %s", what, x.Action, x.Reason, v.Action, v.Reason)
		}
	}
	in, out := syn("192.168.0.1", "10.0.1.1", 80), syn("10.0.1.1", "192.168.0.1", 80)
	expect("the node itself", in, Output, Allow, OwnNode)
	expect("its address from elsewhere", in, Forward, Deny, NoRuleMatches)
	expect("another node", syn("192.168.0.2", "10.0.1.1", 80), Forward, Deny, NoRuleMatches)
	expect("to the node", out, Input, Allow, OwnNode)
	expect("to an address of the node that no object has", syn("10.0.1.1", "172.17.0.1", 80), Input, Allow, OwnNode)
	expect("to another node", syn("10.0.1.1", "192.168.0.2", 80), Forward, Deny, NoRuleMatches)

	nodes := []rule.Peer{{Kind: rule.Nodes, Labels: selector(t, "zone", "z")}}
	ssh := rule.Rule{Action: rule.Deny, Peers: nodes, Ports: tcpPorts(22, 22)}
	w.SetPolicy(wide(rule.Admin, 1, "adm", nil, rules(ssh)))
	w.commit()
	expect("admin denies a port of the node", syn("10.0.1.1", "192.168.0.1", 22), Input, Deny, DeniedByRule)
	expect("and no other", out, Input, Allow, OwnNode)
	w.DeletePolicy(rule.Ref{Dialect: rule.NetworkPolicy, Namespace: "a", Name: "np"})
	w.SetPolicy(wide(rule.Baseline, 1, "base", nil, rules(rule.Rule{Action: rule.Deny})))
	w.commit()
	expect("baseline, without a NetworkPolicy", out, Input, Deny, DeniedByRule)
}

// TestRandomTiersAreExplained compares the merged tables with the rule by rule walk over random policies of all tiers.
func TestRandomTiersAreExplained(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	named := cluster.InternPorts([]cluster.NamedPort{
		{Name: "http", Proto: packet.ProtoTCP, Port: 82}, {Name: "http", Proto: packet.ProtoUDP, Port: 83},
	})
	reasons := map[Reason]int{}
	for range 300 {
		w := newWorld(t, []string{"n1", ""}[r.IntN(2)])
		sides := []string{"10.0.1.1", "10.0.1.2", "10.0.2.1", "192.168.0.1", "8.8.8.8"}
		w.add(podEndpoint("n1", "a", "one", labels("app", "x"), named, sides[0]),
			podEndpoint("n1", "b", "two", labels("app", "y"), nil, sides[1]),
			podEndpoint("n2", "a", "far", labels("app", "y"), named, sides[2]),
			nodeEndpoint("n1", labels("app", "x"), sides[3]))
		direction := func() *rule.Direction {
			d := rules()
			for range r.IntN(4) {
				rl := rule.Rule{}
				for range r.IntN(3) {
					rl.Peers = append(rl.Peers, []rule.Peer{
						podsOf("a", rule.Selector{})[0], podsOf("b", selector(t, "app", "y"))[0],
						{Kind: rule.Pods, Namespaces: &rule.Selector{}, Labels: selector(t, "app", "x")},
						block("10.0.0.0/16", "10.0.1.0/24")[0], block("0.0.0.0/0", "8.0.0.0/7")[0], {Kind: rule.Nodes},
					}[r.IntN(6)])
				}
				for range r.IntN(3) {
					first := uint16(80 + r.IntN(4))
					rl.Ports = append(rl.Ports, []rule.Port{
						{Proto: packet.ProtoTCP, First: first, Last: first + uint16(r.IntN(3))},
						rule.AllPorts(packet.ProtoUDP), {Proto: packet.ProtoTCP, Name: "http"}, {Name: "http"},
					}[r.IntN(4)])
				}
				d.Rules = append(d.Rules, rl)
			}
			return d
		}
		for i := range r.IntN(7) {
			var p *rule.Policy
			if tier := rule.Tier(1 + r.IntN(3)); tier == rule.Namespaced {
				p = w.netpol([]string{"a", "b"}[r.IntN(2)], fmt.Sprint(i), direction(), direction())
			} else {
				p = wide(tier, int32(r.IntN(3)), fmt.Sprint(i), direction(), direction())
				for _, d := range []*rule.Direction{p.Ingress, p.Egress} {
					for j := range d.Rules {
						d.Rules[j].Action = rule.Action(r.IntN(3))
					}
				}
			}
			w.SetPolicy(p)
		}
		w.commit()
		for range 300 {
			proto := []uint8{packet.ProtoTCP, packet.ProtoTCP, packet.ProtoUDP, packet.ProtoSCTP, packet.ProtoICMP}[r.IntN(5)]
			f := flow(sides[r.IntN(5)], sides[r.IntN(5)], proto, uint16(80+r.IntN(5)), uint16(80+r.IntN(5)))
			if f.Proto == packet.ProtoTCP && r.IntN(4) == 0 {
				f.TCPFlags = packet.FlagACK
			}
			hook := Hook(r.IntN(3))
			v, x := w.judge(f, hook, false), Explain(w.snap, &f, hook, false)
			if v.Action != x.Action || v.Reason != x.Reason || v.Direction != x.Direction ||
				x.Egress.decision() != v.Egress || x.Ingress.decision() != v.Ingress {
				t.Fatalf("%+v at %s: judged %s %s %+v %+v, explained %+v", f, hook, v.Action, v.Reason, v.Egress, v.Ingress, x)
			}
			reasons[v.Reason]++
		}
	}
	for _, want := range []Reason{
		NoSubject, NotIsolated, AllowedByRule, DeniedByRule, NoRuleMatches, OwnNode, Hairpin, MidStreamReverse,
	} {
		if reasons[want] == 0 {
			t.Errorf("never seen: %s", want)
		}
	}
}

func TestUnknownAddresses(t *testing.T) {
	w := newWorld(t, "n1")
	w.add(podEndpoint("n1", "a", "one", labels("app", "x"), nil, "10.0.1.1"),
		podEndpoint("n1", "b", "open", labels(), nil, "10.0.1.2"),
		nodeEndpoint("n1", labels(), "192.168.0.1"))
	w.SetPolicy(w.netpol("a", "np", rules(rule.Rule{Peers: block("10.0.0.0/8")}), rules()))
	w.SetPodCIDRs(prefixes("10.0.1.0/24", "10.0.2.0/24"), prefixes("10.0.1.0/24"))
	w.commit()
	const isolated, open, local, remote, outside = "10.0.1.1", "10.0.1.2", "10.0.1.77", "10.0.2.77", "8.8.8.8"
	for _, c := range []struct {
		what     string
		src, dst string
		hook     Hook
		awaited  string // "": not held
		after    Action
		reason   Reason
	}{
		{"unknown remote client of an isolated pod", remote, isolated, Forward, remote, Allow, AllowedByRule},
		{"unknown remote server of an isolated pod", isolated, remote, Forward, remote, Deny, NoRuleMatches},
		{"unknown remote client of an open pod", remote, open, Forward, "", Allow, NotIsolated},
		{"external client", outside, isolated, Forward, "", Deny, NoRuleMatches},
		{"new local pod as the client", local, outside, Forward, local, Deny, UnknownEndpoint},
		{"new local pod as the server", outside, local, Forward, local, Deny, UnknownEndpoint},
		{"new local pod and an open one", open, local, Forward, local, Deny, UnknownEndpoint},
		{"new local pod to the node", local, "192.168.0.1", Input, local, Deny, UnknownEndpoint},
		{"the node to a new local pod", "192.168.0.1", local, Output, "", Allow, OwnNode},
		{"the node's bridge address to a pod", "10.0.1.254", isolated, Output, "", Allow, OwnNode},
		{"a pod to the node's bridge address", isolated, "10.0.1.254", Input, "", Allow, OwnNode},
		{"the node under a strange address to a pod", remote, isolated, Output, "", Allow, AllowedByRule},
		{"the node's bridge address to the world", "10.0.1.254", outside, Output, "", Allow, NoSubject},
		{"the world to the node's bridge address", outside, "10.0.1.254", Input, "", Allow, NoSubject},
		{"two unknown remote addresses", remote, "10.0.2.78", Forward, "", Allow, NoSubject},
		{"hairpin of an unknown pod", local, local, Forward, "", Allow, Hairpin},
	} {
		t.Run(c.what, func(t *testing.T) {
			f := syn(c.src, c.dst, 80)
			v := w.judge(f, c.hook, false)
			if c.awaited != "" {
				want := Verdict{Action: Hold, Reason: AwaitingEndpoint, Src: v.Src, Dst: v.Dst}
				if want.Awaited = netip.MustParseAddr(c.awaited); v != want {
					t.Errorf("%+v, want %+v", v, want)
				}
			}
			if c.awaited == "" && v.Action == Hold {
				t.Errorf("held for %s", v.Awaited)
			}
			if v = w.judge(f, c.hook, true); v.Action != c.after || v.Reason != c.reason {
				t.Errorf("after the wait: %s %s, want %s %s", v.Action, v.Reason, c.after, c.reason)
			}
			for _, held := range []bool{false, true} {
				v, x := w.judge(f, c.hook, held), Explain(w.snap, &f, c.hook, held)
				if v.Action != x.Action || v.Reason != x.Reason || (x.Awaited != nil) != v.Awaited.IsValid() {
					t.Errorf("explained as %s %s", x.Action, x.Reason)
				}
			}
		})
	}
}

func TestPacketsThatCannotBeRead(t *testing.T) {
	w := newWorld(t, "n1")
	w.add(podEndpoint("n1", "a", "one", labels(), nil, "10.0.1.1"),
		podEndpoint("n1", "b", "open", labels(), nil, "10.0.1.2"))
	w.SetPolicy(w.netpol("a", "np", rules(rule.Rule{}), nil)) // ingress only, everything allowed
	w.SetPodCIDRs(nil, prefixes("10.0.1.0/24"))
	w.commit()
	for _, c := range []struct {
		what, src, dst string
		want           Action
		reason         Reason
		direction      Direction
	}{
		{"to an isolated pod", "8.8.8.8", "10.0.1.1", Deny, Malformed, Ingress},
		{"from a pod that is isolated the other way", "10.0.1.1", "8.8.8.8", Allow, MalformedNotIsolated, NoDirection},
		{"between others", "8.8.8.8", "10.0.1.2", Allow, MalformedNotIsolated, NoDirection},
		{"to a pod not known yet", "8.8.8.8", "10.0.1.77", Deny, Malformed, Ingress},
		{"from a pod not known yet", "10.0.1.77", "8.8.8.8", Deny, Malformed, Egress},
	} {
		f := syn(c.src, c.dst, 80)
		f.Form = packet.Malformed
		for _, held := range []bool{false, true} {
			if v := w.judge(f, Forward, held); v.Action != c.want || v.Reason != c.reason || v.Direction != c.direction {
				t.Errorf("%s: %s %s %s", c.what, v.Action, v.Reason, v.Direction)
			}
		}
	}
	open := netip.MustParseAddr("10.0.1.2")
	for _, f := range []packet.Flow{{}, {Src: open}, {Dst: open, Form: packet.Complete}} {
		if v := w.judge(f, Forward, true); v.Action != Deny || v.Reason != Malformed {
			t.Errorf("without addresses: %s %s", v.Action, v.Reason)
		}
	}
	fragment := flow("8.8.8.8", "10.0.1.1", packet.ProtoTCP, 0, 0)
	fragment.Form = packet.Fragment
	if v := w.judge(fragment, Forward, false); v.Action != Allow {
		t.Errorf("a fragment, and a rule without ports: %s %s", v.Action, v.Reason)
	}
	w.SetPolicy(w.netpol("a", "np", rules(rule.Rule{Ports: []rule.Port{rule.AllPorts(packet.ProtoTCP)}}), nil))
	w.commit()
	if v := w.judge(fragment, Forward, false); v.Action != Deny || v.Reason != NoRuleMatches {
		t.Errorf("a fragment, and a rule with ports: %s %s", v.Action, v.Reason)
	}
}

func TestVerdictNamesTheDirectionThatDenied(t *testing.T) {
	w := newWorld(t, "n1")
	w.add(podEndpoint("n1", "a", "one", labels(), nil, "10.0.1.1"),
		podEndpoint("n1", "b", "two", labels(), nil, "10.0.1.2"))
	for _, c := range []struct {
		out, in *rule.Direction
		want    Direction
	}{
		{rules(), rules(), Egress}, {rules(), nil, Egress}, {nil, rules(), Ingress},
		{rules(rule.Rule{}), rules(), Ingress}, {rules(), rules(rule.Rule{}), Egress},
		{rules(rule.Rule{}), rules(rule.Rule{}), NoDirection}, {nil, nil, NoDirection},
	} {
		w.SetPolicy(w.netpol("a", "np", nil, c.out))
		w.SetPolicy(w.netpol("b", "np", c.in, nil))
		w.commit()
		v := w.judge(syn("10.0.1.1", "10.0.1.2", 80), Forward, false)
		if v.Direction != c.want || (v.Action == Allow) != (c.want == NoDirection) || v.Egress == nil || v.Ingress == nil {
			t.Errorf("%+v %+v: %s %s %s", c.out, c.in, v.Action, v.Direction, v.Reason)
		}
	}
}
