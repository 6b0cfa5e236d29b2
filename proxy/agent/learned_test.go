package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

func tuple(src, dst string, port uint16) ruleset.Tuple {
	return ruleset.Tuple{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Proto: 6, DstPort: port}
}

func newTestLearned(t *testing.T, size int) *learned {
	t.Helper()
	return newLearned(size, 1)
}

func TestForgetTakesOnlyAffectedTuplesThatAreDenied(t *testing.T) {
	l := newTestLearned(t, 10)
	gone := tuple("10.0.0.1", "10.0.0.2", 80)
	stays := tuple("10.0.0.1", "10.0.0.2", 443)
	apart := tuple("10.0.0.3", "10.0.0.4", 80)
	for _, tp := range []ruleset.Tuple{gone, stays, apart} {
		l.rings[0].put(tp)
	}
	affected := addressSet([]netip.Addr{netip.MustParseAddr("10.0.0.2")})
	got := l.forget(affected, func(tp ruleset.Tuple) bool {
		if tp == apart {
			t.Error("a tuple without an affected address was judged")
		}
		return tp == stays
	})
	if !slices.Equal(got, []ruleset.Tuple{gone}) {
		t.Errorf("forgot %v", got)
	}
	if l.len() != 2 {
		t.Errorf("%d tuples are left, want 2", l.len())
	}
	if again := l.forget(everything{}, func(ruleset.Tuple) bool { return true }); len(again) != 0 {
		t.Errorf("forgot %v a second time", again)
	}
}

func TestOldestTuplesLeaveWhenFull(t *testing.T) {
	l := newTestLearned(t, 2)
	first := tuple("10.0.0.1", "10.0.0.2", 1)
	for port := uint16(1); port <= 3; port++ {
		l.rings[0].put(tuple("10.0.0.1", "10.0.0.2", port))
	}
	if got := l.takeSurplus(); !slices.Equal(got, []ruleset.Tuple{first}) {
		t.Errorf("pushed out %v, want the oldest", got)
	}
}

func TestLostTuplesAreNoticedUntilReplaced(t *testing.T) {
	l := newTestLearned(t, 10)
	for range learnedRing + 1 {
		l.rings[0].put(tuple("10.0.0.1", "10.0.0.2", 80))
	}
	if !l.overflowed() {
		t.Fatal("a tuple was lost and nobody noticed")
	}
	l.replace([]ruleset.Tuple{tuple("10.0.0.1", "10.0.0.2", 80)})
	if l.overflowed() || l.len() != 1 {
		t.Errorf("after the kernel's content was taken over: overflowed %v, %d tuples", l.overflowed(), l.len())
	}
}
