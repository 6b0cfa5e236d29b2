package beta_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/beta"
	"github.com/firstpacket/firstpacket/policycache/internal/polytest"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

const defaultDeny = `{"ingress":{"isolation":"DefaultDeny"}}`

func parse(t *testing.T, spec string) *extensionsv1beta1.NetworkPolicy {
	t.Helper()
	np := &extensionsv1beta1.NetworkPolicy{}
	np.Namespace, np.Name = "a", "p"
	if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
		t.Fatal(err)
	}
	return np
}

// inForce is what the engine has once namespace a has the annotation's value and the policy.
func inForce(np *extensionsv1beta1.NetworkPolicy, value string) map[rule.Ref]*rule.Policy {
	set, in := beta.NewSet(), map[rule.Ref]*rule.Policy{}
	for _, c := range []isolation.Changes{
		set.SetPolicy(beta.Compile(np)),
		set.SetNamespace(&cluster.Namespace{Name: "a", NetworkPolicy: value}),
	} {
		for _, p := range c.Set {
			in[p.Ref] = p
		}
	}
	return in
}

func world(t *testing.T, in map[rule.Ref]*rule.Policy) *polytest.World {
	t.Helper()
	var list []*rule.Policy
	for _, p := range in {
		list = append(list, p)
	}
	return polytest.New(t, list...)
}

