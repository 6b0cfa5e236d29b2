package ruleset

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Apply makes the update in one transaction. From its return on no packet is admitted by a verdict of an earlier
// generation, except those that were past the map of verdicts on another CPU at that moment: they may still add their
// tuple to the verdict cache. After an update that takes something away, call Barrier, then Apply again with the same
// Forget and Flush fields, and then revoke flows.
func (r *Ruleset) Apply(u Update) error {
	plan := r.plan(u)
	plan.verdicts = verdictElements(r.cfg, u.Generation)
	return r.carryOut(plan)
}

// Forget removes tuples from the verdict cache, whichever the answer, and changes nothing else: the generation stays as
// it is, so it may be called beside Apply. Tuples that the cache does not hold are no error.
func (r *Ruleset) Forget(tuples []Tuple) error {
	if len(tuples) == 0 {
		return nil
	}
	return r.carryOut(r.plan(Update{Forget: tuples}))
}

// Flush empties the verdict cache and changes nothing else; like Forget, it may be called beside Apply.
func (r *Ruleset) Flush() error {
	return r.carryOut(r.plan(Update{FlushAllowed: true, FlushDenied: true}))
}

// Limit has the kernel ask no more than some questions a second about packets of these sources, and drop the rest,
// until they have kept within that for two seconds. It does nothing where the kernel cannot limit rates
// (Features.Limit). What is in the verdict cache or established is no question.
func (r *Ruleset) Limit(sources []Source) error {
	if !r.features.Limit || len(sources) == 0 {
		return nil
	}
	p := plan{in: elements{}}
	for _, s := range sources {
		key, f := sourceKey(s)
		p.in.add(f.set(kindNoisy), key)
	}
	p.in.normalize()
	err := r.commit(func() (*tx, error) { return p.build(r), nil })
	if errors.Is(err, unix.ENOENT) {
		err = r.missing(err)
	}
	if err != nil {
		return fmt.Errorf("limit sources: %w", err)
	}
	return nil
}

func (r *Ruleset) carryOut(plan plan) error {
	err := r.commit(func() (*tx, error) { return plan.build(r), nil })
	if errors.Is(err, unix.ENFILE) {
		// The cache is full: elements that are not there cannot be added in order to be deleted, nor learnt.
		err = r.commit(func() (*tx, error) {
			narrowed, err := r.narrow(plan)
			if err != nil {
				return nil, err
			}
			return narrowed.build(r), nil
		})
	}
	if errors.Is(err, unix.ENOENT) {
		err = r.missing(err)
	}
	if err != nil {
		return fmt.Errorf("update the ruleset: %w", err)
	}
	return nil
}

// plan is an update in terms of set elements.
type plan struct {
	// verdicts are those of a new generation; nil to keep the one in force.
	verdicts []nftables.SetElement
	// flush are sets to be emptied before anything is added.
	flush []string
	// in are elements that must be there, out those that must not. present are out elements that are known to be there.
	in, out, present elements
}

func (r *Ruleset) plan(u Update) plan {
	p := plan{in: elements{}, out: elements{}}
	for _, s := range u.Subjects {
		addSubject(p.in, p.out, s)
	}
	for _, a := range u.Removed {
		removeSubject(p.out, a)
	}
	if u.SetPodCIDRs {
		addPrefixes(p.in, u.PodCIDRs)
	}
	if u.SetResolvers {
		addResolvers(p.in, u.Resolvers)
	}
	for _, f := range families {
		if u.SetResolvers {
			p.flush = append(p.flush, f.set(kindResolvers))
		}
		if u.SetPodCIDRs {
			p.flush = append(p.flush, f.set(kindPods))
		}
		if u.FlushAllowed {
			p.flush = append(p.flush, f.set(kindAllowed))
		}
		if u.FlushDenied {
			p.flush = append(p.flush, f.set(kindDenied))
		}
	}
	for _, t := range u.Forget {
		if key, f, ok := tupleKey(t); ok {
			p.out.add(f.set(kindAllowed), key)
			p.out.add(f.set(kindDenied), key)
		}
	}
	for _, t := range u.Learn {
		if key, f, ok := tupleKey(t); ok {
			p.in.add(f.set(kindAllowed), key)
		}
	}
	p.in.addTold(u.Told)
	p.out.addTold(u.Untold)
	p.in.normalize()
	p.out.normalize()
	return p
}

// build orders the operations: what goes before what comes, the generation first.
func (p plan) build(r *Ruleset) *tx {
	t := &tx{l: r.layout}
	t.claim(r.cfg.Owner)
	if p.verdicts != nil {
		verdicts := r.layout.set(setVerdicts)
		t.flushSet(verdicts)
		t.addElements(verdicts, p.verdicts)
	}
	for _, name := range p.flush {
		t.flushSet(r.layout.set(name))
	}
	r.layout.eachSet(p.out, func(s *nftables.Set, list []nftables.SetElement) {
		if !slices.Contains(p.flush, s.Name) {
			t.dropElements(s, list)
		}
	})
	r.layout.eachSet(p.present, t.deleteElements)
	r.layout.eachSet(p.in, t.addElements)
	return t
}

// narrow rewrites a plan for a verdict cache without room: of its tuples only those are deleted that are there, denied
// ones all, and none is learnt. Tuples of the allowed sets stay until they are deleted here, so what is found is there.
func (r *Ruleset) narrow(p plan) (plan, error) {
	n := plan{verdicts: p.verdicts, flush: slices.Clone(p.flush), in: elements{}, out: elements{}, present: elements{}}
	maps.Copy(n.out, p.out)
	maps.Copy(n.in, p.in)
	for _, f := range families {
		allowed, denied := f.set(kindAllowed), f.set(kindDenied)
		if len(n.out[denied]) > 0 && !slices.Contains(n.flush, denied) {
			n.flush = append(n.flush, denied)
		}
		if forget := n.out[allowed]; len(forget) > 0 && !slices.Contains(n.flush, allowed) {
			have, err := r.content(r.layout.set(allowed))
			if err != nil {
				return plan{}, err
			}
			have = slices.CompactFunc(have, func(a, b nftables.SetElement) bool { return bytes.Equal(a.Key, b.Key) })
			_, unknown := difference(forget, have)
			_, n.present[allowed] = difference(unknown, have)
		}
		delete(n.out, allowed)
		delete(n.in, allowed)
		delete(n.out, denied)
	}
	return n, nil
}
