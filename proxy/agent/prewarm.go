package agent

import (
	"net/netip"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// The cluster's DNS servers, as every installer of Kubernetes labels them; a Service's name may differ, the labels
// that it selects by are part of the addon's contract.
const (
	dnsNamespace = "kube-system"
	dnsLabel     = "k8s-app"
	dnsApp       = "kube-dns"
	dnsPort      = 53
)

// prewarmer has the kernel learn the tuples from isolated pods of this node to the cluster's DNS servers before they
// are asked for. Resolvers send the questions for A and AAAA at once from one socket, and kernels before 6.12 lose one
// of two packets of a flow that wait in a queue together (netfilter bug 1766); and no connection of a pod begins
// without DNS.
type prewarmer struct {
	servers map[netip.Addr]*endpoint.Endpoint
}

// update follows the endpoints of the addresses, all of them if affected is nil.
func (p *prewarmer) update(s *engine.Snapshot, affected []netip.Addr) {
	if affected == nil {
		p.servers = map[netip.Addr]*endpoint.Endpoint{}
		for a, ep := range s.Endpoints() {
			if isDNS(ep) {
				p.servers[a] = ep
			}
		}
		return
	}
	for _, a := range affected {
		if ep := s.Endpoint(a); isDNS(ep) {
			p.servers[a] = ep
		} else {
			delete(p.servers, a)
		}
	}
}

func isDNS(ep *endpoint.Endpoint) bool {
	if ep == nil || ep.Kind != identity.Pod || ep.Namespace != dnsNamespace {
		return false
	}
	app, _ := ep.Identity.Identity().Labels.Get(dnsLabel)
	return app == dnsApp
}

// tuples are those between the subjects isolated for egress and the servers that one of contains is about, and that
// are allowed.
func (p *prewarmer) tuples(
	subjects map[netip.Addr]ruleset.Subject, of affectedSet, allowed func(ruleset.Tuple) bool,
) []ruleset.Tuple {
	var found []ruleset.Tuple
	for src, subject := range subjects {
		if !subject.Egress {
			continue
		}
		for dst, ep := range p.servers {
			if src.Is4() != dst.Is4() || src == dst || !of.contains(src) && !of.contains(dst) {
				continue
			}
			for _, proto := range []uint8{packet.ProtoUDP, packet.ProtoTCP} {
				t := ruleset.Tuple{Src: src, Dst: dst, Proto: proto, DstPort: portOfDNS(ep, proto)}
				if allowed(t) {
					found = append(found, t)
				}
			}
		}
	}
	return found
}

// portOfDNS is the server's own port, which need not be the Service's.
func portOfDNS(ep *endpoint.Endpoint, proto uint8) uint16 {
	name := "dns"
	if proto == packet.ProtoTCP {
		name = "dns-tcp"
	}
	if ports := ep.Ports.Lookup(name, proto); len(ports) > 0 {
		return ports[0]
	}
	return dnsPort
}
