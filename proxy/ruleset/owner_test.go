package ruleset

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

func ownedBy(owner uint32) func(*Config) { return func(c *Config) { c.Owner = owner } }

// two opens the rulesets of two agents on one node.
func two(t *testing.T) (b *bed, first, second *Ruleset) {
	t.Helper()
	b = &bed{t: t, node: nstest.New(t)}
	first, second = b.open(ownedBy(11)), b.open(ownedBy(22))
	return b, first, second
}

func TestAReplacedAgentChangesNothing(t *testing.T) {
	b, first, second := two(t)
	state := isolated(true, false)
	b.must(first.Install(state))
	b.must(first.Apply(Update{Generation: generation + 1}))
	state.Generation = generation + 2
	b.must(second.Install(state))
	if owner, err := second.Owner(); err != nil || owner != 22 {
		t.Fatalf("owner %d, %v", owner, err)
	}
	tuple := Tuple{Src: netip.MustParseAddr("10.9.9.9"), Dst: podAddrs[0], Proto: 6, DstPort: 80}
	b.must(second.Apply(Update{Generation: generation + 3, Learn: []Tuple{tuple}}))
	replaced := map[string]error{
		"apply":  first.Apply(Update{Generation: generation + 9, Forget: []Tuple{tuple}}),
		"forget": first.Forget([]Tuple{tuple}),
		"flush":  first.Flush(),
		"repair": first.Repair(isolated(false, false)),
	}
	if first.Features().Limit {
		replaced["limit"] = first.Limit([]Source{{In: 1, Addr: tuple.Src}})
	}
	for what, err := range replaced {
		if !errors.Is(err, ErrSuperseded) {
			t.Errorf("%s by the replaced agent: %v", what, err)
		}
	}
	if g, err := second.Generation(); err != nil || g != generation+3 {
		t.Errorf("generation %d, %v", g, err)
	}
	if held, err := second.Allowed(); err != nil || len(held) != 1 {
		t.Errorf("cache %v, %v", held, err)
	}
	state.Generation = generation + 3
	b.must(second.Repair(state))
	if drift, err := second.Check(state); err != nil || len(drift) != 0 {
		t.Errorf("%v, %v", drift, err)
	}
}

func TestRepairOfATableThatLostItsOwner(t *testing.T) {
	b, first, _ := two(t)
	state := isolated(true, true)
	for what, harm := range map[string]func(c *nftables.Conn){
		"table deleted": func(c *nftables.Conn) { c.DelTable(first.layout.table) },
		"owner flushed": func(c *nftables.Conn) { c.FlushSet(first.layout.set(setOwner)) },
		"a stranger added": func(c *nftables.Conn) {
			_ = c.SetAddElements(first.layout.set(setOwner), ownerElement(99))
		},
	} {
		b.must(first.Install(state))
		first.alter(t, harm)
		if drift, err := first.Check(state); err != nil || len(drift) == 0 {
			t.Errorf("%s: drift %v, %v", what, drift, err)
		}
		if err := first.Repair(state); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if drift, err := first.Check(state); err != nil || len(drift) != 0 {
			t.Errorf("%s: after the repair %v, %v", what, drift, err)
		}
	}
	first.alter(t, func(c *nftables.Conn) { c.DelTable(first.layout.table) })
	if err := first.Forget([]Tuple{{Src: podAddrs[0], Dst: podAddrs[0], Proto: 6}}); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("without a table: %v", err)
	}
}

func TestWatchTellsOfOthersChanges(t *testing.T) {
	b, first, second := two(t)
	w, err := Watch(int(b.node.Handle()))
	b.must(err)
	told := make(chan struct{}, 100)
	done := make(chan error, 1)
	go func() { done <- w.Run(func() { told <- struct{}{} }, func() { t.Error("messages lost") }) }()
	defer func() {
		w.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	next := func(what string) {
		t.Helper()
		select {
		case <-told:
		case <-time.After(long):
			t.Fatalf("not told of %s", what)
		}
	}
	b.must(first.Install(isolated(true, false)))
	next("the table")
	b.must(second.Install(isolated(true, false)))
	next("another agent")
	second.alter(t, func(c *nftables.Conn) { c.FlushRuleset() })
	next("a flush of everything")
	second.alter(t, func(c *nftables.Conn) {
		c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyINet})
	})
	b.must(first.Install(isolated(true, false)))
	next("the table again")
	if n := len(told); n != 0 {
		t.Errorf("told %d times of what is not ours", n)
	}
}
