package netpol_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/netpol"
)

// town is the cluster that all sentences are tried on.
const town = `
- {kind: Namespace, metadata: {name: a, labels: {team: red}}}
- {kind: Namespace, metadata: {name: b, labels: {team: blue}}}
- {kind: Namespace, metadata: {name: c}}
- {kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}}
- {kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}}
- kind: Pod
  metadata: {namespace: a, name: web, labels: {app: web}}
  spec: {nodeName: n1, containers: [
    {name: c, ports: [{name: http, containerPort: 80}]},
    {name: d, ports: [{name: http, containerPort: 81}, {name: dns, containerPort: 53, protocol: UDP}]}]}
  status: {phase: Running, podIPs: [{ip: 10.0.1.1}, {ip: "fd00:1::1"}]}
- kind: Pod
  metadata: {namespace: a, name: db, labels: {app: db, tier: back}}
  spec: {nodeName: n1, containers: [{name: c, ports: [{name: sql, containerPort: 5432}]}], initContainers: [
    {name: sidecar, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]},
    {name: setup, ports: [{name: once, containerPort: 9999}]}]}
  status: {phase: Running, podIPs: [{ip: 10.0.1.2}]}
- kind: Pod
  metadata: {namespace: b, name: web, labels: {app: web}}
  spec: {nodeName: n2, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
  status: {phase: Running, podIPs: [{ip: 10.0.2.1}, {ip: "fd00:2::1"}]}
- kind: Pod
  metadata: {namespace: b, name: done, labels: {app: web}}
  spec: {nodeName: n2, containers: [{name: c}]}
  status: {phase: Succeeded, podIPs: [{ip: 10.0.2.3}]}
- kind: Pod
  metadata: {namespace: b, name: agent, labels: {app: web}}
  spec: {nodeName: n2, hostNetwork: true, containers: [{name: c}]}
  status: {phase: Running, podIPs: [{ip: 192.168.0.2}]}
- kind: Pod
  metadata: {namespace: c, name: job, labels: {app: job}}
  spec: {nodeName: n2, containers: [{name: c}]}
  status: {phase: Running, podIPs: [{ip: 10.0.2.2}]}
`

// sides are the names used in questions.
var sides = map[string]string{
	"a/web": "10.0.1.1", "a/db": "10.0.1.2", "b/web": "10.0.2.1", "c/job": "10.0.2.2", "b/done": "10.0.2.3",
	"a/web6": "fd00:1::1", "b/web6": "fd00:2::1", "n1": "192.168.0.1", "n2": "192.168.0.2",
	"world": "203.0.113.7", "world6": "2001:db8::7",
}

