package traps

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

func TestMain(m *testing.M) {
	if err := ns.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := binary.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

const (
	// patience is how long a test waits for what must come, silence for what must not.
	patience = 20 * time.Second
	silence  = probe.DefaultWait
)

// cluster has a server that lets only clients in, and nobody by ICMP; pods of both kinds on both nodes; a pod that is
// isolated for nothing; and a closed pod that may neither be called nor call.
const cluster = `
apiVersion: v1
kind: Node
metadata: {name: one}
spec: {podCIDRs: [10.244.0.0/24, "fd10:244:0:0::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.11}, {type: InternalIP, address: "fd30::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: two}
spec: {podCIDRs: [10.244.1.0/24, "fd10:244:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.12}, {type: InternalIP, address: "fd30::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: one
  containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 81}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {role: client}}
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: remote, labels: {role: client}}
spec: {nodeName: two, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {role: stranger}}
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {role: stranger}}
spec: {nodeName: two, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: closed, labels: {app: closed}}
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  type: NodePort
  selector: {app: server}
  ports:
  - {name: web, port: 8000, targetPort: 80, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP, nodePort: 30053}
---
apiVersion: v1
kind: Service
metadata: {name: closed}
spec:
  selector: {app: closed}
  ports: [{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress:
  - from: [{podSelector: {matchLabels: {role: client}}}]
    ports: [{port: 80}, {protocol: UDP, port: 53}, {protocol: SCTP, port: 9}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {matchLabels: {app: closed}}
  policyTypes: [Ingress, Egress]
`

// world is a machine outside.
var world = lab.Outside{
	Name: "world", Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")},
	Ports: []corev1.ContainerPort{{ContainerPort: 443}, {ContainerPort: 444}},
}

// bed is a lab with agents that enforce.
type bed struct {
	*testing.T
	lab *lab.Lab
}

func newBed(t *testing.T, opts lab.Options, manifests ...string) bed {
	t.Helper()
	agent, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	var objects []topology.Object
	for _, m := range append([]string{cluster}, manifests...) {
		more, err := topology.Parse("test", []byte(m))
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, more...)
	}
	opts.AgentBinary, opts.Outside, opts.Logf = agent, append(opts.Outside, world), t.Logf
	opts.AgentArgs = append([]string{"--queues", "1"}, opts.AgentArgs...)
	l, err := lab.New(t.Context(), objects, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	b := bed{t, l}
	b.applied()
	return b
}

// applied waits until the agents enforce what was applied.
func (b bed) applied() {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	if err := b.lab.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	if err := b.lab.WaitApplied(ctx); err != nil {
		b.Fatal(err)
	}
}

func (b bed) apply(manifest string) {
	b.Helper()
	if err := b.lab.ApplyYAML(b.Context(), manifest); err != nil {
		b.Fatal(err)
	}
	b.applied()
}

// place finds a pod of the namespace default by its name, and others as lab.Place does.
func (b bed) place(name string) lab.Place {
	b.Helper()
	p, err := b.lab.Place("default/" + name)
	if err != nil {
		if p, err = b.lab.Place(name); err != nil {
			b.Fatal(err)
		}
	}
	return p
}

// reaches probes once and wants an answer.
func (b bed) reaches(from string, to netip.AddrPort, proto probe.Proto) probe.Result {
	b.Helper()
	r := b.try(probe.Probe{From: b.place(from).NS, To: to, Proto: proto, Wait: patience})
	if r.Outcome != probe.Reached {
		b.Errorf("%s to %s, %s: %s, want reached", from, to, proto, r)
	}
	return r
}

// denied probes once and wants none.
func (b bed) denied(from string, to netip.AddrPort, proto probe.Proto) {
	b.Helper()
	r := b.try(probe.Probe{From: b.place(from).NS, To: to, Proto: proto})
	if !r.Denied() || r.Connected {
		b.Errorf("%s to %s, %s: %s, want denied", from, to, proto, r)
	}
}

func (b bed) try(p probe.Probe) probe.Result {
	b.Helper()
	results, err := b.lab.Probe(b.Context(), p)
	if err != nil {
		b.Fatal(err)
	}
	return results[0]
}

// families runs f for IPv4 and for IPv6.
func families(f func(v6 bool)) {
	f(false)
	f(true)
}
