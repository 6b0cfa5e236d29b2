package clusternetpol_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/policycache/clusternetpol"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/internal/polytest"
	"github.com/firstpacket/firstpacket/policycache/netpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

func parse(t *testing.T, name, spec string) *v1alpha2.ClusterNetworkPolicy {
	t.Helper()
	cnp := &v1alpha2.ClusterNetworkPolicy{}
	cnp.Name = name
	if err := yaml.UnmarshalStrict([]byte(spec), &cnp.Spec); err != nil {
		t.Fatalf("%v\n%s", err, spec)
	}
	return cnp
}

// forA is a policy of priority 10 about all pods of namespace a.
func forA(tier, rules string) string {
	return "{tier: " + tier + ", priority: 10, subject: {namespaces: {matchLabels: {team: x}}}, " + rules + "}"
}

// isolatingNP isolates a/db in the NetworkPolicy tier and allows nothing.
const isolatingNP = `{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress]}`

// openingNP isolates a/db and allows a/web.
const openingNP = `{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress, Egress],
	ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}],
		egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}`

// TestSentences has cases for the sentences of the API documentation, in its order.
func TestSentences(t *testing.T) {
	denyAll := "{action: Deny, from: [{namespaces: {}}]}"
	for _, c := range []struct {
		name   string
		cnps   []string // named p0, p1, …
		nps    []string // in namespace a
		expect []string
	}{{
		"Admin tier takes precedence over all other policies",
		[]string{forA("Admin", "ingress: [{action: Accept, from: [{namespaces: {}}]}]")}, []string{isolatingNP},
		[]string{"b/web -> a/db 80/TCP: yes", "world -> a/db 80/TCP: no", "n2 -> a/db 80/TCP: no"},
	}, {
		"Admin denies what NetworkPolicy allows",
		[]string{forA("Admin", "ingress: ["+denyAll+"]")}, []string{openingNP},
		[]string{"a/web -> a/db 80/TCP: no", "a/web -> a/db ICMP: no", "world -> a/web 80/TCP: yes"},
	}, {
		"NetworkPolicy always makes a final decision for selected pods: Baseline is not asked",
		[]string{forA("Baseline", "ingress: ["+denyAll+"]"),
			"{tier: Baseline, priority: 1, subject: {pods: {podSelector: {matchLabels: {app: db}}}}, ingress: [{action: " +
				"Accept, from: [{namespaces: {matchLabels: {team: \"y\"}}}]}]}"},
		[]string{openingNP},
		[]string{"a/web -> a/db 80/TCP: yes", "b/web -> a/db 80/TCP: no"},
	}, {
		"further evaluation happens for pods not selected",
		[]string{forA("Baseline", "ingress: ["+denyAll+"]")}, []string{openingNP},
		[]string{"a/web -> a/plain 80/TCP: no", "b/web -> a/web 80/TCP: no", "world -> a/plain 80/TCP: yes"},
	}, {
		"a NetworkPolicy that covers one direction leaves the other to Baseline",
		[]string{forA("Baseline", "egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]")},
		[]string{`{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}`},
		[]string{"a/web -> b/web 80/TCP: no", "b/web -> a/web 80/TCP: yes", "a/web -> world ICMP: no"},
	}, {
		"what no tier decides is allowed",
		[]string{forA("Admin", "ingress: [{action: Deny, from: [{pods: {podSelector: {matchLabels: {app: web}}}}]}]")}, nil,
		[]string{"b/db -> a/db 80/TCP: yes", "b/web -> a/db 80/TCP: no"},
	}, {
		"policies with lower priority values are checked first",
		[]string{
			"{tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [" + denyAll + "]}",
			"{tier: Admin, priority: 6, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: " +
				"{matchLabels: {team: x}}}]}]}",
		}, nil,
		[]string{"a/web -> b/web 80/TCP: yes", "b/web -> b/db 80/TCP: no"},
	}, {
		"policies of the same priority: any may count, here the first by name on all nodes",
		[]string{
			"{tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}",
			"{tier: Admin, priority: 7, subject: {namespaces: {}}, ingress: [" + denyAll + "]}",
		}, nil,
		[]string{"a/web -> b/web 80/TCP: yes"},
	}, {
		"all Admin rules come before Baseline rules, whatever the priorities",
		[]string{
			"{tier: Baseline, priority: 0, subject: {namespaces: {}}, ingress: [" + denyAll + "]}",
			"{tier: Admin, priority: 1000, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: " +
				"{matchLabels: {team: x}}}]}]}",
		}, nil,
		[]string{"a/web -> b/web 80/TCP: yes", "b/web -> b/db 80/TCP: no"},
	}, {
		"the rule at the top has the highest precedence",
		[]string{forA("Admin", "ingress: [{action: Accept, from: [{namespaces: {matchLabels: {team: x}}}]}, "+
			""+denyAll+"]")}, nil,
		[]string{"a/web -> a/db 80/TCP: yes", "b/web -> a/db 80/TCP: no"},
	}, {
		"a policy without rules of a direction does not affect it",
		[]string{forA("Admin", "ingress: ["+denyAll+"]"), "{tier: Admin, priority: 0, subject: {namespaces: {}}}"}, nil,
		[]string{"a/web -> b/web 80/TCP: yes", "b/web -> a/web 80/TCP: no"},
	}, {
		"subject: namespace AND pod selectors",
		[]string{"{tier: Admin, priority: 0, subject: {pods: {namespaceSelector: {matchLabels: {team: x}}, podSelector: " +
			"{matchLabels: {app: db}}}}, ingress: [" + denyAll + "]}"}, nil,
		[]string{"b/web -> a/db 80/TCP: no", "b/web -> a/web 80/TCP: yes", "a/web -> b/db 80/TCP: yes"},
	}, {
		"subject: an empty namespaceSelector selects all namespaces, an empty podSelector all pods",
		[]string{"{tier: Admin, priority: 0, subject: {pods: {namespaceSelector: {}, podSelector: {}}}, ingress: " +
			"[" + denyAll + "]}"}, nil,
		[]string{"b/web -> a/db 80/TCP: no", "a/web -> c/plain 80/TCP: no", "world -> a/db 80/TCP: yes"},
	}, {
		"Pass skips the rest of the tier",
		[]string{
			forA("Admin", "ingress: [{action: Pass, from: [{pods: {podSelector: {matchLabels: {app: web}}}}]}, "+denyAll+"]"),
			"{tier: Admin, priority: 11, subject: {namespaces: {}}, ingress: [" + denyAll + "]}",
		}, []string{openingNP},
		[]string{"a/web -> a/db 80/TCP: yes", "b/web -> a/db 80/TCP: no", "b/web -> a/plain 80/TCP: yes",
			"a/db -> a/plain 80/TCP: no"},
	}, {
		"Pass leads to Baseline where no NetworkPolicy selects the pod, and out of Baseline to the default",
		[]string{
			forA("Admin", "ingress: [{action: Pass, from: [{namespaces: {}}]}]"),
			"{tier: Baseline, priority: 1, subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: " +
				"{matchLabels: {team: \"y\"}}}]}, " + denyAll + "]}",
		}, nil,
		[]string{"b/web -> a/db 80/TCP: yes", "c/web -> a/db 80/TCP: no"},
	}, {
		"without protocols, protocol-specific attributes are not used",
		[]string{forA("Admin", "ingress: [{action: Deny, from: [{namespaces: {}}]}]")}, nil,
		[]string{"b/web -> a/db 80/TCP: no", "b/web -> a/db ICMP: no", "b/web -> a/db 9/SCTP: no"},
	}, {
		"if any element matches, the action is applied",
		[]string{forA("Admin", "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {team: \"y\"}}}, {pods: "+
			"{podSelector: {matchLabels: {app: web}}}}]}]")}, nil,
		[]string{"b/plain -> a/db 80/TCP: no", "c/web -> a/db 80/TCP: no", "c/db -> a/db 80/TCP: yes"},
	}, {
		"host-networked pods are not in namespaces peers: node addresses are not",
		[]string{forA("Admin", "egress: [{action: Deny, to: [{namespaces: {}}]}]")}, nil,
		[]string{"a/web -> n2 80/TCP: yes", "a/web -> n1 80/TCP: yes", "a/web -> b/web 80/TCP: no"},
	}, {
		"nodes by label",
		[]string{forA("Admin", "egress: [{action: Deny, to: [{nodes: {matchLabels: {role: edge}}}]}]")}, nil,
		[]string{"a/web -> n2 80/TCP: no", "a/web -> n1 80/TCP: yes", "a/web -> b/web 80/TCP: yes",
			"a/web -> world 80/TCP: yes"},
	}, {
		"nodes: {} selects all nodes",
		[]string{forA("Admin", "egress: [{action: Deny, to: [{nodes: {}}]}]")}, nil,
		[]string{"a/web -> n2 80/TCP: no", "a/web -> n1 80/TCP: no", "a/web -> b/web 80/TCP: yes"},
	}, {
		"networks: cluster-internal traffic is checked as well",
		[]string{forA("Admin", "egress: [{action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}]")}, nil,
		[]string{"a/web -> b/web 80/TCP: no", "a/web -> world 80/TCP: no", "a/web -> n2 80/TCP: no",
			"b/web -> a/web 80/TCP: yes"},
	}, {
		"add a rule that passes all pod traffic before it",
		[]string{forA("Admin", "egress: [{action: Pass, to: [{namespaces: {}}]}, {action: Deny, to: [{networks: "+
			"[0.0.0.0/0]}]}]")}, nil,
		[]string{"a/web -> b/web 80/TCP: yes", "a/web -> world 80/TCP: no"},
	}, {
		"several networks in one peer",
		[]string{forA("Admin", "egress: [{action: Deny, to: [{networks: ["+polytest.Address("world")+"/32, "+
			""+polytest.Address("b/web")+"/30]}]}]")}, nil,
		[]string{"a/web -> b/web 80/TCP: no", "a/web -> world 80/TCP: no", "a/web -> b/db 80/TCP: yes"},
	}, {
		"port numbers of each protocol",
		[]string{forA("Admin", "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: "+
			"{number: 80}}}, {udp: {destinationPort: {number: 53}}}, {sctp: {destinationPort: {number: 9}}}]}]")}, nil,
		[]string{"b/web -> a/db 80/TCP: no", "b/web -> a/db 53/UDP: no", "b/web -> a/db 9/SCTP: no",
			"b/web -> a/db 8080/TCP: yes", "b/web -> a/db ICMP: yes", "b/web -> a/db 80/UDP: yes"},
	}, {
		"ranges include both ends",
		[]string{forA("Admin", "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: "+
			"{range: {start: 80, end: 8080}}}}]}]")}, nil,
		[]string{"b/web -> a/db 79/TCP: yes", "b/web -> a/db 80/TCP: no", "b/web -> a/db 8080/TCP: no",
			"b/web -> a/db 8081/TCP: yes"},
	}, {
		"named ports are the destination pod's, of any protocol",
		[]string{forA("Admin", "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{destinationNamedPort: "+
			"http}, {destinationNamedPort: dns}]}]")}, nil,
		[]string{"b/web -> a/db 8080/TCP: no", "b/web -> a/db 80/TCP: yes", "b/web -> a/web 80/TCP: no",
			"b/web -> a/web 53/UDP: no", "b/web -> a/web 53/TCP: yes"},
	}, {
		"named ports of egress peers",
		[]string{forA("Admin", "egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: "+
			"http}]}]")}, nil,
		[]string{"a/web -> b/db 8080/TCP: no", "a/web -> b/web 80/TCP: no", "a/web -> b/web 8080/TCP: yes",
			"a/web -> world 80/TCP: yes"},
	}} {
		t.Run(c.name, func(t *testing.T) {
			var policies []*rule.Policy
			for i, spec := range c.cnps {
				p := clusternetpol.Compile(parse(t, "p"+string(rune('0'+i)), spec))
				if p.Problems != nil {
					t.Errorf("problems: %v", p.Problems)
				}
				policies = append(policies, p)
			}
			for i, spec := range c.nps {
				np := &networkingv1.NetworkPolicy{}
				np.Namespace, np.Name = "a", "np"+string(rune('0'+i))
				if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
					t.Fatal(err)
				}
				policies = append(policies, netpol.Compile(np))
			}
			polytest.New(t, policies...).Expect(c.expect...)
		})
	}
}

