package conntrack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

func TestMain(m *testing.M) {
	nstest.Elevate()
	goleak.VerifyTestMain(m)
}

// host is a network namespace in which conntrack marks every flow as admitted, with other bits set too. UDP and TCP to
// the service addresses, port 80, go to port 8080 of the loopback addresses.
type host struct {
	t  testing.TB
	ns *nstest.NS
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t, nstest.New(t)}
	c, err := nftables.New(nftables.WithNetNSFd(int(h.ns.Handle())))
	h.must(err)
	table := c.AddTable(&nftables.Table{Name: "t", Family: nftables.TableFamilyINet})
	mark := c.AddChain(&nftables.Chain{Name: "mark", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: mark, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(expr.CtStateBitNEW), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
		&expr.Immediate{Register: 1, Data: native(others | admitted)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}})
	nat := c.AddChain(&nftables.Chain{Name: "nat", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	for i, proto := range []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6} {
		offset, size := []uint32{16, 24}[i], []uint32{4, 16}[i]
		c.AddRule(&nftables.Rule{Table: table, Chain: nat, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: service[i].AsSlice()},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_ICMP}},
			&expr.Immediate{Register: 1, Data: loopback[i].AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(8080)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(proto), RegAddrMin: 1, RegProtoMin: 2},
		}})
	}
	h.must(c.Flush())
	nl, err := netlink.NewHandleAt(h.ns.Handle()) // the service address needs a route, before DNAT
	h.must(err)
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	h.must(err)
	h.must(nl.AddrAdd(lo, &netlink.Addr{Flags: unix.IFA_F_NODAD,
		IPNet: &net.IPNet{IP: service[1].AsSlice(), Mask: net.CIDRMask(128, 128)}}))
	return h
}

func (h *host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) open() *Conn {
	h.t.Helper()
	c, err := Open(int(h.ns.Handle()))
	h.must(err)
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// udp sends a datagram and returns the address it came from.
func (h *host) udp(to netip.AddrPort) netip.AddrPort {
	h.t.Helper()
	var conn net.Conn
	h.must(h.ns.Run(func() (err error) {
		conn, err = net.Dial("udp", to.String())
		return err
	}))
	defer conn.Close()
	_, err := conn.Write([]byte("x"))
	h.must(err)
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// tcp opens a connection that lives until the test ends.
func (h *host) tcp(to netip.AddrPort, listenPort uint16) netip.AddrPort {
	h.t.Helper()
	var conn net.Conn
	h.must(h.ns.Run(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", listenPort))
		if err != nil {
			return err
		}
		defer l.Close()
		conn, err = net.Dial("tcp", to.String())
		return err
	}))
	h.t.Cleanup(func() { _ = conn.Close() })
	return conn.LocalAddr().(*net.TCPAddr).AddrPort()
}

// ping sends an echo request with the identifier.
func (h *host) ping(to netip.Addr, id uint16) {
	h.t.Helper()
	msg := []byte{8, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
	var sum uint32
	for i := 0; i < len(msg); i += 2 {
		sum += uint32(msg[i])<<8 | uint32(msg[i+1])
	}
	sum = ^(sum>>16 + sum&0xffff)
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: loopback[0].As4()}
	if to.Is6() {
		domain, proto, sa = unix.AF_INET6, unix.IPPROTO_ICMPV6, &unix.SockaddrInet6{Addr: to.As16()}
		msg[0] = 128 // the kernel fills the checksum in
	} else {
		msg[2], msg[3] = byte(sum>>8), byte(sum)
	}
	h.must(h.ns.Run(func() error {
		fd, err := unix.Socket(domain, unix.SOCK_RAW, proto)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, msg, 0, sa)
	}))
}

func (h *host) dump(c *Conn, f Filter) []Flow {
	h.t.Helper()
	var flows []Flow
	h.must(c.Dump(f, func(f *Flow) bool {
		flows = append(flows, *f)
		return true
	}))
	return flows
}

// find returns the one flow of that protocol and destination.
func (h *host) find(c *Conn, proto uint8, dst netip.AddrPort) Flow {
	h.t.Helper()
	flows := slices.DeleteFunc(h.dump(c, Filter{}), func(f Flow) bool {
		return f.Proto != proto || netip.AddrPortFrom(f.Original.Dst, f.Original.DstPort) != dst
	})
	if len(flows) != 1 {
		h.t.Fatalf("%d flows of protocol %d to %v, want 1", len(flows), proto, dst)
	}
	return flows[0]
}
