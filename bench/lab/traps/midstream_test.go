package traps

import (
	"fmt"
	"testing"

	"github.com/google/gopacket/layers"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
)

// TestMidStreamOpensNoWay: a packet that passes as the answer in a connection that nobody remembers must not admit the
// flow that conntrack makes of it, or the sender could open a connection on the same ports. What keeps the server from
// taking the first packet for an error is an option that it discards packets for in silence (RFC 2385).
func TestMidStreamOpensNoWay(t *testing.T) {
	b := newBed(t, lab.Options{})
	families(func(v6 bool) {
		for i, stranger := range []string{"stranger", "far"} {
			c := b.crossing(stranger, "server")
			from, to := c.ports(v6, uint16(4300+i), 80)
			mark := fmt.Sprintf("answer of %s", stranger)
			c.passes("mid-stream TCP", mark, tcp(t, from, to, mark, func(h *layers.TCP) {
				h.ACK, h.Ack = true, 1
				h.Options = []layers.TCPOption{{OptionType: 19, OptionLength: 18, OptionData: make([]byte, 16)}}
			}))
			c.stopped("a SYN on the same ports", "let me in", tcp(t, from, to, "let me in", syn))
			if _, ok, err := c.out.Next(silence, func(p wire.Packet) bool {
				header := 20
				if v6 {
					header = 40
				}
				const synAck = 0x12
				return !p.Outgoing && len(p.Data) > header+13 && p.Data[header+13] == synAck
			}); ok || err != nil {
				t.Errorf("%s: the server answers the SYN: %v", stranger, err)
			}
		}
	})
}
