package rule

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/label"
	"github.com/firstpacket/firstpacket/classify/packet"
)

// TestSelectorsMatchAsTheAPIs compares with apimachinery's own selectors, invalid ones included.
func TestSelectorsMatchAsTheAPIs(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	one := func(list ...string) string { return list[r.IntN(len(list))] }
	matched, invalid := 0, 0
	for range 20_000 {
		s := &metav1.LabelSelector{}
		for range r.IntN(3) {
			if s.MatchLabels == nil {
				s.MatchLabels = map[string]string{}
			}
			s.MatchLabels[one("app", "tier", "app.kubernetes.io/name")] = one("x", "y", "")
		}
		for range r.IntN(3) {
			e := metav1.LabelSelectorRequirement{Key: one("app", "tier", "absent", "app", "tier", "bad key", "")}
			e.Operator = metav1.LabelSelectorOperator(one("In", "NotIn", "Exists", "DoesNotExist", "In", "NotIn", "Gt"))
			for range r.IntN(3) {
				e.Values = append(e.Values, one("x", "y", "z", "", "x", "not/valid"))
			}
			s.MatchExpressions = append(s.MatchExpressions, e)
		}
		set := map[string]string{}
		for range r.IntN(4) {
			set[one("app", "tier", "app.kubernetes.io/name", "apple")] = one("x", "y", "")
		}
		theirs, theirErr := metav1.LabelSelectorAsSelector(s)
		ours, err := NewSelector(s)
		if (err != nil) != (theirErr != nil) {
			t.Fatalf("%+v: error %v, apimachinery says %v", s, err, theirErr)
		}
		if err != nil {
			invalid++
			if !errors.Is(err, ErrSelector) {
				t.Fatalf("%v does not wrap ErrSelector", err)
			}
			continue
		}
		want := theirs.Matches(labels.Set(set))
		if got := ours.Matches(label.Of(set)); got != want {
			t.Fatalf("%s on %v: %v, apimachinery says %v", ours, set, got, want)
		}
		if want {
			matched++
		}
		parsed, err := labels.Parse(ours.String())
		if !ours.Everything() && (err != nil || parsed.Matches(labels.Set(set)) != want) {
			t.Fatalf("printed as %q, which kubectl reads otherwise: %v", ours, err)
		}
	}
	if matched < 500 || invalid < 500 {
		t.Errorf("only %d matches and %d invalid selectors were seen", matched, invalid)
	}
}

func TestABrokenSelectorMatchesAtLeastWhatWasMeant(t *testing.T) {
	s, err := NewSelector(&metav1.LabelSelector{
		MatchLabels:      map[string]string{"app": "x"},
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: "Near"}},
	})
	if err == nil || !s.Matches(label.Of(map[string]string{"app": "x"})) || s.Matches(label.Set{}) {
		t.Errorf("%s, %v", s, err)
	}
}

