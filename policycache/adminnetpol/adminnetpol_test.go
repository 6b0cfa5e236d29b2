package adminnetpol_test

import (
	"testing"

	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/policycache/adminnetpol"
	"github.com/firstpacket/firstpacket/policycache/clusternetpol"
	"github.com/firstpacket/firstpacket/policycache/internal/polytest"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

func admin(t *testing.T, name, spec string) *rule.Policy {
	t.Helper()
	anp := &v1alpha1.AdminNetworkPolicy{}
	anp.Name = name
	if err := yaml.UnmarshalStrict([]byte(spec), &anp.Spec); err != nil {
		t.Fatalf("%v\n%s", err, spec)
	}
	return adminnetpol.Compile(anp)
}

func baseline(t *testing.T, name, spec string) *rule.Policy {
	t.Helper()
	banp := &v1alpha1.BaselineAdminNetworkPolicy{}
	banp.Name = name
	if err := yaml.UnmarshalStrict([]byte(spec), &banp.Spec); err != nil {
		t.Fatalf("%v\n%s", err, spec)
	}
	return adminnetpol.CompileBaseline(banp)
}

const (
	about   = "subject: {namespaces: {matchLabels: {team: x}}}, "
	fromAll = "from: [{namespaces: {}}]"
	fromY   = "from: [{namespaces: {matchLabels: {team: \"y\"}}}]"
	toAll   = "to: [{networks: [0.0.0.0/0]}]"
)

// TestSentences has cases for the sentences of the API documentation.
func TestSentences(t *testing.T) {
	for _, c := range []struct {
		name     string
		policies []*rule.Policy
		expect   []string
	}{{
		"Allow, even if Baseline denies", []*rule.Policy{
			admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Allow, "+fromY+"}]}"),
			baseline(t, "default", "{"+about+"ingress: [{action: Deny, "+fromAll+"}]}"),
		}, []string{"b/web -> a/web 80/TCP: yes", "c/web -> a/web 80/TCP: no", "world -> a/web 80/TCP: yes"},
	}, {
		"Pass skips remaining rules", []*rule.Policy{
			admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Pass, "+fromY+"}, {action: Deny, "+fromAll+"}]}"),
			admin(t, "q", "{priority: 6, "+about+"ingress: [{action: Deny, "+fromAll+"}]}"),
			baseline(t, "default", "{"+about+"ingress: [{action: Allow, "+fromAll+"}]}"),
		}, []string{"b/web -> a/web 80/TCP: yes", "c/web -> a/web 80/TCP: no"},
	}, {
		"lower priority values come first", []*rule.Policy{
			admin(t, "a", "{priority: 6, "+about+"ingress: [{action: Allow, "+fromAll+"}]}"),
			admin(t, "b", "{priority: 5, "+about+"ingress: [{action: Deny, "+fromY+"}]}"),
		}, []string{"b/web -> a/web 80/TCP: no", "c/web -> a/web 80/TCP: yes"},
	}, {
		"policies without egress rules do not affect egress", []*rule.Policy{
			admin(t, "a", "{priority: 6, "+about+"ingress: [{action: Deny, "+fromAll+"}]}"),
		}, []string{"a/web -> b/web 80/TCP: yes", "b/web -> a/web 80/TCP: no"},
	}, {
		"ports of each form; the protocol is TCP by default", []*rule.Policy{
			admin(t, "a", "{priority: 6, "+about+"ingress: [{action: Deny, "+fromAll+", ports: [{portNumber: {port: 80}}, "+
				"{portNumber: {protocol: UDP, port: 53}}, {portRange: {start: 8080, end: 8090}}, {portRange: {protocol: SCTP, "+
				"start: 1, end: 9}}]}]}"),
		}, []string{
			"b/web -> a/web 80/TCP: no", "b/web -> a/web 80/UDP: yes", "b/web -> a/web 53/UDP: no", "b/web -> a/web 53/TCP: yes",
			"b/web -> a/web 8090/TCP: no", "b/web -> a/web 8091/TCP: yes", "b/web -> a/web 9/SCTP: no",
			"b/web -> a/web ICMP: yes",
		},
	}, {
		"named ports", []*rule.Policy{
			admin(t, "a", "{priority: 6, "+about+"ingress: [{action: Deny, "+fromAll+", ports: [{namedPort: http}]}]}"),
		}, []string{"b/web -> a/web 80/TCP: no", "b/web -> a/db 80/TCP: yes", "b/web -> a/db 8080/TCP: no"},
	}, {
		"nodes and networks", []*rule.Policy{
			admin(t, "a", "{priority: 6, "+about+"egress: [{action: Deny, to: [{nodes: {matchLabels: {role: edge}}}, "+
				"{networks: ["+polytest.Address("world")+"/32]}]}]}"),
			baseline(t, "default", "{"+about+"egress: [{action: Deny, to: [{nodes: {}}, {pods: {namespaceSelector: {}, "+
				"podSelector: {matchLabels: {app: db}}}}]}]}"),
		}, []string{"a/web -> n2 80/TCP: no", "a/web -> n1 80/TCP: no", "a/web -> world 80/TCP: no",
			"a/web -> b/db 80/TCP: no", "a/web -> b/web 80/TCP: yes"},
	}, {
		"Baseline: the first rule counts", []*rule.Policy{
			baseline(t, "default", "{"+about+"ingress: [{action: Allow, "+fromY+"}, {action: Deny, "+fromAll+"}]}"),
		}, []string{"b/web -> a/web 80/TCP: yes", "c/web -> a/web 80/TCP: no"},
	}, {
		"a ClusterNetworkPolicy of the Baseline tier comes before the BaselineAdminNetworkPolicy", []*rule.Policy{
			baseline(t, "default", "{"+about+"ingress: [{action: Deny, "+fromAll+"}]}"),
			cluster(t, "{tier: Baseline, priority: 1000, "+about+"ingress: [{action: Accept, "+fromY+"}]}"),
		}, []string{"b/web -> a/web 80/TCP: yes", "c/web -> a/web 80/TCP: no"},
	}} {
		t.Run(c.name, func(t *testing.T) {
			for _, p := range c.policies {
				if p.Problems != nil {
					t.Errorf("problems: %v", p.Problems)
				}
			}
			polytest.New(t, c.policies...).Expect(c.expect...)
		})
	}
}

