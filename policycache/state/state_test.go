package state

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

const base = `
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.1.0.0/24]}
---
apiVersion: v1
kind: Pod
metadata: {name: front, namespace: tenant-a, labels: {segment: frontend}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.1.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: back, namespace: tenant-a, labels: {segment: backend}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIPs: [{ip: 10.1.0.2}]}
`

// dialects isolate pod back in each dialect, and let pod front reach its port 80 only.
var dialects = map[rule.Dialect]string{
	rule.NetworkPolicy: `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: tenant-a}
spec:
  podSelector: {matchLabels: {segment: backend}}
  ingress: [{from: [{podSelector: {matchLabels: {segment: frontend}}}], ports: [{port: 80}]}]`,
	rule.ClusterNetworkPolicy: `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: p}
spec:
  tier: Admin
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {segment: backend}}}}
  ingress:
  - {name: web, action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}
  - {name: rest, action: Deny, from: [{namespaces: {}}]}`,
	rule.AdminNetworkPolicy: `
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: p}
spec:
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {segment: backend}}}}
  ingress:
  - {name: web, action: Allow, from: [{namespaces: {}}], ports: [{portNumber: {protocol: TCP, port: 80}}]}
  - {name: rest, action: Deny, from: [{namespaces: {}}]}`,
	rule.AlphaNetworkPolicy: `
apiVersion: v1
kind: Namespace
metadata: {name: tenant-a, annotations: {net.alpha.kubernetes.io/network-isolation: "on"}}
---
apiVersion: net.alpha.kubernetes.io/v1alpha1
kind: NetworkPolicy
metadata: {name: pol1, namespace: tenant-a}
spec:
  podSelector: {segment: backend}
  allowIncoming: {from: [{pods: {segment: frontend}}], toPorts: [{port: 80, protocol: TCP}]}`,
	rule.BetaNetworkPolicy: `
apiVersion: v1
kind: Namespace
metadata:
  name: tenant-a
  annotations: {net.beta.kubernetes.io/network-policy: '{"ingress":{"isolation":"DefaultDeny"}}'}
---
apiVersion: extensions/v1beta1
kind: NetworkPolicy
metadata: {name: p, namespace: tenant-a}
spec:
  podSelector: {matchLabels: {segment: backend}}
  ingress: [{from: [{podSelector: {matchLabels: {segment: frontend}}}], ports: [{port: 80}]}]`,
}

func TestEveryDialectComesThrough(t *testing.T) {
	for dialect, policy := range dialects {
		t.Run(dialect.String(), func(t *testing.T) {
			changes := load(t, base+"---"+policy)
			s := New("n1")
			snapshot, delta := s.Apply(changes)
			if delta == nil {
				t.Fatal("the first state changes nothing")
			}
			if problems := s.Problems(); len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			if !allowed(snapshot, 80) || allowed(snapshot, 81) {
				t.Errorf("port 80 allowed: %v, want true; port 81: %v, want false", allowed(snapshot, 80), allowed(snapshot, 81))
			}
			// Deleting what was added leaves nothing behind.
			for i := range changes {
				if changes[i].Kind != source.KindPod && changes[i].Kind != source.KindNode {
					changes[i].Object = nil
				}
			}
			snapshot, _ = s.Apply(changes)
			if n := len(s.Policies()); n != 0 {
				t.Errorf("%d policies are left: %v", n, s.Policies())
			}
			if !allowed(snapshot, 81) {
				t.Error("still isolated")
			}
		})
	}
}

// announced are the manifests of the announcement of March 2016: the resource, and a policy that names no apiVersion.
const announced = `
apiVersion: v1
kind: Namespace
metadata: {name: tenant-a, annotations: {net.alpha.kubernetes.io/network-isolation: "on"}}
---
{"kind": "ThirdPartyResource", "apiVersion": "extensions/v1beta1",
 "metadata": {"name": "network-policy.net.alpha.kubernetes.io"},
 "description": "Network policy specification", "versions": [{"name": "v1alpha1"}]}
---
{"kind": "NetworkPolicy",
 "metadata": {"name": "pol1", "namespace": "tenant-a"},
 "spec": {
   "allowIncoming": {
     "from": [{ "pods": { "segment": "frontend" } }],
     "toPorts": [{ "port": 80, "protocol": "TCP" }]
   },
   "podSelector": { "segment": "backend" }
 }}`

func TestAnnouncementAsItWasWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(file, []byte(base+"---"+announced), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, problems := manifests.LoadKinds(ManifestKinds(), file)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	if len(objects.Ignored) != 0 || len(objects.Notes) != 1 ||
		objects.Notes[0].Object != "ThirdPartyResource network-policy.net.alpha.kubernetes.io" ||
		objects.Notes[0].Text != alpha.ExplainThirdParty("network-policy.net.alpha.kubernetes.io") {
		t.Errorf("ignored %v, notes %v", objects.Ignored, objects.Notes)
	}
	changes, err := Of(objects)
	if err != nil {
		t.Fatal(err)
	}
	s := New("n1")
	snapshot, _ := s.Apply(changes)
	if !allowed(snapshot, 80) || allowed(snapshot, 81) || len(s.Problems()) != 0 {
		t.Errorf("port 80 %v, port 81 %v, problems %v", allowed(snapshot, 80), allowed(snapshot, 81), s.Problems())
	}
}

// TestForgottenVersionIsAnError: a policy of today that lost its apiVersion must not be taken for one of 2016, which
// would have no effect without the annotation.
func TestForgottenVersionIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "all.yaml")
	const forgotten = "kind: NetworkPolicy\nmetadata: {name: p}\nspec: {podSelector: {}}\n"
	if err := os.WriteFile(file, []byte(forgotten), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, problems := manifests.LoadKinds(ManifestKinds(), file)
	if len(problems) != 1 || problems[0].Field != "apiVersion" || len(objects.List) != 0 {
		t.Errorf("objects %v, problems %v", objects.List, problems)
	}
}

func TestNodeThatVanishesKeepsItsRanges(t *testing.T) {
	s := New("n1")
	s.Apply(load(t, base))
	if err := s.CheckNode(); err != nil {
		t.Error(err)
	}
	s.Apply([]source.Change{{Kind: source.KindNode, Key: "n1"}})
	if got := s.PodCIDRs(); len(got) != 1 || got[0] != netip.MustParsePrefix("10.1.0.0/24") {
		t.Errorf("pod CIDRs %v", got)
	}
	if s.CheckNode() == nil {
		t.Error("the node is gone and nobody noticed")
	}
}

func allowed(s *engine.Snapshot, port uint16) bool {
	f := packet.Flow{
		Src: netip.MustParseAddr("10.1.0.1"), Dst: netip.MustParseAddr("10.1.0.2"), SrcPort: 40000, DstPort: port,
		Proto: packet.ProtoTCP, TCPFlags: packet.FlagSYN, Form: packet.Complete,
	}
	return engine.NewEvaluator(10).Judge(s, &f, engine.Forward, true).Action == engine.Allow
}

func load(t *testing.T, yaml string) []source.Change {
	t.Helper()
	file := filepath.Join(t.TempDir(), "all.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, problems := manifests.LoadKinds(ManifestKinds(), file)
	if err := problems.Err(); err != nil {
		t.Fatal(err)
	}
	changes, err := Of(objects)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}
