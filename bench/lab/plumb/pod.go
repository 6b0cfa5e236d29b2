package plumb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// The gateway of pods on wires of their own: addresses that nobody has, with permanent neighbour entries.
var gateways = []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}

// Pod is the namespace of a pod, wired to its node.
type Pod struct {
	*place
	host *Host
	// near is the node's end of the wire, far the pod's.
	near, far netlink.Link
}

// AddPod makes a pod with the addresses and wires it to the node. Where another pod of the node has an address
// already, the new one takes it over.
func (h *Host) AddPod(name string, addrs []netip.Addr) (*Pod, error) {
	p, err := newPlace(name)
	if err != nil {
		return nil, err
	}
	pod := &Pod{place: p, host: h}
	if err := pod.connect(addrs); err != nil {
		return nil, errors.Join(err, pod.Close())
	}
	return pod, nil
}

func (p *Pod) connect(addrs []netip.Addr) error {
	h := p.host
	name := fmt.Sprintf("veth%d", h.pods)
	h.pods++
	near, far, err := wire(h.place, name, h.bridge, p.place, p.Name())
	if err != nil {
		return err
	}
	p.near, p.far = near, far
	if h.bridge != nil {
		// A pod may reach itself through a Service.
		if err := h.links.LinkSetHairpin(near, true); err != nil {
			return fmt.Errorf("set hairpin mode for %s: %w", p.Name(), err)
		}
		// A bridge has a carrier from its first port on.
		if err := errors.Join(h.waitUp(h.bridge), h.waitRouted(h.bridge)); err != nil {
			return err
		}
		return p.connectBridged(addrs)
	}
	return p.connectRouted(addrs)
}

// connectRouted sends everything to the node over the pod's own wire.
func (p *Pod) connectRouted(addrs []netip.Addr) error {
	for _, a := range addrs {
		if err := p.addAddr(p.far, single(a)); err != nil {
			return err
		}
	}
	for _, gateway := range gateways {
		source, ok := first(addrs, gateway.Is6())
		if !ok {
			continue
		}
		if err := p.addNeighbour(p.far, gateway, p.near.Attrs().HardwareAddr); err != nil {
			return err
		}
		if err := p.replaceRoute(&netlink.Route{
			LinkIndex: p.far.Attrs().Index, Dst: ipNet(anywhere(source)), Gw: gateway.AsSlice(), Src: source.AsSlice(),
			Flags: int(netlink.FLAG_ONLINK),
		}); err != nil {
			return err
		}
	}
	for _, a := range addrs {
		if err := p.host.addNeighbour(p.near, a, p.far.Attrs().HardwareAddr); err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: p.near.Attrs().Index, Dst: ipNet(single(a)), Scope: linkScope(a)}
		if source, ok := p.host.Source(a.Is6()); ok {
			route.Src = source.AsSlice()
		}
		if err := p.host.replaceRoute(route); err != nil {
			return err
		}
	}
	return nil
}

// connectBridged gives the pod its place in the node's range and the bridge as its gateway.
func (p *Pod) connectBridged(addrs []netip.Addr) error {
	for _, a := range addrs {
		cidr, ok := containing(p.host.cfg.PodCIDRs, a)
		if !ok {
			return fmt.Errorf("pod %s: address %s is outside its node's ranges; on a bridge it must be inside", p.Name(), a)
		}
		if err := p.addAddr(p.far, netip.PrefixFrom(a, cidr.Bits())); err != nil {
			return err
		}
		if err := p.replaceRoute(&netlink.Route{
			LinkIndex: p.far.Attrs().Index, Dst: ipNet(anywhere(a)), Gw: cidr.Masked().Addr().Next().AsSlice(),
			Src: a.AsSlice(),
		}); err != nil {
			return err
		}
	}
	return nil
}

func first(addrs []netip.Addr, v6 bool) (netip.Addr, bool) {
	for _, a := range addrs {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func containing(prefixes []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	for _, p := range prefixes {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// NS is the pod's namespace.
func (p *Pod) NS() *ns.Namespace { return p.Namespace }

// Close cuts the wire and takes the pod away.
func (p *Pod) Close() error {
	var err error
	if p.near != nil {
		if err = p.host.links.LinkDel(p.near); err != nil {
			err = fmt.Errorf("cut the wire of %s: %w", p.Name(), err)
		}
	}
	return errors.Join(err, p.close())
}

// Gateway is the link-layer address that the pod sends everything to that leaves it, for crafted packets.
func (p *Pod) Gateway() net.HardwareAddr {
	if p.host.bridge != nil {
		return p.host.bridge.Attrs().HardwareAddr
	}
	return p.near.Attrs().HardwareAddr
}

// Interface is the name of the node's end of the pod's wire.
func (p *Pod) Interface() string { return p.near.Attrs().Name }
