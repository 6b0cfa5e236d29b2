// Package ipvs makes virtual servers of the kernel's own load balancer, as kube-proxy does with --proxy-mode=ipvs.
//
// It speaks generic netlink with the family "IPVS" (linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c).
package ipvs

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Generic netlink's own family, which knows the numbers of the others (linux/genetlink.h).
const (
	genlIDCtrl        = 0x10 // GENL_ID_CTRL
	ctrlCmdGetFamily  = 3    // CTRL_CMD_GETFAMILY
	ctrlAttrFamilyID  = 1    // CTRL_ATTR_FAMILY_ID
	ctrlAttrName      = 2    // CTRL_ATTR_FAMILY_NAME
	genlHeaderLength  = 4    // struct genlmsghdr
	genlFamilyVersion = 1
)

// Commands and attributes of the family (linux/ip_vs.h).
const (
	family = "IPVS" // IPVS_GENL_NAME

	cmdNewService = 1 // IPVS_CMD_NEW_SERVICE
	cmdNewDest    = 5 // IPVS_CMD_NEW_DEST

	attrService = 1 // IPVS_CMD_ATTR_SERVICE
	attrDest    = 2 // IPVS_CMD_ATTR_DEST

	svcAttrAF        = 1 // IPVS_SVC_ATTR_AF
	svcAttrProtocol  = 2 // IPVS_SVC_ATTR_PROTOCOL
	svcAttrAddr      = 3 // IPVS_SVC_ATTR_ADDR, union nf_inet_addr
	svcAttrPort      = 4 // IPVS_SVC_ATTR_PORT, big endian
	svcAttrScheduler = 6 // IPVS_SVC_ATTR_SCHED_NAME
	svcAttrFlags     = 7 // IPVS_SVC_ATTR_FLAGS, struct ip_vs_flags
	svcAttrTimeout   = 8 // IPVS_SVC_ATTR_TIMEOUT
	svcAttrNetmask   = 9 // IPVS_SVC_ATTR_NETMASK: a mask for IPv4, a length for IPv6

	destAttrAddr     = 1  // IPVS_DEST_ATTR_ADDR
	destAttrPort     = 2  // IPVS_DEST_ATTR_PORT
	destAttrMethod   = 3  // IPVS_DEST_ATTR_FWD_METHOD
	destAttrWeight   = 4  // IPVS_DEST_ATTR_WEIGHT
	destAttrUpper    = 5  // IPVS_DEST_ATTR_U_THRESH
	destAttrLower    = 6  // IPVS_DEST_ATTR_L_THRESH
	destAttrAF       = 11 // IPVS_DEST_ATTR_ADDR_FAMILY
	methodMasquerade = 0  // IP_VS_CONN_F_MASQ: destination NAT
)

// Service is a virtual server: Addr with its port leads to the backends, in turn.
type Service struct {
	// Proto is an IP protocol number: TCP, UDP or SCTP.
	Proto    uint8
	Addr     netip.AddrPort
	Backends []netip.AddrPort
}

// Add makes the virtual server in the network namespace of that file descriptor (0: of the calling thread). The kernel
// loads its modules as needed.
func Add(netns int, s Service) error {
	c, err := netlink.Dial(unix.NETLINK_GENERIC, &netlink.Config{NetNS: netns})
	if err != nil {
		return fmt.Errorf("open generic netlink: %w", err)
	}
	defer func() { _ = c.Close() }()
	number, err := familyNumber(c)
	if err != nil {
		return fmt.Errorf("look for the family %s: %w", family, err)
	}
	if err := send(c, number, cmdNewService, s.attributes(true)); err != nil {
		return fmt.Errorf("make virtual server %s: %w", s.Addr, err)
	}
	for _, b := range s.Backends {
		if err := send(c, number, cmdNewDest, func(e *netlink.AttributeEncoder) {
			s.attributes(false)(e)
			e.Nested(attrDest, func(e *netlink.AttributeEncoder) error { backend(e, b); return nil })
		}); err != nil {
			return fmt.Errorf("add backend %s to virtual server %s: %w", b, s.Addr, err)
		}
	}
	return nil
}

// familyNumber asks for the family, which also makes the kernel load its module.
func familyNumber(c *netlink.Conn) (netlink.HeaderType, error) {
	answers, err := execute(c, genlIDCtrl, netlink.Request, ctrlCmdGetFamily, func(e *netlink.AttributeEncoder) {
		e.String(ctrlAttrName, family)
	})
	if err != nil {
		return 0, err
	}
	for _, m := range answers {
		if len(m.Data) < genlHeaderLength {
			continue
		}
		d, err := netlink.NewAttributeDecoder(m.Data[genlHeaderLength:])
		if err != nil {
			return 0, err
		}
		for d.Next() {
			if d.Type() == ctrlAttrFamilyID {
				return netlink.HeaderType(d.Uint16()), d.Err()
			}
		}
	}
	return 0, unix.ENOENT
}

// send asks for something to be done. The answer is an acknowledgement, and nothing else: one message more would be
// taken for the answer to the next request.
func send(c *netlink.Conn, number netlink.HeaderType, command uint8, attrs func(*netlink.AttributeEncoder)) error {
	_, err := execute(c, number, netlink.Request|netlink.Acknowledge, command, attrs)
	return err
}

func execute(c *netlink.Conn, number netlink.HeaderType, flags netlink.HeaderFlags, command uint8,
	attrs func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	attrs(e)
	b, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return c.Execute(netlink.Message{
		Header: netlink.Header{Type: number, Flags: flags},
		Data:   append([]byte{command, genlFamilyVersion, 0, 0}, b...),
	})
}

// attributes name the virtual server; whole ones say how it works, too.
func (s *Service) attributes(whole bool) func(*netlink.AttributeEncoder) {
	return func(e *netlink.AttributeEncoder) {
		e.Nested(attrService, func(e *netlink.AttributeEncoder) error {
			e.Uint16(svcAttrAF, addressFamily(s.Addr.Addr()))
			e.Uint16(svcAttrProtocol, uint16(s.Proto))
			e.Bytes(svcAttrAddr, address(s.Addr.Addr()))
			e.Bytes(svcAttrPort, port(s.Addr))
			if !whole {
				return nil
			}
			e.String(svcAttrScheduler, "rr")
			e.Bytes(svcAttrFlags, make([]byte, 8))
			e.Uint32(svcAttrTimeout, 0)
			if s.Addr.Addr().Is4() {
				e.Uint32(svcAttrNetmask, ^uint32(0))
			} else {
				e.Uint32(svcAttrNetmask, 128)
			}
			return nil
		})
	}
}

func backend(e *netlink.AttributeEncoder, b netip.AddrPort) {
	e.Bytes(destAttrAddr, address(b.Addr()))
	e.Bytes(destAttrPort, port(b))
	e.Uint32(destAttrMethod, methodMasquerade)
	e.Uint32(destAttrWeight, 1)
	e.Uint32(destAttrUpper, 0)
	e.Uint32(destAttrLower, 0)
	e.Uint16(destAttrAF, addressFamily(b.Addr()))
}

func addressFamily(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// address is a union nf_inet_addr: 16 bytes, of which IPv4 uses the first four.
func address(a netip.Addr) []byte {
	b := make([]byte, 16)
	copy(b, a.AsSlice())
	return b
}

func port(a netip.AddrPort) []byte { return binary.BigEndian.AppendUint16(nil, a.Port()) }