// TestSentences holds the compiled policies to the API documentation, a sentence at a time. Questions read
// "source destination port/protocol", ICMP has no port; several are separated by commas.
func TestSentences(t *testing.T) {
	for _, c := range []struct {
		sentence string
		// policies are specs, separated by a line of dashes; each is policy p0, p1, ... of namespace a.
		policies      string
		allow, refuse string
	}{{
		sentence: "Traffic is allowed to a pod if there are no NetworkPolicies selecting the pod",
		policies: `{podSelector: {matchLabels: {app: nobody}}}`,
		allow:    "world a/db 5432/TCP, b/web a/web 80/TCP, a/web b/web ICMP, b/web6 a/web6 80/TCP",
	}, {
		sentence: "If this field is empty then this NetworkPolicy does not allow any traffic",
		policies: `{podSelector: {}}`,
		allow:    "a/web world 80/TCP, a/web c/job 80/TCP, world c/job 80/TCP",
		refuse:   "world a/db 5432/TCP, a/web a/db 5432/TCP, a/db a/web ICMP, b/web6 a/web6 80/TCP",
	}, {
		sentence: "OR if the traffic source is the pod's local node",
		policies: `{podSelector: {}, policyTypes: [Ingress, Egress]}`,
		allow:    "n1 a/db 5432/TCP, n1 a/web ICMP, a/db n1 22/TCP",
		refuse:   "n2 a/db 5432/TCP, a/db n2 22/TCP",
	}, {
		sentence: "an empty selector matches all pods in the policy's namespace",
		policies: `{podSelector: {}}`,
		allow:    "world b/web 80/TCP",
		refuse:   "world a/web 80/TCP, world a/db 80/TCP",
	}, {
		sentence: "If podSelector is not specified, it defaults to an empty selector",
		policies: `{ingress: []}`,
		refuse:   "world a/web 80/TCP, world a/db 80/TCP",
	}, {
		sentence: "Multiple network policies can select the same set of pods; the rules for each are combined additively",
		policies: `
{podSelector: {}, ingress: [{ports: [{port: 80}]}]}
---
{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 81}]}]}`,
		allow:  "world a/web 80/TCP, world a/web 81/TCP, world a/db 80/TCP",
		refuse: "world a/db 81/TCP, world a/web 82/TCP",
	}, {
		sentence: "policyTypes defaults: all policies affect ingress",
		policies: `{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}`,
		allow:    "a/web world 80/TCP",
		refuse:   "world a/web 80/TCP, a/web c/job 80/TCP",
	}, {
		sentence: "policyTypes defaults: policies without egress rules do not affect egress",
		policies: `{podSelector: {}, ingress: [{}], egress: []}`,
		allow:    "a/web world 80/TCP, world a/web 80/TCP",
	}, {
		sentence: "If you want to write an egress-only policy, you must explicitly specify policyTypes [ Egress ]",
		policies: `{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}`,
		allow:    "world a/web 80/TCP, a/web world 53/UDP",
		refuse:   "a/web world 80/TCP, a/web world 53/TCP, a/web world ICMP",
	}, {
		sentence: "A policy that specifies that no egress is allowed",
		policies: `{podSelector: {}, policyTypes: [Egress]}`,
		allow:    "world a/web 80/TCP",
		refuse:   "a/web world 80/TCP, a/web a/db 80/TCP",
	}, {
		sentence: "policyTypes [ Ingress ]: egress rules have no effect",
		policies: `{podSelector: {}, policyTypes: [Ingress], ingress: [{}], egress: [{ports: [{port: 1}]}]}`,
		allow:    "a/web world 80/TCP, world a/web 80/TCP",
	}, {
		sentence: "from: If this field is empty or missing, this rule matches all sources",
		policies: `{podSelector: {}, ingress: [{from: [], ports: [{port: 80}]}]}`,
		allow:    "world a/web 80/TCP, b/web a/web 80/TCP, n2 a/web 80/TCP, world6 a/web6 80/TCP",
		refuse:   "world a/web 81/TCP",
	}, {
		sentence: "ports: If this field is empty or missing, this rule matches all ports (traffic not restricted by port)",
		policies: `{podSelector: {}, ingress: [{ports: [], from: [{podSelector: {}}]}]}`,
		allow:    "a/db a/web 1/TCP, a/db a/web 1/UDP, a/db a/web 1/SCTP, a/db a/web ICMP",
		refuse:   "b/web a/web 1/TCP",
	}, {
		sentence: "ports: allows traffic only if the traffic matches at least one port in the list",
		policies: `{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]}`,
		allow:    "world a/web 80/TCP, world a/web 53/UDP",
		refuse:   "world a/web 53/TCP, world a/web 80/UDP, world a/web ICMP",
	}, {
		sentence: "from: Items in this list are combined using a logical OR operation",
		policies: `{podSelector: {}, ingress: [{from: [
			{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 203.0.113.7/32}}]}]}`,
		allow:  "a/db a/web 80/TCP, world a/web 80/TCP",
		refuse: "b/web a/web 80/TCP",
	}, {
		sentence: "podSelector: Otherwise it selects the pods matching podSelector in the policy's own namespace",
		policies: `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}`,
		allow:    "a/web a/db 80/TCP",
		refuse:   "b/web a/db 80/TCP",
	}, {
		sentence: "podSelector: if present but empty, it selects all pods",
		policies: `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`,
		allow:    "a/web a/db 80/TCP, a/db a/web 80/TCP",
		refuse:   "b/web a/db 80/TCP, world a/db 80/TCP, n2 a/db 80/TCP",
	}, {
		sentence: "namespaceSelector: selects all pods in the namespaces selected by namespaceSelector",
		policies: `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}`,
		allow:    "b/web a/db 80/TCP",
		refuse:   "a/web a/db 80/TCP, c/job a/db 80/TCP, world a/db 80/TCP",
	}, {
		sentence: "namespaceSelector: if present but empty, it selects all namespaces",
		policies: `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`,
		allow:    "b/web a/db 80/TCP, a/web a/db 80/TCP, c/job a/db 80/TCP",
		refuse:   "world a/db 80/TCP, n2 a/db 80/TCP, b/done a/db 80/TCP",
	}, {
		sentence: "the peer as a whole selects the pods matching podSelector in the namespaces selected by NamespaceSelector",
		policies: `{podSelector: {}, ingress: [{from: [
			{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: web}}}]}]}`,
		allow:  "b/web a/db 80/TCP",
		refuse: "a/web a/db 80/TCP, c/job a/db 80/TCP",
	}, {
		sentence: "namespaces carry kubernetes.io/metadata.name",
		policies: `{podSelector: {}, ingress: [{from: [
			{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: c}}}]}]}`,
		allow:  "c/job a/db 80/TCP",
		refuse: "b/web a/db 80/TCP",
	}, {
		sentence: "label selectors: In, NotIn, Exists, DoesNotExist, all of which must hold",
		policies: `{podSelector: {matchExpressions: [
				{key: app, operator: In, values: [db, web]}, {key: tier, operator: Exists}]},
			ingress: [{from: [{namespaceSelector: {matchExpressions: [
				{key: team, operator: NotIn, values: [red]}, {key: absent, operator: DoesNotExist}]}}]}]}`,
		allow:  "b/web a/db 80/TCP, c/job a/db 80/TCP, world a/web 80/TCP",
		refuse: "a/web a/db 80/TCP",
	}, {
		sentence: "cidr and except: CIDRs that should not be included within an IPBlock",
		policies: `{podSelector: {}, ingress: [{from: [
			{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.2.0/24, 192.168.0.0/16]}}]}]}`,
		allow:  "world a/db 80/TCP, a/web a/db 80/TCP",
		refuse: "b/web a/db 80/TCP, n2 a/db 80/TCP, world6 a/web6 80/TCP",
	}, {
		sentence: "an exception of one rule takes nothing from another",
		policies: `{podSelector: {}, ingress: [{from: [
			{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}, {ipBlock: {cidr: 10.0.2.1/32}}]}]}`,
		allow:  "world a/db 80/TCP, b/web a/db 80/TCP",
		refuse: "c/job a/db 80/TCP",
	}, {
		sentence: "ipBlock of IPv6",
		policies: `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "2001:db8::/64", except: ["2001:db8::8/125"]}}]}]}`,
		allow:    "world6 a/web6 80/TCP",
		refuse:   "b/web6 a/web6 80/TCP, world a/web 80/TCP",
	}, {
		sentence: "protocol: If not specified, this field defaults to TCP",
		policies: `{podSelector: {}, ingress: [{ports: [{port: 80}, {}]}]}`,
		allow:    "world a/web 80/TCP, world a/web 1/TCP",
		refuse:   "world a/web 80/UDP, world a/web 80/SCTP, world a/web ICMP",
	}, {
		sentence: "port: If this field is not provided, this matches all port names and numbers",
		policies: `{podSelector: {}, ingress: [{ports: [{protocol: SCTP}]}]}`,
		allow:    "world a/web 1/SCTP, world a/web 65535/SCTP",
		refuse:   "world a/web 1/TCP, world a/web ICMP",
	}, {
		sentence: "port: This can be a named port on a pod, of any of its containers and sidecars",
		policies: `{podSelector: {}, ingress: [{ports: [
			{port: http}, {port: dns, protocol: UDP}, {port: metrics}, {port: once}]}]}`,
		allow:  "world a/web 80/TCP, world a/web 81/TCP, world a/web 53/UDP, world a/db 9090/TCP",
		refuse: "world a/web 53/TCP, world a/db 80/TCP, world a/db 9999/TCP, world a/web 8080/TCP",
	}, {
		sentence: "port: a named port of an egress rule is the destination's",
		policies: `{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}`,
		allow:    "a/db a/web 80/TCP, a/db b/web 8080/TCP",
		refuse:   "a/db a/web 8080/TCP, a/db b/web 80/TCP, a/web world 80/TCP, a/web n2 80/TCP",
	}, {
		sentence: "endPort: the range of ports from port to endPort, inclusive",
		policies: `{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 90}]}]}`,
		allow:    "world a/web 80/TCP, world a/web 85/TCP, world a/web 90/TCP",
		refuse:   "world a/web 79/TCP, world a/web 91/TCP, world a/web 85/UDP",
	}, {
		sentence: "both ends must allow: egress of the source and ingress of the destination",
		policies: `
{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}
---
{podSelector: {matchLabels: {app: db}}, ingress: [{ports: [{port: 5432}]}]}`,
		allow:  "a/web a/db 5432/TCP",
		refuse: "a/web a/db 80/TCP, a/web c/job 5432/TCP",
	}, {
		sentence: "a pod always reaches itself",
		policies: `{podSelector: {}, policyTypes: [Ingress, Egress]}`,
		allow:    "a/db a/db 80/TCP, a/web6 a/web6 ICMP", //nolint:dupword // source and destination
	}, {
		sentence: "host-network pods are host addresses: selectors do not match them, ipBlocks do",
		policies: `
{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}]}]}
---
{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.2/32}}]}]}`,
		allow:  "n2 a/db 80/TCP",
		refuse: "n2 a/web 80/TCP",
	}} {
		t.Run(c.sentence, func(t *testing.T) {
			s := newTown(t, c.policies)
			s.expect(c.allow, engine.Allow)
			s.expect(c.refuse, engine.Deny)
		})
	}
}

