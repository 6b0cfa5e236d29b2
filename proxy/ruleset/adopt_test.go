package ruleset

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

// While packets wait in the queue and flows run, a second agent installs its rules. Nothing is lost.
func TestAdoption(t *testing.T) {
	b := newBed(t)
	first := b.install(isolated(true, true))
	j := b.judge(allow)
	running, err := dial(b.client, "tcp", netip.AddrPortFrom(podAddrs[0], 80), long)
	b.must(err)
	defer running.Close()
	b.must(talk(running, long))
	learnt := b.allowed(first)
	if len(learnt) != 1 {
		t.Fatalf("learnt %v", learnt)
	}

	j.take()
	j.turn(hold)
	waiting := make(chan error, len(podAddrs))
	for i := range podAddrs {
		go func() { waiting <- probe(b.client, "udp", netip.AddrPortFrom(podAddrs[i], 81), long) }()
	}
	held := []queued{j.sees(t)}
	for len(held) < len(podAddrs) {
		held = append(held, j.sees(t))
	}

	second := isolated(true, true)
	second.Generation = generation + 1
	second.Subjects = append(second.Subjects, Subject{Addr: addr("10.0.1.77"), Pod: true, Egress: true})
	adopter := b.install(second, func(c *Config) { c.DenyWith = Reject })
	if drifts, err := adopter.Check(second); err != nil || len(drifts) != 0 {
		t.Fatalf("after adoption: %v, %v", drifts, err)
	}
	b.must(talk(running, long))
	if now := b.allowed(adopter); !slices.Equal(now, learnt) {
		t.Errorf("the verdict cache changed from %v to %v", learnt, now)
	}
	for _, q := range held {
		j.release(q.id, nfqueue.NfRepeat, layoutOfMarks.With(q.mark, layoutOfMarks.Allow(generation+1)))
	}
	for range podAddrs {
		b.must(<-waiting)
	}
	if seen := j.take(); len(seen) != 0 {
		t.Errorf("queued again: %+v", seen)
	}
	if c, err := adopter.Counters(); err != nil || c.Admitted != 3 {
		t.Errorf("counters %+v, %v; they do not go on", c, err)
	}
}

func TestCleanup(t *testing.T) {
	b := newBed(t)
	r := b.install(isolated(true, true))
	b.silent(b.client, "udp", podAddrs[0], 80)
	for range 2 {
		b.must(r.Cleanup())
	}
	b.reaches(b.client, "udp", podAddrs[0], 80)
	if _, err := r.Generation(); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Generation: %v", err)
	}
	if _, err := r.Counters(); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Counters: %v", err)
	}
	if _, err := r.Allowed(); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Allowed: %v", err)
	}
	if err := r.Apply(Update{Generation: 1}); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Apply: %v", err)
	}
	if drifts, err := r.Check(State{}); err != nil || len(drifts) != 1 || drifts[0].String() != "table: missing" {
		t.Errorf("Check: %v, %v", drifts, err)
	}
}

// bare is a ruleset in a namespace of its own, without traffic.
func bare(t testing.TB, change ...func(*Config)) *Ruleset {
	t.Helper()
	b := &bed{t: t, node: nstest.New(t)}
	return b.open(change...)
}

