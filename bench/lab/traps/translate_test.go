package traps

import (
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// TestServiceDNAT: policy sees the pod behind a ClusterIP and the pod's port, on the client's node as on the server's.
func TestServiceDNAT(t *testing.T) {
	b := newBed(t, lab.Options{})
	families(func(v6 bool) {
		web, dns := b.lab.Service("default", "server", v6, 8000), b.lab.Service("default", "server", v6, 53)
		for _, client := range []string{"client", "remote"} {
			b.reaches(client, web, probe.TCP)
			b.reaches(client, dns, probe.UDP)
		}
		for _, stranger := range []string{"stranger", "far", "closed"} {
			b.denied(stranger, web, probe.TCP)
			b.denied(stranger, dns, probe.UDP)
		}
	})
}

// TestHairpinThroughService: a pod that may neither call nor be called reaches itself by its Service.
func TestHairpinThroughService(t *testing.T) {
	b := newBed(t, lab.Options{})
	families(func(v6 bool) {
		b.reaches("closed", b.lab.Service("default", "closed", v6, 80), probe.TCP)
		b.reaches("closed", b.lab.Service("default", "closed", v6, 53), probe.UDP)
		b.denied("closed", b.place("server").At(v6, 80), probe.TCP)
	})
}

const toWorld = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-world}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Egress]
  egress:
  - to: [{ipBlock: {cidr: 203.0.113.7/32}}, {ipBlock: {cidr: "2001:db8::7/128"}}]
    ports: [{port: 443}]
`

// TestMasqueradeAtClientsNode: egress is judged before the client's address is hidden behind its node's.
func TestMasqueradeAtClientsNode(t *testing.T) {
	b := newBed(t, lab.Options{Masquerade: true}, toWorld)
	families(func(v6 bool) {
		to := b.place("outside/world")
		for client, node := range map[string]string{"client": "node/one", "remote": "node/two"} {
			r := b.reaches(client, to.At(v6, 443), probe.TCP)
			if want, _ := b.place(node).Addr(v6); r.Seen.Addr() != want {
				t.Errorf("%s is seen as %s, want its node's %s", client, r.Seen, want)
			}
			b.denied(client, to.At(v6, 444), probe.TCP)
		}
	})
}

const fromWorld = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-world}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{ipBlock: {cidr: 203.0.113.7/32}}, {ipBlock: {cidr: "2001:db8::7/128"}}]
`

const fromNodeTwo = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-world}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{ipBlock: {cidr: 172.30.0.12/32}}, {ipBlock: {cidr: "fd30::12/128"}}]
`

// TestNodePortFromOutside: at the server's own node policy sees the machine outside, as it is judged before source NAT.
// Through another node it sees that node, which has put its own address there: what the API documentation calls up to
// the implementation of Services.
func TestNodePortFromOutside(t *testing.T) {
	b := newBed(t, lab.Options{})
	check := func(viaOwn, viaOther bool) {
		t.Helper()
		families(func(v6 bool) {
			for node, allowed := range map[string]bool{"node/one": viaOwn, "node/two": viaOther} {
				to := b.place(node).At(v6, 30080)
				if allowed {
					b.reaches("outside/world", to, probe.TCP)
				} else {
					b.denied("outside/world", to, probe.TCP)
				}
			}
		})
	}
	check(false, false)
	b.apply(fromWorld)
	check(true, false)
	b.apply(fromNodeTwo)
	check(false, true)
}
