package netpol_test

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/policycache/netpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

func compile(tb testing.TB, spec string) *rule.Policy {
	tb.Helper()
	np := networkingv1.NetworkPolicy{}
	np.Namespace, np.Name = "a", "np"
	must(tb, yaml.UnmarshalStrict([]byte(spec), &np.Spec))
	return netpol.Compile(&np)
}

// TestWhatCannotBeUnderstoodFailsClosed: the rule keeps its place and matches nothing, its neighbours stay in force,
// the pods stay isolated, and the problem is told by field.
func TestWhatCannotBeUnderstoodFailsClosed(t *testing.T) {
	for _, c := range []struct{ rule, field string }{
		{`{from: [{}]}`, "spec.ingress[0].from[0]"},
		{`{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}`, "spec.ingress[0].from[1].ipBlock"},
		{`{from: [{ipBlock: {cidr: nonsense}}]}`, "spec.ingress[0].from[0].ipBlock.cidr"},
		{`{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}`, "spec.ingress[0].from[0].ipBlock.cidr"},
		{
			`{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}`,
			"spec.ingress[0].from[0].ipBlock.except[1]",
		},
		{`{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}`, "spec.ingress[0].from[0].ipBlock.except[0]"},
		{`{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ["fd00::/16"]}}]}`, "spec.ingress[0].from[0].ipBlock.except[0]"},
		{`{from: [{podSelector: {matchExpressions: [{key: a, operator: Like}]}}]}`, "spec.ingress[0].from[0].podSelector"},
		{`{from: [{namespaceSelector: {matchLabels: {"a b": c}}}]}`, "spec.ingress[0].from[0].namespaceSelector"},
		{`{ports: [{protocol: ICMP}]}`, "spec.ingress[0].ports[0].protocol"},
		{`{ports: [{port: 0}]}`, "spec.ingress[0].ports[0].port"},
		{`{ports: [{port: 80}, {port: 65536}]}`, "spec.ingress[0].ports[1].port"},
		{`{ports: [{port: ""}]}`, "spec.ingress[0].ports[0].port"},
		{`{ports: [{endPort: 80}]}`, "spec.ingress[0].ports[0].endPort"},
		{`{ports: [{port: http, endPort: 80}]}`, "spec.ingress[0].ports[0].endPort"},
		{`{ports: [{port: 80, endPort: 79}]}`, "spec.ingress[0].ports[0].endPort"},
		{`{ports: [{port: 80, endPort: 65536}]}`, "spec.ingress[0].ports[0].endPort"},
	} {
		p := compile(t, `{podSelector: {}, ingress: [`+c.rule+`, {ports: [{port: 443}]}]}`)
		if len(p.Problems) != 1 || p.Problems[0].Field != c.field || !strings.Contains(p.Problems[0].Text, "allows nothing") {
			t.Errorf("%s: problems %q, want one of %s", c.rule, p.Problems, c.field)
		}
		if p.Ingress == nil || len(p.Ingress.Rules) != 2 {
			t.Fatalf("%s: compiled to %+v", c.rule, p)
		}
		if r := p.Ingress.Rules[0]; r.Peers == nil || len(r.Peers) > 0 || r.Ports == nil || len(r.Ports) > 0 {
			t.Errorf("%s: the rule is %+v", c.rule, r)
		}
		if r := p.Ingress.Rules[1]; r.Peers != nil || len(r.Ports) != 1 {
			t.Errorf("%s: its neighbour is %+v", c.rule, r)
		}
	}
}

func TestABrokenSubjectIsolatesAndAllowsNothing(t *testing.T) {
	p := compile(t, `{podSelector: {matchLabels: {app: x}, matchExpressions: [{key: tier, operator: Near}]},
		policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}`)
	if len(p.Problems) != 1 || p.Problems[0].Field != "spec.podSelector" {
		t.Errorf("problems %q", p.Problems)
	}
	if p.Ingress == nil || p.Egress == nil || len(p.Ingress.Rules)+len(p.Egress.Rules) > 0 {
		t.Errorf("compiled to %+v, %+v", p.Ingress, p.Egress)
	}
	if got := p.Subject.Pods.String(); got != "app=x" {
		t.Errorf("selects %s", got)
	}
}

func TestAnUnknownPolicyTypeIsolatesBothWays(t *testing.T) {
	p := compile(t, `{podSelector: {}, policyTypes: [Sideways]}`)
	if len(p.Problems) != 1 || p.Problems[0].Field != "spec.policyTypes[0]" || p.Ingress == nil || p.Egress == nil {
		t.Errorf("compiled to %+v", p)
	}
}

// TestAddressRangesAreReadAsTheAPIServerDoes: what it has always accepted in stored objects means what it meant.
func TestAddressRangesAreReadAsTheAPIServerDoes(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.1.5/24": "10.0.1.0/24", "010.000.001.0/24": "10.0.1.0/24", "2001:DB8::1/32": "2001:db8::/32",
		"::ffff:10.0.1.0/120": "10.0.1.0/24", "0.0.0.0/0": "0.0.0.0/0", "::/0": "::/0", "10.0.0.1/32": "10.0.0.1/32",
	} {
		p := compile(t, `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "`+text+`"}}]}]}`)
		if len(p.Problems) > 0 {
			t.Errorf("%s: %v", text, p.Problems)
			continue
		}
		if got := p.Ingress.Rules[0].Peers[0].Block.CIDR.String(); got != want {
			t.Errorf("%s is read as %s, want %s", text, got, want)
		}
	}
}

func TestCompileKeepsNoReference(t *testing.T) {
	np := networkingv1.NetworkPolicy{}
	const spec = `{podSelector: {matchExpressions: [{key: a, operator: In, values: [z, b]}]}}`
	must(t, yaml.Unmarshal([]byte(spec), &np.Spec))
	p := netpol.Compile(&np)
	values := np.Spec.PodSelector.MatchExpressions[0].Values
	if values[0] != "z" {
		t.Error("the object was changed")
	}
	values[0], values[1] = "changed", "changed"
	if got := p.Subject.Pods.String(); got != "a in (b,z)" {
		t.Errorf("selects %s", got)
	}
}

func BenchmarkCompile(b *testing.B) {
	np := networkingv1.NetworkPolicy{}
	must(b, yaml.Unmarshal([]byte(`
podSelector: {matchLabels: {app: web}}
ingress:
- from: [{podSelector: {matchLabels: {app: a}}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]
  ports: [{port: 80}]
egress: [{to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}]}]`), &np.Spec))
	b.ReportAllocs()
	for b.Loop() {
		if p := netpol.Compile(&np); len(p.Problems) > 0 {
			b.Fatal(p.Problems)
		}
	}
}
