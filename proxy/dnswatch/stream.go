package dnswatch

import (
	"encoding/binary"
	"math"
	"net/netip"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/domain"
)

// connection is a TCP connection between a pod and a server, in both directions.
type connection struct {
	queries, answers stream
	// waiting are the replies in segments that were seen and may not have passed. All segments of the server's wait for
	// them, so that none sent again comes before.
	waiting []reply
}

// stream puts the messages of one direction together: each is preceded by its length in two bytes (RFC 1035, 4.2.2).
type stream struct {
	// began: the first sequence number was seen. next is that of the byte that is expected.
	began bool
	next  uint32
	// message is the beginning of one, its length included; skip counts the bytes to come of one that is too long.
	message []byte
	skip    int
}

const lengthLen = 2

// keep is the room that a stream keeps between messages.
const keep = 4 << 10

// begin starts anew behind a SYN.
func (s *stream) begin(seq uint32) { *s = stream{began: true, next: seq + 1} }

// feed takes the bytes over that come next, and hands on each message that they complete. Messages longer than limit
// are left out. The message is valid during the call.
func (s *stream) feed(b []byte, limit int, each func(message []byte)) {
	s.next += uint32(len(b))
	for len(b) > 0 {
		if s.skip > 0 {
			n := min(s.skip, len(b))
			s.skip, b = s.skip-n, b[n:]
			continue
		}
		need := lengthLen
		if len(s.message) >= lengthLen {
			need += int(binary.BigEndian.Uint16(s.message))
		}
		n := min(need-len(s.message), len(b))
		s.message, b = append(s.message, b[:n]...), b[n:]
		if len(s.message) < lengthLen {
			continue
		}
		length := int(binary.BigEndian.Uint16(s.message))
		switch {
		case length > limit:
			s.skip, s.message = length, s.message[:0]
		case len(s.message) == lengthLen+length:
			each(s.message[lengthLen:])
			s.message = s.message[:0]
		}
	}
	if len(s.message) == 0 && cap(s.message) > keep {
		s.message = nil
	}
}

// segment follows a TCP segment; asks says that it is the pod's.
func (w *Watcher) segment(client netip.Addr, e ends, upper []byte, asks bool, now int64, last bool) Outcome {
	const headerLen = 20
	if len(upper) < headerLen || int(upper[12]>>4)*4 > len(upper) {
		return Drop
	}
	seq, flags := binary.BigEndian.Uint32(upper[4:]), upper[13]
	payload := upper[int(upper[12]>>4)*4:]
	p := w.pod(client)
	c, known := p.streams.Get(e)
	if flags&packet.FlagSYN != 0 {
		return w.opening(p, e, c, seq, asks, flags&packet.FlagACK != 0, len(payload) > 0)
	}
	if flags&packet.FlagRST != 0 || len(payload) == 0 {
		return Pass
	}
	if !known {
		w.Stats.Unfollowed.Add(1)
		return Drop
	}
	s := &c.answers
	if asks {
		s = &c.queries
	}
	behind := int32(s.next - seq)
	if !s.began || behind < 0 {
		w.Stats.Unfollowed.Add(1)
		return Drop
	}
	if int(behind) < len(payload) {
		payload = payload[behind:]
		if asks {
			s.feed(payload, maxQuery, func(message []byte) { w.ask(client, e, message, now) })
		} else {
			s.feed(payload, math.MaxUint16, func(message []byte) { w.streamed(p, c, e, message, now) })
		}
	}
	if asks {
		return Pass
	}
	return w.release(client, c, last)
}

// opening follows the SYN of either side. Data in it (RFC 7413) is not taken: it is sent again without.
func (w *Watcher) opening(p *pod, e ends, c *connection, seq uint32, asks, ack, data bool) Outcome {
	switch {
	case data:
		return Drop
	case asks && !ack:
		c = &connection{}
		c.queries.begin(seq)
		p.streams.Add(e, c)
	case !asks && ack && c != nil:
		if !c.answers.began {
			c.answers.begin(seq)
		}
	default:
		w.Stats.Unfollowed.Add(1)
		return Drop
	}
	return Pass
}

// streamed takes an answer out of a stream. One that nobody waits for goes on unread: dropping it would stall the
// stream.
func (w *Watcher) streamed(p *pod, c *connection, e ends, message []byte, now int64) {
	q, a, err := domain.ParseResponse(message)
	if q == (domain.Question{}) {
		return
	}
	x := exchange{e, q}
	if p.find(x, now) == nil {
		w.Stats.Strangers.Add(1)
		return
	}
	p.open.Remove(x)
	var r reply
	if w.learns(&r, a, err) {
		c.waiting = append(c.waiting, r)
	}
}

// release lets segments pass when nothing that the connection has said so far waits any longer.
func (w *Watcher) release(client netip.Addr, c *connection, last bool) Outcome {
	out := Pass
	for i := range c.waiting {
		if w.await(client, &c.waiting[i], last) == Wait {
			out = Wait
		}
	}
	if out == Pass {
		c.waiting = nil
	}
	return out
}
