package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
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

func TestNoisySourcesAreTold(t *testing.T) {
	m := engine.NewModel(engine.Config{})
	addr := netip.MustParseAddr("10.0.0.1")
	m.ApplyEndpoints([]endpoint.Change{{Addr: addr, New: &endpoint.Endpoint{
		Identity: identity.Intern(identity.Identity{Kind: identity.Pod}), Kind: identity.Pod, Name: "noisy",
		Addrs: []netip.Addr{addr},
	}}})
	s, _ := m.Commit()
	l := newLimiter()
	f := &fairness{noisy: l.ring()}
	for ms := range 100 {
		batchOf(f, s, time.Hour+time.Duration(ms)*time.Millisecond, crowded, "10.0.0.1", "10.0.0.2")
	}
	told := map[netip.Addr]bool{}
	f.noisy.drain(func(source ruleset.Source) { told[source.Addr] = source.In == 1 })
	if len(told) != 1 || !told[addr] {
		t.Errorf("told of %v, want the pod, behind its interface, and not of an address outside", told)
	}
	select {
	case <-l.wake:
	default:
		t.Error("nobody is woken up to limit it")
	}
}