// settled is the town with policies.
type settled struct {
	testing.TB
	snapshot  *engine.Snapshot
	evaluator *engine.Evaluator
}

func newTown(tb testing.TB, specs string) *settled {
	tb.Helper()
	var objects []map[string]any
	must(tb, yaml.Unmarshal([]byte(town), &objects))
	index, model := endpoint.NewIndex(), engine.NewModel(engine.Config{})
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		must(tb, err)
		switch o["kind"] {
		case "Namespace":
			var ns corev1.Namespace
			must(tb, yaml.UnmarshalStrict(text, &ns))
			index.SetNamespace(cluster.NewNamespace(&ns))
		case "Node":
			var n corev1.Node
			must(tb, yaml.UnmarshalStrict(text, &n))
			index.SetNode(cluster.NewNode(&n))
		case "Pod":
			var p corev1.Pod
			must(tb, yaml.UnmarshalStrict(text, &p))
			index.SetPod(cluster.NewPod(&p))
		}
	}
	model.ApplyEndpoints(index.Flush())
	for i, text := range strings.Split(specs, "\n---\n") {
		np := networkingv1.NetworkPolicy{}
		np.Namespace, np.Name = "a", fmt.Sprint("p", i)
		must(tb, yaml.UnmarshalStrict([]byte(strings.ReplaceAll(text, "\t", " ")), &np.Spec))
		p := netpol.Compile(&np)
		if len(p.Problems) > 0 {
			tb.Fatalf("%v", p.Problems)
		}
		model.SetPolicy(p)
	}
	s := &settled{TB: tb, evaluator: engine.NewEvaluator(100)}
	s.snapshot, _ = model.Commit()
	return s
}

