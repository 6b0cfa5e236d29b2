// Package wire injects crafted packets at an interface inside a namespace and captures what passes there.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// maxPacket holds any packet, segmentation offload included.
const maxPacket = 256 << 10

// Tap is a packet socket at one interface. Send and Next may be called from different goroutines.
type Tap struct {
	fd    int
	index int
	buf   []byte
}

// Packet is a captured packet.
type Packet struct {
	// Data begins at the IP header. Checksums may be partial, as the sender's kernel left them.
	Data []byte
	// Outgoing tells packets that the namespace sends from those that it receives.
	Outgoing bool
	// Source is the link-layer address of the sender.
	Source net.HardwareAddr
}

// Open attaches to the interface, which is "eth0" in the namespaces of pods and hosts. Capture begins at once, with
// IPv4 and IPv6 packets in both directions. It needs CAP_NET_RAW.
func Open(n *ns.Namespace, name string) (*Tap, error) {
	t := &Tap{fd: -1, buf: make([]byte, maxPacket)}
	err := n.Do(func() error {
		link, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		t.index = link.Index
		// SOCK_DGRAM: the kernel takes the link-layer header off, and puts it on.
		t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
			// Not in a user namespace; the largest that anyone may have then.
			if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20); err != nil {
				return fmt.Errorf("set receive buffer: %w", err)
			}
		}
		return unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: t.index})
	})
	if err != nil {
		if t.fd >= 0 {
			_ = unix.Close(t.fd)
		}
		return nil, fmt.Errorf("tap %s in %s: %w", name, n.Name(), err)
	}
	return t, nil
}

// networkOrder swaps the bytes where the machine's order is another.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Send puts a packet, from its IP header on, on the wire towards the link-layer address: the gateway's, as a rule.
// Nothing of this namespace's own netfilter or routing sees it.
func (t *Tap) Send(packet []byte, to net.HardwareAddr) error {
	proto := uint16(unix.ETH_P_IP)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		proto = unix.ETH_P_IPV6
	}
	addr := &unix.SockaddrLinklayer{Protocol: networkOrder(proto), Ifindex: t.index, Halen: uint8(len(to))}
	copy(addr.Addr[:], to)
	if err := unix.Sendto(t.fd, packet, 0, addr); err != nil {
		return fmt.Errorf("inject packet: %w", err)
	}
	return nil
}

// Next returns the first packet from now on that match accepts, false if none came within wait. A nil match accepts
// any. The packet's memory is the caller's.
func (t *Tap) Next(wait time.Duration, match func(Packet) bool) (Packet, bool, error) {
	deadline := time.Now().Add(wait)
	for {
		left := time.Until(deadline)
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}},
			int(max(left, 0)/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return Packet{}, false, fmt.Errorf("capture: %w", err)
		}
		if ready <= 0 {
			if time.Until(deadline) <= time.Millisecond {
				return Packet{}, false, nil
			}
			continue
		}
		n, from, err := unix.Recvfrom(t.fd, t.buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return Packet{}, false, fmt.Errorf("capture: %w", err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || link.Protocol != networkOrder(unix.ETH_P_IP) && link.Protocol != networkOrder(unix.ETH_P_IPV6) {
			continue
		}
		p := Packet{
			Data: append([]byte(nil), t.buf[:n]...), Outgoing: link.Pkttype == unix.PACKET_OUTGOING,
			Source: append(net.HardwareAddr(nil), link.Addr[:min(int(link.Halen), len(link.Addr))]...),
		}
		if match == nil || match(p) {
			return p, true, nil
		}
	}
}

// Close detaches.
func (t *Tap) Close() error {
	if err := unix.Close(t.fd); err != nil {
		return fmt.Errorf("close tap: %w", err)
	}
	return nil
}