func cluster(t *testing.T, spec string) *rule.Policy {
	t.Helper()
	cnp := &v1alpha2.ClusterNetworkPolicy{}
	if err := yaml.UnmarshalStrict([]byte(spec), &cnp.Spec); err != nil {
		t.Fatal(err)
	}
	return clusternetpol.Compile(cnp)
}

// TestFailClosed has what is particular to this dialect; the rest is shared with ClusterNetworkPolicy.
func TestFailClosed(t *testing.T) {
	for _, c := range []struct {
		name    string
		policy  *rule.Policy
		problem string
		expect  []string
	}{{
		"no field of a peer, Allow", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Allow, from: [{}]}]}"),
		"spec.ingress[0].from[0]: exactly one field must be set; the rule matches nothing",
		[]string{"b/web -> a/web 80/TCP: yes"},
	}, {
		"no field of a peer, Deny", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Deny, from: [{}]}]}"),
		"spec.ingress[0].from[0]: exactly one field must be set; the rule denies all", []string{"world -> a/web ICMP: no"},
	}, {
		"no field of a port", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Deny, "+fromY+", ports: [{}]}]}"),
		"spec.ingress[0].ports[0]: exactly one field must be set; the rule denies its peers at every port",
		[]string{"b/web -> a/web 80/TCP: no", "c/web -> a/web 80/TCP: yes"},
	}, {
		"an empty list of ports", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Pass, "+fromY+", ports: []}]}"),
		"spec.ingress[0].ports: the list must not be empty; the rule denies its peers at every port",
		[]string{"b/web -> a/web 80/TCP: no", "c/web -> a/web 80/TCP: yes"},
	}, {
		"unknown protocol", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Deny, "+fromY+", ports: "+
			"[{portNumber: {protocol: ICMP, port: 1}}]}]}"),
		`spec.ingress[0].ports[0].portNumber.protocol: unknown protocol "ICMP"; the rule denies its peers at every port`,
		[]string{"b/web -> a/web 80/TCP: no"},
	}, {
		"unknown protocol of a range", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Deny, "+fromY+", ports: "+
			"[{portRange: {protocol: tcp, start: 1, end: 2}}]}]}"),
		`spec.ingress[0].ports[0].portRange.protocol: unknown protocol "tcp"; the rule denies its peers at every port`,
		[]string{"b/web -> a/web 80/TCP: no"},
	}, {
		"an empty name of a port", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Deny, "+fromY+", ports: "+
			"[{namedPort: ''}]}]}"),
		"spec.ingress[0].ports[0].namedPort: the port's name is empty; the rule denies its peers at every port",
		[]string{"b/web -> a/web 80/TCP: no"},
	}, {
		"named port of networks", admin(t, "p", "{priority: 5, "+about+"egress: [{action: Deny, "+toAll+", ports: "+
			"[{namedPort: http}]}]}"),
		"spec.egress[0].ports[0].namedPort: networks, nodes and domainNames have no named ports; the rule denies its " +
			"peers at every port",
		[]string{"a/web -> world 80/TCP: no"},
	}, {
		"the action of another dialect", admin(t, "p", "{priority: 5, "+about+"ingress: [{action: Accept, "+fromY+"}]}"),
		`spec.ingress[0].action: unknown action "Accept"; the rule denies what it matches`,
		[]string{"b/web -> a/web 80/TCP: no", "c/web -> a/web 80/TCP: yes"},
	}, {
		"Baseline has no Pass", baseline(t, "default", "{"+about+"ingress: [{action: Pass, "+fromY+"}]}"),
		`spec.ingress[0].action: unknown action "Pass"; the rule denies what it matches`,
		[]string{"b/web -> a/web 80/TCP: no", "c/web -> a/web 80/TCP: yes"},
	}, {
		"priority out of range", admin(t, "p", "{priority: 1001, "+about+"ingress: [{action: Pass, "+fromY+"}]}"),
		"spec.priority: 1001 is not between 0 and 1000; the policy comes first, accepts nothing, and denies what it " +
			"would have passed",
		[]string{"b/web -> a/web 80/TCP: no"},
	}, {
		"a second Baseline", baseline(t, "other", "{"+about+"ingress: [{action: Allow, "+fromY+"}, {action: Deny, "+
			""+fromAll+"}]}"),
		`metadata.name: "other" is not "default", the only name that the API admits; the policy accepts nothing`,
		[]string{"b/web -> a/web 80/TCP: no", "c/web -> a/web 80/TCP: no"},
	}} {
		t.Run(c.name, func(t *testing.T) {
			if len(c.policy.Problems) != 1 || c.policy.Problems[0].String() != c.problem {
				t.Errorf("problems: %v", c.policy.Problems)
			}
			polytest.New(t, c.policy).Expect(c.expect...)
		})
	}
}
