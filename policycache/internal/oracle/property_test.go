package oracle_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/internal/oracle"
)

var (
	comparisons = flag.Int("oracle.comparisons", 300_000, "verdicts that the seeded run compares with the oracle")
	seed        = flag.Uint64("oracle.seed", 1, "seed of the seeded run; 0 takes the time")
)

// TestCompiledVerdictsAreTheOracles compares all pairs of random clusters; a disagreement shrinks.
func TestCompiledVerdictsAreTheOracles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := rapidGenerator(t)
		c := g.cluster()
		node := one(&g, "n1", "", "n2")
		if p, ok := firstDisagreement(c, build(c, node), everything, new(int)); ok {
			t.Fatal(describe(c, p))
		}
	})
}

// TestChangesLeadWhereAFreshStartDoes applies random changes, and after each batch of them compares the incremental
// state with the oracle and with a state built afresh, and the delta with what really changed.
func TestChangesLeadWhereAFreshStartDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := rapidGenerator(t)
		if msg := history(&g, 1+g.pick(5), new(int)); msg != "" {
			t.Fatal(msg)
		}
	})
}

// TestManyComparisons is the long run: as many verdicts as the flag says, half of them after changes.
func TestManyComparisons(t *testing.T) {
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	r := rand.New(rand.NewPCG(*seed, 0))
	g := generator{pick: r.IntN}
	n, clusters := 0, 0
	for n < *comparisons {
		clusters++
		if msg := history(&g, 3, &n); msg != "" {
			t.Fatalf("seed %d, cluster %d: %s", *seed, clusters, msg)
		}
	}
	t.Logf("%d comparisons in the histories of %d clusters, seed %d", n, clusters, *seed)
}

func rapidGenerator(t *rapid.T) generator {
	return generator{pick: func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "") }}
}

// history makes a cluster, changes it in batches, and returns the first thing that is wrong, or "".
func history(g *generator, batches int, compared *int) string {
	c := g.cluster()
	node := one(g, "n1", "", "n2")
	s := build(c, node)
	part := g.sample()
	if p, ok := firstDisagreement(c, s, part, compared); ok {
		return describe(c, p)
	}
	var log []string
	kernel := make(map[netip.Addr]engine.Subject)
	tell(kernel, slices.Collect(s.snapshot.Subjects()))
	for range batches {
		// The addresses of before and after: a pod that is gone leaves an address that is nobody's.
		before := verdicts(s, addresses(c), part)
		for range 1 + g.pick(3) {
			log = append(log, g.change(c, s))
		}
		generation := s.snapshot.Generation()
		delta := s.commit()
		if (delta != nil) != (s.snapshot.Generation() > generation) {
			return fmt.Sprintf("generation %d follows %d, delta %+v", s.snapshot.Generation(), generation, delta)
		}
		if p, ok := firstDisagreement(c, s, part, compared); ok {
			return fmt.Sprintf("after %s:\n%s", strings.Join(log, ", "), describe(c, p))
		}
		if msg := sameAsFresh(c, s, part); msg != "" {
			return fmt.Sprintf("after %s:\n%s", strings.Join(log, ", "), msg)
		}
		if delta != nil {
			tell(kernel, delta.Subjects)
		}
		if now := slices.Collect(s.snapshot.Subjects()); !told(kernel, now) {
			return fmt.Sprintf("after %s:\nthe deltas told %v, the snapshot has %v", strings.Join(log, ", "), kernel, now)
		}
		if msg := deltaHolds(before, s, delta); msg != "" {
			return fmt.Sprintf("after %s:\n%s", strings.Join(log, ", "), msg)
		}
	}
	return ""
}

// firstDisagreement asks both.
func firstDisagreement(c *oracle.Cluster, s *system, part sample, compared *int) (oracle.Probe, bool) {
	for p := range probes(addresses(c), s.node, part) {
		*compared++
		if (s.judge(p).Action == engine.Allow) != c.Allowed(p) {
			return p, true
		}
	}
	return oracle.Probe{}, false
}

// outcome is a verdict in a form that compares by value.
func outcome(v engine.Verdict) string {
	text := fmt.Sprintf("%s %s %s", v.Action, v.Reason, v.Direction)
	for _, d := range []*engine.Decision{v.Egress, v.Ingress} {
		if d != nil {
			text += fmt.Sprintf(" %+v", *d)
		}
	}
	return text
}

func verdicts(s *system, addrs []netip.Addr, part sample) map[oracle.Probe]engine.Verdict {
	m := make(map[oracle.Probe]engine.Verdict)
	for p := range probes(addrs, s.node, part) {
		m[p] = s.judge(p)
	}
	return m
}

