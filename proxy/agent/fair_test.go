package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
)

// batchOf judges a batch of packets from each of the sources in turn, and returns how many of each were admitted.
func batchOf(f *fairness, s *engine.Snapshot, now time.Duration, packets int, sources ...string) map[string]int {
	f.begin()
	admitted := map[string]int{}
	for range packets {
		for _, src := range sources {
			flow := packet.Flow{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(src)}
			if f.admits(s, &flow, 1, int64(now)) {
				admitted[src]++
			}
		}
	}
	return admitted
}

func TestNobodyIsLimitedWhileTheThreadKeepsUp(t *testing.T) {
	s, _ := engine.NewModel(engine.Config{}).Commit()
	f := &fairness{}
	for ms := range 1000 {
		if n := batchOf(f, s, time.Duration(ms)*time.Millisecond, crowded-1, "10.0.0.1")["10.0.0.1"]; n != crowded-1 {
			t.Fatalf("%d of %d packets admitted", n, crowded-1)
		}
	}
}

func TestACrowdedQueueIsShared(t *testing.T) {
	s, _ := engine.NewModel(engine.Config{}).Commit()
	f := &fairness{}
	var noisy, modest int
	const milliseconds = 1000
	for ms := range milliseconds {
		noisy += batchOf(f, s, time.Hour+time.Duration(ms)*time.Millisecond, 2*crowded, "10.0.0.1")["10.0.0.1"]
		modest += batchOf(f, s, time.Hour+time.Duration(ms)*time.Millisecond, 1, "10.0.0.2")["10.0.0.2"]
	}
	if modest != milliseconds {
		t.Errorf("%d of %d packets of the modest source were admitted", modest, milliseconds)
	}
	// What came before the crowd was seen is on top.
	if limit := shareRate + shareBurst + crowded; noisy > limit || noisy < shareRate/2 {
		t.Errorf("%d packets of the noisy source were admitted in a second, want up to %d", noisy, limit)
	}
	if f.shed.Load() != uint64(2*crowded*milliseconds-noisy) {
		t.Errorf("%d packets were counted as shed, of %d", f.shed.Load(), 2*crowded*milliseconds-noisy)
	}
	calmed := time.Hour + 2*time.Second
	if n := batchOf(f, s, calmed, crowded-1, "10.0.0.1")["10.0.0.1"]; n != crowded-1 {
		t.Errorf("after the crowd %d of %d packets were admitted", n, crowded-1)
	}
}

func TestFairnessAllocatesNothing(t *testing.T) {
	s, _ := engine.NewModel(engine.Config{}).Commit()
	f := &fairness{}
	flow := packet.Flow{Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2")}
	if n := testing.AllocsPerRun(10_000, func() { f.admits(s, &flow, 1, int64(time.Hour)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
