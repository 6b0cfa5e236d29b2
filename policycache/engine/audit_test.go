package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

func audit(p *rule.Policy) *rule.Policy {
	p.Audit = true
	return p
}

func TestAudit(t *testing.T) {
	w := newWorld(t, "n1")
	w.add(podEndpoint("n1", "a", "one", labels(), nil, "10.0.1.1"))
	expect := func(what string, port uint16, action, would Action) Verdict {
		t.Helper()
		w.commit()
		v := w.judge(syn("8.8.8.8", "10.0.1.1", port), Forward, false)
		if v.Action != action || v.Would() != would {
			t.Errorf("%s: %s, would %s; want %s, would %s", what, v.Action, v.Would(), action, would)
		}
		return v
	}
	w.SetPolicy(audit(w.netpol("a", "np", rules(rule.Rule{Ports: tcpPorts(80, 80)}), nil)))
	v := expect("isolated in audit mode only", 81, Allow, Deny)
	if v.Reason != NotIsolated || v.Ingress.Would.Reason != NoRuleMatches || v.Ingress.Would.Policies[0].Name != "np" {
		t.Errorf("%s, would %+v", v.Reason, v.Ingress.Would)
	}
	expect("what the policy allows", 80, Allow, Allow)
	f := syn("8.8.8.8", "10.0.1.1", 80)
	f.Form = packet.Malformed
	if v := w.judge(f, Forward, true); v.Action != Allow {
		t.Errorf("a packet that cannot be read, under a policy in audit mode: %s", v.Action)
	}

	w.SetPolicy(w.netpol("a", "strict", rules(rule.Rule{Ports: tcpPorts(443, 443)}), nil))
	expect("would be allowed", 80, Deny, Allow)
	expect("is allowed", 443, Allow, Allow)
	expect("neither", 22, Deny, Deny)
	w.SetPolicy(audit(wide(rule.Admin, 1, "adm", rules(rule.Rule{Action: rule.Deny}), nil)))
	v = expect("would be denied by another tier", 443, Allow, Deny)
	if v.Ingress.Policies[0].Name != "strict" || v.Ingress.Would.Tier != rule.Admin {
		t.Errorf("%+v", v.Ingress)
	}

	// Turning a policy from audit to enforcing and back affects its subjects.
	enforced := wide(rule.Admin, 1, "adm", rules(rule.Rule{Action: rule.Deny}), nil)
	w.SetPolicy(enforced)
	expect("enforced now", 443, Deny, Deny)
	if w.delta == nil || len(w.delta.Affected) != 1 {
		t.Errorf("delta %+v", w.delta)
	}
	again := *enforced
	w.SetPolicy(audit(&again))
	expect("and no more", 443, Allow, Deny)
}

