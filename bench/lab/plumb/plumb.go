// Package plumb lays the wires of a lab: hosts on a switch, pods behind their node.
//
//	outside    node a              node b         each box is a network namespace
//	   |        |    \              |    \
//	   |       eth0  veth0..       eth0  veth0..
//	   |        |       \           |       \
//	 --+--------+--------\----------+--------\--- switch: a bridge in a namespace of its own
//	                    pod eth0            pod eth0
//
// Hosts reach each other on link and pods through static routes by node. Everything is IPv4 and IPv6 alike and usable
// when the call that made it returns: duplicate address detection is off.
package plumb

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// uplink is the name of the interface of hosts and pods alike.
const uplink = "eth0"

// linkPatience bounds the wait for a link to come up, which takes milliseconds.
const linkPatience = 10 * time.Second

// common is set in every namespace. Addresses are usable at once, nothing is learned from the network but neighbours,
// source addresses are not filtered by route (that is the business of what is tested), and refusals by ICMP are not
// rate-limited, so that each refused probe hears its own.
var common = map[string]string{
	"ipv4/conf/all/rp_filter":            "0",
	"ipv4/conf/default/rp_filter":        "0",
	"ipv4/conf/all/accept_redirects":     "0",
	"ipv4/conf/default/accept_redirects": "0",
	"ipv4/icmp_ratemask":                 "0",
	"ipv6/conf/all/disable_ipv6":         "0",
	"ipv6/conf/default/disable_ipv6":     "0",
	"ipv6/conf/all/accept_dad":           "0",
	"ipv6/conf/default/accept_dad":       "0",
	"ipv6/conf/default/accept_ra":        "0",
	"ipv6/conf/default/accept_redirects": "0",
	"ipv6/icmp/ratemask":                 "",
}

// forwarding makes a router of a host.
var forwarding = map[string]string{
	"ipv4/ip_forward":                  "1",
	"ipv4/conf/all/send_redirects":     "0",
	"ipv4/conf/default/send_redirects": "0",
	"ipv6/conf/all/forwarding":         "1",
	"ipv6/conf/default/forwarding":     "1",
}

// place is a namespace and the rtnetlink socket in it.
type place struct {
	*ns.Namespace
	links *netlink.Handle
}

func newPlace(name string, sysctls ...map[string]string) (*place, error) {
	n, err := ns.New(name)
	if err != nil {
		return nil, err
	}
	for _, values := range append(sysctls, common) {
		if err := n.Sysctl(values); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	links, err := netlink.NewHandleAt(netns.NsHandle(n.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink in %s: %w", name, err), n.Close())
	}
	return &place{n, links}, nil
}

func (p *place) close() error {
	p.links.Close()
	return p.Close()
}

// Network is the switch. It is not safe for concurrent use, nor are its hosts and their pods.
type Network struct {
	*place
	bridge netlink.Link
	ports  int
}

// New makes a switch without hosts.
func New() (*Network, error) {
	p, err := newPlace("switch")
	if err != nil {
		return nil, err
	}
	bridge, err := p.addBridge("br0")
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return &Network{place: p, bridge: bridge}, nil
}

// Close takes the switch away. Hosts are closed on their own.
func (n *Network) Close() error { return n.close() }

// addBridge makes a bridge that is up. It does not snoop multicast: a bridge without a querier may lose neighbour
// solicitations while it learns.
func (p *place) addBridge(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := p.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: new(false)}); err != nil {
		return nil, fmt.Errorf("add bridge in %s: %w", p.Name(), err)
	}
	bridge, err := p.links.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find bridge in %s: %w", p.Name(), err)
	}
	if err := p.links.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("set bridge in %s up: %w", p.Name(), err)
	}
	return bridge, nil
}