// TestSentences has a case for each sentence of the API documentation of Kubernetes 1.6 about an object in the isolated
// namespace a.
func TestSentences(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		problems   []string
		expect     []string
	}{{
		"an empty podSelector matches all pods in this namespace", `{podSelector: {}, ingress: [{}]}`, nil,
		[]string{"world -> a/db 80/TCP: yes", "b/web -> a/plain ICMP: yes"},
	}, {
		"the documentation's example, with the protocol in lower case",
		`{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: "y"}}}, ` +
			`{podSelector: {matchLabels: {app: web}}}], ports: [{protocol: tcp, port: 6379}]}]}`, nil,
		[]string{"a/web -> a/db 6379/TCP: yes", "b/plain -> a/db 6379/TCP: yes", "c/web -> a/db 6379/TCP: no",
			"a/web -> a/db 80/TCP: no", "a/web -> a/web 80/TCP: yes", "a/db -> a/web 6379/TCP: no"},
	}, {
		"no ingress: the policy does not affect ingress isolation", `{podSelector: {}}`, nil,
		[]string{"a/web -> a/db 80/TCP: no", "n1 -> a/db 80/TCP: yes", "a/web -> b/web 80/TCP: yes"},
	}, {
		"rules must match both ports and from", `{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: ` +
			`80}]}]}`, nil,
		[]string{"a/web -> a/db 80/TCP: yes", "a/web -> a/db 8080/TCP: no", "b/web -> a/db 80/TCP: no"},
	}, {
		"ports not provided: all ports", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, nil,
		[]string{"a/web -> a/db 80/TCP: yes", "a/web -> a/db ICMP: yes"},
	}, {
		"ports empty: no ports", `{podSelector: {}, ingress: [{ports: []}, {ports: [{port: 80}]}]}`, nil,
		[]string{"a/web -> a/db 80/TCP: yes", "a/web -> a/db 8080/TCP: no", "a/web -> a/db ICMP: no"},
	}, {
		"from empty: no sources", `{podSelector: {}, ingress: [{from: []}]}`, nil,
		[]string{"a/web -> a/db 80/TCP: no"},
	}, {
		"a port without number matches all numbers of the protocol, which is TCP by default",
		`{podSelector: {}, ingress: [{ports: [{}]}]}`, nil,
		[]string{"world -> a/db 8080/TCP: yes", "world -> a/db 53/UDP: no"},
	}, {
		"named ports", `{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, nil,
		[]string{"world -> a/db 8080/TCP: yes", "world -> a/db 80/TCP: no"},
	}, {
		"an empty namespaceSelector selects all namespaces",
		`{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`, nil,
		[]string{"c/web -> a/db 80/TCP: yes", "world -> a/db 80/TCP: no"},
	}, {
		"an entry with neither selector", `{podSelector: {}, ingress: [{from: [{}, {podSelector: {matchLabels: {app: ` +
			`web}}}]}]}`,
		[]string{"spec.ingress[0].from[0]: podSelector or namespaceSelector must be set; the entry allows nothing"},
		[]string{"a/web -> a/db 80/TCP: yes", "a/plain -> a/db 80/TCP: no"},
	}, {
		"entries that cannot be understood", `{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: ` +
			`[{key: a, operator: Near}]}}], ports: [{port: 0}, {port: 70000}, {protocol: ICMP}, {port: A_B}]}]}`,
		[]string{
			`spec.ingress[0].from[0]: invalid label selector: key "a": unknown operator "Near"; the entry allows nothing`,
			"spec.ingress[0].ports[0].port: 0 is not a port number; the entry allows nothing",
			"spec.ingress[0].ports[1].port: 70000 is not a port number; the entry allows nothing",
			`spec.ingress[0].ports[2].protocol: unknown protocol "ICMP"; the entry allows nothing`,
			`spec.ingress[0].ports[3].port: "A_B" is not the name of a port: `,
		},
		[]string{"a/web -> a/db 80/TCP: no"},
	}, {
		"a bad podSelector", `{podSelector: {matchExpressions: [{key: a, operator: Near}]}, ingress: [{}]}`,
		[]string{`spec.podSelector: invalid label selector: key "a": unknown operator "Near"; the policy allows nothing`},
		[]string{"a/web -> a/db 80/TCP: no"},
	}} {
		t.Run(c.name, func(t *testing.T) {
			np := parse(t, c.spec)
			in := inForce(np, defaultDeny)
			var got []string
			for i, p := range in[beta.Ref("a", "p")].Problems {
				text := p.String()
				if i < len(c.problems) && strings.HasSuffix(c.problems[i], ": ") && strings.HasPrefix(text, c.problems[i]) {
					text = c.problems[i]
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(c.problems, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			world(t, in).Expect(c.expect...)
			world(t, inForce(np, "{}")).Expect("world -> a/db 80/TCP: yes", "a/web -> a/db ICMP: yes")
		})
	}
}

func TestAnnotation(t *testing.T) {
	for value, want := range map[string]isolation.State{
		defaultDeny: {Isolated: true},
		` { "ingress" : {"isolation" : "DefaultDeny", "more": 1} } `: {Isolated: true},
		`{}`:                {},
		`{"ingress": {}}`:   {},
		`{"ingress": null}`: {},
		`{"Ingress": {"isolation": "DefaultDeny"}}`: {},
		`{"ingress": {"isolation": "DefaultAllow"}}`: {
			Isolated: true, Problem: `isolation "DefaultAllow" is not DefaultDeny; the namespace is isolated`,
		},
	} {
		if diff := cmp.Diff(want, beta.Read(&cluster.Namespace{Name: "a", NetworkPolicy: value})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", value, diff)
		}
	}
	for _, value := range []string{"on", "[", `"DefaultDeny"`, "[]", `{"ingress": "DefaultDeny"}`,
		`{"ingress": {"isolation": 1}}`} {
		if s := beta.Read(&cluster.Namespace{Name: "a", NetworkPolicy: value}); !s.Isolated || s.Problem == "" {
			t.Errorf("%s: %+v", value, s)
		}
	}
}

// TestIdle: a policy that has no effect because nobody ever annotated its namespace says so.
func TestIdle(t *testing.T) {
	np := parse(t, `{podSelector: {}, ingress: [{}]}`)
	for value, want := range map[string]int{"": 1, "{}": 0, defaultDeny: 0} {
		if got := inForce(np, value)[beta.Ref("a", "p")].Problems; len(got) != want {
			t.Errorf("%q: %v", value, got)
		}
	}
	if got := beta.Compile(np).Rule.Problems; got != nil {
		t.Errorf("the policy itself was changed: %v", got)
	}
}

// TestLater: objects with fields of later versions mean what they meant there.
func TestLater(t *testing.T) {
	for spec, field := range map[string]string{
		`{podSelector: {matchLabels: {app: db}}, policyTypes: ` +
			`[Ingress]}`: "spec.policyTypes",
		`{podSelector: {matchLabels: {app: db}}, egress: ` +
			`[{}]}`: "spec.egress",
		`{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: ` +
			`192.0.2.0/24}}]}]}`: "spec.ingress[0].from[0].ipBlock",
		`{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}, namespaceSelector: {matchLabels: ` +
			`{q: z}}}]}]}`: "spec.ingress[0].from[0].namespaceSelector",
		`{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 1, endPort: ` +
			`2}]}]}`: "spec.ingress[0].ports[0].endPort",
	} {
		np := parse(t, spec)
		if got := beta.Later(&np.Spec); got != field {
			t.Errorf("%s: %q", spec, got)
		}
		for _, value := range []string{"", "{}"} {
			in := inForce(np, value)
			if p := in[beta.Ref("a", "p")]; p == nil || p.Problems != nil || len(in) != 1 {
				t.Fatalf("%s: %v", spec, in)
			}
			world(t, in).Expect("a/web -> a/db 80/TCP: no", "world -> a/db ICMP: no", "a/db -> a/web 80/TCP: yes")
		}
	}
}
