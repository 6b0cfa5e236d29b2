package queue

import (
	"encoding/binary"
	"errors"
	"fmt"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Configuration of a queue (linux/netfilter/nfnetlink_queue.h).
const (
	msgConfig = unix.NFNL_SUBSYS_QUEUE<<8 | 2 // NFQNL_MSG_CONFIG

	cfgCmd     = 1 // NFQA_CFG_CMD: struct nfqnl_msg_config_cmd
	cfgParams  = 2 // NFQA_CFG_PARAMS: struct nfqnl_msg_config_params
	cfgMaxLen  = 3 // NFQA_CFG_QUEUE_MAXLEN: __be32
	cfgMask    = 4 // NFQA_CFG_MASK: __be32, which flags are set
	cfgFlags   = 5 // NFQA_CFG_FLAGS: __be32
	cmdBind    = 1 // NFQNL_CFG_CMD_BIND
	cmdPFBind  = 3 // NFQNL_CFG_CMD_PF_BIND
	genVersion = 0 // NFNETLINK_V0
)

// bind opens a socket, makes it the owner of the queue and returns its descriptor, which belongs to the caller.
//
// go-nfqueue opens the socket and its connection carries the configuration. The configuration itself is sent from
// here, because go-nfqueue sends it in Register only, which starts its own receive loop and reads the packets. Taking
// a duplicate of the descriptor and closing the connection takes the socket out of Go's poller, which packets would
// otherwise wake for nothing (6 % more context switches, measured with single UDP packets).
func bind(cfg *Config) (int, error) {
	flags := uint32(nfqueue.NfQaCfgFlagGSO) // packets as they are: no segmentation, no checksumming for the copy
	if cfg.FailOpen {
		flags |= nfqueue.NfQaCfgFlagFailOpen
	}
	nfq, err := nfqueue.Open(&nfqueue.Config{
		NfQueue:      cfg.Number,
		MaxQueueLen:  uint32(cfg.MaxLen),
		MaxPacketLen: uint32(cfg.CopyRange),
		Copymode:     nfqueue.NfQnlCopyPacket,
		Flags:        flags,
		AfFamily:     unix.AF_UNSPEC,
	})
	if err != nil {
		if errors.Is(err, unix.EPROTONOSUPPORT) {
			return -1, fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		return -1, fmt.Errorf("netlink socket: %w", err)
	}
	defer nfq.Close()

	if err := configure(nfq.Con, cfg, flags); err != nil {
		return -1, err
	}
	// A full receive buffer shows in the kernel's count of user drops; an error in the middle of reading tells no more.
	if err := nfq.SetOption(netlink.NoENOBUFS, true); err != nil {
		return -1, fmt.Errorf("NETLINK_NO_ENOBUFS: %w", err)
	}
	// SO_RCVBUFFORCE, or SO_RCVBUF where that is not permitted.
	if err := nfq.Con.SetReadBuffer(cfg.ReceiveBuffer); err != nil {
		return -1, fmt.Errorf("receive buffer: %w", err)
	}
	// Packets come from the copy mode on, so it is last, and nobody waits for an answer that would come between packets:
	// the kernel processes the message within send, and the loop would find a refusal first of all.
	if _, err := nfq.Con.Send(configMessage(cfg.Number, 0, netlink.Attribute{Type: cfgParams,
		Data: append(be32(uint32(cfg.CopyRange)), nfqueue.NfQnlCopyPacket)})); err != nil {
		return -1, fmt.Errorf("copy mode: %w", err)
	}

	raw, err := nfq.Con.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("descriptor: %w", err)
	}
	fd := -1
	var dupErr error
	if err := raw.Control(func(own uintptr) { fd, dupErr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, fmt.Errorf("descriptor: %w", err)
	}
	if dupErr != nil {
		return -1, fmt.Errorf("duplicate the descriptor: %w", dupErr)
	}
	if err := unix.SetNonblock(fd, false); err != nil { // the loop sleeps in the read itself
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make the descriptor block: %w", err)
	}
	if err := setDoze(fd); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("SO_RCVTIMEO: %w", err)
	}
	return fd, nil
}

// configure takes the queue. It stays without copy mode, so that no packet is sent to the socket yet.
func configure(con *netlink.Conn, cfg *Config, flags uint32) error {
	// The kernel answers EPERM both to lack of CAP_NET_ADMIN and to a queue that belongs to another socket. Binding a
	// protocol family means nothing any more since Linux 3.8, and so tells the first from the second.
	_, err := con.Execute(configMessage(0, netlink.Acknowledge, netlink.Attribute{Type: cfgCmd,
		Data: []byte{cmdPFBind, 0, 0, unix.AF_INET}}))
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EINVAL): // no such nfnetlink subsystem
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case err != nil:
		return fmt.Errorf("probe: %w", err)
	}
	_, err = con.Execute(configMessage(cfg.Number, netlink.Acknowledge,
		netlink.Attribute{Type: cfgCmd, Data: []byte{cmdBind, 0, 0, unix.AF_UNSPEC}},
		netlink.Attribute{Type: cfgMaxLen, Data: be32(uint32(cfg.MaxLen))},
		netlink.Attribute{Type: cfgMask, Data: be32(flags)},
		netlink.Attribute{Type: cfgFlags, Data: be32(flags)},
	))
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY), errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: %w", ErrTaken, err)
	case err != nil:
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// configMessage is a NFQNL_MSG_CONFIG request: struct nfgenmsg (linux/netfilter/nfnetlink.h) and attributes.
func configMessage(number uint16, flags netlink.HeaderFlags, attrs ...netlink.Attribute) netlink.Message {
	data := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, genVersion}, number)
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		panic(err) // only attributes beyond 64 KiB fail
	}
	return netlink.Message{
		Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | flags},
		Data:   append(data, b...),
	}
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