// TestAuditIsTheDifference compares random policies, some of them in audit mode, with the same without those, and with
// the same enforced: the first is what happens, the second what would.
func TestAuditIsTheDifference(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	const client, server = "8.8.8.8", "10.0.1.1"
	seen := map[[2]Action]int{}
	for range 400 {
		var worlds [3]*world // audited, without, enforced
		for i := range worlds {
			worlds[i] = newWorld(t, "n1")
			worlds[i].add(podEndpoint("n1", "a", "one", labels(), nil, server))
		}
		for i := range r.IntN(6) {
			d := rules()
			for range r.IntN(3) {
				rl := rule.Rule{}
				if first := uint16(80 + r.IntN(4)); r.IntN(3) > 0 {
					rl.Ports = tcpPorts(first, first+uint16(r.IntN(3)))
				}
				d.Rules = append(d.Rules, rl)
			}
			p := worlds[0].netpol("a", fmt.Sprint(i), d, nil)
			if tier := rule.Tier(1 + r.IntN(3)); tier != rule.Namespaced {
				p = wide(tier, int32(r.IntN(3)), fmt.Sprint(i), d, nil)
				for j := range d.Rules {
					d.Rules[j].Action = rule.Action(r.IntN(3))
				}
			}
			p.Audit = r.IntN(2) == 0
			enforced := *p
			enforced.Audit = false
			worlds[0].SetPolicy(p)
			if !p.Audit {
				worlds[1].SetPolicy(p)
			}
			worlds[2].SetPolicy(&enforced)
		}
		for port := uint16(79); port < 87; port++ {
			f := syn(client, server, port)
			var v [3]Verdict
			for i, w := range worlds {
				w.commit()
				v[i] = w.judge(f, Forward, false)
			}
			if v[0].Action != v[1].Action || v[0].Would() != v[2].Action {
				t.Fatalf("port %d: %s, would %s; want %s, would %s",
					port, v[0].Action, v[0].Would(), v[1].Action, v[2].Action)
			}
			if e := v[0].Enforced(); e.Action != v[2].Action ||
				e.Action != v[0].Action && (e.Reason != v[2].Reason || e.Direction != v[2].Direction) {
				t.Fatalf("port %d: enforced %s %s %s, want %s %s %s",
					port, e.Action, e.Reason, e.Direction, v[2].Action, v[2].Reason, v[2].Direction)
			}
			x := Explain(worlds[0].snap, &f, Forward, false)
			if x.Action != v[0].Action || x.Would != v[0].Would() || x.Reason != v[0].Reason {
				t.Fatalf("explained as %s, would %s", x.Action, x.Would)
			}
			seen[[2]Action{v[0].Action, v[0].Would()}]++
		}
	}
	if len(seen) != 4 {
		t.Errorf("seen %v", seen)
	}
}

// TestAuditOfAnswers: a packet in mid-stream that would pass as an answer is no would-deny.
func TestAuditOfAnswers(t *testing.T) {
	w := newWorld(t, "n1")
	w.Model = NewModel(Config{Node: "n1", Audit: true})
	w.add(podEndpoint("n1", "a", "one", labels(), nil, "10.0.1.1"))
	w.add(podEndpoint("n1", "a", "two", labels(), nil, "10.0.1.2"))
	w.SetPolicy(w.netpol("a", "np", rules(rule.Rule{Ports: tcpPorts(80, 80)}), nil))
	w.commit()
	for what, c := range map[string]struct {
		src, dst uint16
		would    Action
	}{
		"an answer from the open port": {80, 40000, Allow},
		"to the open port":             {40000, 80, Allow},
		"between others":               {40000, 81, Deny},
	} {
		f := syn("10.0.1.1", "10.0.1.2", c.dst)
		f.SrcPort, f.TCPFlags = c.src, packet.FlagACK
		v := w.judge(f, Forward, false)
		if e := v.Enforced(); v.Action != Allow || v.Would() != c.would || e.Action != c.would {
			t.Errorf("%s: %s, would %s, enforced %s %s", what, v.Action, v.Would(), e.Action, e.Reason)
		}
		if x := Explain(w.snap, &f, Forward, false); x.Action != Allow || x.Would != c.would {
			t.Errorf("%s: explained as %s, would %s", what, x.Action, x.Would)
		}
	}
}

func TestAuditOfEverything(t *testing.T) {
	w := newWorld(t, "n1")
	w.Model = NewModel(Config{Node: "n1", Audit: true})
	w.add(podEndpoint("n1", "a", "one", labels(), nil, "10.0.1.1"))
	w.SetPodCIDRs(nil, prefixes("10.0.1.0/24"))
	w.SetPolicy(w.netpol("a", "np", rules(), nil))
	w.commit()
	malformed := syn("8.8.8.8", "10.0.1.1", 80)
	malformed.Form = packet.Malformed
	for what, f := range map[string]packet.Flow{
		"isolated": syn("8.8.8.8", "10.0.1.1", 80), "unknown": syn("8.8.8.8", "10.0.1.77", 80), "malformed": malformed,
	} {
		if v := w.judge(f, Forward, false); v.Action != Allow || v.Would() != Deny {
			t.Errorf("%s: %s, would %s", what, v.Action, v.Would())
		}
	}
}
