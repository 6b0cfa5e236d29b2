package baseline

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"golang.org/x/sys/unix"
)

// Queue is the number of the queue that the loops serve.
const Queue = 1

// copyRange is how many bytes of a packet are copied: what proxy/queue asks for.
const copyRange = 256

// Raw serves the queue with the plainest loop there is: it blocks in recv, sends one verdict, and starts over.
// Everything is accepted. It returns only with an error; ready is called when it serves.
func Raw(ready func()) error {
	runtime.LockOSThread()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return fmt.Errorf("NETLINK_NO_ENOBUFS: %w", err)
	}
	gso := be32(nfqueue.NfQaCfgFlagGSO) // packets as they are
	for _, m := range [][]byte{
		config(attribute(cfgCmd, []byte{cmdBind, 0, 0, unix.AF_UNSPEC})),
		config(attribute(cfgParams, append(binary.BigEndian.AppendUint32(nil, copyRange), nfqueue.NfQnlCopyPacket))),
		config(append(attribute(cfgMask, gso), attribute(cfgFlags, gso)...)),
	} {
		if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return fmt.Errorf("configure the queue: %w", err)
		}
	}
	ready()
	b := make([]byte, 65536)
	verdict := message(msgVerdict, attribute(attrVerdict, make([]byte, 8)))
	answer := verdict[len(verdict)-8:]
	binary.BigEndian.PutUint32(answer, nfqueue.NfAccept)
	to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if id, ok := packetID(b[:n]); ok {
			binary.BigEndian.PutUint32(answer[4:], id)
			if err := unix.Sendto(fd, verdict, 0, to); err != nil {
				return fmt.Errorf("send a verdict: %w", err)
			}
		}
	}
}

// Callback serves the queue the way go-nfqueue means it. Everything is accepted.
func Callback(ready func()) error {
	nfq, err := nfqueue.Open(&nfqueue.Config{
		NfQueue: Queue, MaxQueueLen: 1024, MaxPacketLen: copyRange, Copymode: nfqueue.NfQnlCopyPacket,
		Flags: nfqueue.NfQaCfgFlagGSO,
	})
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	failed := make(chan error, 1)
	fail := func(err error) int {
		select {
		case failed <- err:
		default:
		}
		return 1
	}
	err = nfq.RegisterWithErrorFunc(context.Background(), func(a nfqueue.Attribute) int {
		if err := nfq.SetVerdict(*a.PacketID, nfqueue.NfAccept); err != nil {
			return fail(err)
		}
		return 0
	}, fail)
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	ready()
	return <-failed
}

// Messages and attributes of NFQUEUE (linux/netfilter/nfnetlink_queue.h).
const (
	msgPacket  = unix.NFNL_SUBSYS_QUEUE << 8   // NFQNL_MSG_PACKET
	msgVerdict = unix.NFNL_SUBSYS_QUEUE<<8 | 1 // NFQNL_MSG_VERDICT
	msgConfig  = unix.NFNL_SUBSYS_QUEUE<<8 | 2 // NFQNL_MSG_CONFIG

	attrPacketHdr = 1 // NFQA_PACKET_HDR: struct nfqnl_msg_packet_hdr
	attrVerdict   = 2 // NFQA_VERDICT_HDR: struct nfqnl_msg_verdict_hdr
	cfgCmd        = 1 // NFQA_CFG_CMD: struct nfqnl_msg_config_cmd
	cfgParams     = 2 // NFQA_CFG_PARAMS: struct nfqnl_msg_config_params
	cfgMask       = 4 // NFQA_CFG_MASK
	cfgFlags      = 5 // NFQA_CFG_FLAGS
	cmdBind       = 1 // NFQNL_CFG_CMD_BIND

	headerLen = unix.SizeofNlMsghdr + 4 // and struct nfgenmsg
)

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// attribute is struct nlattr and a value.
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(append(b, value...), make([]byte, -len(value)&3)...)
}

func config(attributes []byte) []byte { return message(msgConfig, attributes) }

// message is struct nlmsghdr, struct nfgenmsg and attributes.
func message(kind uint16, attributes []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(headerLen+len(attributes)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...) // sequence, port
	b = append(b, unix.AF_UNSPEC, 0)
	return append(binary.BigEndian.AppendUint16(b, Queue), attributes...)
}

// packetID finds the number of the packet in a message of the kernel; its first attribute has it.
func packetID(b []byte) (uint32, bool) {
	const at = headerLen + unix.SizeofNlAttr
	if len(b) < at+4 || binary.NativeEndian.Uint16(b[4:]) != msgPacket ||
		binary.NativeEndian.Uint16(b[headerLen+2:]) != attrPacketHdr {
		return 0, false
	}
	return binary.BigEndian.Uint32(b[at:]), true
}