// sameAsFresh compares with a system that knows nothing of the past: verdicts, who decided, and the kernel's view.
func sameAsFresh(c *oracle.Cluster, s *system, part sample) string {
	fresh := build(c, s.node)
	for p := range probes(addresses(c), s.node, part) {
		if a, b := outcome(s.judge(p)), outcome(fresh.judge(p)); a != b {
			return fmt.Sprintf("incremental: %s\nfresh: %s\n%s", a, b, describe(c, p))
		}
	}
	byAddr := func(a, b engine.Subject) int { return a.Addr.Compare(b.Addr) }
	a, b := slices.Collect(s.snapshot.Subjects()), slices.Collect(fresh.snapshot.Subjects())
	slices.SortFunc(a, byAddr)
	slices.SortFunc(b, byAddr)
	if !slices.Equal(a, b) {
		return fmt.Sprintf("incremental: %+v\nfresh: %+v", a, b)
	}
	return ""
}

// deltaHolds tells whether the verdicts between addresses that the delta does not list are the same as before.
func deltaHolds(before map[oracle.Probe]engine.Verdict, s *system, delta *engine.Delta) string {
	if delta == nil {
		delta = new(engine.Delta)
	}
	affected := make(map[netip.Addr]bool)
	for _, a := range delta.Affected {
		affected[a] = true
	}
	for p, old := range before {
		if affected[p.Src] || affected[p.Dst] || delta.Ranges {
			continue
		}
		if now := s.judge(p); now.Action != old.Action || now.Reason != old.Reason {
			return fmt.Sprintf("%+v: was %s, is %s, and is not affected: %v", p, outcome(old), outcome(now), delta.Affected)
		}
	}
	return ""
}

// tell keeps what a kernel would know that gets every delta.
func tell(kernel map[netip.Addr]engine.Subject, subjects []engine.Subject) {
	for _, s := range subjects {
		if s.Present {
			kernel[s.Addr] = s
		} else {
			delete(kernel, s.Addr)
		}
	}
}

// told tells whether that is what the snapshot says.
func told(kernel map[netip.Addr]engine.Subject, now []engine.Subject) bool {
	for _, s := range now {
		if kernel[s.Addr] != s {
			return false
		}
	}
	return len(kernel) == len(now)
}

// describe prints a disagreement as manifests, reduced to what it needs.
func describe(c *oracle.Cluster, p oracle.Probe) string {
	c = minimize(c, p)
	manifests, err := yaml.Marshal(c)
	if err != nil {
		panic(err)
	}
	s := build(c, p.Node)
	why, err := yaml.Marshal(s.explain(p))
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("%+v\noracle: allowed=%v, engine: %s\n%s\n---\n%s",
		p, c.Allowed(p), outcome(s.judge(p)), why, manifests)
}

// minimize leaves out whatever the disagreement does not need.
func minimize(c *oracle.Cluster, p oracle.Probe) *oracle.Cluster {
	disagrees := func(c *oracle.Cluster) bool {
		return (build(c, p.Node).judge(p).Action == engine.Allow) != c.Allowed(p)
	}
	if !disagrees(c) {
		return c // it takes the history to see it
	}
	m := *c
	for again := true; again; {
		again = drop(&m.Policies, func() bool { return disagrees(&m) }) ||
			drop(&m.Pods, func() bool { return disagrees(&m) }) ||
			drop(&m.Namespaces, func() bool { return disagrees(&m) }) ||
			drop(&m.Nodes, func() bool { return disagrees(&m) })
		for i := range m.Policies {
			np := m.Policies[i].DeepCopy()
			m.Policies = slices.Clone(m.Policies)
			m.Policies[i] = np
			again = again || drop(&np.Spec.Ingress, func() bool { return disagrees(&m) }) ||
				drop(&np.Spec.Egress, func() bool { return disagrees(&m) })
		}
	}
	return &m
}

// drop removes the first element that is not needed and tells whether there was one.
func drop[T any](list *[]T, still func() bool) bool {
	whole := *list
	for i := range whole {
		*list = slices.Delete(slices.Clone(whole), i, i+1)
		if still() {
			return true
		}
	}
	*list = whole
	return false
}

// TestExplanationsEndInTheVerdict holds the reasoning to the compiled path.
func TestExplanationsEndInTheVerdict(t *testing.T) {
	r := rand.New(rand.NewPCG(*seed, 1))
	g := generator{pick: r.IntN}
	for range 100 {
		c, part := g.cluster(), g.sample()
		s := build(c, one(&g, "n1", ""))
		for p := range probes(addresses(c), s.node, part) {
			v, x := s.judge(p), s.explain(p)
			if v.Action != x.Action || v.Reason != x.Reason || v.Direction != x.Direction {
				t.Fatalf("judged %s, explained %s %s %s\n%s", outcome(v), x.Action, x.Reason, x.Direction, describe(c, p))
			}
			if x.Egress != nil && x.Egress.Decision != v.Egress || x.Ingress != nil && x.Ingress.Decision != v.Ingress {
				t.Fatalf("other decisions than %s\n%s", outcome(v), describe(c, p))
			}
		}
	}
}
