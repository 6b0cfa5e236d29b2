package engine

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"unique"

	"github.com/gaissmai/bart"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// blocks gives each address a class: the set of a program's address blocks that contain it. Addresses of one class
// cannot be told apart by the program, so what was compiled for one is good for all.
//
// Every prefix and every exception is an entry of the trie. An address is contained in exactly those blocks that
// contain its longest match, because all prefixes that contain an address contain each other. So one lookup replaces
// all comparisons.
type blocks struct {
	trie *bart.Table[uint32]
	// classes are the sets; index 0 is the class of addresses that no block contains.
	classes []class
	// count is the number of distinct blocks.
	count int
}

// class is a set of block numbers, stored as the difference to the class of the enclosing prefix: ten thousand
// policies that each add one block inside 0.0.0.0/0 need ten thousand entries, not the square of it.
type class struct {
	parent    uint32
	add, drop []int32 // sorted
	size      int
}

// internLimit bounds the size of sets that are compared with others to find equal ones. Larger ones may be there
// twice, which costs a compilation more and nothing else.
const internLimit = 32

// blockKey identifies a block by its content.
type blockKey = unique.Handle[string]

func keyOf(b *rule.Block) blockKey { return unique.Make(b.String()) }

// blockSet numbers the distinct blocks of a program while it is built.
type blockSet struct {
	numbers map[blockKey]int32
	list    []*rule.Block
}

func (s *blockSet) number(key blockKey, b *rule.Block) int32 {
	if n, ok := s.numbers[key]; ok {
		return n
	}
	if s.numbers == nil {
		s.numbers = make(map[blockKey]int32)
	}
	n := int32(len(s.list))
	s.numbers[key] = n
	s.list = append(s.list, b)
	return n
}

// edge says that a block begins, or is interrupted, at a prefix.
type edge struct {
	prefix netip.Prefix
	block  int32
	drop   bool
}

// build makes the trie; nil if there are no blocks.
func (s *blockSet) build() *blocks {
	if len(s.list) == 0 {
		return nil
	}
	b := &blocks{trie: new(bart.Table[uint32]), classes: make([]class, 1), count: len(s.list)}
	var edges []edge
	for i, block := range s.list {
		if slices.ContainsFunc(block.Except, func(e netip.Prefix) bool { return covers(e, block.CIDR) }) {
			continue // nothing is left of it
		}
		edges = append(edges, edge{block.CIDR, int32(i), false})
		for _, e := range block.Except {
			if covers(block.CIDR, e) {
				edges = append(edges, edge{e, int32(i), true})
			}
		}
	}
	// Shorter prefixes come first, so that each finds the class of the one around it in the trie.
	slices.SortFunc(edges, func(x, y edge) int {
		return cmp.Or(cmp.Compare(x.prefix.Bits(), y.prefix.Bits()), x.prefix.Addr().Compare(y.prefix.Addr()),
			cmp.Compare(x.block, y.block))
	})
	known := map[string]uint32{"": 0}
	for start := 0; start < len(edges); {
		end := start + 1
		for end < len(edges) && edges[end].prefix == edges[start].prefix {
			end++
		}
		b.insert(edges[start:end], known)
		start = end
	}
	return b
}

// insert adds one prefix with all that changes at it.
func (b *blocks) insert(edges []edge, known map[string]uint32) {
	parent, _ := b.trie.LookupPrefix(edges[0].prefix)
	c := class{parent: parent, size: b.classes[parent].size}
	for _, e := range edges {
		switch in := b.contains(parent, e.block); {
		case e.drop && in:
			c.drop = append(c.drop, e.block)
			c.size--
		case !e.drop && !in:
			c.add = append(c.add, e.block)
			c.size++
		}
	}
	number := parent
	if len(c.add)+len(c.drop) > 0 {
		number = uint32(len(b.classes))
		b.classes = append(b.classes, c)
		if c.size <= internLimit {
			key := b.members(number)
			if n, ok := known[key]; ok {
				b.classes = b.classes[:number]
				number = n
			} else {
				known[key] = number
			}
		}
	}
	b.trie.Insert(edges[0].prefix, number)
}

// members is the set of a class in canonical form.
func (b *blocks) members(c uint32) string {
	var set []int32
	gone := make(map[int32]bool)
	for ; c != 0; c = b.classes[c].parent {
		for _, n := range b.classes[c].add {
			if !gone[n] {
				set = append(set, n)
				gone[n] = true
			}
		}
		for _, n := range b.classes[c].drop {
			gone[n] = true
		}
	}
	slices.Sort(set)
	key := make([]byte, 0, 4*len(set))
	for _, n := range set {
		key = binary.BigEndian.AppendUint32(key, uint32(n))
	}
	return string(key)
}

// classOf looks an address up. It allocates nothing.
func (b *blocks) classOf(a netip.Addr) uint64 {
	c, _ := b.trie.Lookup(a)
	return uint64(c)
}

// contains tells whether a class has the block: the innermost class that mentions it knows.
func (b *blocks) contains(c uint32, block int32) bool {
	for ; c != 0; c = b.classes[c].parent {
		cl := &b.classes[c]
		if _, ok := slices.BinarySearch(cl.add, block); ok {
			return true
		}
		if _, ok := slices.BinarySearch(cl.drop, block); ok {
			return false
		}
	}
	return false
}

// covers tells whether all addresses of inner are in outer.
func covers(outer, inner netip.Prefix) bool {
	return outer.Bits() <= inner.Bits() && outer.Contains(inner.Addr())
}
