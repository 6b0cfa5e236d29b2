package slots

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// A list does what a slice does that is searched from end to end.
func TestListKeepsItsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(0, 6).Draw(t, "limit")
		list := New[int](limit, rapid.IntRange(0, limit).Draw(t, "room"))
		var want []int
		values := 0
		some := func(t *rapid.T) (slot int32, at int) { // of those in the list
			if len(want) == 0 {
				t.Skip("empty")
			}
			at = rapid.IntRange(0, len(want)-1).Draw(t, "at")
			slot = list.First()
			for range at {
				slot = list.Next(slot)
			}
			return slot, at
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				slot := list.Add()
				if (slot == None) != (len(want) == limit) {
					t.Fatalf("slot %d for a value beside %d of %d", slot, len(want), limit)
				}
				if slot != None {
					values++
					*list.At(slot) = values
					want = append(want, values)
				}
			},
			"remove": func(t *rapid.T) {
				slot, at := some(t)
				list.Remove(slot)
				want = slices.Delete(want, at, at+1)
			},
			"to end": func(t *rapid.T) {
				slot, at := some(t)
				list.ToEnd(slot)
				want = append(slices.Delete(want, at, at+1), *list.At(slot))
			},
			"": func(t *rapid.T) {
				var got []int
				for i := list.First(); i != None; i = list.Next(i) {
					got = append(got, *list.At(i))
				}
				if !slices.Equal(got, want) || list.Len() != len(want) {
					t.Fatalf("%v (%d), want %v", got, list.Len(), want)
				}
				if len(list.nodes) > limit {
					t.Fatalf("%d nodes for at most %d values", len(list.nodes), limit)
				}
			},
		})
	})
}

func TestAddAllocatesNothingWithinItsRoom(t *testing.T) {
	const room = 8
	list := New[[4]int](room, room)
	if n := testing.AllocsPerRun(1000, func() {
		for range room {
			list.Add()
		}
		for i := list.First(); i != None; {
			next := list.Next(i)
			list.Remove(i)
			i = next
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
