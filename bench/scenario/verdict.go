package scenario

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/firstpacket/firstpacket/bench/report"
	"github.com/firstpacket/firstpacket/bench/world"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
)

// bench is the verdict function in one world, with packets to ask it about.
type bench struct {
	world     world.World
	snapshot  *engine.Snapshot
	evaluator *engine.Evaluator
	packets   [][]byte
	// ns and allocs are those of one verdict, from bytes to answer, by round.
	ns, allocs []float64
}

// verdictTarget is the design's bound on a verdict, in nanoseconds; flat is how much it may grow with the cluster.
const (
	verdictTarget = 300
	flat          = 1.3
)

// verdicts takes the time and the allocations of one verdict in small and large clusters, side by side.
func (s *Suite) verdicts(ctx context.Context) error {
	sizes := pick(s,
		[][2]int{
			{1, 100}, {100, 100}, {1000, 100}, {10_000, 100}, {1, 10_000}, {10_000, 10_000}, {1, 100_000}, {10_000, 100_000},
		},
		[][2]int{{1, 100}, {10_000, 100_000}}, [][2]int{{1, 100}, {20, 200}})
	var all []*bench
	for _, size := range sizes {
		b, err := newBench(world.World{StagePolicies: max(1, size[0]/2), Policies: size[0] / 2, Pods: size[1]})
		if err != nil {
			return err
		}
		all = append(all, b)
	}
	for range pick(s, 15, 11, 1) {
		for _, b := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := b.run(pick(s, 100_000, 100_000, 1000)); err != nil {
				return err
			}
		}
	}
	const unit, plot = "ns", "Time of one verdict by number of policies"
	small, large := all[0], all[len(all)-1]
	_, least, _ := quartiles(small.ns)
	low, most, high := quartiles(large.ns)
	r := report.Result{
		Name: "verdict_ns", Title: "one verdict, from the packet's bytes, 10,000 policies and 100,000 pods", Unit: unit,
		Value: most, Baseline: least, Against: "1 policy and 100 pods", Ratio: most / least,
		Checked: "Every packet got the verdict that the policies ask for.",
	}
	for _, b := range all {
		l, m, h := quartiles(b.ns)
		name := fmt.Sprintf("%d policies, %d pods", b.world.StagePolicies+b.world.Policies, b.world.Pods)
		r.Contenders = append(r.Contenders, report.Contender{Name: name, Low: l, Median: m, High: h, Turns: len(b.ns)})
		s.pointAt(plot, fmt.Sprintf("%d pods", b.world.Pods), "policies", unit,
			float64(b.world.StagePolicies+b.world.Policies), m)
	}
	r.Low, r.High = low/least, high/least
	s.add(r, flat, true)
	s.add(report.Result{
		Name: "verdict_ns_bound", Title: "the same against the bound", Unit: unit, Value: most, Baseline: verdictTarget,
		Against: "the target", Ratio: most / verdictTarget,
	}, 1, true)
	var allocs float64
	for _, b := range all {
		for _, n := range b.allocs {
			allocs = max(allocs, n)
		}
	}
	s.add(report.Result{
		Name: "verdict_allocs", Title: "allocations of one verdict, the most in any cluster", Unit: "allocations",
		Value: allocs, Baseline: 0, Against: "the target", Ratio: allocs,
		Checked: "Counted by the runtime over all verdicts of a round, not sampled.",
	}, 0, true)
	return nil
}

func newBench(w world.World) (*bench, error) {
	model := w.Model()
	snapshot, _ := model.Commit()
	b := &bench{world: w, snapshot: snapshot, evaluator: engine.NewEvaluator(1 << 14)}
	for i := range 1024 {
		src := world.ClientAddrs()[i%world.Clients]
		dst := world.ServerAddrs()[i/world.Clients%world.Servers]
		b.packets = append(b.packets, syn(src, dst, uint16(40000+i), uint16(1000+i)))
	}
	err := b.run(len(b.packets)) // compiles the pairs
	return b, err
}

// run asks for n verdicts.
func (b *bench) run(n int) error {
	var f packet.Flow
	var before, after runtime.MemStats
	denied := 0
	runtime.ReadMemStats(&before)
	begin := time.Now()
	for i := range n {
		f.Decode(b.packets[i&(len(b.packets)-1)])
		if v := b.evaluator.Judge(b.snapshot, &f, engine.Forward, false); v.Action != engine.Allow {
			denied++
		}
	}
	took := time.Since(begin)
	runtime.ReadMemStats(&after)
	if denied > 0 {
		return fmt.Errorf("%w: of %d allowed packets, %d were denied", errUnbelievable, n, denied)
	}
	b.ns = append(b.ns, float64(took)/float64(n))
	b.allocs = append(b.allocs, float64((after.Mallocs-before.Mallocs)/uint64(n)))
	return nil
}

// syn is the first packet of a TCP connection: 20 bytes of IPv4 and 20 of TCP.
func syn(src, dst netip.Addr, from, to uint16) []byte {
	b := make([]byte, 40)
	b[0], b[8], b[9] = 0x45, 64, packet.ProtoTCP
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[20:], from)
	binary.BigEndian.PutUint16(b[22:], to)
	b[32], b[33] = 5<<4, packet.FlagSYN
	return b
}