func TestSelectorMatchesWithoutAllocating(t *testing.T) {
	s, err := NewSelector(&metav1.LabelSelector{
		MatchLabels: map[string]string{"app": "x", "tier": "y"},
		MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"a", "b"}},
			{Key: "none", Operator: metav1.LabelSelectorOpDoesNotExist},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	set := label.Of(map[string]string{"app": "x", "tier": "y", "zone": "z"})
	if n := testing.AllocsPerRun(100, func() {
		if !s.Matches(set) {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPeersAndSubjects(t *testing.T) {
	app := func(v string) Selector {
		s, err := MatchLabels(map[string]string{"app": v})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	team := func(v string) *Selector {
		s, err := MatchLabels(map[string]string{"team": v})
		if err != nil {
			t.Fatal(err)
		}
		return &s
	}
	set := label.Of(map[string]string{"app": "x"})
	pod := identity.Identity{
		Kind: identity.Pod, Namespace: "a", Labels: set, NamespaceLabels: label.Of(map[string]string{"team": "t"}),
	}
	node := identity.Identity{Kind: identity.Node, Labels: set}
	for _, c := range []struct {
		peer      Peer
		pod, node bool
	}{
		{Peer{Kind: Pods, Namespace: "a"}, true, false},
		{Peer{Kind: Pods, Namespace: "b"}, false, false},
		{Peer{Kind: Pods, Namespace: "a", Labels: app("y")}, false, false},
		{Peer{Kind: Pods, Namespaces: team("t"), Labels: app("x")}, true, false},
		{Peer{Kind: Pods, Namespaces: team("u"), Labels: app("x")}, false, false},
		{Peer{Kind: Pods, Namespaces: &Selector{}}, true, false},
		{Peer{Kind: Nodes}, false, true},
		{Peer{Kind: Nodes, Labels: app("y")}, false, false},
		{Peer{Kind: Addresses, Block: &Block{CIDR: netip.MustParsePrefix("0.0.0.0/0")}}, false, false},
		{Peer{Kind: Pods}, false, false},
	} {
		if got := c.peer.Matches(&pod); got != c.pod {
			t.Errorf("%s, pod: %v", &c.peer, got)
		}
		if got := c.peer.Matches(&node); got != c.node {
			t.Errorf("%s, node: %v", &c.peer, got)
		}
		if c.peer.Kind == Pods {
			s := Subject{Namespace: c.peer.Namespace, Namespaces: c.peer.Namespaces, Pods: c.peer.Labels}
			if s.Matches(&pod) != c.pod || s.Matches(&node) {
				t.Errorf("subject %s", &s)
			}
		}
	}
}

func TestBlocksContain(t *testing.T) {
	b := Block{CIDR: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
	for a, want := range map[string]bool{
		"10.0.0.1": true, "10.1.0.1": false, "11.0.0.1": false, "::ffff:10.0.0.1": false, "fd00::1": false,
	} {
		if got := b.Contains(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	if got, want := b.String(), "10.0.0.0/8 except 10.1.0.0/16"; got != want {
		t.Errorf("printed as %q", got)
	}
}

func TestPortsMatch(t *testing.T) {
	named := cluster.InternPorts([]cluster.NamedPort{
		{Name: "http", Proto: packet.ProtoTCP, Port: 80}, {Name: "http", Proto: packet.ProtoTCP, Port: 8080},
		{Name: "http", Proto: packet.ProtoUDP, Port: 443},
	})
	const tcp, udp = packet.ProtoTCP, packet.ProtoUDP
	for _, c := range []struct {
		port  Port
		proto uint8
		num   uint16
		want  bool
	}{
		{Port{Proto: tcp, First: 80, Last: 80}, tcp, 80, true},
		{Port{Proto: tcp, First: 80, Last: 80}, udp, 80, false},
		{Port{Proto: tcp, First: 80, Last: 90}, tcp, 90, true},
		{Port{Proto: tcp, First: 80, Last: 90}, tcp, 91, false},
		{AllPorts(udp), udp, 0, true},
		{AllPorts(udp), udp, 65535, true},
		{AllPorts(udp), tcp, 1, false},
		{Port{Proto: tcp, Name: "http"}, tcp, 80, true},
		{Port{Proto: tcp, Name: "http"}, tcp, 8080, true},
		{Port{Proto: tcp, Name: "http"}, tcp, 443, false},
		{Port{Proto: tcp, Name: "http"}, udp, 443, false},
		{Port{Proto: tcp, Name: "dns"}, tcp, 80, false},
		{Port{Name: "http"}, udp, 443, true},
		{Port{Name: "http"}, udp, 80, false},
	} {
		if got := c.port.Matches(c.proto, c.num, named); got != c.want {
			t.Errorf("%s on %d/%s: %v", &c.port, c.num, ProtoName(c.proto), got)
		}
		if c.port.Name != "" && c.port.Matches(c.proto, c.num, nil) {
			t.Errorf("%s matches where no port has a name", &c.port)
		}
	}
}

func TestNames(t *testing.T) {
	for want, got := range map[string]fmt.Stringer{
		"NetworkPolicy/a/b":      Ref{NetworkPolicy, "a", "b"},
		"ClusterNetworkPolicy/b": Ref{Dialect: ClusterNetworkPolicy, Name: "b"},
		"networkpolicy":          Namespaced,
		"pass":                   Pass,
		"dialect(99)":            Dialect(99),
		"tier(0)":                Tier(0),
		"80/TCP":                 &Port{Proto: 6, First: 80, Last: 80},
		"80-90/UDP":              &Port{Proto: 17, First: 80, Last: 90},
		"SCTP":                   &Port{Proto: 132, Last: 65535},
		"http/TCP":               &Port{Proto: 6, Name: "http"},
		"http":                   &Port{Name: "http"},
		"spec.x: bad":            Problem{"spec.x", "bad"},
	} {
		if got.String() != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	b, err := json.Marshal(struct {
		R Ref
		T Tier
		A Action
	}{Ref{NetworkPolicy, "a", "b"}, Admin, Deny})
	want := `{"R":{"dialect":"NetworkPolicy","namespace":"a","name":"b"},"T":"admin","A":"deny"}`
	if string(b) != want || err != nil {
		t.Errorf("%s, %v", b, err)
	}
}

func TestPoliciesAreOrdered(t *testing.T) {
	p := func(tier Tier, priority int32, ns, name string) *Policy {
		return &Policy{Ref: Ref{Dialect: NetworkPolicy, Namespace: ns, Name: name}, Tier: tier, Priority: priority}
	}
	want := []*Policy{
		p(Admin, 1, "", "z"), p(Admin, 2, "", "a"), p(Admin, 2, "", "b"),
		p(Namespaced, 0, "a", "z"), p(Namespaced, 0, "b", "a"), p(Baseline, 0, "", "a"),
	}
	got := []*Policy{want[3], want[5], want[2], want[0], want[4], want[1]}
	slices.SortFunc(got, Compare)
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
