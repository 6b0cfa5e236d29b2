package alpha_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/internal/polytest"
	"github.com/firstpacket/firstpacket/policycache/isolation"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

func parse(t *testing.T, namespace, name, spec string) *alpha.NetworkPolicy {
	t.Helper()
	np := &alpha.NetworkPolicy{}
	np.Namespace, np.Name = namespace, name
	if err := yaml.Unmarshal([]byte(spec), &np.Spec); err != nil {
		t.Fatal(err)
	}
	return np
}

// fed is what the engine has after the set was told of namespaces and policies.
type fed map[rule.Ref]*rule.Policy

func (f fed) apply(c isolation.Changes) {
	for _, p := range c.Set {
		f[p.Ref] = p
	}
	for _, r := range c.Deleted {
		delete(f, r)
	}
}

func (f fed) world(t *testing.T) *polytest.World {
	t.Helper()
	var list []*rule.Policy
	for _, p := range f {
		list = append(list, p)
	}
	return polytest.New(t, list...)
}

func isolated(name, value string) *cluster.Namespace {
	return &cluster.Namespace{Name: name, Isolation: value}
}

// TestSpecs has a case for each sentence of the announcement and of the proposal about an object in the isolated
// namespace a.
func TestSpecs(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		problems   []string
		expect     []string
	}{{
		"the announcement's form: one object",
		`{podSelector: {app: db}, allowIncoming: {from: [{pods: {app: web}}], toPorts: [{port: 80, protocol: TCP}]}}`, nil,
		[]string{
			"a/web -> a/db 80/TCP: yes", "a/web -> a/db 8080/TCP: no", "a/plain -> a/db 80/TCP: no",
			"b/web -> a/db 80/TCP: no", "world -> a/db 80/TCP: no", "a/db -> a/web 80/TCP: no", "a/web -> a/db ICMP: no",
		},
	}, {
		"a list of objects: any may allow",
		`{podSelector: {app: db}, allowIncoming: [{from: [{pods: {app: web}}]}, {toPorts: [{port: 53, protocol: UDP}]}]}`,
		nil,
		[]string{"a/web -> a/db 80/TCP: yes", "a/web -> a/db ICMP: yes", "world -> a/db 53/UDP: yes",
			"world -> a/db 80/TCP: no"},
	}, {
		"no allowIncoming: nothing is allowed", `{podSelector: {app: db}}`, nil,
		[]string{"a/web -> a/db 80/TCP: no", "n1 -> a/db 80/TCP: yes", "n2 -> a/db 80/TCP: no"},
	}, {
		"an empty list: nothing is allowed", `{podSelector: {app: db}, allowIncoming: []}`, nil,
		[]string{"a/web -> a/db 80/TCP: no"},
	}, {
		"null is absent", `{podSelector: null, allowIncoming: null}`, nil,
		[]string{"a/web -> a/db 80/TCP: no"},
	}, {
		"an empty rule allows all", `{podSelector: {app: db}, allowIncoming: {}}`, nil,
		[]string{"world -> a/db 80/TCP: yes", "b/web -> a/db ICMP: yes", "world -> a/web 80/TCP: no"},
	}, {
		"empty lists are no restriction", `{podSelector: {app: db}, allowIncoming: {from: [], toPorts: []}}`, nil,
		[]string{"world -> a/db 9/SCTP: yes"},
	}, {
		"an empty podSelector selects all pods of the namespace", `{podSelector: {}, allowIncoming: [{}]}`, nil,
		[]string{"world -> a/db 80/TCP: yes", "b/web -> a/plain ICMP: yes"},
	}, {
		"an absent podSelector too", `{allowIncoming: [{}]}`, nil,
		[]string{"world -> a/db 80/TCP: yes", "b/web -> a/plain ICMP: yes"},
	}, {
		"the protocol is TCP unless it is said", `{allowIncoming: {toPorts: [{port: 53}, {port: 9, protocol: SCTP}]}}`, nil,
		[]string{"world -> a/db 53/TCP: yes", "world -> a/db 53/UDP: no", "world -> a/db 9/SCTP: yes"},
	}, {
		"a port without number is every port of the protocol", `{allowIncoming: {toPorts: [{protocol: udp}]}}`, nil,
		[]string{"world -> a/db 53/UDP: yes", "world -> a/db 53/TCP: no", "world -> a/db ICMP: no"},
	}, {
		"a named port is the destination's", `{allowIncoming: {toPorts: [{port: http}]}}`, nil,
		[]string{"world -> a/db 8080/TCP: yes", "world -> a/db 80/TCP: no", "world -> a/web 80/TCP: yes"},
	}, {
		"digits are a number", `{allowIncoming: {toPorts: [{port: "80"}]}}`, nil,
		[]string{"world -> a/db 80/TCP: yes"},
	}, {
		"pods: {} is every pod of the policy's namespace", `{allowIncoming: {from: [{pods: {}}]}}`, nil,
		[]string{"a/plain -> a/db 80/TCP: yes", "b/web -> a/db 80/TCP: no", "world -> a/db 80/TCP: no"},
	}, {
		"namespaces selects by the namespaces' labels", `{allowIncoming: {from: [{namespaces: {team: "y"}}]}}`, nil,
		[]string{"b/web -> a/db 80/TCP: yes", "c/web -> a/db 80/TCP: no", "a/web -> a/db 80/TCP: no"},
	}, {
		"namespaces: {} is every namespace", `{allowIncoming: {from: [{namespaces: {}}]}}`, nil,
		[]string{"b/web -> a/db 80/TCP: yes", "c/web -> a/db 80/TCP: yes", "world -> a/db 80/TCP: no",
			"n2 -> a/db 80/TCP: no"},
	}, {
		"all labels must be there", `{allowIncoming: {from: [{pods: {app: db, tier: back}}, {pods: {app: web, tier: ` +
			`back}}]}}`, nil,
		[]string{"a/db -> a/web 80/TCP: yes", "a/web -> a/plain 80/TCP: no"},
	}, {
		"pods and namespaces in one entry: that entry allows nothing",
		`{allowIncoming: {from: [{pods: {app: web}, namespaces: {team: "y"}}, {pods: {app: db}}]}}`,
		[]string{"spec.allowIncoming.from[0]: pods and namespaces exclude each other; the entry allows nothing"},
		[]string{"a/web -> a/db 80/TCP: no", "b/web -> a/db 80/TCP: no", "a/db -> a/web 80/TCP: yes"},
	}, {
		"also if it is the only one", `{allowIncoming: [{from: [{pods: {}, namespaces: {}}]}]}`,
		[]string{"spec.allowIncoming[0].from[0]: pods and namespaces exclude each other; the entry allows nothing"},
		[]string{"a/web -> a/db 80/TCP: no", "b/web -> a/db 80/TCP: no", "world -> a/db 80/TCP: no"},
	}, {
		"an entry with neither", `{allowIncoming: {from: [{}]}}`,
		[]string{"spec.allowIncoming.from[0]: pods or namespaces must be set; the entry allows nothing"},
		[]string{"a/web -> a/db 80/TCP: no", "world -> a/db 80/TCP: no"},
	}, {
		"an entry that is no object", `{allowIncoming: {from: [web, {pods: {app: db}}]}}`,
		[]string{"spec.allowIncoming.from[0]: it is a string, not an object; the entry allows nothing"},
		[]string{"a/web -> a/db 80/TCP: no", "a/db -> a/web 80/TCP: yes"},
	}, {
		"an unknown field of an entry", `{allowIncoming: {from: [{pods: {app: web}, cidr: 10.0.0.0/8}]}}`,
		[]string{"spec.allowIncoming.from[0].cidr: unknown field; the entry allows nothing"},
		[]string{"a/web -> a/db 80/TCP: no"},
	}, {
		"bad labels", `{allowIncoming: {from: [{pods: {app: 1}}, {namespaces: [y]}, {pods: {"a b": c}}]}}`,
		[]string{
			`spec.allowIncoming.from[0].pods: the value of "app" is a number, not a string; the entry allows nothing`,
			"spec.allowIncoming.from[1].namespaces: it is a list, not a map of labels; the entry allows nothing",
			`spec.allowIncoming.from[2].pods: invalid label selector: key "a b": `,
		},
		[]string{"a/web -> a/db 80/TCP: no", "b/web -> a/db 80/TCP: no"},
	}, {
		"a list that is none", `{allowIncoming: {from: {pods: {}}, toPorts: 80}}`,
		[]string{
			"spec.allowIncoming.from: it is an object, not a list; the rule allows nothing",
			"spec.allowIncoming.toPorts: it is a number, not a list; the rule allows nothing",
		},
		[]string{"a/web -> a/db 80/TCP: no"},
	}, {
		"a misspelt field must not open the rule", `{allowIncoming: [{form: [{pods: {app: web}}]}, {toPorts: [{port: 80}]}]}`,
		[]string{"spec.allowIncoming[0].form: unknown field; the rule allows nothing"},
		[]string{"world -> a/db 53/UDP: no", "world -> a/db 80/TCP: yes"},
	}, {
		"nor the policy", `{podselector: {app: web}, allowIncoming: {}}`,
		[]string{"spec.podselector: unknown field; the policy allows nothing"},
		[]string{"world -> a/db 80/TCP: no"},
	}, {
		"a bad podSelector", `{podSelector: web, allowIncoming: {}}`,
		[]string{"spec.podSelector: it is a string, not a map of labels; the policy allows nothing"},
		[]string{"world -> a/db 80/TCP: no"},
	}, {
		"a selector of a later dialect", `{podSelector: {matchLabels: {app: db}}, allowIncoming: {}}`,
		[]string{`spec.podSelector: the value of "matchLabels" is an object, not a string; the policy allows nothing`},
		[]string{"world -> a/db 80/TCP: no"},
	}, {
		"bad ports", `{allowIncoming: {toPorts: [{port: 0}, {port: 65536}, {port: 1.5}, {port: true}, {port: ""}, ` +
			`{port: Not_A_Name},
			{protocol: ICMP}, {protocol: 6}, {port: 1, endPort: 9}, 80, {port: 53, protocol: UDP}]}}`,
		[]string{
			"spec.allowIncoming.toPorts[0].port: 0 is not a port number; the entry allows nothing",
			"spec.allowIncoming.toPorts[1].port: 65536 is not a port number; the entry allows nothing",
			"spec.allowIncoming.toPorts[2].port: 1.5 is not a port number; the entry allows nothing",
			"spec.allowIncoming.toPorts[3].port: it is a boolean, not a number or a name; the entry allows nothing",
			`spec.allowIncoming.toPorts[4].port: "" is not the name of a port: `,
			`spec.allowIncoming.toPorts[5].port: "Not_A_Name" is not the name of a port: `,
			`spec.allowIncoming.toPorts[6].protocol: unknown protocol "ICMP"; the entry allows nothing`,
			"spec.allowIncoming.toPorts[7].protocol: it is a number, not a string; the entry allows nothing",
			"spec.allowIncoming.toPorts[8].endPort: unknown field; the entry allows nothing",
			"spec.allowIncoming.toPorts[9]: it is a number, not an object; the entry allows nothing",
		},
		[]string{"world -> a/db 53/UDP: yes", "world -> a/db 80/TCP: no", "world -> a/db 5/TCP: no",
			"world -> a/db ICMP: no"},
	}, {
		"rules that are none", `{allowIncoming: [null, 7]}`,
		[]string{
			"spec.allowIncoming[0]: it is null, not an object; the rule allows nothing",
			"spec.allowIncoming[1]: it is a number, not an object; the rule allows nothing",
		},
		[]string{"world -> a/db 80/TCP: no"},
	}, {
		"allowIncoming of another kind", `{allowIncoming: true}`,
		[]string{"spec.allowIncoming: it is a boolean, not an object or a list of objects; nothing is allowed"},
		[]string{"world -> a/db 80/TCP: no"},
	}, {
		"a spec of another kind", `[1]`,
		[]string{"spec: it is a list, not an object; the policy allows nothing"},
		[]string{"world -> a/db 80/TCP: no"},
	}} {
		t.Run(c.name, func(t *testing.T) {
			np := parse(t, "a", "p", c.spec)
			compiled := alpha.Compile(np)
			var got []string
			for i, p := range compiled.Rule.Problems {
				text := p.String()
				if i < len(c.problems) && strings.HasSuffix(c.problems[i], ": ") && strings.HasPrefix(text, c.problems[i]) {
					text = c.problems[i]
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(c.problems, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
			set, in := alpha.NewSet(), fed{}
			in.apply(set.SetNamespace(isolated("a", "on")))
			in.apply(set.SetPolicy(compiled))
			w := in.world(t)
			w.Expect(c.expect...)
			w.Expect("a/web -> b/web 80/TCP: yes", "world -> b/web ICMP: yes", "n1 -> a/db 80/TCP: yes")
		})
	}
}

// TestAnnouncement is the example of March 2016, word for word.
func TestAnnouncement(t *testing.T) {
	const object = `{
"kind": "NetworkPolicy",
"metadata": {
"name": "pol1"
},
"spec": {
"allowIncoming": {
"from": [
{ "pods": { "segment": "frontend" } }
],
"toPorts": [
{ "port": 80, "protocol": "TCP" }
]
},
"podSelector": { "segment": "backend" }
}
}`
	np := &alpha.NetworkPolicy{}
	if err := yaml.Unmarshal([]byte(object), np); err != nil {
		t.Fatal(err)
	}
	np.Namespace = "tenant-a"
	p := alpha.Compile(np).Rule
	if p.Problems != nil || p.Egress != nil || len(p.Ingress.Rules) != 1 {
		t.Fatalf("%+v", p)
	}
	r := p.Ingress.Rules[0]
	got := []string{p.Ref.String(), p.Tier.String(), p.Subject.String(), r.Action.String(), r.Peers[0].String(),
		r.Ports[0].String()}
	want := []string{
		"NetworkPolicy.v1alpha1/tenant-a/pol1", "networkpolicy", "pods segment=backend in namespace tenant-a", "accept",
		"pods segment=frontend in namespace tenant-a", "80/TCP",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnnotation(t *testing.T) {
	for value, want := range map[string]bool{
		"on": true, "yes": true, "off": false, "no": false, "": false,
		"true": true, "On": true, "on.": true, "DefaultDeny": true,
	} {
		s := alpha.Read(isolated("a", value))
		known := slices.Contains([]string{"on", "yes", "off", "no", ""}, value)
		if s.Isolated != want || (s.Problem == "") != known {
			t.Errorf("%q: %+v", value, s)
		}
	}
}

// TestToggle turns isolation on and off around policies, in every order of arrival.
func TestToggle(t *testing.T) {
	compiled := alpha.Compile(parse(t, "a", "p", `{podSelector: {app: db}, allowIncoming: {from: [{pods: {app: web}}]}}`))
	open := []string{"world -> a/web 80/TCP: yes", "world -> a/db 80/TCP: yes", "a/web -> a/db 80/TCP: yes"}
	shut := []string{"world -> a/web 80/TCP: no", "world -> a/db 80/TCP: no", "a/web -> a/db 80/TCP: yes"}

	set, in := alpha.NewSet(), fed{}
	in.apply(set.SetPolicy(compiled))
	in.world(t).Expect(open...)
	in.apply(set.SetNamespace(isolated("a", "")))
	in.world(t).Expect(open...)
	in.apply(set.SetNamespace(isolated("a", "on")))
	in.world(t).Expect(shut...)
	if c := set.SetNamespace(isolated("a", "yes")); c.Set != nil || c.Deleted != nil {
		t.Errorf("on to yes changed %+v", c)
	}
	in.apply(set.SetNamespace(isolated("a", "off")))
	in.world(t).Expect(open...)
	if len(in) != 1 {
		t.Errorf("%d policies, not one that says nothing", len(in))
	}
	in.apply(set.SetNamespace(isolated("a", "maybe")))
	in.world(t).Expect(shut...)
	isolating := in[rule.Ref{Dialect: rule.AlphaNetworkPolicy, Namespace: "a", Name: cluster.AnnotationIsolation}]
	want := `metadata.annotations[net.alpha.kubernetes.io/network-isolation]: "maybe" is none of on, off, yes and ` +
		`no; the namespace is isolated`
	if len(isolating.Problems) != 1 || isolating.Problems[0].String() != want {
		t.Errorf("%v", isolating.Problems)
	}
	in.apply(set.SetNamespace(isolated("a", "on")))
	if p := in[isolating.Ref]; p.Problems != nil {
		t.Errorf("mended, and still %v", p.Problems)
	}
	in.apply(set.DeletePolicy(compiled.Rule.Ref))
	in.world(t).Expect("a/web -> a/db 80/TCP: no", "n1 -> a/db 80/TCP: yes")
	in.apply(set.SetPolicy(compiled))
	in.apply(set.DeleteNamespace("a"))
	in.world(t).Expect(open...)
	in.apply(set.DeletePolicy(compiled.Rule.Ref))
	in.apply(set.DeletePolicy(compiled.Rule.Ref))
	in.apply(set.DeleteNamespace("a"))
	if len(in) != 0 {
		t.Errorf("left over: %v", in)
	}
}

func TestDeepCopy(t *testing.T) {
	np := parse(t, "a", "p", `{podSelector: {app: db}, allowIncoming: [{from: [{pods: {app: web}}, {namespaces: {}}, `+
		`1], toPorts: [{port: 80}]}]}`)
	list := &alpha.NetworkPolicyList{Items: []alpha.NetworkPolicy{*np}}
	item := &list.DeepCopyObject().(*alpha.NetworkPolicyList).Items[0]
	if diff := cmp.Diff(np, item); diff != "" {
		t.Fatal(diff)
	}
	item.Spec.PodSelector["app"] = "x"
	item.Spec.AllowIncoming[0].From[0].Pods["app"] = "x"
	item.Spec.AllowIncoming[0].ToPorts[0].Port.IntVal = 1
	item.Spec.Problems[0].Text = "x"
	if cmp.Equal(np.Spec.PodSelector, item.Spec.PodSelector) || np.Spec.AllowIncoming[0].ToPorts[0].Port.IntVal != 80 ||
		np.Spec.AllowIncoming[0].From[0].Pods["app"] != "web" || np.Spec.Problems[0].Text == "x" {
		t.Error("the copy shares memory")
	}
}

// FuzzDecode feeds any YAML. Objects never allow more than everything, and writing down what was understood loses
// nothing of it.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{spec: {podSelector: {a: b}, allowIncoming: {from: [{pods: {}}], toPorts: [{port: 80, protocol: TCP}]}}}`,
		`{spec: {allowIncoming: [{from: [{namespaces: {a: b}}, {pods: {}, namespaces: {}}]}, {}]}}`,
		`{spec: {allowIncoming: [{toPorts: [{port: http}, {port: "1"}, {port: 1e3}, {protocol: x}]}]}}`,
		`{spec: 7}`, `{spec: [null]}`, `[]`, "\x00", `{"spec": {"allowIncoming": 1e999}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		np := &alpha.NetworkPolicy{}
		if yaml.Unmarshal(b, np) != nil {
			return
		}
		first := alpha.Compile(np)
		if len(first.Rule.Problems) != len(np.Spec.Problems) {
			t.Errorf("the compiler found what the decoder let pass: %v", first.Rule.Problems)
		}
		text, err := yaml.Marshal(np)
		if err != nil {
			t.Fatal(err)
		}
		again := &alpha.NetworkPolicy{}
		if err := yaml.Unmarshal(text, again); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		second := alpha.Compile(again)
		if len(second.Rule.Problems) > 0 {
			t.Errorf("%v\n%s", second.Rule.Problems, text)
		}
		got, want := describe(second.Rule), describe(first.Rule)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-first +second)\n%s\n%s", diff, text)
		}
	})
}

func describe(p *rule.Policy) []string {
	out := []string{p.Subject.String()}
	for _, r := range p.Ingress.Rules {
		line := "rule"
		for i := range r.Peers {
			line += " from " + r.Peers[i].String()
		}
		for i := range r.Ports {
			line += " to " + r.Ports[i].String()
		}
		if r.Peers != nil && len(r.Peers) == 0 || r.Ports != nil && len(r.Ports) == 0 {
			line += " nothing"
		}
		out = append(out, line)
	}
	return out
}
