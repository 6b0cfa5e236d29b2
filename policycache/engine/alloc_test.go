package engine

import (
	"runtime"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// allocWorld has every kind of peer and port, and an address of each kind.
func allocWorld(tb testing.TB) *world {
	w := newWorld(tb, "n1")
	w.add(
		podEndpoint("n1", "a", "one", labels("app", "one"), nil, "10.0.1.1", "fd00:1::1"),
		podEndpoint("n1", "a", "two", labels("app", "two"), nil, "10.0.1.2", "fd00:1::2"),
		podEndpoint("n2", "b", "far", labels("app", "far"), nil, "10.0.2.1", "fd00:2::1"),
		nodeEndpoint("n1", labels("zone", "z"), "192.168.0.1"),
	)
	peers := append(podsOf("a", selector(tb, "app", "one")), block("203.0.113.0/24", "203.0.113.128/25")...)
	peers = append(peers, rule.Peer{Kind: rule.Nodes, Labels: selector(tb, "zone", "z")})
	both := rules(rule.Rule{Peers: peers, Ports: append(tcpPorts(80, 90), rule.AllPorts(packet.ProtoUDP))})
	w.SetPolicy(w.netpol("a", "np", both, both))
	w.SetPolicy(wide(rule.Admin, 1, "admin", rules(rule.Rule{Action: rule.Deny, Ports: tcpPorts(23, 23)}),
		rules(rule.Rule{Peers: namesOf(tb, "*.example.com")})))
	w.learn("10.0.1.1", time.Hour, "www.example.com", "198.51.100.1")
	w.SetPodCIDRs(prefixes("10.0.0.0/16"), prefixes("10.0.1.0/24"))
	w.commit()
	return w
}

// warmFlows names one flow for each way through Judge.
func warmFlows() map[string]struct {
	flow packet.Flow
	hook Hook
	held bool
} {
	type one = struct {
		flow packet.Flow
		hook Hook
		held bool
	}
	ack := syn("10.0.1.2", "10.0.1.1", 4000)
	ack.TCPFlags, ack.SrcPort = packet.FlagACK, 80
	fragment := syn("10.0.1.1", "10.0.1.2", 0)
	fragment.Form = packet.Fragment
	malformed := syn("10.0.1.1", "10.0.1.2", 0)
	malformed.Form = packet.Malformed
	return map[string]one{
		"TCP allowed":            {syn("10.0.1.1", "10.0.1.1", 80), Forward, false},
		"TCP both directions":    {syn("10.0.1.1", "10.0.1.2", 80), Forward, false},
		"TCP over IPv6":          {syn("fd00:1::1", "fd00:1::2", 80), Forward, false},
		"TCP denied by a rule":   {syn("10.0.2.1", "10.0.1.2", 23), Forward, false},
		"TCP in mid-stream":      {ack, Forward, false},
		"UDP":                    {flow("10.0.1.1", "10.0.1.2", packet.ProtoUDP, 1, 53), Forward, false},
		"SCTP":                   {flow("10.0.1.1", "10.0.1.2", packet.ProtoSCTP, 1, 53), Forward, false},
		"ICMP":                   {flow("10.0.1.1", "10.0.1.2", packet.ProtoICMP, 0, 0), Forward, false},
		"fragment":               {fragment, Forward, false},
		"malformed":              {malformed, Forward, false},
		"from an address block":  {syn("203.0.113.1", "10.0.1.2", 80), Forward, false},
		"from an exception":      {syn("203.0.113.200", "10.0.1.2", 80), Forward, false},
		"from the own node":      {syn("192.168.0.1", "10.0.1.2", 80), Output, false},
		"to the own node":        {syn("10.0.1.2", "192.168.0.1", 80), Input, false},
		"held":                   {syn("10.0.2.77", "10.0.1.2", 80), Forward, false},
		"unknown after the wait": {syn("10.0.1.77", "10.0.1.2", 80), Forward, true},
		"to a learned name":      {syn("10.0.1.1", "198.51.100.1", 80), Forward, false},
		"no subject":             {syn("10.0.2.1", "8.8.8.8", 80), Forward, false},
	}
}

func TestWarmVerdictsDoNotAllocate(t *testing.T) {
	w := allocWorld(t)
	for name, c := range warmFlows() {
		t.Run(name, func(t *testing.T) {
			w.judge(c.flow, c.hook, c.held)
			if n := testing.AllocsPerRun(1000, func() { w.ev.Judge(w.snap, &c.flow, c.hook, c.held) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// TestAMillionVerdictsDoNotAllocate counts what AllocsPerRun rounds away.
func TestAMillionVerdictsDoNotAllocate(t *testing.T) {
	w := allocWorld(t)
	all := warmFlows()
	flows := make([]packet.Flow, 0, len(all))
	for _, c := range all {
		flows = append(flows, c.flow)
		w.judge(c.flow, Forward, true)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 1_000_000 {
		w.ev.Judge(w.snap, &flows[i%len(flows)], Forward, true)
	}
	runtime.ReadMemStats(&after)
	// The runtime itself allocates a few times in a second; one verdict in ten thousand would show.
	if n := after.Mallocs - before.Mallocs; n > 100 {
		t.Errorf("%d allocations in a million verdicts", n)
	}
}

// TestAColdPairKeepsItsBudget: a compiled pair, its list element, two slices for each table with ports, and now and
// then growth of the cache's map.
func TestAColdPairKeepsItsBudget(t *testing.T) {
	w := allocWorld(t)
	f := syn("10.0.1.1", "10.0.1.2", 80)
	w.judge(f, Forward, false)
	n := testing.AllocsPerRun(200, func() {
		w.ev.pairs.Purge()
		w.ev.Judge(w.snap, &f, Forward, false)
	})
	if stated := 2 * 12.0; n > stated {
		t.Errorf("%v allocations for two cold pairs, stated are at most %v", n, stated)
	}
}

// TestVerdictsCostTheSameInAnyCluster counts the rules looked at, not the time.
func TestVerdictsCostTheSameInAnyCluster(t *testing.T) {
	for _, size := range []struct{ policies, pods int }{{1, 100}, {100, 1000}, {2000, 100}, {2000, 5000}} {
		w, src, dst := big(t, size.policies, size.pods)
		f := packet.Flow{Src: src, Dst: dst, Proto: packet.ProtoTCP, TCPFlags: packet.FlagSYN, DstPort: 80}
		f.Form = packet.Complete
		w.judge(f, Forward, false)
		first := w.ev.Stats()
		const rounds = 1000
		for range rounds {
			w.judge(f, Forward, false)
		}
		now := w.ev.Stats()
		if now.Rules != first.Rules || now.Misses != first.Misses || now.Hits-first.Hits != 2*rounds {
			t.Errorf("%d policies, %d pods: %+v became %+v in %d warm verdicts", size.policies, size.pods, first, now, rounds)
		}
	}
}

// TestUnrelatedChangesKeepPairsWarm: pairs are found again after changes that do not concern them.
func TestUnrelatedChangesKeepPairsWarm(t *testing.T) {
	w := allocWorld(t)
	f := syn("10.0.1.1", "10.0.1.2", 80)
	w.judge(f, Forward, false)
	misses := w.ev.Stats().Misses
	w.SetPolicy(w.netpol("b", "other", rules(), rules()))
	w.add(podEndpoint("n1", "a", "three", labels("app", "three"), nil, "10.0.1.3"),
		podEndpoint("n1", "a", "one-again", labels("app", "one"), nil, "10.0.1.1", "fd00:1::1"))
	w.commit()
	if v := w.judge(f, Forward, false); v.Src.Name != "one-again" {
		t.Errorf("the source is %s", v.Src.Name)
	}
	if now := w.ev.Stats().Misses; now != misses {
		t.Errorf("%d pairs were compiled again", now-misses)
	}
}
