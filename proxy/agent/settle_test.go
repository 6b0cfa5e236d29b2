package agent

import (
	"math"
	"testing"

	"github.com/firstpacket/firstpacket/policycache/engine"
)

// TestMergedSettlementIsOfTheNewestGeneration: what could not be done for an older generation joins what waits for a
// newer one, and must not pass for all there is to acknowledge.
func TestMergedSettlementIsOfTheNewestGeneration(t *testing.T) {
	older, newer := &engine.Snapshot{}, &engine.Snapshot{}
	for _, c := range []struct{ first, second, want uint32 }{
		{7, 9, 9}, {9, 7, 9}, {0, 1, 1}, {math.MaxUint32, 3, 3}, {3, math.MaxUint32, 3},
	} {
		of := func(generation uint32) *engine.Snapshot {
			if generation == c.want {
				return newer
			}
			return older
		}
		var s settlement
		s.merge(settlement{snapshot: of(c.first), generation: c.first})
		s.merge(settlement{snapshot: of(c.second), generation: c.second, flush: true})
		if s.generation != c.want || s.snapshot != newer || !s.flush {
			t.Errorf("%d and %d: %d, newer snapshot %t, flush %t", c.first, c.second, s.generation, s.snapshot == newer, s.flush)
		}
	}
}
