package agent

import (
	"iter"
	"net/netip"

	"github.com/firstpacket/firstpacket/proxy/internal/slots"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// tuples is a bounded list of tuples, the one that was added last at its end. It has no pointers but those to its two
// blocks of memory: tens of thousands of tuples come and go a second on a busy node, none of which a collection of
// garbage shall have to look at.
type tuples struct {
	limit int
	index map[tupleKey]int32 // slots of list
	list  slots.List[tupleKey]
}

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
func (t *tuples) clear() { t.index, t.list = map[tupleKey]int32{}, slots.New[tupleKey](t.limit, 0) }

func (t *tuples) len() int { return t.list.Len() }

func (t *tuples) contains(tuple ruleset.Tuple) bool {
	_, ok := t.index[keyOf(tuple)]
	return ok
}

// add puts a tuple at the end, where it may have come from. If the list is full, the first tuple leaves it.
func (t *tuples) add(tuple ruleset.Tuple) (left ruleset.Tuple, full bool) {
	key := keyOf(tuple)
	if i, ok := t.index[key]; ok {
		t.list.ToEnd(i)
		return left, false
	}
	i := t.list.Add()
	if i == slots.None {
		first := t.list.First()
		left, full = t.list.At(first).tuple(), true
		t.removeSlot(first)
		i = t.list.Add()
	}
	*t.list.At(i) = key
	t.index[key] = i
	return left, full
}

// remove takes a tuple out, if it is there.
func (t *tuples) remove(tuple ruleset.Tuple) {
	if i, ok := t.index[keyOf(tuple)]; ok {
		t.removeSlot(i)
	}
}

func (t *tuples) removeSlot(i int32) {
	delete(t.index, *t.list.At(i))
	t.list.Remove(i)
}

// all goes through the tuples from the first to the last. The one it is at may be removed.
func (t *tuples) all() iter.Seq[ruleset.Tuple] {
	return func(yield func(ruleset.Tuple) bool) {
		for i := t.list.First(); i != slots.None; {
			next := t.list.Next(i)
			if !yield(t.list.At(i).tuple()) {
				return
			}
			i = next
		}
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