func (r *Ruleset) alter(t testing.TB, f func(*nftables.Conn)) {
	t.Helper()
	c, err := connect(r.cfg.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	f(c)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

func (r *Ruleset) rules(t testing.TB, name string) []*nftables.Rule {
	t.Helper()
	c, err := connect(r.cfg.NetNS)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := c.GetRules(r.layout.table, &nftables.Chain{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func TestCheckFindsAlterationsAndInstallRepairsThem(t *testing.T) {
	r := bare(t)
	answers := r.layout.chains[slices.IndexFunc(r.layout.chains, func(c chain) bool { return c.spec.Name == chainDivert })]
	state := isolated(true, false)
	table := r.layout.table
	inChain := func(name string) *nftables.Chain { return &nftables.Chain{Name: name, Table: table} }
	key := func(s string) []nftables.SetElement { return []nftables.SetElement{{Key: addr(s).AsSlice()}} }
	for _, c := range []struct {
		what  string
		alter func(*nftables.Conn)
		want  string
	}{
		{"nothing", nil, ""},
		{"rules flushed", func(c *nftables.Conn) { c.FlushChain(inChain("refuse")) },
			"chain refuse: rule 1 is missing: counter name \"refused\"\n" +
				"chain refuse: rule 2 is missing: drop\n"},
		{"rule added", func(c *nftables.Conn) {
			c.AddRule(&nftables.Rule{Table: table, Chain: inChain("commit4"), Exprs: accept.exprs})
		}, "chain commit4: 1 rules too many\n"},
		{"rule replaced", func(c *nftables.Conn) {
			c.ReplaceRule(&nftables.Rule{Table: table, Chain: inChain("refuse"), Exprs: accept.exprs,
				Handle: r.rules(t, "refuse")[1].Handle})
		}, "chain refuse: rule 2 is not: drop\n"},
		{"comment replaced", func(c *nftables.Conn) {
			c.ReplaceRule(&nftables.Rule{Table: table, Chain: inChain("divert"), Exprs: answers.rules[0].exprs(),
				Handle: r.rules(t, "divert")[0].Handle})
		}, "chain divert: rule 1 is not: ct direction reply accept comment \"answers\"\n"},
		{"elements", func(c *nftables.Conn) {
			_ = c.SetDeleteElements(r.layout.set("ingress4"), key("10.0.1.2"))
			_ = c.SetAddElements(r.layout.set("ingress4"), key("10.0.1.9"))
			_ = c.SetAddElements(r.layout.set("egress6"), key("fd00:1::9"))
			c.FlushSet(r.layout.set("pods6"))
			_ = c.SetDeleteElements(r.layout.set("self6"), []nftables.SetElement{
				{Key: append(podAddrs[1].AsSlice(), podAddrs[1].AsSlice()...)}})
		}, "set ingress4: 10.0.1.2 is missing\n" +
			"set ingress4: 10.0.1.9 does not belong\n" +
			"set egress6: fd00:1::9 does not belong\n" +
			"set pods6: fd00:1:: is missing\n" +
			"set pods6: end fd00:1:0:1:: is missing\n" +
			"set self6: fd00:1::2 . fd00:1::2 is missing\n"},
		{"verdict map", func(c *nftables.Conn) {
			s := r.layout.set(setVerdicts)
			c.FlushSet(s)
			_ = c.SetAddElements(s, verdictElements(r.cfg, generation+16))
		}, "set verdicts: an element is not: 0x29000000 comment \"generation 41\" : goto admit\n" +
			"set verdicts: an element is not: 0x39000000 comment \"generation 41\" : goto deny\n"},
		{"strangers", func(c *nftables.Conn) {
			ch := c.AddChain(inChain("mine"))
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: accept.exprs})
			_ = c.AddSet(&nftables.Set{Table: table, Name: "mine", KeyType: nftables.TypeMark}, nil)
			c.AddObj(&nftables.NamedObj{Table: table, Name: "mine", Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		}, "chain mine: not ours\nset mine: not ours\nobject mine: not ours\n"},
		{"parts missing", func(c *nftables.Conn) {
			for _, name := range []string{"judge6", "divert6", "invalid6"} {
				c.FlushChain(inChain(name))
			}
			c.FlushChain(inChain("queue"))
			c.DeleteObject(&nftables.NamedObj{Table: table, Name: counterQueued, Type: nftables.ObjTypeCounter})
			c.DelSet(r.layout.set("egress6"))
		}, "set egress6: missing\ncounter queued: missing\n"},
		{"table deleted", func(c *nftables.Conn) { c.DelTable(table) }, "table: missing\n"},
	} {
		t.Run(c.what, func(t *testing.T) {
			if err := r.Install(state); err != nil {
				t.Fatal(err)
			}
			if c.alter != nil {
				r.alter(t, c.alter)
			}
			drifts, err := r.Check(state)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, d := range drifts {
				if c.what != "parts missing" || !strings.Contains(d.Problem, "rule") {
					fmt.Fprintln(&got, d)
				}
			}
			if diff := cmp.Diff(c.want, got.String()); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if err := r.Install(state); err != nil {
				t.Fatal(err)
			}
			if drifts, err := r.Check(state); err != nil || len(drifts) != 0 {
				t.Errorf("after repair: %v, %v", drifts, err)
			}
		})
	}
}

// An earlier version may have had other sets, and chains and rules of its own.
func TestInstallOverAnotherLayout(t *testing.T) {
	r := bare(t)
	table := r.layout.table
	r.alter(t, func(c *nftables.Conn) {
		c.AddTable(table)
		base := *r.layout.chains[0].spec
		c.AddChain(&base)
		prio, policy := *nftables.ChainPriorityMangle, nftables.ChainPolicyAccept
		old := c.AddChain(&nftables.Chain{Name: "forward_early", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: &prio, Policy: &policy})
		way := c.AddChain(&nftables.Chain{Name: "old_judge", Table: table})
		set := &nftables.Set{Table: table, Name: "allowed4", KeyType: nftables.TypeIPAddr}
		if err := c.AddSet(set, []nftables.SetElement{{Key: []byte{10, 0, 1, 2}}}); err != nil {
			t.Fatal(err)
		}
		verdicts := &nftables.Set{Table: table, Name: "old_map", KeyType: nftables.TypeMark, IsMap: true,
			DataType: nftables.TypeVerdict}
		if err := c.AddSet(verdicts, []nftables.SetElement{{Key: host(1),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: "old_judge"}}}); err != nil {
			t.Fatal(err)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: &base, Exprs: join(markMap(1, "old_map").exprs)})
		c.AddRule(&nftables.Rule{Table: table, Chain: old, Exprs: drop.exprs})
		c.AddRule(&nftables.Rule{Table: table, Chain: way, Exprs: in("allowed4", ipv4.source()).exprs})
	})
	state := isolated(true, true)
	if err := r.Install(state); err != nil {
		t.Fatal(err)
	}
	if drifts, err := r.Check(state); err != nil || len(drifts) != 0 {
		t.Errorf("%v, %v", drifts, err)
	}
	if n := len(r.rules(t, "forward_early")); n != 0 {
		t.Errorf("the old base chain still has %d rules", n)
	}
}

func TestInstallRefusesAForeignBaseChain(t *testing.T) {
	r := bare(t)
	r.alter(t, func(c *nftables.Conn) {
		c.AddTable(r.layout.table)
		prio, policy := *nftables.ChainPriorityMangle, nftables.ChainPolicyAccept
		c.AddChain(&nftables.Chain{Name: "forward", Table: r.layout.table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: &prio, Policy: &policy})
	})
	if err := r.Install(State{}); !errors.Is(err, ErrForeign) {
		t.Errorf("Install: %v", err)
	}
	if err := r.Cleanup(); err != nil {
		t.Fatal(err)
	}
	if err := r.Install(State{}); err != nil {
		t.Errorf("after cleanup: %v", err)
	}
}
