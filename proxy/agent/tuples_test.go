package agent

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// A list of tuples does what a slice does that is searched from end to end.
func TestTuplesAreAnOrderedSet(t *testing.T) {
	addrs := []netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.1"), netip.MustParseAddr("fd00::1"),
	}
	tuple := rapid.Custom(func(t *rapid.T) ruleset.Tuple {
		addr := rapid.SampledFrom(addrs)
		return ruleset.Tuple{
			Src: addr.Draw(t, "src"), Dst: addr.Draw(t, "dst"),
			Proto: rapid.SampledFrom([]uint8{6, 17}).Draw(t, "proto"), DstPort: rapid.Uint16Range(0, 3).Draw(t, "port"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 9).Draw(t, "limit")
		list := newTuples(limit)
		var want []ruleset.Tuple
		check := func(*rapid.T) {
			if got := slices.Collect(list.all()); !slices.Equal(got, want) || list.len() != len(want) {
				t.Fatalf("%v (%d), want %v", got, list.len(), want)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				tp := tuple.Draw(t, "tuple")
				want = append(slices.DeleteFunc(want, func(w ruleset.Tuple) bool { return w == tp }), tp)
				oldest, left := list.add(tp)
				if left != (len(want) > limit) || left && oldest != want[0] {
					t.Fatalf("%v left (%t), of %v", oldest, left, want)
				}
				want = want[max(0, len(want)-limit):]
			},
			"remove": func(t *rapid.T) {
				tp := tuple.Draw(t, "tuple")
				if list.contains(tp) != slices.Contains(want, tp) {
					t.Fatalf("%v: in the list %t", tp, list.contains(tp))
				}
				want = slices.DeleteFunc(want, func(w ruleset.Tuple) bool { return w == tp })
				list.remove(tp)
			},
			"remove while going": func(t *rapid.T) {
				port := rapid.Uint16Range(0, 3).Draw(t, "port")
				for tp := range list.all() {
					if tp.DstPort == port {
						list.remove(tp)
					}
				}
				want = slices.DeleteFunc(want, func(w ruleset.Tuple) bool { return w.DstPort == port })
			},
			"clear": func(*rapid.T) {
				list.clear()
				want = nil
			},
			"": check,
		})
	})
}
