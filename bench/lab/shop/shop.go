// Package shop is the cluster of the demo: a small shop with a database to protect.
package shop

import (
	"embed"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

//go:embed *.yaml
var manifests embed.FS

// Objects are the manifests, decoded afresh on each call.
func Objects() ([]topology.Object, error) { return topology.Load(manifests, ".") }

// Outside are the machines that deal with the shop: a customer, one from a range that policy leaves out, and the bank.
func Outside() []lab.Outside {
	machine := func(name, v4, v6 string, ports ...corev1.ContainerPort) lab.Outside {
		return lab.Outside{
			Name: name, Addrs: []netip.Addr{netip.MustParseAddr(v4), netip.MustParseAddr(v6)}, Ports: ports,
		}
	}
	return []lab.Outside{
		machine("customer", "203.0.113.7", "2001:db8:113::7"),
		machine("blocked", "203.0.113.200", "2001:db8:113:8000::200"),
		machine("bank", "198.51.100.10", "2001:db8:51::10", corev1.ContainerPort{ContainerPort: 443}),
	}
}
