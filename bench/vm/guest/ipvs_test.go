//go:build vm

package guest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/vm/ipvs"
)

// The ClusterIPs, and the ports of the Service: one for each backend, so that no test depends on whose turn it is. They
// differ from the pods' 8080, which is what policy speaks of.
var (
	clusterIPs = map[bool]netip.Addr{
		false: netip.MustParseAddr("10.96.0.80"), true: netip.MustParseAddr("fd96::80"),
	}
	servicePorts = map[string]uint16{"default/web-1": 81, "default/web-2": 82}
)

// virtual is where a client finds the backend.
func virtual(v6 bool, backend string) netip.AddrPort {
	return netip.AddrPortFrom(clusterIPs[v6], servicePorts[backend])
}

// serveByIPVS does on the node what kube-proxy does in its ipvs mode: the ClusterIPs are on a dummy interface, virtual
// servers lead from there to the pods, and what the node itself sends from a ClusterIP is masqueraded.
func (b *bed) serveByIPVS(node string) {
	b.Helper()
	n := b.place("node/" + node).NS
	links, err := netlink.NewHandleAt(netns.NsHandle(n.FD()), unix.NETLINK_ROUTE)
	b.must(err)
	defer links.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "kube-ipvs0"
	dummy := &netlink.Dummy{LinkAttrs: attrs}
	b.must(links.LinkAdd(dummy)) // kube-proxy leaves it down, too
	for v6, ip := range clusterIPs {
		bits := ip.BitLen()
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, bits)}}
		if v6 {
			addr.Flags = unix.IFA_F_NODAD
		}
		b.must(links.AddrAdd(dummy, addr))
		for backend := range servicePorts {
			for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				b.must(ipvs.Add(n.FD(), ipvs.Service{
					Proto: proto, Addr: virtual(v6, backend), Backends: []netip.AddrPort{b.place(backend).At(v6, 8080)},
				}))
			}
		}
	}
	b.must(n.Sysctl(map[string]string{
		"ipv4/vs/conntrack": "1", "ipv4/conf/all/arp_ignore": "1", "ipv4/conf/all/arp_announce": "2",
	}))
	b.masqueradeClusterIPs(n.FD())
}

// masqueradeClusterIPs is what kube-proxy's KUBE-CLUSTER-IP rules come to for clients on the node.
func (b *bed) masqueradeClusterIPs(netns int) {
	b.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(netns))
	b.must(err)
	table := c.AddTable(&nftables.Table{Name: "kube-proxy", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource,
	})
	for v6, ip := range clusterIPs {
		nfproto, offset := byte(unix.NFPROTO_IPV4), uint32(12)
		if v6 {
			nfproto, offset = unix.NFPROTO_IPV6, 8
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfproto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(ip.BitLen() / 8)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ip.AsSlice()},
			&expr.Masq{},
		}})
	}
	b.must(c.Flush())
}

// everyWay calls f for both families and protocols.
func everyWay(f func(v6 bool, proto probe.Proto)) {
	for _, v6 := range []bool{false, true} {
		for _, proto := range []probe.Proto{probe.TCP, probe.UDP} {
			f(v6, proto)
		}
	}
}

func TestIPVSFromPods(t *testing.T) {
	b := newBed(t, lab.Options{}, allowClient)
	b.serveByIPVS("one")
	client, other := b.place("default/client"), b.place("default/other")
	for backend := range servicePorts {
		everyWay(func(v6 bool, proto probe.Proto) {
			to := virtual(v6, backend)
			r := b.reaches(probe.Probe{From: client.NS, To: to, Proto: proto}, backend)
			if own, _ := client.Addr(v6); r.Seen.Addr() != own {
				t.Errorf("%s saw %s, want the client's %s", backend, r.Seen, own)
			}
			b.fails(probe.Probe{From: other.NS, To: to, Proto: proto})
			pod := b.place(backend)
			b.recorded(other.Name+" to "+backend, func(r agents.Record) bool {
				at := pod.At(v6, 8080)
				return r.Node == pod.Node && r.Src.Pod == "other" && "default/"+r.Dst.Pod == backend &&
					r.Dst.IP == at.Addr().String() && r.Dst.Port == at.Port()
			})
		})
	}
}

// TestIPVSAndThePort shows that it is the pod's port that policy is about, not the Service's.
func TestIPVSAndThePort(t *testing.T) {
	b := newBed(t, lab.Options{}, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - ports: [{port: 81}, {port: 82}, {port: 81, protocol: UDP}, {port: 82, protocol: UDP}]
`)
	b.serveByIPVS("one")
	client := b.place("default/client")
	for backend := range servicePorts {
		everyWay(func(v6 bool, proto probe.Proto) {
			b.fails(probe.Probe{From: client.NS, To: virtual(v6, backend), Proto: proto})
		})
	}
}

// TestIPVSAndEgress judges the client's side alone: the backend on the other node is refused before it leaves.
func TestIPVSAndEgress(t *testing.T) {
	b := newBed(t, lab.Options{}, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: []
`)
	b.serveByIPVS("one")
	client, other := b.place("default/client"), b.place("default/other")
	for backend := range servicePorts {
		everyWay(func(v6 bool, proto probe.Proto) {
			b.fails(probe.Probe{From: client.NS, To: virtual(v6, backend), Proto: proto})
			b.reaches(probe.Probe{From: other.NS, To: virtual(v6, backend), Proto: proto}, backend)
			b.recorded("the client's way to "+backend, func(r agents.Record) bool {
				return r.Node == "one" && r.Src.Pod == "client" && "default/"+r.Dst.Pod == backend && r.Dst.Port == 8080
			})
		})
	}
}

// TestIPVSFromTheNode connects from the node: to its own pods always, to those of another node as policy says.
func TestIPVSFromTheNode(t *testing.T) {
	b := newBed(t, lab.Options{}, allowClient)
	b.serveByIPVS("one")
	node := b.place("node/one")
	everyWay(func(v6 bool, proto probe.Proto) {
		b.reaches(probe.Probe{From: node.NS, To: virtual(v6, "default/web-1"), Proto: proto}, "default/web-1")
		b.fails(probe.Probe{From: node.NS, To: virtual(v6, "default/web-2"), Proto: proto})
	})
	b.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nodes}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{ipBlock: {cidr: 172.30.0.0/24}}, {ipBlock: {cidr: "fd30::/64"}}]
`)
	everyWay(func(v6 bool, proto probe.Proto) {
		r := b.reaches(probe.Probe{From: node.NS, To: virtual(v6, "default/web-2"), Proto: proto}, "default/web-2")
		if own, _ := node.Addr(v6); r.Seen.Addr() != own {
			t.Errorf("web-2 saw %s, want the node's %s", r.Seen, own)
		}
	})
}
