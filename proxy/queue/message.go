package queue

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Messages of NFQUEUE (linux/netfilter/nfnetlink_queue.h) and their headers (linux/netlink.h).
const (
	msgPacket  = unix.NFNL_SUBSYS_QUEUE << 8   // NFQNL_MSG_PACKET
	msgVerdict = unix.NFNL_SUBSYS_QUEUE<<8 | 1 // NFQNL_MSG_VERDICT

	attrPacketHdr  = 1  // NFQA_PACKET_HDR: struct nfqnl_msg_packet_hdr
	attrVerdictHdr = 2  // NFQA_VERDICT_HDR: struct nfqnl_msg_verdict_hdr
	attrMark       = 3  // NFQA_MARK: __be32, left out when 0
	attrInDev      = 5  // NFQA_IFINDEX_INDEV: __be32, left out where there is none
	attrPayload    = 10 // NFQA_PAYLOAD

	nlHeaderLen   = unix.SizeofNlMsghdr
	genHeaderLen  = 4 // struct nfgenmsg (linux/netfilter/nfnetlink.h)
	attrHeaderLen = unix.SizeofNlAttr
	attrTypeMask  = 0x3fff // NLA_TYPE_MASK

	verdictLen     = nlHeaderLen + genHeaderLen + attrHeaderLen + 8
	verdictMarkLen = verdictLen + attrHeaderLen + 4
	// messageOverhead is more than all attributes that may come with a packet, beside the payload: 140 bytes with those
	// of Linux 6.18, more with a link-layer header on bridges.
	messageOverhead = 512
)

// Netfilter verdicts (linux/netfilter.h).
const (
	nfDrop   = 0 // NF_DROP
	nfAccept = 1 // NF_ACCEPT
	nfQueue  = 3 // NF_QUEUE, with the queue's number in the upper half (NF_QUEUE_NR)
	nfRepeat = 4 // NF_REPEAT
)

// messageKind tells what one netlink message was.
type messageKind uint8

const (
	// messageIgnored says nothing that the loop needs.
	messageIgnored messageKind = iota
	// messagePacket is a packet to be judged.
	messagePacket
	// messageError is the kernel's answer to something that was sent.
	messageError
	// messageBroken cannot be understood; the packet is to be dropped when its id is known.
	messageBroken
)

// message is one netlink message of the queue's socket. Its payload is part of the bytes it was parsed from.
type message struct {
	kind messageKind
	// id, hook, mark, in and payload are those of a packet. Of a broken message, hasID tells whether id is known.
	id      uint32
	mark    uint32
	in      uint32
	payload []byte
	hook    uint8
	hasID   bool
	// about is the type of the message that an error answers, errno is positive or 0.
	about uint16
	errno unix.Errno
}

// parse overwrites m with the first message of b, which was read from the socket of queue number, and returns the bytes
// behind it. It accepts any bytes and always makes progress while b has some.
func (m *message) parse(b []byte, number uint16) (rest []byte) {
	*m = message{}
	if len(b) < nlHeaderLen {
		m.kind = messageBroken
		return nil
	}
	length := uint64(binary.NativeEndian.Uint32(b))
	kind := binary.NativeEndian.Uint16(b[4:])
	cut := length < nlHeaderLen || length > uint64(len(b))
	if !cut {
		rest = b[min(align(int(length)), len(b)):]
		b = b[:length]
	}
	switch kind {
	case msgPacket:
		m.parsePacket(b[nlHeaderLen:], number)
		if cut && m.kind == messagePacket {
			m.kind, m.hasID, m.payload = messageBroken, true, nil
		}
	case unix.NLMSG_ERROR:
		m.parseError(b[nlHeaderLen:])
	default:
		if cut {
			m.kind = messageBroken
		}
	}
	return rest
}

// parsePacket reads struct nfgenmsg and the attributes behind it.
func (m *message) parsePacket(b []byte, number uint16) {
	m.kind = messageBroken
	if len(b) < genHeaderLen || binary.BigEndian.Uint16(b[2:]) != number {
		return // ids of other queues are none of ours
	}
	var hasPayload bool
	for b = b[genHeaderLen:]; len(b) >= attrHeaderLen; {
		length := int(binary.NativeEndian.Uint16(b))
		if length < attrHeaderLen || length > len(b) {
			return
		}
		value := b[attrHeaderLen:length]
		switch binary.NativeEndian.Uint16(b[2:]) & attrTypeMask {
		case attrPacketHdr: // __be32 packet_id; __be16 hw_protocol; __u8 hook
			if len(value) < 7 {
				return
			}
			m.id, m.hook, m.hasID = binary.BigEndian.Uint32(value), value[6], true
		case attrMark:
			if len(value) < 4 {
				return
			}
			m.mark = binary.BigEndian.Uint32(value)
		case attrInDev:
			if len(value) < 4 {
				return
			}
			m.in = binary.BigEndian.Uint32(value)
		case attrPayload:
			m.payload, hasPayload = value, true
		}
		b = b[min(align(length), len(b)):]
	}
	if m.hasID && hasPayload && len(b) == 0 {
		m.kind = messagePacket
	}
}

// parseError reads struct nlmsgerr: int error; struct nlmsghdr msg.
func (m *message) parseError(b []byte) {
	if len(b) < 4+nlHeaderLen {
		m.kind = messageBroken
		return
	}
	if code := int32(binary.NativeEndian.Uint32(b)); code < 0 && code > -4096 {
		m.kind, m.errno = messageError, unix.Errno(-code)
		m.about = binary.NativeEndian.Uint16(b[8:])
	}
}

// align is NLMSG_ALIGN and NLA_ALIGN.
func align(n int) int { return (n + 3) &^ 3 }

// wakeMessage is answered at once by the kernel, and has no other effect: NLMSG_NOOP with NLM_F_ACK.
var wakeMessage = func() []byte {
	b := binary.NativeEndian.AppendUint32(nil, nlHeaderLen)
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_NOOP)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence, port
}()

// appendVerdict appends the NFQNL_MSG_VERDICT for packet id to b. There is no NLM_F_ACK: only a refusal is answered.
func appendVerdict(b []byte, number uint16, id uint32, v Verdict) []byte {
	length, verdict := uint32(verdictLen), uint32(nfDrop)
	switch v.Kind {
	case Accept:
		verdict = nfAccept
	case Repeat:
		length, verdict = verdictMarkLen, nfRepeat
	case Requeue:
		verdict = nfQueue | uint32(v.Queue)<<16
	}
	b = binary.NativeEndian.AppendUint32(b, length)
	b = binary.NativeEndian.AppendUint16(b, msgVerdict)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence, port
	b = append(b, unix.AF_UNSPEC, genVersion)
	b = binary.BigEndian.AppendUint16(b, number)
	b = binary.NativeEndian.AppendUint16(b, attrHeaderLen+8)
	b = binary.NativeEndian.AppendUint16(b, attrVerdictHdr)
	b = binary.BigEndian.AppendUint32(b, verdict)
	b = binary.BigEndian.AppendUint32(b, id)
	if v.Kind == Repeat {
		b = binary.NativeEndian.AppendUint16(b, attrHeaderLen+4)
		b = binary.NativeEndian.AppendUint16(b, attrMark)
		b = binary.BigEndian.AppendUint32(b, v.Mark)
	}
	return b
}
