package cases

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// target is something to probe: each address at each port.
type target struct {
	end
	addrs []netip.Addr
	ports []portClaim
}

// questions are the cells of a lab and how to ask them: from every pod and outside machine to every other one, and from
// nodes and to Services if the claims name any. A pod's connections to its own address never leave it.
func (s *seat) questions(claims []claim) ([]question, []probe.Probe) {
	from := append(s.lab.Pods(), s.lab.Outside()...)
	if names(claims, "node/") {
		from = append(from, s.lab.Nodes()...)
	}
	targets := s.targets(names(claims, "svc/"))
	var questions []question
	var probes []probe.Probe
	for _, f := range from {
		e := endOf(f)
		for _, t := range targets {
			if e.name == t.name || e.outside() && (t.outside() || t.isService()) || e.isNode() && t.outside() {
				continue
			}
			for _, addr := range t.addrs {
				if _, ok := f.Addr(addr.Is6()); !ok {
					continue
				}
				for _, port := range t.ports {
					questions = append(questions, question{from: e, to: t.end, port: port, v6: addr.Is6()})
					probes = append(probes, probe.Probe{
						From: f.NS, To: netip.AddrPortFrom(addr, port.number), Proto: port.proto,
					})
				}
			}
		}
	}
	return questions, probes
}

func endOf(p lab.Place) end {
	e := end{name: p.Name, node: p.Node}
	e.local = e.isNode() || p.HostNetwork
	return e
}

func (s *seat) targets(services bool) []target {
	var targets []target
	for _, p := range append(s.lab.Pods(), s.lab.Outside()...) {
		t := target{end: endOf(p)}
		for _, v6 := range []bool{false, true} {
			if a, ok := p.Addr(v6); ok {
				t.addrs = append(t.addrs, a)
			}
		}
		for _, port := range p.Ports {
			t.add(uint16(port.ContainerPort), port.Protocol)
		}
		targets = append(targets, t)
	}
	if !services {
		return targets
	}
	for _, o := range s.world {
		service, ok := o.(*corev1.Service)
		if !ok {
			continue
		}
		t := target{end: end{name: "svc/" + service.Namespace + "/" + service.Name}}
		for _, port := range service.Spec.Ports {
			t.add(uint16(port.Port), port.Protocol)
		}
		for _, v6 := range []bool{false, true} {
			if a := s.lab.Service(service.Namespace, service.Name, v6, 1); a.IsValid() {
				t.addrs = append(t.addrs, a.Addr())
			}
		}
		targets = append(targets, t)
	}
	return targets
}

// add notes a port that can be probed, once.
func (t *target) add(number uint16, proto corev1.Protocol) {
	p := portClaim{number: number, proto: probe.TCP}
	switch proto {
	case corev1.ProtocolUDP:
		p.proto = probe.UDP
	case corev1.ProtocolSCTP:
		return // nothing answers
	}
	if !slices.Contains(t.ports, p) {
		t.ports = append(t.ports, p)
	}
}
