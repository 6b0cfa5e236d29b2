package engine

import (
	"math/rand/v2"
	"testing"
)

// TestTablesAreFirstMatch compares tables with asking rule after rule, for every port.
func TestTablesAreFirstMatch(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	kinds := map[string]int{}
	for range 300 {
		type one struct {
			span
			decision *Decision
			tier     int
		}
		var list []one
		decisions := [3]*Decision{{Rule: 0}, {Rule: 1}, nil} // nil passes
		edges := []uint16{0, 1, 2, 79, 80, 81, 8000, 65534, 65535}
		for tier := range 3 {
			for range r.IntN(9) {
				a, b := edges[r.IntN(len(edges))], edges[r.IntN(len(edges))]
				if r.IntN(2) == 0 {
					a = uint16(r.IntN(65536))
					b = a
				}
				list = append(list, one{span{min(a, b), max(a, b)}, decisions[r.IntN(3)], tier})
			}
		}
		last := &Decision{Rule: 9}
		var c canvas
		c.reset()
		for i, o := range list {
			if i > 0 && o.tier != list[i-1].tier {
				c.nextTier()
			}
			c.take(o.span, o.decision)
		}
		c.nextTier()
		c.takeAll(last)
		table := c.table()
		switch {
		case table.one != nil:
			kinds["one"]++
		case len(table.starts) <= linearLimit:
			kinds["linear"]++
		default:
			kinds["binary"]++
		}
		for port := range 65536 {
			want, passed := last, -1
			for _, o := range list {
				if o.tier == passed || uint16(port) < o.first || o.last < uint16(port) {
					continue
				}
				if o.decision != nil {
					want = o.decision
					break
				}
				passed = o.tier
			}
			if got := table.lookup(uint16(port)); got != want {
				t.Fatalf("port %d: rule %d, want %d\n%v", port, got.Rule, want.Rule, list)
			}
		}
	}
	for _, kind := range []string{"one", "linear", "binary"} {
		if kinds[kind] == 0 {
			t.Errorf("no table was searched by %s", kind)
		}
	}
}

// TestTableMatcherFollowsItsSize: the form of a table is chosen when it is compiled.
func TestTableMatcherFollowsItsSize(t *testing.T) {
	for _, ranges := range []int{0, 1, 3, 4, 100} {
		var c canvas
		c.reset()
		a, rest := &Decision{Rule: 1}, &Decision{Rule: 2}
		for i := range ranges {
			c.take(span{uint16(10 + 10*i), uint16(15 + 10*i)}, a)
		}
		c.takeAll(rest)
		table := c.table()
		if want := 2*ranges + 1; ranges > 0 && len(table.starts) != want || ranges == 0 && table.one != rest {
			t.Errorf("%d ranges: %d starts, one decision: %v", ranges, len(table.starts), table.one != nil)
		}
	}
	var c canvas
	c.reset()
	d := &Decision{}
	c.take(span{5, 9}, d)
	c.takeAll(d)
	if table := c.table(); table.one != d {
		t.Errorf("neighbours with the same decision were not joined: %+v", table)
	}
}
