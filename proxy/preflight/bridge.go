// Package preflight looks at the node for what would keep the agent from enforcing without anybody noticing.
package preflight

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrBridge says that packets between pods of a bridge pass beside the rules.
var ErrBridge = errors.New("pods are joined by a bridge whose packets netfilter does not see")

// The sysctls of module br_netfilter (Documentation/networking/ip-sysctl.rst), below /proc/sys/net.
const (
	callIPTables  = "bridge/bridge-nf-call-iptables"
	callIP6Tables = "bridge/bridge-nf-call-ip6tables"
)

// Bridges returns ErrBridge with what to do about it if a bridge in the thread's network namespace carries pods of one
// of the node's pod ranges, and its packets do not come to the hooks of IPv4 or IPv6. A bridge carries pods of a range
// if it has an address in it or is what the range is routed to. Other errors are about rtnetlink.
func Bridges(podCIDRs []netip.Prefix) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("look for bridges: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("look for bridges: %w", err)
	}
	for _, link := range links {
		if link.Type() != "bridge" {
			continue
		}
		ranges, err := carried(h, link)
		if err != nil {
			return fmt.Errorf("look at bridge %s: %w", link.Attrs().Name, err)
		}
		for _, cidr := range podCIDRs {
			for _, r := range ranges {
				if !r.Overlaps(cidr) {
					continue
				}
				if err := called(link.Attrs().Name, cidr); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// carried are the addresses of a bridge and the ranges that are routed to it.
func carried(h *netlink.Handle, link netlink.Link) ([]netip.Prefix, error) {
	var ranges []netip.Prefix
	addrs, err := h.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ip = ip.Unmap()
			ranges = append(ranges, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	routes, err := h.RouteList(link, unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		if bits, _ := r.Dst.Mask.Size(); ok && bits > 0 { // a default route is about other machines
			ranges = append(ranges, netip.PrefixFrom(ip.Unmap(), bits))
		}
	}
	return ranges, nil
}

// called checks that packets of the range's family come from the bridge to netfilter.
func called(bridge string, cidr netip.Prefix) error {
	key := callIPTables
	if cidr.Addr().Is6() {
		key = callIP6Tables
	}
	sysctl := "net." + strings.ReplaceAll(key, "/", ".")
	content, err := os.ReadFile("/proc/sys/net/" + key)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s has pods of %s; load the module br_netfilter and set %s=1", ErrBridge, bridge, cidr, sysctl)
	case err != nil:
		return fmt.Errorf("read %s: %w", sysctl, err)
	case strings.TrimSpace(string(content)) == "0":
		return fmt.Errorf("%w: %s has pods of %s; set %s=1 (it is 0)", ErrBridge, bridge, cidr, sysctl)
	}
	return nil
}