func (s *settled) expect(questions string, want engine.Action) {
	s.Helper()
	for q := range strings.SplitSeq(questions, ",") {
		if q = strings.TrimSpace(q); q == "" {
			continue
		}
		words := strings.Fields(q)
		f := packet.Flow{
			Src: netip.MustParseAddr(sides[words[0]]), Dst: netip.MustParseAddr(sides[words[1]]), Form: packet.Complete,
		}
		port, proto, _ := strings.Cut(words[2], "/")
		switch proto {
		case "TCP":
			f.Proto, f.TCPFlags = packet.ProtoTCP, packet.FlagSYN
		case "UDP":
			f.Proto = packet.ProtoUDP
		case "SCTP":
			f.Proto = packet.ProtoSCTP
		default:
			f.Proto = packet.ProtoICMP
		}
		if f.Proto != packet.ProtoICMP {
			if _, err := fmt.Sscan(port, &f.DstPort); err != nil {
				s.Fatal(err)
			}
		}
		hook := engine.Forward
		switch {
		case strings.HasPrefix(words[0], "n1"): // packets of the other node come in from outside
			hook = engine.Output
		case strings.HasPrefix(words[1], "n1"):
			hook = engine.Input
		}
		if v := s.evaluator.Judge(s.snapshot, &f, hook, false); v.Action != want {
			s.Errorf("%s: %s (%s), want %s", q, v.Action, v.Reason, want)
		}
	}
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
