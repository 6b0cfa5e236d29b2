package wire

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flood is a stream of TCP SYNs to ports at random, over IPv4. No socket stands behind them: an answer to one meets
// nobody who waits for it.
type Flood struct {
	// Source is the address that all packets carry; with a prefix of less than 32 bits each packet has another one of it,
	// at random.
	Source netip.Prefix
	// Targets are taken at random. Each is reached over Interface, and at least one.
	Targets []netip.Addr
	// Interface is "eth0" in the namespaces of pods.
	Interface string
	// Rate is in packets a second; zero is as many as go.
	Rate int
}

const (
	// floodFrames is the number of different packets, which are sent round and round.
	floodFrames = 1 << 16
	// floodBatch is how many go with one call. The kernel carries them all the way to the receiver's socket before it
	// returns, so that larger batches keep others from this processor for long.
	floodBatch = 8
	synSize    = ipv4Size + tcpSize
	ipv4Size   = 20
	tcpSize    = 20
)

// Run sends until the context ends, from the network namespace of the calling thread, and returns the number of packets
// sent. It needs CAP_NET_RAW.
func (f *Flood) Run(ctx context.Context) (sent int, err error) {
	fd, to, err := f.open()
	if err != nil {
		return 0, fmt.Errorf("flood: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	frames := f.frames()
	var vectors [floodBatch]unix.Iovec
	var headers [floodBatch]mmsghdr
	for i := range headers {
		vectors[i].SetLen(synSize)
		headers[i].hdr.Iov = &vectors[i]
		headers[i].hdr.SetIovlen(1)
		headers[i].hdr.Name = (*byte)(unsafe.Pointer(to))
		headers[i].hdr.Namelen = unix.SizeofSockaddrLinklayer
	}
	began := time.Now()
	for ctx.Err() == nil {
		if f.Rate > 0 {
			ahead := time.Duration(sent)*time.Second/time.Duration(f.Rate) - time.Since(began)
			if ahead > 0 {
				// A sleep is late by some 50 us, which the next batches make up for.
				time.Sleep(ahead)
			}
		}
		for i := range vectors {
			vectors[i].Base = &frames[(sent+i)%floodFrames*synSize]
		}
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&headers[0])), floodBatch,
			0, 0, 0)
		switch errno {
		case 0:
			sent += int(n)
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS:
		default:
			return sent, fmt.Errorf("flood: send: %w", errno)
		}
	}
	return sent, nil
}

// mmsghdr is struct mmsghdr of linux/socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [4]byte
}

// open makes a packet socket, and returns where to send to.
func (f *Flood) open() (int, *unix.RawSockaddrLinklayer, error) {
	link, err := net.InterfaceByName(f.Interface)
	if err != nil {
		return -1, nil, err
	}
	gateway, err := gatewayOf(f.Targets[0], f.Interface)
	if err != nil {
		return -1, nil, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("packet socket: %w", err)
	}
	to := unix.RawSockaddrLinklayer{
		Family: unix.AF_PACKET, Protocol: networkOrder(unix.ETH_P_IP), Ifindex: int32(link.Index), Halen: uint8(len(gateway)),
	}
	copy(to.Addr[:], gateway)
	return fd, &to, nil
}

// gatewayOf is the link-layer address of the next hop to the target, which a datagram makes the kernel find.
func gatewayOf(target netip.Addr, device string) (net.HardwareAddr, error) {
	for range 100 {
		c, err := net.Dial("udp", netip.AddrPortFrom(target, 9).String())
		if err != nil {
			return nil, err
		}
		_, _ = c.Write([]byte{0}) // whoever answers, and what
		_ = c.Close()
		content, err := os.ReadFile("/proc/thread-self/net/arp")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(content)) {
			// IP address, HW type, flags, HW address, mask, device
			f := strings.Fields(line)
			if len(f) != 6 || f[5] != device || f[2] == "0x0" {
				continue
			}
			if a, err := net.ParseMAC(f[3]); err == nil {
				return a, nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("no next hop to %s on %s", target, device)
}

// frames are the packets, one after the other.
func (f *Flood) frames() []byte {
	all := make([]byte, 0, floodFrames*synSize)
	base := binary.BigEndian.Uint32(f.Source.Addr().AsSlice())
	spread := uint32(1)<<(32-f.Source.Bits()) - 1
	for range floodFrames {
		source := base | rand.Uint32()&spread
		target := f.Targets[rand.IntN(len(f.Targets))].As4()
		all = appendSYN(all, binary.BigEndian.AppendUint32(nil, source), target[:], uint16(1024+rand.IntN(60000)),
			uint16(1+rand.IntN(60000)))
	}
	return all
}

// appendSYN appends an IPv4 packet with a TCP SYN (RFC 791, section 3.1; RFC 9293, section 3.1).
func appendSYN(b, source, target []byte, sourcePort, targetPort uint16) []byte {
	ip := len(b)
	b = append(b, 0x45, 0, 0, synSize, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0)
	b = append(append(b, source...), target...)
	binary.BigEndian.PutUint16(b[ip+10:], ^fold(sum(0, b[ip:])))
	tcp := len(b)
	b = binary.BigEndian.AppendUint16(b, sourcePort)
	b = binary.BigEndian.AppendUint16(b, targetPort)
	b = binary.BigEndian.AppendUint32(b, rand.Uint32())
	b = append(b, 0, 0, 0, 0, tcpSize/4<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0)
	pseudo := sum(unix.IPPROTO_TCP+tcpSize, b[ip+12:ip+20])
	binary.BigEndian.PutUint16(b[tcp+16:], ^fold(sum(pseudo, b[tcp:])))
	return b
}

// sum adds 16-bit words up (RFC 1071).
func sum(s uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
