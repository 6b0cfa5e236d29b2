package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// TestClassesAreWhatTheBlocksContain compares classes with asking every block, for nested, overlapping, repeated and
// emptied blocks of both families.
func TestClassesAreWhatTheBlocksContain(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	prefix := func(a netip.Addr, longest int) netip.Prefix {
		return netip.PrefixFrom(a, r.IntN(longest+1)).Masked()
	}
	for range 500 {
		// Few different bits, so that much overlaps.
		addr := func() netip.Addr {
			b := [16]byte{0xfd, 15: byte(r.IntN(8))}
			b[r.IntN(15)+1] |= byte(r.IntN(3))
			if r.IntN(2) == 0 {
				return netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), byte(r.IntN(2)), byte(r.IntN(8))})
			}
			return netip.AddrFrom16(b)
		}
		var set blockSet
		for range r.IntN(12) {
			a := addr()
			b := &rule.Block{CIDR: prefix(a, a.BitLen())}
			for range r.IntN(4) {
				b.Except = append(b.Except, prefix(addr(), a.BitLen()/2+r.IntN(a.BitLen()/2)))
			}
			set.number(keyOf(b), b)
		}
		built := set.build()
		if built == nil {
			continue
		}
		seen := map[string]uint64{}
		for range 200 {
			a := addr()
			class := built.classOf(a)
			content := ""
			for i, b := range set.list {
				in := b.Contains(a)
				if got := built.contains(uint32(class), int32(i)); got != in {
					t.Fatalf("%s in %s: class says %v", a, b, got)
				}
				content += fmt.Sprint(in)
			}
			if other, ok := seen[content]; ok && other != class {
				t.Fatalf("classes %d and %d are the same set", other, class)
			}
			seen[content] = class
		}
	}
}

func TestManyBlocksInsideOneTakeLinearMemory(t *testing.T) {
	var set blockSet
	add := func(p netip.Prefix) {
		b := &rule.Block{CIDR: p}
		set.number(keyOf(b), b)
	}
	const n = 5000
	for bits := range 16 {
		add(netip.PrefixFrom(netip.AddrFrom4([4]byte{10}), bits).Masked())
	}
	for i := range n {
		add(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32))
	}
	built, members := set.build(), 0
	for _, c := range built.classes {
		members += len(c.add) + len(c.drop)
	}
	if members > n+16 {
		t.Errorf("%d members are stored for %d blocks", members, n+16)
	}
}
