package reach

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/engine"
)

// TestLinksAreWhatTheEngineSays: every link, and that what has no link is allowed.
func TestLinksAreWhatTheEngineSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, _ := newWorld(t).commit()
		groups := append(Workloads(w, "a"), Workloads(w, "b")...)
		inside := len(groups)
		groups = append(groups, Outside(w)...)
		links, sampled, err := Links(t.Context(), w, groups, 100)
		if err != nil || sampled {
			t.Fatal(err, sampled)
		}
		found := map[[2]int]*Link{}
		for i := range links {
			found[[2]int{links[i].From, links[i].To}] = &links[i]
		}
		ev := engine.NewEvaluator(100)
		all := owners(w.Snapshot)
		in := func(i int, ep *endpoint.Endpoint, a netip.Addr) bool {
			if i >= inside {
				return a == groups[i].classes[0].members[0].addr
			}
			return ep != nil && ep.Kind == identity.Pod && groups[i].selects(ep)
		}
		for _, g := range groups[inside:] {
			all[g.classes[0].members[0].addr] = nil
		}
		for i := range groups {
			for j := range groups {
				pairs, allowed := 0, make([]int, len(probes))
				for src, a := range all {
					for dst, b := range all {
						if !in(i, a, src) || !in(j, b, dst) || !asked(a, b, src, dst) {
							continue
						}
						pairs++
						for k, p := range probes {
							if slow(ev, w.Snapshot, src, dst, p) {
								allowed[k]++
							}
						}
					}
				}
				link, part := found[[2]int{i, j}], false
				for k, p := range probes {
					some := link == nil || link.All || contains(link.Ports, p)
					if pairs > 0 && some != (allowed[k] > 0) || (link == nil || link.All) && allowed[k] < pairs {
						t.Fatalf("%s to %s at %s: %d of %d, but %+v", groups[i].Name, groups[j].Name, p, allowed[k], pairs, link)
					}
					part = part || allowed[k] > 0 && allowed[k] < pairs
				}
				if pairs == 0 && link != nil || link != nil && link.Part != part {
					t.Fatalf("%s to %s: %d pairs, part %v, but %+v", groups[i].Name, groups[j].Name, pairs, part, link)
				}
			}
		}
	})
}

// TestLinksAreBounded: a group with many kinds of pods is asked for some of them, and the question can be taken back.
func TestLinksAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, _ := newWorld(t).commit()
		everyone := Select("all", func(*endpoint.Endpoint) bool { return true })
		kinds := map[identity.Handle]bool{}
		for _, ep := range w.Snapshot.Endpoints() {
			if ep.Kind == identity.Pod {
				kinds[ep.Identity] = true
			}
		}
		_, sampled, err := Links(t.Context(), w, []Group{everyone}, 1)
		if err != nil || len(kinds) > 1 && !sampled {
			t.Fatal(err, sampled)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := Links(ctx, w, []Group{everyone}, 1); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	})
}
