package reach

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/label"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// probes are the ports that slow comparisons look at: all ends of the ranges that generated rules have, and what lies
// beside them.
var probes = func() []Span {
	list := []Span{{Proto: packet.ProtoICMP}}
	for _, proto := range rule.Protocols {
		for _, n := range []uint16{1, 79, 80, 81, 90, 91, 443, 8080, 65535} {
			list = append(list, Span{proto, n, n})
		}
	}
	return list
}()

// cidrs are what generated rules and clusters have.
var cidrs = []string{
	"10.0.0.0/24", "10.0.0.0/29", "10.0.0.4/32", "0.0.0.0/0", "192.0.2.0/24", "192.0.2.128/25", "fd00::/64",
}

var podCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}

// strangers are addresses outside of the cluster.
var strangers = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("198.51.100.1"),
	netip.MustParseAddr("2001:db8::1"),
}

func endpoints(t *rapid.T) []*endpoint.Endpoint {
	named := cluster.InternPorts([]cluster.NamedPort{{Name: "web", Proto: packet.ProtoTCP, Port: 8080}})
	var all []*endpoint.Endpoint
	for i := range rapid.IntRange(2, 9).Draw(t, "pods") {
		ns := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "namespace")
		ep := &endpoint.Endpoint{
			Kind: identity.Pod, Namespace: ns, Name: fmt.Sprint("p", i), Node: rapid.SampledFrom(nodes).Draw(t, "node"),
			Identity: identity.Intern(identity.Identity{
				Kind: identity.Pod, Namespace: ns, NamespaceLabels: label.Of(map[string]string{"ns": ns}),
				Labels: label.Of(map[string]string{"app": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app")}),
			}),
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})},
		}
		if rapid.Bool().Draw(t, "dual stack") {
			ep.Addrs = append(ep.Addrs, netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1)))
		}
		if rapid.Bool().Draw(t, "named port") {
			ep.Ports = named
		}
		all = append(all, ep)
	}
	for i, name := range nodes {
		all = append(all, &endpoint.Endpoint{
			Kind: identity.Node, Name: name, Node: name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)})},
			Identity: identity.Intern(identity.Identity{Kind: identity.Node, Labels: label.Of(map[string]string{"n": name})}),
		})
	}
	return all
}

var nodes = []string{"n1", "n2"}

func selector(t *rapid.T, key string, values ...string) rule.Selector {
	value := rapid.SampledFrom(append(values, "")).Draw(t, key)
	if value == "" {
		return rule.Selector{}
	}
	s, err := rule.MatchLabels(map[string]string{key: value})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func peer(t *rapid.T) rule.Peer {
	switch rapid.IntRange(0, 2).Draw(t, "peer") {
	case 0:
		cidr := netip.MustParsePrefix(rapid.SampledFrom(cidrs).Draw(t, "cidr"))
		b := &rule.Block{CIDR: cidr}
		if cidr.Bits() == 0 {
			b.Except = []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}
		}
		return rule.Peer{Kind: rule.Addresses, Block: b}
	case 1:
		return rule.Peer{Kind: rule.Nodes, Labels: selector(t, "n", nodes...)}
	}
	ns := selector(t, "ns", "a", "b")
	return rule.Peer{Kind: rule.Pods, Namespaces: &ns, Labels: selector(t, "app", "x", "y")}
}

func port(t *rapid.T) rule.Port {
	proto := rapid.SampledFrom(rule.Protocols[:]).Draw(t, "proto")
	switch rapid.IntRange(0, 3).Draw(t, "port") {
	case 0:
		return rule.Port{Proto: proto, Name: "web"}
	case 1:
		return rule.AllPorts(proto)
	case 2:
		return rule.Port{Proto: proto, First: 80, Last: 90}
	}
	n := rapid.SampledFrom([]uint16{80, 443, 8080}).Draw(t, "number")
	return rule.Port{Proto: proto, First: n, Last: n}
}

