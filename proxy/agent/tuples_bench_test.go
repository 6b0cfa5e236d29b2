package agent

import (
	"net/netip"
	"testing"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// BenchmarkTuples adds ever new tuples to a full list, as a busy node does.
func BenchmarkTuples(b *testing.B) {
	const limit = 1 << 14
	list := newTuples(limit)
	addr := netip.MustParseAddr("10.0.0.1")
	add := func(i int) {
		list.add(ruleset.Tuple{Src: addr, Dst: addr, Proto: uint8(i>>16) & 1, DstPort: uint16(i)})
	}
	for i := range limit {
		add(i)
	}
	b.ReportAllocs()
	i := limit
	for b.Loop() {
		add(i)
		i++
	}
}
