package ruleset

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Install brings the table to the state, in one transaction, whatever was there: nothing, the table of an earlier
// agent, or that of another version. Base chains stay, so packets waiting in a queue stay too; rules are written anew;
// sets keep their content as far as it is right; the verdict cache is kept, and so is what pods were told, of which
// State.Told is for Repair to write. The generation must be one of which no packet can still carry a verdict; one more
// than Generation is.
//
// Its error wraps ErrForeign when a base chain of the table's is hooked in otherwise than this version does.
//
// The table then belongs to the configured owner, whoever had it before.
func (r *Ruleset) Install(s State) error {
	if err := r.installAs(s, adoptTold, func(t *tx, k *kernelTable) error {
		if r.cfg.Owner == 0 {
			return nil
		}
		owner := r.layout.set(setOwner)
		if have := k.set(setOwner); have != nil && sameSet(have, owner) {
			t.flushSet(owner)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("install the ruleset: %w", err)
	}
	return nil
}

// Repair is Install for the owner of the table, or of a table that has lost its owner. Its error wraps ErrSuperseded
// when another owner has it.
func (r *Ruleset) Repair(s State) error {
	err := r.installAs(s, writeTold, func(t *tx, k *kernelTable) error {
		owner, err := r.ownerIn(k.set(setOwner))
		switch {
		case err != nil:
			return err
		case owner == r.cfg.Owner && owner != 0:
			// Fails if another agent takes over between the reading and the transaction.
			t.deleteElements(r.layout.set(setOwner), ownerElement(owner))
			t.flushSet(r.layout.set(setOwner))
		case owner != 0:
			return ErrSuperseded
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("repair the ruleset: %w", err)
	}
	return nil
}

// toldMode says what becomes of what pods were told.
type toldMode bool

const (
	adoptTold toldMode = false // all that can be read stays
	writeTold toldMode = true  // as in the State
)

// installAs writes the table; release takes the owner's element away.
func (r *Ruleset) installAs(s State, mode toldMode, release func(*tx, *kernelTable) error) error {
	want := r.elements(s)
	for attempt := 1; ; attempt++ {
		err := r.commit(func() (*tx, error) {
			k, err := r.read()
			if err != nil {
				return nil, err
			}
			t := &tx{l: r.layout}
			t.addTable()
			if err := release(t, k); err != nil {
				return nil, err
			}
			return t, r.install(t, k, want, mode)
		})
		// What was read may be gone, or have come, when the transaction is made: agents replace each other.
		if err == nil || attempt == attempts || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// elements are what the sets should hold, all but the verdict cache.
func (r *Ruleset) elements(s State) elements {
	want := elements{setVerdicts: verdictElements(r.cfg, s.Generation)}
	addPrefixes(want, s.PodCIDRs)
	addResolvers(want, s.Resolvers)
	out := elements{}
	for _, subject := range s.Subjects {
		addSubject(want, out, subject)
	}
	for name, list := range r.layout.constants {
		want[name] = slices.Clone(list)
	}
	if r.cfg.Owner != 0 {
		want[setOwner] = ownerElement(r.cfg.Owner)
	}
	want.addTold(s.Told)
	want.normalize()
	return want
}

func (r *Ruleset) install(t *tx, k *kernelTable, want elements, mode toldMode) error {
	if err := r.installChains(t, k); err != nil {
		return err
	}
	if err := r.installSets(t, k, want, mode); err != nil {
		return err
	}
	r.removeStrangers(t, k)
	for _, c := range r.layout.chains {
		for _, rule := range c.rules {
			t.addRule(c.spec, rule)
		}
	}
	return nil
}

// installChains makes missing chains and empties all others.
func (r *Ruleset) installChains(t *tx, k *kernelTable) error {
	for _, have := range k.chains {
		t.flushChain(have)
	}
	for _, c := range r.layout.chains {
		have := k.chain(c.spec.Name)
		switch {
		case have == nil:
			t.addChain(c.spec)
		case !sameChain(have, c.spec):
			return fmt.Errorf("%w: chain %s is not hooked in as \"%s\"", ErrForeign, c.spec.Name, describe(c.spec))
		}
	}
	return nil
}

func describe(c *nftables.Chain) string {
	if c.Hooknum == nil {
		return "no base chain"
	}
	return chainSpec(c)
}

// installSets makes missing sets, replaces those of another type and brings the content up to date.
func (r *Ruleset) installSets(t *tx, k *kernelTable, want elements, mode toldMode) error {
	for _, s := range r.layout.sets {
		have, list := k.set(s.Name), want[s.Name]
		switch {
		case have == nil:
			t.addSet(s)
			t.addElements(s, list)
		case !sameSet(have, s):
			t.deleteSet(have)
			t.addSet(s)
			t.addElements(s, list)
		case s.Dynamic: // the verdict cache
		case s.Name == setOwner:
			t.addElements(s, list)
		case s.IsMap:
			t.flushSet(s)
			t.addElements(s, list)
		default:
			current, err := r.content(s)
			if err != nil {
				return err
			}
			if s.Name == setTold && mode == adoptTold {
				t.deleteElements(s, slices.DeleteFunc(current, isTold))
				continue
			}
			missing, extra := difference(list, current)
			if s.Interval && len(missing)+len(extra) > 0 { // intervals are pairs and must not overlap on the way
				t.flushSet(s)
				t.addElements(s, list)
				continue
			}
			t.deleteElements(s, extra)
			t.addElements(s, missing)
		}
	}
	for _, name := range r.layout.counters {
		t.addCounter(name)
	}
	return nil
}

// removeStrangers deletes what another version left. Base chains of its own stay behind, empty.
func (r *Ruleset) removeStrangers(t *tx, k *kernelTable) {
	ours := map[string]bool{}
	for _, c := range r.layout.chains {
		ours["chain "+c.spec.Name] = true
	}
	for _, s := range r.layout.sets {
		ours["set "+s.Name] = true
	}
	for _, name := range r.layout.counters {
		ours["object "+name] = true
	}
	for _, s := range k.sets {
		if !ours["set "+s.Name] {
			t.deleteSet(s)
		}
	}
	for _, o := range k.objects {
		if named, ok := o.(*nftables.NamedObj); ok && !ours["object "+named.Name] {
			t.deleteObject(o, named.Name)
		}
	}
	for _, c := range k.chains {
		if !ours["chain "+c.Name] && c.Hooknum == nil {
			t.deleteChain(c)
		}
	}
}

// difference compares two sorted lists.
func difference(want, have []nftables.SetElement) (missing, extra []nftables.SetElement) {
	for len(want) > 0 || len(have) > 0 {
		var c int
		switch {
		case len(want) == 0:
			c = 1
		case len(have) == 0:
			c = -1
		default:
			c = compareElements(want[0], have[0])
		}
		switch {
		case c < 0:
			missing, want = append(missing, want[0]), want[1:]
		case c > 0:
			extra, have = append(extra, have[0]), have[1:]
		default:
			want, have = want[1:], have[1:]
		}
	}
	return missing, extra
}

// Cleanup removes the table and with it all that the package ever wrote. Packets that wait in a queue of the network
// namespace are dropped. It is no error when there is no table.
func (r *Ruleset) Cleanup() error {
	err := r.commit(func() (*tx, error) {
		t := &tx{l: r.layout}
		t.addTable() // so that there is one to delete
		t.deleteTable()
		return t, nil
	})
	if err != nil {
		return fmt.Errorf("remove the ruleset: %w", err)
	}
	return nil
}