// TestFailClosed has a case for each thing that cannot be understood, with each action where that makes a difference.
// Behind each policy stands another that would accept what the first is about.
func TestFailClosed(t *testing.T) {
	const (
		nothing = "the rule matches nothing"
		all     = "the rule denies all"
		peers   = "the rule denies its peers at every port"
		closed  = "the policy accepts nothing, and denies what it would have passed"
	)
	peer := func(action, peer string) string {
		return forA("Admin", "egress: [{action: "+action+", to: ["+peer+"]}]")
	}
	port := func(action, protocols string) string {
		return forA("Admin", "egress: [{action: "+action+", to: [{namespaces: {matchLabels: {team: \"y\"}}}], "+
			"protocols: "+protocols+"}]")
	}
	subject := func(action, subject string) string {
		return "{tier: Admin, priority: 0, subject: " + subject + ", egress: [{action: " + action + ", to: " +
			"[{namespaces: {matchLabels: {team: \"y\"}}}]}]}"
	}
	placed := func(tier, priority, action string) string {
		return "{tier: " + tier + ", priority: " + priority + ", subject: {namespaces: {matchLabels: {team: x}}}, " +
			"egress: [{action: " + action + ", to: [{namespaces: {matchLabels: {team: \"y\"}}}]}]}"
	}
	open := []string{"a/web -> b/web 80/TCP: yes", "a/web -> world ICMP: yes", "c/web -> b/web 80/TCP: yes"}
	shut := []string{"a/web -> b/web 80/TCP: no", "a/web -> world ICMP: no", "a/web -> n2 80/TCP: no",
		"c/web -> b/web 80/TCP: yes"}
	shutB := []string{"a/web -> b/web 80/TCP: no", "a/web -> b/web ICMP: no", "a/web -> world 80/TCP: yes",
		"c/web -> b/web 80/TCP: yes"}
	shutAll := []string{"a/web -> b/web 80/TCP: no", "c/web -> b/web 80/TCP: no", "a/web -> c/web 80/TCP: yes"}
	for _, c := range []struct {
		name, spec, problem string
		// behind is the rule of the policy behind: Accept to see what is denied, Deny to see what is accepted.
		behind string
		expect []string
	}{
		{"no field of a peer, Accept", peer("Accept", "{}"),
			"spec.egress[0].to[0]: exactly one field must be set; " + nothing, "Deny", shut},
		{"no field of a peer, Deny", peer("Deny", "{}"), "spec.egress[0].to[0]: exactly one field must be set; " + all,
			"Accept", shut},
		{"no field of a peer, Pass", peer("Pass", "{}"), "spec.egress[0].to[0]: exactly one field must be set; " + all,
			"Accept", shut},
		{"one bad peer of several, Accept", peer("Accept", "{namespaces: {}}, {}"),
			"spec.egress[0].to[1]: exactly one field must be set; " + nothing, "Deny", shut},
		{"one bad peer of several, Deny", peer("Deny", "{nodes: {}}, {}"),
			"spec.egress[0].to[1]: exactly one field must be set; " + all, "Accept", shut},
		{"two fields of a peer", peer("Deny", "{namespaces: {}, nodes: {}}"),
			"spec.egress[0].to[0]: exactly one field must be set; " + all, "Accept", shut},
		{"no peers, Accept", peer("Accept", ""), "spec.egress[0].to: a rule needs at least one peer; " + nothing, "Deny",
			shut},
		{"no peers, Deny", peer("Deny", ""), "spec.egress[0].to: a rule needs at least one peer; " + all, "Accept", shut},
		{"bad selector, Deny", peer("Deny", "{namespaces: {matchExpressions: [{key: a, operator: Near}]}}"),
			`spec.egress[0].to[0].namespaces: invalid label selector: key "a": unknown operator "Near"; ` + all, "Accept",
			shut},
		{"bad selector of namespaces", peer("Pass", "{pods: {namespaceSelector: {matchExpressions: [{key: a, operator: "+
			"In}]}, podSelector: {}}}"), `spec.egress[0].to[0].pods.namespaceSelector: invalid label selector: key "a": ` +
			`operator In needs values; ` + all, "Accept", shut},
		{"bad selector of pods", peer("Accept", "{pods: {podSelector: {matchLabels: {'': x}}}}"),
			"spec.egress[0].to[0].pods.podSelector: invalid label selector: ", "Deny", shut},
		{"bad selector of nodes", peer("Accept", "{nodes: {matchLabels: {'': x}}}"),
			"spec.egress[0].to[0].nodes: invalid label selector: ", "Deny", shut},
		{"bad CIDR, Deny", peer("Deny", "{networks: [10.0.0.0/8, 10.0.0.0]}"),
			`spec.egress[0].to[0].networks[1]: "10.0.0.0" is not an address range; ` + all, "Accept", shut},
		{"mapped CIDR, Accept", peer("Accept", "{networks: ['::ffff:0.0.0.0/96']}"),
			`spec.egress[0].to[0].networks[0]: "::ffff:0.0.0.0/96" is not an address range; ` + nothing, "Deny", shut},
		{"domain names, Deny", peer("Deny", "{domainNames: [example.com]}"),
			"spec.egress[0].to[0].domainNames: domainNames is only supported in egress rules that accept; " + all,
			"Accept", shut},
		{"bad domain name", peer("Accept", "{networks: [0.0.0.0/0]}, {domainNames: ['a*.example.com']}"),
			"spec.egress[0].to[1].domainNames: not a domain name: ", "Deny", shut},
		{"unknown action", forA("Admin", "egress: [{action: Log, to: [{namespaces: {matchLabels: {team: \"y\"}}}]}]"),
			`spec.egress[0].action: unknown action "Log"; the rule denies what it matches`, "Accept", shutB},

		{"no protocol, Accept", port("Accept", "[{}]"), "spec.egress[0].protocols[0]: exactly one field must be set; " +
			"" + nothing, "Deny", shut},
		{"no protocol, Deny", port("Deny", "[{}]"), "spec.egress[0].protocols[0]: exactly one field must be set; " + peers,
			"Accept", shutB},
		{"no protocol, Pass", port("Pass", "[{}]"), "spec.egress[0].protocols[0]: exactly one field must be set; " + peers,
			"Accept", shutB},
		{"empty list, Accept", port("Accept", "[]"), "spec.egress[0].protocols: the list must not be empty; " + nothing,
			"Deny", shut},
		{"empty list, Deny", port("Deny", "[]"), "spec.egress[0].protocols: the list must not be empty; " + peers,
			"Accept", shutB},
		{"two protocols in one", port("Deny", "[{destinationNamedPort: x, tcp: {destinationPort: {number: 1}}}]"),
			"spec.egress[0].protocols[0]: exactly one field must be set; " + peers, "Accept", shutB},
		{"protocol without port", port("Deny", "[{tcp: {destinationPort: {number: 1}}}, {udp: {}}]"),
			"spec.egress[0].protocols[1].udp: exactly one field must be set; " + peers, "Accept", shutB},
		{"port without number", port("Deny", "[{sctp: {destinationPort: {}}}]"),
			"spec.egress[0].protocols[0].sctp.destinationPort: exactly one field must be set; " + peers, "Accept", shutB},
		{"number and range", port("Deny", "[{tcp: {destinationPort: {number: 1, range: {start: 1, end: 2}}}}]"),
			"spec.egress[0].protocols[0].tcp.destinationPort: exactly one field must be set; " + peers, "Accept", shutB},
		{"number too large", port("Deny", "[{tcp: {destinationPort: {number: 65536}}}]"),
			"spec.egress[0].protocols[0].tcp.destinationPort.number: 65536 is not a port number; " + peers, "Accept", shutB},
		{"range backwards", port("Deny", "[{tcp: {destinationPort: {range: {start: 2, end: 1}}}}]"),
			"spec.egress[0].protocols[0].tcp.destinationPort.range: start 2 must be less than end 1; " + peers, "Accept",
			shutB},
		{"range of one", port("Accept", "[{tcp: {destinationPort: {range: {start: 80, end: 80}}}}]"),
			"spec.egress[0].protocols[0].tcp.destinationPort.range: start 80 must be less than end 80; " + nothing, "Deny",
			shut},
		{"range from 0", port("Deny", "[{tcp: {destinationPort: {range: {start: 0, end: 1}}}}]"),
			"spec.egress[0].protocols[0].tcp.destinationPort.range.start: 0 is not a port number; " + peers, "Accept", shutB},
		{"range too far", port("Deny", "[{tcp: {destinationPort: {range: {start: 1, end: 70000}}}}]"),
			"spec.egress[0].protocols[0].tcp.destinationPort.range.end: 70000 is not a port number; " + peers, "Accept",
			shutB},
		{"named port of networks, Deny", forA("Admin", "egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}], "+
			"protocols: [{destinationNamedPort: http}]}]"),
			"spec.egress[0].protocols[0].destinationNamedPort: networks, nodes and domainNames have no named ports; " + peers,
			"Accept", shut},
		{"named port of nodes, Accept", forA("Admin", "egress: [{action: Accept, to: [{namespaces: {}}, {nodes: {}}], "+
			"protocols: [{destinationNamedPort: http}]}]"),
			"spec.egress[0].protocols[0].destinationNamedPort: networks, nodes and domainNames have no named ports; " +
				"" + nothing, "Deny", shut},

		{"no subject, Accept", subject("Accept", "{}"), "spec.subject: exactly one field must be set; the policy is " +
			"about all pods: " + closed, "Deny", []string{"a/web -> b/web 80/TCP: no", "c/web -> b/web 80/TCP: yes"}},
		{"no subject, Deny", subject("Deny", "{}"), "spec.subject: exactly one field must be set; the policy is about " +
			"all pods: " + closed, "Accept", shutAll},
		{"no subject, Pass", subject("Pass", "{}"), "spec.subject: exactly one field must be set; the policy is about " +
			"all pods: " + closed, "Accept", shutAll},
		{"two subjects", subject("Deny", "{namespaces: {}, pods: {podSelector: {}}}"),
			"spec.subject: exactly one field must be set; the policy is about all pods: " + closed, "Accept", shutAll},
		{"bad subject", subject("Deny", "{namespaces: {matchLabels: {team: x}, matchExpressions: [{key: a, operator: "+
			"Near}]}}"), `spec.subject.namespaces: invalid label selector: key "a": unknown operator "Near"; the policy is ` +
			`about the pods that match the rest of it: ` + closed, "Accept", shutB},
		{"bad subject pods", subject("Pass", "{pods: {namespaceSelector: {matchLabels: {team: x}}, podSelector: "+
			"{matchExpressions: [{key: a, operator: Near}]}}}"),
			`spec.subject.pods.podSelector: invalid label selector: key "a": unknown operator "Near"; the policy is about ` +
				`the pods that match the rest of it: ` + closed, "Accept", shutB},

		{"unknown tier, Accept", placed("Middle", "0", "Accept"),
			`spec.tier: unknown tier "Middle"; the policy comes first, accepts nothing, and denies what it would have passed`,
			"Deny", shut},
		{"unknown tier, Deny", placed("Middle", "500", "Deny"),
			`spec.tier: unknown tier "Middle"; the policy comes first, accepts nothing, and denies what it would have passed`,
			"Accept", shutB},
		{"priority too high, Deny", placed("Admin", "1001", "Deny"),
			"spec.priority: 1001 is not between 0 and 1000; the policy comes first, accepts nothing, and denies what it " +
				"would have passed", "Accept", shutB},
		{"priority too low, Pass", placed("Admin", "-1", "Pass"),
			"spec.priority: -1 is not between 0 and 1000; the policy comes first, accepts nothing, and denies what it " +
				"would have passed", "Accept", shutB},
		{"domain names that nobody has asked for", peer("Accept",
			"{networks: ["+polytest.Address("b/web")+"/32]}, {domainNames: [example.com, '*.example.org']}"), "", "Deny",
			[]string{"a/web -> b/web 80/TCP: yes", "a/web -> world 80/TCP: no"}},
		{"well-formed, for comparison", placed("Admin", "0", "Accept"), "", "Accept", open},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := clusternetpol.Compile(parse(t, "p", c.spec))
			var got string
			if len(p.Problems) > 0 {
				got = p.Problems[0].String()
			}
			right := got == c.problem || strings.HasSuffix(c.problem, ": ") && strings.HasPrefix(got, c.problem)
			if !right || len(p.Problems) > 1 {
				t.Errorf("problems: %v\nwant: %s", p.Problems, c.problem)
			}
			behind := clusternetpol.Compile(parse(t, "q", "{tier: Admin, priority: 20, subject: {namespaces: {matchLabels: "+
				"{team: x}}}, egress: [{action: "+c.behind+", to: [{networks: [0.0.0.0/0]}]}]}"))
			polytest.New(t, p, behind).Expect(c.expect...)
		})
	}
}

