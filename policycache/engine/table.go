package engine

import (
	"cmp"
	"slices"

	"github.com/firstpacket/firstpacket/classify/packet"
)

// lane is the part of a compiled pair for one kind of packet.
type lane uint8

const (
	laneTCP lane = iota
	laneUDP
	laneSCTP
	// laneOther is every other protocol, and packets whose ports are not known: only rules without ports match.
	laneOther
	lanes
)

// laneProtos are the protocols of the lanes that have ports.
var laneProtos = [...]uint8{laneTCP: packet.ProtoTCP, laneUDP: packet.ProtoUDP, laneSCTP: packet.ProtoSCTP}

// laneOf chooses the lane of a readable packet.
func laneOf(f *packet.Flow) lane {
	if f.Form != packet.Complete {
		return laneOther
	}
	switch f.Proto {
	case packet.ProtoTCP:
		return laneTCP
	case packet.ProtoUDP:
		return laneUDP
	case packet.ProtoSCTP:
		return laneSCTP
	}
	return laneOther
}

// portTable maps every port to a decision.
type portTable struct {
	// one is the only decision; nil if there are several.
	one *Decision
	// starts are the first ports of ranges that follow each other without a gap, sorted, starts[0] == 0;
	// decisions[i] holds for starts[i] and all ports below starts[i+1].
	starts    []uint16
	decisions []*Decision
}

// linearLimit is the number of ranges up to which looking at each in turn is cheaper than halving.
const linearLimit = 8

// lookup finds the decision of a port.
func (t *portTable) lookup(port uint16) *Decision {
	if t.one != nil {
		return t.one
	}
	if len(t.starts) <= linearLimit {
		i := len(t.starts) - 1
		for t.starts[i] > port {
			i--
		}
		return t.decisions[i]
	}
	low, high := 0, len(t.starts)
	for high-low > 1 {
		mid := int(uint(low+high) / 2)
		if t.starts[mid] <= port {
			low = mid
		} else {
			high = mid
		}
	}
	return t.decisions[low]
}

// span is a range of ports, both ends inclusive.
type span struct{ first, last uint16 }

var allPorts = span{0, 65535}

// painted is a span with its decision.
type painted struct {
	span
	decision *Decision
}

// canvas is where the table of one lane is put together: rules come in the order in which they count, and each takes
// the ports that no earlier one has taken. It is reused, so that compiling allocates only what is kept.
type canvas struct {
	// open holds the ports that the current tier has not decided; passed those it leaves to the next. Both are
	// disjoint; open is sorted.
	open, passed []span
	done         []painted
	spare        []span
}

func (c *canvas) reset() {
	c.open = append(c.open[:0], allPorts)
	c.passed, c.done = c.passed[:0], c.done[:0]
}

// take gives the still open ports of s to the decision; a nil decision passes them to the next tier.
func (c *canvas) take(s span, d *Decision) {
	at, _ := slices.BinarySearchFunc(c.open, s.first, func(o span, first uint16) int { return cmp.Compare(o.last, first) })
	end := at
	var left [2]span // what remains of the outermost open spans
	rest := left[:0]
	for ; end < len(c.open) && c.open[end].first <= s.last; end++ {
		o := c.open[end]
		hit := span{max(o.first, s.first), min(o.last, s.last)}
		if d == nil {
			c.passed = append(c.passed, hit)
		} else {
			c.done = append(c.done, painted{hit, d})
		}
		if o.first < hit.first {
			rest = append(rest, span{o.first, hit.first - 1})
		}
		if o.last > hit.last {
			rest = append(rest, span{hit.last + 1, o.last})
		}
	}
	if end > at {
		c.open = slices.Replace(c.open, at, end, rest...)
	}
}

// takeAll gives everything still open to the decision.
func (c *canvas) takeAll(d *Decision) {
	for _, o := range c.open {
		if d == nil {
			c.passed = append(c.passed, o)
		} else {
			c.done = append(c.done, painted{o, d})
		}
	}
	c.open = c.open[:0]
}

// nextTier opens again what the tier passed on.
func (c *canvas) nextTier() {
	if len(c.passed) == 0 {
		return
	}
	c.open = append(c.open, c.passed...)
	c.passed = c.passed[:0]
	slices.SortFunc(c.open, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	merged := c.spare[:0]
	for _, s := range c.open {
		if n := len(merged); n > 0 && int(merged[n-1].last)+1 == int(s.first) {
			merged[n-1].last = s.last
			continue
		}
		merged = append(merged, s)
	}
	c.open, c.spare = merged, c.open
}

// table freezes the canvas, on which every port was taken.
func (c *canvas) table() portTable {
	if len(c.done) == 1 {
		return portTable{one: c.done[0].decision}
	}
	slices.SortFunc(c.done, func(a, b painted) int { return cmp.Compare(a.first, b.first) })
	n := 0
	for _, p := range c.done {
		if n > 0 && c.done[n-1].decision == p.decision {
			continue
		}
		c.done[n] = p
		n++
	}
	if n == 1 {
		return portTable{one: c.done[0].decision}
	}
	t := portTable{starts: make([]uint16, n), decisions: make([]*Decision, n)}
	for i, p := range c.done[:n] {
		t.starts[i], t.decisions[i] = p.first, p.decision
	}
	return t
}

// beside joins the table in force with the one that would be if policies in audit mode were enforced.
func beside(now, would *portTable) portTable {
	if now.one != nil && would.one != nil {
		return portTable{one: withWould(now.one, would.one)}
	}
	var t portTable
	starts := append(append(make([]uint16, 0, len(now.starts)+len(would.starts)+1), now.starts...), would.starts...)
	slices.Sort(starts)
	var last [2]*Decision
	for _, start := range slices.Compact(starts) {
		both := [2]*Decision{now.lookup(start), would.lookup(start)}
		if both == last {
			continue
		}
		last = both
		t.starts = append(t.starts, start)
		t.decisions = append(t.decisions, withWould(both[0], both[1]))
	}
	return t
}

// withWould is the decision d, where it matters with what would be decided instead.
func withWould(d, would *Decision) *Decision {
	if d.Allow == would.Allow {
		return d
	}
	both := *d
	both.Would = would
	return &both
}
