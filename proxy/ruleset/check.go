package ruleset

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
)

// Drift is one difference between the table as it is and as it should be.
type Drift struct {
	// Object names what differs: "table", "chain judge4", "set egress6", "counter queued".
	Object string
	// Problem says how: "missing", "rule 2 is not …", "10.0.0.1 is missing".
	Problem string
}

// String is "chain judge4: missing".
func (d Drift) String() string { return d.Object + ": " + d.Problem }

// Check compares the table with the state and returns what differs; nothing when all is as it should be. The content of
// the verdict cache is not compared. Install repairs what Check finds.
func (r *Ruleset) Check(s State) ([]Drift, error) {
	k, err := r.read()
	if err != nil {
		return nil, fmt.Errorf("check the ruleset: %w", explain(err))
	}
	c := &checker{r: r, k: k}
	if !k.present {
		c.report("table", "missing")
		return c.found, nil
	}
	for _, step := range []func() error{c.chains, func() error { return c.sets(r.elements(s)) }, c.counters} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("check the ruleset: %w", explain(err))
		}
	}
	return c.found, nil
}

type checker struct {
	r     *Ruleset
	k     *kernelTable
	found []Drift
}

func (c *checker) report(object, format string, args ...any) {
	c.found = append(c.found, Drift{object, fmt.Sprintf(format, args...)})
}

func (c *checker) chains() error {
	known := map[string]bool{}
	for _, want := range c.r.layout.chains {
		known[want.spec.Name] = true
		object := "chain " + want.spec.Name
		have := c.k.chain(want.spec.Name)
		switch {
		case have == nil:
			c.report(object, "missing")
			continue
		case !sameChain(have, want.spec):
			c.report(object, "not hooked in as %q", describe(want.spec))
		}
		if err := c.rules(object, want, have); err != nil {
			return err
		}
	}
	for _, have := range c.k.chains {
		if known[have.Name] {
			continue
		}
		// An empty base chain of another version does nothing; see Install.
		if have.Hooknum != nil {
			if rules, err := c.read(have); err != nil {
				return err
			} else if len(rules) == 0 {
				continue
			}
		}
		c.report("chain "+have.Name, "not ours")
	}
	return nil
}

func (c *checker) read(ch *nftables.Chain) ([]*nftables.Rule, error) {
	var rules []*nftables.Rule
	err := c.r.reads.do(func(conn *nftables.Conn) (err error) {
		rules, err = conn.GetRules(c.r.layout.table, ch)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list chain %s: %w", ch.Name, err)
	}
	return rules, nil
}

func (c *checker) rules(object string, want chain, have *nftables.Chain) error {
	rules, err := c.read(have)
	if err != nil {
		return err
	}
	for i, w := range want.rules {
		if i >= len(rules) {
			c.report(object, "rule %d is missing: %s", i+1, w)
		} else if !sameRule(rules[i], w) {
			c.report(object, "rule %d is not: %s", i+1, w)
		}
	}
	if extra := len(rules) - len(want.rules); extra > 0 {
		c.report(object, "%d rules too many", extra)
	}
	return nil
}

func (c *checker) sets(want elements) error {
	known := map[string]bool{}
	for _, s := range c.r.layout.sets {
		known[s.Name] = true
		object := "set " + s.Name
		have := c.k.set(s.Name)
		if have == nil {
			c.report(object, "missing")
			continue
		}
		if !sameSet(have, s) {
			c.report(object, "not %q", setSpec(s))
			continue
		}
		if s.Dynamic {
			continue
		}
		current, err := c.r.content(s)
		if err != nil {
			return err
		}
		missing, extra := difference(want[s.Name], current)
		for _, e := range missing {
			c.report(object, "%s is missing", elementText(s, e))
		}
		for _, e := range extra {
			c.report(object, "%s does not belong", elementText(s, e))
		}
		if s.IsMap && len(missing)+len(extra) == 0 {
			c.verdicts(object, want[s.Name], current)
		}
	}
	for _, have := range c.k.sets {
		if !known[have.Name] {
			c.report("set "+have.Name, "not ours")
		}
	}
	return nil
}

// verdicts compares what the marks lead to; both lists have the same keys in the same order.
func (c *checker) verdicts(object string, want, have []nftables.SetElement) {
	for i := range want {
		chain, err := target(have[i])
		if err != nil || chain != want[i].VerdictData.Chain || have[i].Comment != want[i].Comment {
			c.report(object, "an element is not: %s", elementText(c.r.layout.set(setVerdicts), want[i]))
		}
	}
}

func (c *checker) counters() error {
	var names []string
	for _, o := range c.k.objects {
		if named, ok := o.(*nftables.NamedObj); ok {
			names = append(names, named.Name)
		}
	}
	for _, name := range c.r.layout.counters {
		if !slices.Contains(names, name) {
			c.report("counter "+name, "missing")
		}
	}
	for _, name := range names {
		if !slices.Contains(c.r.layout.counters, name) {
			c.report("object "+name, "not ours")
		}
	}
	return nil
}
