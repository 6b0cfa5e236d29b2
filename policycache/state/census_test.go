package state

import (
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// TestCensusIsACount: however policies come, change and go, the census is what counting them all would give.
func TestCensusIsACount(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New("n1")
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			ref := rule.Ref{
				Dialect:   rapid.SampledFrom([]rule.Dialect{rule.NetworkPolicy, rule.AlphaNetworkPolicy}).Draw(t, "dialect"),
				Namespace: "shop", Name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name"),
			}
			if rapid.Bool().Draw(t, "delete") {
				s.deletePolicy(ref)
				continue
			}
			p := &rule.Policy{Ref: ref, Audit: rapid.Bool().Draw(t, "audit")}
			if rapid.Bool().Draw(t, "fails") {
				p.Problems = []rule.Problem{{}}
			}
			s.setPolicy(p)
		}
		want := Census{}
		for _, p := range s.policies {
			want[kindOf(p)]++
		}
		if got := s.Census(); !maps.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}
