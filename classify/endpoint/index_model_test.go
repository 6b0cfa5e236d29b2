package endpoint

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/label"
)

// model is the index done slowly: it keeps the objects, and works everything out from all of them when asked.
type model struct {
	pods       map[string]*cluster.Pod
	nodes      map[string]*cluster.Node
	namespaces map[string]*cluster.Namespace
}

func (m *model) table() map[netip.Addr]*Endpoint {
	type claim struct {
		ep   *Endpoint
		rank string // the greatest wins
	}
	claims := map[netip.Addr][]claim{}
	for _, p := range m.pods {
		if p.HostNetwork || p.Terminated {
			continue
		}
		ns := label.Of(map[string]string{"kubernetes.io/metadata.name": p.Namespace})
		if o, ok := m.namespaces[p.Namespace]; ok {
			ns = o.Labels
		}
		ep := &Endpoint{
			Identity: identity.Intern(identity.Identity{
				Kind: identity.Pod, Namespace: p.Namespace, NamespaceLabels: ns, Labels: p.Labels,
			}),
			Kind: identity.Pod, Namespace: p.Namespace, Name: p.Name, Node: p.Node, Addrs: p.Addrs, Ports: p.Ports,
		}
		rank := fmt.Sprintf("pod %t %020d %x %s", p.Running, p.Started, p.UID, p.Namespace+"/"+p.Name)
		rank = strings.Replace(strings.Replace(rank, "true", "1", 1), "false", "0", 1)
		for _, a := range p.Addrs {
			claims[a] = append(claims[a], claim{ep, "0" + rank})
		}
	}
	for _, n := range m.nodes {
		ep := &Endpoint{
			Identity: identity.Intern(identity.Identity{Kind: identity.Node, Labels: n.Labels}),
			Kind:     identity.Node, Name: n.Name, Node: n.Name, Addrs: n.Addrs,
		}
		for _, a := range n.Addrs {
			claims[a] = append(claims[a], claim{ep, fmt.Sprintf("1node %020d %s", n.Created, n.Name)})
		}
	}
	table := map[netip.Addr]*Endpoint{}
	for a, c := range claims {
		table[a] = slices.MaxFunc(c, func(a, b claim) int { return strings.Compare(a.rank, b.rank) }).ep
	}
	return table
}

func (m *model) podCIDRs() []netip.Prefix {
	set := map[netip.Prefix]bool{}
	for _, n := range m.nodes {
		for _, p := range n.PodCIDRs {
			set[p] = true
		}
	}
	return slices.SortedFunc(maps.Keys(set), cluster.ComparePrefix)
}

// build feeds the model's objects to a fresh index.
func (m *model) build() *Index {
	x := NewIndex()
	for _, p := range m.pods {
		x.SetPod(p)
	}
	for _, n := range m.nodes {
		x.SetNode(n)
	}
	for _, ns := range m.namespaces {
		x.SetNamespace(ns)
	}
	return x
}

// Few names, addresses and labels make collisions likely.
var (
	genAddrs = rapid.Map(rapid.SliceOfNDistinct(rapid.IntRange(1, 6), 0, 3, rapid.ID[int]), func(n []int) []netip.Addr {
		var addrs []netip.Addr
		for _, i := range n {
			a := netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i))
			if i > 4 {
				a = netip.MustParseAddr(fmt.Sprintf("fd00::%d", i))
			}
			addrs = append(addrs, a)
		}
		slices.SortFunc(addrs, netip.Addr.Compare)
		return addrs
	})
	genLabels = rapid.Map(rapid.IntRange(0, 2), func(n int) label.Set {
		if n == 0 {
			return label.Set{}
		}
		return label.Of(map[string]string{"app": fmt.Sprint(n)})
	})
	genNamespaceName = rapid.SampledFrom([]string{"a", "b", "c"})
	genPod           = rapid.Custom(func(t *rapid.T) *cluster.Pod {
		var ports *Ports
		if rapid.Bool().Draw(t, "ports") {
			ports = cluster.InternPorts([]NamedPort{{Name: "web", Proto: 6, Port: 80}})
		}
		return &cluster.Pod{
			Namespace:   genNamespaceName.Draw(t, "namespace"),
			Name:        rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "name"),
			UID:         cluster.UID{byte(rapid.IntRange(0, 2).Draw(t, "uid"))},
			Node:        rapid.SampledFrom([]string{"", "n1", "n2"}).Draw(t, "node"),
			Labels:      genLabels.Draw(t, "labels"),
			Addrs:       genAddrs.Draw(t, "addrs"),
			Ports:       ports,
			Started:     int64(rapid.IntRange(0, 2).Draw(t, "started")),
			HostNetwork: rapid.IntRange(0, 5).Draw(t, "hostNetwork") == 0,
			Terminated:  rapid.IntRange(0, 5).Draw(t, "terminated") == 0,
			Running:     rapid.Bool().Draw(t, "running"),
		}
	})
	genNode = rapid.Custom(func(t *rapid.T) *cluster.Node {
		var cidrs []netip.Prefix
		for i := range rapid.IntRange(0, 2).Draw(t, "cidrs") {
			cidrs = append(cidrs, netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", i)))
		}
		return &cluster.Node{
			Name:     rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "name"),
			Labels:   genLabels.Draw(t, "labels"),
			Addrs:    genAddrs.Draw(t, "addrs"),
			PodCIDRs: cidrs,
			Created:  int64(rapid.IntRange(0, 1).Draw(t, "created")),
		}
	})
)

func TestIndexAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := NewIndex()
		m := &model{map[string]*cluster.Pod{}, map[string]*cluster.Node{}, map[string]*cluster.Namespace{}}
		told := map[netip.Addr]*Endpoint{}

		t.Repeat(map[string]func(*rapid.T){
			"set pod": func(t *rapid.T) {
				p := genPod.Draw(t, "pod")
				m.pods[p.Key()] = p
				x.SetPod(p)
			},
			"delete pod": func(t *rapid.T) {
				p := genPod.Draw(t, "pod")
				delete(m.pods, p.Key())
				x.DeletePod(p.Key())
			},
			"set node": func(t *rapid.T) {
				n := genNode.Draw(t, "node")
				m.nodes[n.Name] = n
				x.SetNode(n)
			},
			"delete node": func(t *rapid.T) {
				n := genNode.Draw(t, "node")
				delete(m.nodes, n.Name)
				x.DeleteNode(n.Name)
			},
			"set namespace": func(t *rapid.T) {
				name := genNamespaceName.Draw(t, "name")
				labels := genLabels.Draw(t, "labels").With("kubernetes.io/metadata.name", name)
				ns := &cluster.Namespace{Name: name, Labels: labels}
				m.namespaces[ns.Name] = ns
				x.SetNamespace(ns)
			},
			"delete namespace": func(t *rapid.T) {
				name := genNamespaceName.Draw(t, "name")
				delete(m.namespaces, name)
				x.DeleteNamespace(name)
			},
			"flush": func(t *rapid.T) { replay(t, told, x.Flush()) },
			"": func(t *rapid.T) {
				want := m.table()
				compare(t, "incremental", x.current(), want)
				compare(t, "afresh", m.build().current(), want)
				if got, want := x.PodCIDRs(), m.podCIDRs(); !slices.Equal(got, want) {
					t.Fatalf("pod CIDRs: got %v, want %v", got, want)
				}
				counts := x.Counts()
				if counts.Pods != len(m.pods) || counts.Nodes != len(m.nodes) ||
					counts.Namespaces != len(m.namespaces) || counts.Addresses != len(want) {
					t.Fatalf("counts: got %+v", counts)
				}
				for key, p := range m.pods {
					got, _, ok := x.Pod(p.Namespace, p.Name)
					if !ok || !samePod(&got, p) {
						t.Fatalf("pod %s: got %+v, want %+v", key, got, p)
					}
				}
				if len(x.namespaces) > len(m.namespaces)+len(m.pods) {
					t.Fatalf("%d namespaces are kept for %d pods", len(x.namespaces), len(m.pods))
				}
			},
		})

		replay(t, told, x.Flush())
		compare(t, "replayed changes", told, m.table())
		for a, ep := range told {
			if x.Lookup(a) != ep {
				t.Fatalf("%s: the endpoint told is not the one kept", a)
			}
		}
		if again := x.Flush(); again != nil {
			t.Fatalf("second flush: %v", again)
		}
	})
}

// replay applies changes to a table as a user of the index would, and checks that each is one.
func replay(t *rapid.T, table map[netip.Addr]*Endpoint, changes []Change) {
	if !slices.IsSortedFunc(changes, func(a, b Change) int { return a.Addr.Compare(b.Addr) }) {
		t.Fatalf("changes are not in address order")
	}
	for _, c := range changes {
		if table[c.Addr] != c.Old {
			t.Fatalf("%s: Old is %v, the one told before is %v", c.Addr, c.Old, table[c.Addr])
		}
		if c.Old.equal(c.New) {
			t.Fatalf("%s: a change that changes nothing: %+v", c.Addr, c.New)
		}
		if c.New == nil {
			delete(table, c.Addr)
		} else {
			table[c.Addr] = c.New
		}
	}
}

func compare(t *rapid.T, what string, got, want map[netip.Addr]*Endpoint) {
	if !maps.EqualFunc(got, want, (*Endpoint).equal) {
		t.Fatalf("%s:\ngot  %s\nwant %s", what, printed(got), printed(want))
	}
}

func printed(table map[netip.Addr]*Endpoint) string {
	var b strings.Builder
	for _, a := range slices.SortedFunc(maps.Keys(table), netip.Addr.Compare) {
		fmt.Fprintf(&b, "%s=%+v %+v; ", a, *table[a], table[a].Identity.Identity())
	}
	return b.String()
}

func (x *Index) current() map[netip.Addr]*Endpoint {
	table := map[netip.Addr]*Endpoint{}
	for a, r := range x.owners {
		table[a] = r.ep
	}
	return table
}

func samePod(a, b *cluster.Pod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID && a.Node == b.Node &&
		a.Labels == b.Labels && slices.Equal(a.Addrs, b.Addrs) && a.Ports == b.Ports && a.Started == b.Started &&
		a.HostNetwork == b.HostNetwork && a.Terminated == b.Terminated && a.Running == b.Running
}