// TestNames: rules carry their names into verdicts.
func TestNames(t *testing.T) {
	p := clusternetpol.Compile(parse(t, "p", forA("Admin",
		"ingress: [{name: first, action: Pass, from: [{namespaces: {matchLabels: {team: \"y\"}}}]}, {name: last, "+
			"action: Deny, from: [{namespaces: {}}]}]")))
	v := polytest.New(t, p).Verdict("c/web", "a/db", "80/TCP")
	want := &engine.Decision{
		Reason: engine.DeniedByRule, Tier: rule.Admin, Policies: []rule.Ref{{Dialect: rule.ClusterNetworkPolicy, Name: "p"}},
		Rule: 1, RuleName: "last",
	}
	if diff := cmp.Diff(want, v.Ingress); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzCompile feeds any YAML. A rule that does not deny names its peers, and its ports unless it asks for none.
func FuzzCompile(f *testing.F) {
	f.Add([]byte(`{tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny,
		to: [{networks: [10.0.0.0/8]}], protocols: [{tcp: {destinationPort: {number: 1}}}]}]}`))
	f.Add([]byte(`{tier: x, ingress: [{action: Pass,
		from: [{pods: {podSelector: {matchExpressions: [{key: a, operator: In}]}}}]}]}`))
	f.Add([]byte(`{egress: [{action: Accept, to: [{domainNames: [a.b]}, {nodes: {}}],
		protocols: [{destinationNamedPort: x}, {udp: {destinationPort: {range: {start: 1}}}}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		cnp := &v1alpha2.ClusterNetworkPolicy{}
		if yaml.Unmarshal(b, &cnp.Spec) != nil {
			return
		}
		p := clusternetpol.Compile(cnp)
		for _, d := range []*rule.Direction{p.Ingress, p.Egress} {
			if d == nil {
				continue
			}
			for i := range d.Rules {
				if r := &d.Rules[i]; r.Action != rule.Deny && r.Peers == nil {
					t.Errorf("rule %d: %+v", i, r)
				}
			}
		}
		polytest.New(t, p).Matrix()
	})
}