// wire makes a veth pair between two namespaces, both ends ready to pass packets, and routed ones to look for
// neighbours; master, if not nil, takes the near end as a port. alias is what "ip link" shows beside the near end.
func wire(near *place, nearName string, master netlink.Link, far *place, alias string) (a, b netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nearName
	if master != nil {
		attrs.MasterIndex = master.Attrs().Index
	}
	fail := func(what string, err error) (netlink.Link, netlink.Link, error) {
		return nil, nil, fmt.Errorf("wire %s to %s: %s: %w", far.Name(), near.Name(), what, err)
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: uplink, PeerNamespace: netlink.NsFd(far.FD())}
	if err := near.links.LinkAdd(veth); err != nil {
		return fail("add veth", err)
	}
	if a, err = near.links.LinkByName(nearName); err != nil {
		return fail("find veth", err)
	}
	if b, err = far.links.LinkByName(uplink); err != nil {
		return fail("find "+uplink, err)
	}
	if err := near.links.LinkSetAlias(a, alias); err != nil {
		return fail("set alias", err)
	}
	if err := near.links.LinkSetUp(a); err != nil {
		return fail("set veth up", err)
	}
	if err := far.links.LinkSetUp(b); err != nil {
		return fail("set "+uplink+" up", err)
	}
	if master == nil {
		err = near.waitRouted(a)
	}
	return a, b, errors.Join(err, near.waitUp(a), far.waitUp(b), far.waitRouted(b))
}

// waitUp waits until the link passes packets. The kernel gets a link whose carrier has just come going in the
// background (net/core/link_watch.c), and drops what is sent before.
func (p *place) waitUp(link netlink.Link) error {
	return p.wait(link, func() (bool, error) {
		now, err := p.links.LinkByIndex(link.Attrs().Index)
		return err == nil && now.Attrs().OperState == netlink.OperUp, err
	})
}

// waitRouted waits, beyond waitUp, until the link has its link-local address: without it no neighbour is asked for on
// behalf of forwarded packets (net/ipv6/ndisc.c, ndisc_send_ns).
func (p *place) waitRouted(link netlink.Link) error {
	return p.wait(link, func() (bool, error) {
		addrs, err := p.links.AddrList(link, unix.AF_INET6)
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() && p.isLocal(link, a.IP) {
				return true, nil
			}
		}
		return false, err
	})
}

// isLocal says whether packets to the address are delivered here. The kernel adds that route in the background, some
// time after the address (net/ipv6/addrconf.c, addrconf_dad_work), even where there is no duplicate to detect.
func (p *place) isLocal(link netlink.Link, ip net.IP) bool {
	routes, err := p.links.RouteGetWithOptions(ip, &netlink.RouteGetOptions{OifIndex: link.Attrs().Index})
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

func (p *place) wait(link netlink.Link, done func() (bool, error)) error {
	for deadline := time.Now().Add(linkPatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		ok, err := done()
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue // the list changed while it was read, perhaps by what is waited for
		}
		if ok || err != nil {
			if err != nil {
				return fmt.Errorf("look at link %s in %s: %w", link.Attrs().Name, p.Name(), err)
			}
			return nil
		}
	}
	return fmt.Errorf("link %s in %s does not come up", link.Attrs().Name, p.Name())
}

// addAddr gives the interface the address with a prefix of the given length, usable at once.
func (p *place) addAddr(link netlink.Link, prefix netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := p.links.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("add address %s in %s: %w", prefix, p.Name(), err)
	}
	return p.wait(link, func() (bool, error) { return p.isLocal(link, prefix.Addr().AsSlice()), nil })
}

func (p *place) replaceRoute(r *netlink.Route) error {
	if err := p.links.RouteReplace(r); err != nil {
		return fmt.Errorf("set route %s in %s: %w", r, p.Name(), err)
	}
	return nil
}

// addNeighbour makes a permanent entry, so that the first packet needs no resolution.
func (p *place) addNeighbour(link netlink.Link, addr netip.Addr, mac net.HardwareAddr) error {
	n := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac,
		Family: family(addr),
	}
	if err := p.links.NeighSet(n); err != nil {
		return fmt.Errorf("set neighbour %s in %s: %w", addr, p.Name(), err)
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// single is the prefix that holds the one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// anywhere is the prefix of default routes of the address's family.
func anywhere(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