func direction(t *rapid.T, tier rule.Tier) *rule.Direction {
	if rapid.IntRange(0, 3).Draw(t, "silent") == 0 {
		return nil
	}
	d := new(rule.Direction)
	for range rapid.IntRange(0, 3).Draw(t, "rules") {
		var r rule.Rule
		if tier != rule.Namespaced {
			r.Action = rapid.SampledFrom([]rule.Action{rule.Accept, rule.Deny, rule.Pass}).Draw(t, "action")
		}
		if rapid.Bool().Draw(t, "peers") {
			r.Peers = rapid.SliceOfN(rapid.Custom(peer), 0, 2).Draw(t, "peer list")
		}
		if rapid.Bool().Draw(t, "ports") {
			r.Ports = rapid.SliceOfN(rapid.Custom(port), 0, 2).Draw(t, "port list")
		}
		d.Rules = append(d.Rules, r)
	}
	return d
}

func policy(t *rapid.T) *rule.Policy {
	p := &rule.Policy{
		Ref:  rule.Ref{Dialect: rule.NetworkPolicy, Namespace: "a", Name: fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "name"))},
		Tier: rapid.SampledFrom([]rule.Tier{rule.Admin, rule.Namespaced, rule.Baseline}).Draw(t, "tier"),
	}
	p.Priority = rapid.Int32Range(0, 2).Draw(t, "priority")
	if p.Tier == rule.Namespaced {
		p.Priority = 0
	}
	ns := selector(t, "ns", "a", "b")
	p.Subject = rule.Subject{Namespaces: &ns, Pods: selector(t, "app", "x", "y")}
	p.Ingress, p.Egress = direction(t, p.Tier), direction(t, p.Tier)
	return p
}

// world is a random state of a cluster, which change alters.
type world struct {
	*rapid.T
	model    *engine.Model
	policies map[rule.Ref]*rule.Policy
	eps      []*endpoint.Endpoint
}

func newWorld(t *rapid.T) *world {
	w := &world{T: t, model: engine.NewModel(engine.Config{}), policies: map[rule.Ref]*rule.Policy{}, eps: endpoints(t)}
	for _, ep := range w.eps {
		w.own(ep)
	}
	w.model.SetPodCIDRs(podCIDRs, podCIDRs)
	w.alter("before")
	return w
}

func (w *world) own(ep *endpoint.Endpoint) {
	for _, a := range ep.Addrs {
		w.model.ApplyEndpoints([]endpoint.Change{{Addr: a, New: ep}})
	}
}

func (w *world) alter(when string) {
	for _, p := range rapid.SliceOfN(rapid.Custom(policy), 0, 4).Draw(w.T, when) {
		w.policies[p.Ref] = p
		w.model.SetPolicy(p)
	}
}

func (w *world) commit() (World, []netip.Addr) {
	s, delta := w.model.Commit()
	var affected []netip.Addr
	if delta != nil {
		affected = delta.Affected
	}
	return World{Snapshot: s, Policies: maps.Clone(w.policies), PodCIDRs: podCIDRs}, affected
}

// slow asks for one pair of addresses and one port.
func slow(ev *engine.Evaluator, s *engine.Snapshot, src, dst netip.Addr, p Span) bool {
	f := p.flow(src, dst)
	return ev.Judge(s, &f, engine.Forward, true).Action == engine.Allow
}

// asked tells whether policy is asked between the two.
func asked(a, b *endpoint.Endpoint, src, dst netip.Addr) bool {
	pod := a != nil && a.Kind == identity.Pod || b != nil && b.Kind == identity.Pod
	own := a != nil && b != nil && a.Kind != b.Kind && a.Node == b.Node
	return pod && !own && src != dst && src.Is4() == dst.Is4()
}

func contains(spans []Span, p Span) bool {
	for _, s := range spans {
		if s.Proto == p.Proto && s.First <= p.First && p.First <= s.Last {
			return true
		}
	}
	return false
}

func TestMatrixIsWhatTheEngineSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, _ := newWorld(t).commit()
		groups := append(Workloads(w, "a"), Workloads(w, "b")...)
		groups = append(groups, Address(strangers[0]))
		m := NewMatrix(w, Options{Groups: groups})
		if rapid.Bool().Draw(t, "by port") {
			m = NewMatrix(w, Options{Groups: groups, Ports: probes})
		}
		ev := engine.NewEvaluator(100)
		in := func(g *Group, ep *endpoint.Endpoint, a netip.Addr) bool {
			if g.address.IsValid() {
				return a == g.address
			}
			return ep != nil && ep.Kind == identity.Pod && g.selects(ep)
		}
		all := owners(w.Snapshot)
		for i := range m.Groups {
			for j := range m.Groups {
				pairs, allowed := 0, make([]int, len(probes))
				for src, a := range all {
					for dst, b := range all {
						if !in(&m.Groups[i], a, src) || !in(&m.Groups[j], b, dst) || !asked(a, b, src, dst) {
							continue
						}
						pairs++
						for k, p := range probes {
							if slow(ev, w.Snapshot, src, dst, p) {
								allowed[k]++
							}
						}
					}
				}
				c := &m.Cells[i][j]
				if c.Pairs != pairs {
					t.Fatalf("%s to %s: %d pairs, want %d", m.Groups[i].Name, m.Groups[j].Name, c.Pairs, pairs)
				}
				for k, p := range probes {
					got := 0
					for _, r := range c.Reach {
						if contains([]Span{r.Ports}, p) {
							got = r.Allowed
						}
					}
					if got != allowed[k] {
						t.Fatalf("%s to %s at %s: %d, want %d", m.Groups[i].Name, m.Groups[j].Name, p, got, allowed[k])
					}
				}
			}
		}
	})
}

// owners are all addresses, those of strangers too.
func owners(s *engine.Snapshot) map[netip.Addr]*endpoint.Endpoint {
	all := maps.Collect(s.Endpoints())
	for _, a := range strangers {
		all[a] = nil
	}
	return all
}

func TestDifferenceIsWhatTheEngineSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		before, _ := w.commit()
		w.alter("after")
		if rapid.Bool().Draw(t, "relabel") { // a pod changes sides
			ep := *w.eps[0]
			ep.Identity = w.eps[1].Identity
			w.own(&ep)
		}
		after, affected := w.commit()
		d := Compare(before, after, affected, nil)

		ev := engine.NewEvaluator(100)
		all := owners(before.Snapshot)
		for _, p := range probes {
			var want, got [2]int // allowed, denied; of pairs inside of the cluster
			var outside, told [2]bool
			for src, a := range all {
				for dst, b := range all {
					if !asked(a, b, src, dst) {
						continue
					}
					was, is := slow(ev, before.Snapshot, src, dst, p), slow(ev, after.Snapshot, src, dst, p)
					kind := 0
					if was {
						kind = 1
					}
					switch {
					case was == is:
					case a == nil || b == nil:
						outside[kind] = true
					default:
						want[kind]++
					}
				}
			}
			for _, c := range d.Changes {
				for kind, spans := range [][]Span{c.Allowed, c.Denied} {
					switch {
					case !contains(spans, p):
					case strings.HasPrefix(c.From.Name, "outside ") || strings.HasPrefix(c.To.Name, "outside "):
						told[kind] = true
					default:
						got[kind] += c.Pairs
					}
				}
			}
			if got != want {
				t.Fatalf("at %s %v pairs are allowed and denied, want %v: %+v", p, got, want, d.Changes)
			}
			if outside[0] && !told[0] || outside[1] && !told[1] {
				t.Fatalf("at %s strangers see %v, told are %v: %+v", p, outside, told, d.Changes)
			}
		}
	})
}
