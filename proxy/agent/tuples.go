package agent

import (
	"iter"
	"net/netip"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// tuples is a bounded list of tuples, the one that was added last at its end. It has no pointers but those to its two
// blocks of memory: tens of thousands of tuples come and go a second on a busy node, none of which a collection of
// garbage shall have to look at.
type tuples struct {
	limit int
	index map[tupleKey]int32
	nodes []tupleNode // those in use, and free ones
	// first and last are the ends of the list, free begins that of free nodes; noNode is none.
	first, last, free int32
}

type tupleNode struct {
	key        tupleKey
	prev, next int32
}

const noNode = -1

// tupleKey is a ruleset.Tuple without pointers. Is4 tells addresses of IPv4 from those of IPv6 that look like them.
type tupleKey struct {
	src, dst   [16]byte
	port       uint16
	proto      uint8
	src4, dst4 bool
}

func newTuples(limit int) *tuples {
	t := &tuples{limit: limit}
	t.clear()
	return t
}

// clear removes all.
func (t *tuples) clear() {
	t.index, t.nodes = map[tupleKey]int32{}, nil
	t.first, t.last, t.free = noNode, noNode, noNode
}

func (t *tuples) len() int { return len(t.index) }

func (t *tuples) contains(tuple ruleset.Tuple) bool {
	_, ok := t.index[keyOf(tuple)]
	return ok
}

// add puts a tuple at the end, where it may have come from. If the list is full, the first tuple leaves it.
func (t *tuples) add(tuple ruleset.Tuple) (left ruleset.Tuple, full bool) {
	key := keyOf(tuple)
	if i, ok := t.index[key]; ok {
		if i != t.last {
			t.unlink(i)
			t.link(i)
		}
		return left, false
	}
	if len(t.index) == t.limit {
		left, full = t.nodes[t.first].key.tuple(), true
		t.removeNode(t.first)
	}
	i := t.free
	if i == noNode {
		i = int32(len(t.nodes))
		t.nodes = append(t.nodes, tupleNode{})
	} else {
		t.free = t.nodes[i].next
	}
	t.nodes[i].key = key
	t.index[key] = i
	t.link(i)
	return left, full
}

// remove takes a tuple out, if it is there.
func (t *tuples) remove(tuple ruleset.Tuple) {
	if i, ok := t.index[keyOf(tuple)]; ok {
		t.removeNode(i)
	}
}

// all goes through the tuples from the first to the last. The one it is at may be removed.
func (t *tuples) all() iter.Seq[ruleset.Tuple] {
	return func(yield func(ruleset.Tuple) bool) {
		for i := t.first; i != noNode; {
			next := t.nodes[i].next
			if !yield(t.nodes[i].key.tuple()) {
				return
			}
			i = next
		}
	}
}

func (t *tuples) removeNode(i int32) {
	delete(t.index, t.nodes[i].key)
	t.unlink(i)
	t.nodes[i].next, t.free = t.free, i
}

func (t *tuples) link(i int32) {
	n := &t.nodes[i]
	n.prev, n.next = t.last, noNode
	if t.last == noNode {
		t.first = i
	} else {
		t.nodes[t.last].next = i
	}
	t.last = i
}

func (t *tuples) unlink(i int32) {
	n := &t.nodes[i]
	if n.prev == noNode {
		t.first = n.next
	} else {
		t.nodes[n.prev].next = n.next
	}
	if n.next == noNode {
		t.last = n.prev
	} else {
		t.nodes[n.next].prev = n.prev
	}
}

func keyOf(t ruleset.Tuple) tupleKey {
	return tupleKey{
		src: t.Src.As16(), dst: t.Dst.As16(), src4: t.Src.Is4(), dst4: t.Dst.Is4(), port: t.DstPort, proto: t.Proto,
	}
}

func (k *tupleKey) tuple() ruleset.Tuple {
	return ruleset.Tuple{Src: addrOf(k.src, k.src4), Dst: addrOf(k.dst, k.dst4), Proto: k.proto, DstPort: k.port}
}

func addrOf(b [16]byte, is4 bool) netip.Addr {
	a := netip.AddrFrom16(b)
	if is4 {
		return a.Unmap()
	}
	return a
}
