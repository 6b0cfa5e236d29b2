package engine

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// keeper keeps what a Model tells, as something outside of the agent does.
type keeper struct {
	testing.TB
	facts []Fact
}

// take brings it up to date, and returns how many came and went.
func (k *keeper) take(w *world) (come, gone int) {
	k.Helper()
	c, g := w.TakeFacts()
	for _, f := range g {
		i := slices.IndexFunc(k.facts, f.equal)
		if i < 0 {
			k.Errorf("gone is what nobody has: %+v", f)
			continue
		}
		k.facts = slices.Delete(k.facts, i, i+1)
	}
	for _, f := range c {
		if slices.ContainsFunc(k.facts, f.equal) {
			k.Errorf("told twice: %+v", f)
		}
		k.facts = append(k.facts, f)
	}
	if all := w.Facts(); len(all) != len(k.facts) || len(all) != w.facts.told {
		k.Errorf("%d facts are kept, the model knows of %d and counts %d", len(k.facts), len(all), w.facts.told)
	}
	return len(c), len(g)
}

func (k *keeper) expect(w *world, what string, come, gone int) {
	k.Helper()
	if c, g := k.take(w); c != come || g != gone {
		k.Errorf("%s: %d came and %d went, want %d and %d", what, c, g, come, gone)
	}
}

func TestFacts(t *testing.T) {
	w, k := namesWorld(t), &keeper{TB: t}
	k.expect(w, "nothing", 0, 0)
	w.learn("fd00:1::1", time.Minute, "www.example.com cdn.net", "198.51.100.1", "198.51.100.2", "10.0.2.1")
	k.expect(w, "two names of two addresses outside", 4, 0)
	for _, f := range k.facts {
		if f.Pod != netip.MustParseAddr("10.0.1.1") {
			t.Errorf("%+v is not about the pod's first address", f)
		}
	}
	w.learn("10.0.1.1", time.Minute+factSlack-1, "www.example.com", "198.51.100.1")
	k.expect(w, "a little longer", 0, 0)
	w.learn("10.0.1.1", time.Minute+factSlack, "www.example.com", "198.51.100.1")
	k.expect(w, "longer", 1, 1)
	w.Lapse(zero.Add(time.Hour))
	k.expect(w, "lapsed", 0, 0)
	w.learn("10.0.1.1", time.Hour, strings.Repeat("a.", 120)+"a", "198.51.100.1")
	w.learn("10.0.1.1", time.Hour, "a\x00b.net \u00e4.net a\".net", "198.51.100.1")
	k.expect(w, "names that cannot be kept", 0, 0)
	w.learn("10.0.1.2", time.Hour, "www.example.com", "198.51.100.1")
	k.expect(w, "another pod", 1, 0)
	w.add(podEndpoint("n1", "a", "another", labels(), nil, "10.0.1.1"))
	k.expect(w, "a pod that has gone", 0, 4)
}

// TestRecall: a new model knows what the one before knew, of the pods that are still there.
func TestRecall(t *testing.T) {
	w, k := namesWorld(t), &keeper{TB: t}
	w.learn("10.0.1.1", time.Minute, "www.example.com cdn.net", "198.51.100.1", "2001:db8::1")
	w.learn("10.0.1.1", 2*time.Minute, "exact.org late.net", "198.51.100.2")
	w.learn("10.0.1.2", 2*time.Minute, "exact.org", "198.51.100.2")
	k.take(w)

	next := namesWorld(t)
	next.add(podEndpoint("n1", "a", "stranger", labels("app", "two"), nil, "10.0.1.2"))
	next.commit()
	for range 2 { // what is recalled twice is not known twice
		next.Recall(k.facts, zero.Add(24*time.Hour))
		next.Lapse(zero.Add(time.Minute))
		next.commit()
	}
	k.expect(next, "the stranger's", 0, 1)
	next.expect("lapsed", "10.0.1.1", "198.51.100.1", false, true)
	next.expect("lapsed, its other address", "fd00:1::1", "2001:db8::1", false, true)
	next.expect("another name", "10.0.1.1", "198.51.100.2", true, true)
	next.expect("nobody asked for it", "10.0.1.1", "198.51.100.3", false, false)
	next.expect("a stranger with the address", "10.0.1.2", "198.51.100.2", false, false)
	next.Lapse(zero.Add(2 * time.Minute))
	next.commit()
	next.expect("lapsed after it", "10.0.1.1", "198.51.100.2", false, true)
	next.SetPolicy(wide(rule.Admin, 1, "names", nil, rules(
		rule.Rule{Action: rule.Accept, Peers: namesOf(t, "late.net")}, rule.Rule{Action: rule.Deny})))
	next.commit()
	next.expect("a name that no policy has", "10.0.1.1", "198.51.100.1", false, false)
	next.expect("a name that one has now", "10.0.1.1", "198.51.100.2", false, true)

	// What others have written is nothing that was told.
	forged := k.facts[0]
	forged.Name = "mine.example.com"
	k.facts = append(k.facts, forged)
	late := k.facts[0]
	late.Until = zero.Add(25 * time.Hour)
	k.facts = append(k.facts, late, Fact{Pod: netip.MustParseAddr("9.9.9.9"), Name: "x.example.com"})
	last := namesWorld(t)
	last.Recall(k.facts, zero.Add(24*time.Hour))
	k.expect(last, "forged", 0, 3)
}

