// Package polytest is a small cluster for tests of policy translators: compiled policies go in, and the engine that
// enforces them answers who reaches whom. Only tests use it.
//
// The namespaces are a (team=x), b (team=y) and c. Each has the pods web (app=web), db (app=db, tier=back) and plain
// (no labels), all on node n1, with the named ports http=80/TCP and dns=53/UDP; db has http=8080/TCP instead. The nodes
// are n1 (role=worker) and n2 (role=edge). "world" is an address outside.
package polytest

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/label"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Pods are the pods' names.
var Pods = []string{"a/web", "a/db", "a/plain", "b/web", "b/db", "b/plain", "c/web", "c/db", "c/plain"}

// Peers are all names: pods, nodes and the world.
var Peers = append([]string{"n1", "n2", "world"}, Pods...)

// Ports are the ports that Matrix asks for.
var Ports = []string{"80/TCP", "8080/TCP", "53/UDP", "9/SCTP", "ICMP"}

// World answers with the policies it was made of in force.
type World struct {
	tb   testing.TB
	snap *engine.Snapshot
	ev   *engine.Evaluator
}

// address gives the IPv4 address of a name.
func address(name string) netip.Addr {
	for i, n := range Peers {
		if n == name {
			return netip.AddrFrom4([4]byte{10, 0, byte(i), 7})
		}
	}
	panic("polytest: no " + name)
}

// Address gives the address of a name, as text.
func Address(name string) string { return address(name).String() }

func endpoints() []*endpoint.Endpoint {
	labels := map[string]map[string]string{
		"web": {"app": "web"}, "db": {"app": "db", "tier": "back"}, "plain": {},
		"n1": {"role": "worker"}, "n2": {"role": "edge"},
	}
	teams := map[string]map[string]string{"a": {"team": "x"}, "b": {"team": "y"}, "c": {}}
	var all []*endpoint.Endpoint
	for _, n := range Peers {
		ep := &endpoint.Endpoint{Name: n, Node: "n1", Addrs: []netip.Addr{address(n)}}
		namespace, name, isPod := strings.Cut(n, "/")
		switch {
		case n == "world":
			continue
		case isPod:
			ep.Kind, ep.Namespace, ep.Name = identity.Pod, namespace, name
			ep.Ports = ports(name)
			ep.Identity = identity.Intern(identity.Identity{
				Kind: identity.Pod, Namespace: namespace, Labels: label.Of(labels[name]),
				NamespaceLabels: label.Of(teams[namespace]).With("kubernetes.io/metadata.name", namespace),
			})
		default:
			ep.Kind, ep.Node = identity.Node, n
			ep.Identity = identity.Intern(identity.Identity{Kind: identity.Node, Labels: label.Of(labels[n])})
		}
		all = append(all, ep)
	}
	return all
}

func ports(pod string) *endpoint.Ports {
	http := uint16(80)
	if pod == "db" {
		http = 8080
	}
	return cluster.InternPorts([]cluster.NamedPort{
		{Name: "http", Proto: packet.ProtoTCP, Port: http}, {Name: "dns", Proto: packet.ProtoUDP, Port: 53},
	})
}

// New puts policies in force.
func New(tb testing.TB, policies ...*rule.Policy) *World {
	tb.Helper()
	m := engine.NewModel(engine.Config{})
	for _, ep := range endpoints() {
		m.ApplyEndpoints([]endpoint.Change{{Addr: ep.Addrs[0], New: ep}})
	}
	for _, p := range policies {
		m.SetPolicy(p)
	}
	w := &World{tb: tb, ev: engine.NewEvaluator(1 << 12)}
	w.snap, _ = m.Commit()
	return w
}

// Verdict judges the first packet from one name to another. port is "80/TCP" or the like, or "ICMP".
func (w *World) Verdict(from, to, port string) engine.Verdict {
	f := packet.Flow{Form: packet.Complete, Src: address(from), Dst: address(to), SrcPort: 40000}
	number, proto, ok := strings.Cut(port, "/")
	if !ok {
		number, proto = "0", number
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		w.tb.Fatalf("port %q", port)
	}
	f.DstPort = uint16(n)
	switch proto {
	case "TCP":
		f.Proto, f.TCPFlags = packet.ProtoTCP, packet.FlagSYN
	case "UDP":
		f.Proto = packet.ProtoUDP
	case "SCTP":
		f.Proto = packet.ProtoSCTP
	case "ICMP":
		f.Proto, f.SrcPort, f.ICMPType = packet.ProtoICMP, 0, 8
	default:
		w.tb.Fatalf("port %q", port)
	}
	hook := engine.Forward
	if from == "n1" {
		hook = engine.Output
	}
	return w.ev.Judge(w.snap, &f, hook, true)
}

// Allowed tells whether the verdict is to allow.
func (w *World) Allowed(from, to, port string) bool {
	return w.Verdict(from, to, port).Action == engine.Allow
}

// Expect checks lines of the form "from -> to port: yes" or "no".
func (w *World) Expect(lines ...string) {
	w.tb.Helper()
	for _, line := range lines {
		var from, to, port, want string
		if _, err := fmt.Sscanf(line, "%s -> %s %s %s", &from, &to, &port, &want); err != nil {
			w.tb.Fatalf("%q: %v", line, err)
		}
		if got := w.Allowed(from, to, strings.TrimSuffix(port, ":")); got != (want == "yes") {
			w.tb.Errorf("%s; got the opposite", line)
		}
	}
}

// Matrix lists what is denied, one "from -> to port" for each.
func (w *World) Matrix() []string {
	var denied []string
	for _, from := range Peers {
		for _, to := range Peers {
			for _, port := range Ports {
				if !w.Allowed(from, to, port) {
					denied = append(denied, from+" -> "+to+" "+port)
				}
			}
		}
	}
	return denied
}
