// Package service does for a lab what kube-proxy does for a cluster: ClusterIPs and node ports lead to backends.
//
// The rules are destination NAT with a random backend, in the table "inet lab-services" of each node's namespace.
// Packets that must come back through the node that translated them are masqueraded, and on the way there carry the
// same packet mark as with kube-proxy.
package service

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

const (
	// Table is the name of the table.
	Table = "lab-services"
	// masqueradeMark is kube-proxy's (pkg/proxy: --iptables-masquerade-bit 14).
	masqueradeMark = 0x4000
)

// Config is what the rules are made from.
type Config struct {
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
	// NodeAddrs are the addresses of the node on which node ports answer.
	NodeAddrs []netip.Addr
	// PodCIDRs are the pod ranges of the whole cluster, for Masquerade.
	PodCIDRs []netip.Prefix
	// Masquerade hides pods behind their node when they speak to anything outside PodCIDRs and NoMasquerade.
	Masquerade   bool
	NoMasquerade []netip.Addr
}

// Apply makes the rules in the namespace what the configuration says, in one transaction.
func Apply(n *ns.Namespace, cfg Config) error {
	conn, err := nftables.New(nftables.WithNetNSFd(n.FD()))
	if err != nil {
		return fmt.Errorf("open nftables in %s: %w", n.Name(), err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
	conn.AddTable(table)
	r := &rules{conn: conn, table: table}
	r.chains(cfg)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set the Service rules in %s: %w", n.Name(), err)
	}
	return nil
}

// rules collects one transaction.
type rules struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func (r *rules) chain(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority,
	})
}

func (r *rules) add(chain *nftables.Chain, parts ...[]expr.Any) {
	rule := &nftables.Rule{Table: r.table, Chain: chain}
	for _, p := range parts {
		rule.Exprs = append(rule.Exprs, p...)
	}
	r.conn.AddRule(rule)
}

func (r *rules) chains(cfg Config) {
	services := r.conn.AddChain(&nftables.Chain{Name: "services", Table: r.table})
	prerouting := r.chain("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := r.chain("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := r.chain("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	// The chains stay and only their rules go: taking a hook away would drop what waits in the agent's queues.
	r.conn.FlushTable(r.table)
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: services.Name}}
	r.add(prerouting, jump)
	r.add(output, jump)

	hairpins := make(map[netip.Addr]bool)
	for _, s := range cfg.Services {
		for i := range s.Spec.Ports {
			port := &s.Spec.Ports[i]
			r.port(services, cfg, s, port)
			for _, b := range backends(cfg.Slices, s, port.Name) {
				hairpins[b.Addr()] = true
			}
		}
	}

	r.add(postrouting, markSet(), []expr.Any{&expr.Masq{}})
	for addr := range hairpins {
		// A pod that reached itself must see another sender, or it would answer itself directly.
		r.add(postrouting, matchAddr(addr, sourceAddr), matchAddr(addr, destinationAddr), []expr.Any{&expr.Masq{}})
	}
	if cfg.Masquerade {
		r.masqueradePods(postrouting, cfg)
	}
}

// port sends the traffic to one port of a Service on to its backends.
func (r *rules) port(chain *nftables.Chain, cfg Config, s *corev1.Service, port *corev1.ServicePort) {
	var proto byte
	switch port.Protocol {
	case corev1.ProtocolTCP:
		proto = unix.IPPROTO_TCP
	case corev1.ProtocolUDP:
		proto = unix.IPPROTO_UDP
	default:
		return // SCTP: needs sockets that not every kernel has, so no server could answer
	}
	all := backends(cfg.Slices, s, port.Name)
	forward := func(addr netip.Addr, number int32, extra []expr.Any) {
		var fitting []netip.AddrPort
		for _, b := range all {
			if b.Addr().Is4() == addr.Is4() {
				fitting = append(fitting, b)
			}
		}
		for i, b := range fitting {
			r.add(chain, matchAddr(addr, destinationAddr), matchPort(proto, uint16(number)),
				oneOf(len(fitting)-i), extra, translate(b))
		}
	}
	for _, ip := range s.Spec.ClusterIPs {
		if addr, err := netip.ParseAddr(ip); err == nil { // "None" is no address
			forward(addr, port.Port, nil)
		}
	}
	if port.NodePort != 0 {
		for _, addr := range cfg.NodeAddrs {
			forward(addr, port.NodePort, setMark())
		}
	}
}

// masqueradePods hides pods behind the node for everything outside the cluster.
func (r *rules) masqueradePods(chain *nftables.Chain, cfg Config) {
	for _, addr := range cfg.NoMasquerade {
		r.add(chain, matchAddr(addr, destinationAddr), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
	}
	for _, p := range cfg.PodCIDRs {
		r.add(chain, matchPrefix(p, destinationAddr), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
	}
	for _, p := range cfg.PodCIDRs {
		r.add(chain, matchPrefix(p, sourceAddr), []expr.Any{&expr.Masq{}})
	}
}

// backends are the ready endpoints behind the Service's port of that name, both families.
func backends(slices []*discoveryv1.EndpointSlice, s *corev1.Service, portName string) []netip.AddrPort {
	var found []netip.AddrPort
	for _, slice := range slices {
		if slice.Namespace != s.Namespace || slice.Labels[discoveryv1.LabelServiceName] != s.Name {
			continue
		}
		for _, port := range slice.Ports {
			name := ""
			if port.Name != nil {
				name = *port.Name
			}
			if port.Port == nil || name != portName {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready != nil && !*e.Conditions.Ready {
					continue
				}
				for _, ip := range e.Addresses {
					if addr, err := netip.ParseAddr(ip); err == nil { // FQDN slices have none
						found = append(found, netip.AddrPortFrom(addr, uint16(*port.Port)))
					}
				}
			}
		}
	}
	return found
}

// side is one of the two addresses in an IP header.
type side struct{ offset4, offset6 uint32 }

// RFC 791 section 3.1 and RFC 8200 section 3.
var (
	sourceAddr      = side{12, 8}
	destinationAddr = side{16, 24}
)

func matchAddr(a netip.Addr, s side) []expr.Any {
	return matchPrefix(netip.PrefixFrom(a, a.BitLen()), s)
}

func matchPrefix(p netip.Prefix, s side) []expr.Any {
	proto, offset, length := byte(unix.NFPROTO_IPV4), s.offset4, uint32(4)
	if p.Addr().Is6() {
		proto, offset, length = unix.NFPROTO_IPV6, s.offset6, 16
	}
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func matchPort(proto byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// oneOf matches one packet in n, at random; for n = 1 it is no condition at all.
func oneOf(n int) []expr.Any {
	if n == 1 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

func translate(to netip.AddrPort) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegAddrMax: 1, RegProtoMin: 2, RegProtoMax: 2,
			Specified: true,
		},
	}
}

// setMark asks for masquerading; the other bits of the packet mark stay.
func setMark() []expr.Any {
	bit := binaryutil.NativeEndian.PutUint32(masqueradeMark)
	mask := binaryutil.NativeEndian.PutUint32(^uint32(masqueradeMark))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: bit},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

func markSet() []expr.Any {
	bit := binaryutil.NativeEndian.PutUint32(masqueradeMark)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bit, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: bit},
	}
}
