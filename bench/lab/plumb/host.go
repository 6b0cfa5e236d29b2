package plumb

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// HostConfig says what a host is like.
type HostConfig struct {
	Name string
	// Addrs are its addresses on the switch; the first of each family is the one it speaks from.
	Addrs []netip.Addr
	// Node makes it a router with pods behind it.
	Node bool
	// Bridged joins the node's pods by a bridge, as the CNI plugin of that name does, that has the first address of
	// each of PodCIDRs. Otherwise each pod has a wire of its own and is routed to, as by the plugin ptp.
	Bridged  bool
	PodCIDRs []netip.Prefix
}

// Host is a namespace on the switch: a node, or a machine outside the cluster.
type Host struct {
	*place
	cfg    HostConfig
	uplink netlink.Link
	// bridge joins the pods; nil unless Bridged.
	bridge netlink.Link
	pods   int
	routes map[netip.Prefix]netip.Addr
}

// AddHost makes a host and plugs it in.
func (n *Network) AddHost(cfg HostConfig) (*Host, error) {
	sysctls := map[string]string{}
	if cfg.Node {
		sysctls = forwarding
	}
	p, err := newPlace(cfg.Name, sysctls)
	if err != nil {
		return nil, err
	}
	h := &Host{place: p, cfg: cfg, routes: make(map[netip.Prefix]netip.Addr)}
	if err := h.connect(n); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) connect(n *Network) error {
	port := fmt.Sprintf("port%d", n.ports)
	n.ports++
	_, link, err := wire(n.place, port, n.bridge, h.place, h.Name())
	if err != nil {
		return err
	}
	h.uplink = link
	if err := n.waitUp(n.bridge); err != nil {
		return err
	}
	for _, a := range h.cfg.Addrs {
		if err := h.addAddr(link, single(a)); err != nil {
			return err
		}
	}
	for _, v6 := range []bool{false, true} {
		source, ok := h.Source(v6)
		if !ok {
			continue
		}
		// Every other host is on link. ClusterIPs need a route, too, before their destination is translated.
		if err := h.replaceRoute(&netlink.Route{
			LinkIndex: link.Attrs().Index, Dst: ipNet(anywhere(source)), Src: source.AsSlice(), Scope: linkScope(source),
		}); err != nil {
			return err
		}
	}
	if !h.cfg.Bridged {
		return nil
	}
	if h.bridge, err = h.addBridge("cni0"); err != nil {
		return err
	}
	for _, cidr := range h.cfg.PodCIDRs {
		if err := h.addAddr(h.bridge, netip.PrefixFrom(cidr.Masked().Addr().Next(), cidr.Bits())); err != nil {
			return err
		}
	}
	return nil
}

// linkScope is the scope of an IPv4 route without a gateway; IPv6 has no such thing.
func linkScope(a netip.Addr) netlink.Scope {
	if a.Is4() {
		return unix.RT_SCOPE_LINK
	}
	return unix.RT_SCOPE_UNIVERSE
}

// NS is the host's namespace.
func (h *Host) NS() *ns.Namespace { return h.Namespace }

// Source is the address that the host speaks from, false if it has none of the family.
func (h *Host) Source(v6 bool) (netip.Addr, bool) {
	for _, a := range h.cfg.Addrs {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// SetRoutes makes the host send each prefix to the host that has the address, and forget routes of earlier calls.
func (h *Host) SetRoutes(routes map[netip.Prefix]netip.Addr) error {
	for prefix := range h.routes {
		if _, keep := routes[prefix]; keep {
			continue
		}
		if err := h.links.RouteDel(&netlink.Route{LinkIndex: h.uplink.Attrs().Index, Dst: ipNet(prefix)}); err != nil {
			return fmt.Errorf("delete route %s in %s: %w", prefix, h.Name(), err)
		}
		delete(h.routes, prefix)
	}
	for prefix, via := range routes {
		if h.routes[prefix] == via {
			continue
		}
		source, _ := h.Source(prefix.Addr().Is6())
		if err := h.replaceRoute(&netlink.Route{
			LinkIndex: h.uplink.Attrs().Index, Dst: ipNet(prefix), Gw: via.AsSlice(), Src: source.AsSlice(),
			Flags: int(netlink.FLAG_ONLINK),
		}); err != nil {
			return err
		}
	}
	h.routes = maps.Clone(routes)
	return nil
}

// Close takes the host away; its end of the wire goes with it. Its pods are closed before.
func (h *Host) Close() error { return h.close() }