// TestFactsAreBounded: of a pod that asks for very much those that end last are kept, and others keep theirs.
func TestFactsAreBounded(t *testing.T) {
	w, k := namesWorld(t), &keeper{TB: t}
	w.learn("10.0.1.2", time.Second, "www.example.com", "198.51.100.1")
	most := 0
	for i := range 4 * podFacts {
		w.learn("10.0.1.1", time.Duration(i)*time.Second, "www.example.com", fmt.Sprintf("198.51.%d.%d", i/250, i%250+1))
		k.take(w)
		most = max(most, len(k.facts))
	}
	if most != podFacts+1 || len(k.facts) < podFacts*3/4 {
		t.Errorf("%d facts at most, %d in the end", most, len(k.facts))
	}
	next := namesWorld(t)
	next.Recall(k.facts, zero.Add(24*time.Hour))
	next.commit()
	next.expect("the quiet pod's", "10.0.1.2", "198.51.100.1", true, true)
	for i := 4*podFacts - podFacts*3/4; i < 4*podFacts; i++ {
		next.expect("one of the last", "10.0.1.1", fmt.Sprintf("198.51.%d.%d", i/250, i%250+1), true, true)
	}
	next.expect("the first", "10.0.1.1", "198.51.0.1", false, false)

	// All at once.
	answer := domain.Answer{Names: []string{"www.example.com", "cdn.net"}}
	for i := range podFacts {
		answer.Addrs = append(answer.Addrs, netip.AddrFrom4([4]byte{203, 0, byte(i / 250), byte(i % 250)}))
	}
	next.Learn(netip.MustParseAddr("10.0.1.2"), answer, zero.Add(time.Hour))
	k.take(next)
	if n := len(k.facts); n < podFacts*3/2 || n > 2*podFacts {
		t.Errorf("%d facts of two pods", n)
	}
}

// TestRestartsChangeNothing goes through random histories in which the model is made anew every now and then.
func TestRestartsChangeNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	hosts := []string{"www.example.com", "a.b.example.com", "exact.org", "late.net"}
	pods, addrs := []string{"10.0.1.1", "10.0.1.2"}, []string{"198.51.100.1", "198.51.100.2", "198.51.100.3", "10.0.9.9"}
	open := 0
	for round := range 40 {
		steady, w, k := namesWorld(t), namesWorld(t), &keeper{TB: t}
		now := time.Duration(0)
		for range 60 {
			switch r.IntN(4) {
			case 0, 1:
				pod, addr, until := pods[r.IntN(2)], addrs[r.IntN(4)], now+factSlack*time.Duration(1+r.IntN(5))
				names := hosts[r.IntN(4)] + " " + hosts[r.IntN(4)]
				steady.learn(pod, until, names, addr)
				w.learn(pod, until, names, addr)
			case 2:
				now += factSlack * time.Duration(r.IntN(3))
			case 3:
				k.take(w)
				w = namesWorld(t)
				w.Recall(k.facts, zero.Add(24*time.Hour))
			}
			for _, x := range []*world{steady, w} {
				x.Lapse(zero.Add(now))
				x.commit()
			}
			k.take(w)
			for _, pod := range pods {
				for _, addr := range addrs {
					o, s := steady.reaches(pod, addr)
					if o {
						open++
					}
					if wo, ws := w.reaches(pod, addr); wo != o || ws != s {
						t.Fatalf("round %d, %s to %s: open %t, stays %t, without restarts %t, %t", round, pod, addr, wo, ws, o, s)
					}
				}
			}
		}
	}
	if open < 500 {
		t.Errorf("%d connections were open: the generator is no good", open)
	}
}
