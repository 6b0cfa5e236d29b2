package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/firstpacket/firstpacket/policycache/domain"
)

// What pods have learned lives longer than a Model if its facts are kept somewhere and recalled by the next one.

const (
	// podFacts bounds the facts of a pod, allFacts those of all of them. What does not fit is learned all the same, and
	// is not known after a restart.
	podFacts, allFacts = 512, 16384
	// factSlack is by how much a name must hold longer for its fact to be told anew.
	factSlack = 5 * time.Second
	// longestFact bounds the length of a name, in bytes, so that it fits wherever facts are kept. The longest name that
	// there can be has 253.
	longestFact = 240
)

// Fact says that a pod was told an address under a name.
type Fact struct {
	// Pod is an address of the pod, and Of stands for the pod itself and the name: addresses are given to other pods.
	Pod netip.Addr
	Of  uint64
	// Addr is what the pod was told, for the Name, which has no dot at the end.
	Addr netip.Addr
	Name string
	// Until is when the name lapses, or has lapsed.
	Until time.Time
}

// facts are the parts of a Model that have to do with them.
type facts struct {
	// told counts the facts that are kept, gone are those that are to be kept no more.
	told int
	gone []Fact
	// untold are the pods that have something to tell.
	untold map[podKey]struct{}
}

// factsOfPage are the facts of one pod: those that are kept, by address, and the addresses to look at again.
type factsOfPage struct {
	told   map[netip.Addr][]Fact
	count  int
	untold map[netip.Addr]struct{}
}

// of gives the pod's sign in a fact. It is a hash, so that nobody finds a pod's name that gives the sign of another's.
func (k podKey) of(name string) uint64 {
	sum := sha256.Sum256([]byte(k.namespace + "/" + k.name + " " + name))
	return binary.BigEndian.Uint64(sum[:])
}

// untold notes that the facts about these addresses may be others now.
func (m *Model) untold(key podKey, p *page, lists ...[]netip.Addr) {
	for _, list := range lists {
		for _, a := range list {
			if p.facts.untold == nil {
				p.facts.untold = make(map[netip.Addr]struct{})
			}
			p.facts.untold[a] = struct{}{}
			m.facts.untold[key] = struct{}{}
		}
	}
}

// forgetPage ends all that a pod has learned.
func (m *Model) forgetPage(key podKey) {
	if p := m.pages[key]; p != nil {
		for _, list := range p.facts.told {
			m.facts.gone = append(m.facts.gone, list...)
		}
		m.facts.told -= p.facts.count
		delete(m.pages, key)
	}
}

// Recall takes over facts that an earlier Model told, and are kept: all of them. Those that do not hold any more, since
// the pod is not there or another has its address, TakeFacts gives back as gone, and so those that end later than
// anything can that was learned until now. Names whose time is over are learned too; Lapse has them lapse.
func (m *Model) Recall(kept []Fact, latest time.Time) {
	for _, p := range m.pages {
		p.facts.told, p.facts.count = nil, 0
	}
	m.facts.told, m.facts.gone = 0, nil
	for _, f := range kept {
		ep := m.owner(f.Pod)
		if !m.isSubject(ep) || keyOfPod(ep).of(f.Name) != f.Of || f.Until.After(latest) {
			m.facts.gone = append(m.facts.gone, f)
			continue
		}
		key := keyOfPod(ep)
		p := m.pages[key]
		if p == nil {
			p = &page{asked: f.Pod}
			m.pages[key] = p
		}
		p.keep(f)
		m.facts.told++
		m.learn(key, p, domain.Answer{Names: []string{f.Name}, Addrs: []netip.Addr{f.Addr}}, f.Until)
	}
}

func (p *page) keep(f Fact) {
	if p.facts.told == nil {
		p.facts.told = make(map[netip.Addr][]Fact)
	}
	p.facts.told[f.Addr] = append(p.facts.told[f.Addr], f)
	p.facts.count++
}

// TakeFacts tells which facts have come since the last call, and which of those told before are gone. That a name holds
// a little longer is told with the next answer.
func (m *Model) TakeFacts() (come, gone []Fact) {
	gone, m.facts.gone = m.facts.gone, nil
	for key := range m.facts.untold {
		p := m.pages[key]
		if p == nil {
			continue
		}
		room := min(podFacts, allFacts-m.facts.told+p.facts.count)
		m.facts.told -= p.facts.count
		pod, first := m.addrOf(key, p), len(come)
		for a := range p.facts.untold {
			c, g := m.tell(key, p, pod, a)
			come, gone = append(come, c...), append(gone, g...)
		}
		p.facts.untold = nil
		if p.facts.count > room {
			for _, f := range p.makeRoom(room) {
				if i := slices.IndexFunc(come[first:], f.equal); i >= 0 {
					come = slices.Delete(come, first+i, first+i+1) // it was never told
				} else {
					gone = append(gone, f)
				}
			}
		}
		m.facts.told += p.facts.count
	}
	clear(m.facts.untold)
	return come, gone
}

func (f *Fact) equal(o Fact) bool { return f.same(o) && f.Until.Equal(o.Until) }

// same tells facts that differ in nothing but their time.
func (f *Fact) same(o Fact) bool {
	return f.Pod == o.Pod && f.Of == o.Of && f.Addr == o.Addr && f.Name == o.Name
}

// addrOf is an address that the pod owns; the zero Addr if it has none now.
func (m *Model) addrOf(key podKey, p *page) netip.Addr {
	if pod := m.owner(p.asked); m.isSubject(pod) && keyOfPod(pod) == key {
		for _, a := range pod.Addrs { // the first of them, so that it is the same one each time
			if ep := m.owner(a); m.isSubject(ep) && keyOfPod(ep) == key {
				return a
			}
		}
	}
	return netip.Addr{}
}

// tell brings the facts about one address up to date.
func (m *Model) tell(key podKey, p *page, pod, a netip.Addr) (come, gone []Fact) {
	old := p.facts.told[a]
	p.facts.count -= len(old)
	delete(p.facts.told, a)
	if !pod.IsValid() || m.cluster.Contains(a) {
		return nil, old
	}
	for name, until := range p.Until(a) {
		if !tellable(name) {
			continue
		}
		f := Fact{Pod: pod, Of: key.of(name), Addr: a, Name: name, Until: until}
		i := slices.IndexFunc(old, f.same)
		if i >= 0 && !until.Before(old[i].Until) && until.Sub(old[i].Until) < factSlack {
			f = old[i]
			old = slices.Delete(old, i, i+1)
		} else {
			come = append(come, f)
		}
		p.keep(f)
	}
	return come, old
}

// makeRoom gives up facts that end first, until a quarter of the room is free, and returns them.
func (p *page) makeRoom(room int) []Fact {
	var all []Fact
	for _, list := range p.facts.told {
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b Fact) int { return a.Until.Compare(b.Until) })
	gone := all[:len(all)-room*3/4]
	p.facts.told, p.facts.count = nil, 0
	for _, f := range all[len(gone):] {
		p.keep(f)
	}
	return gone
}

// tellable tells names that can be kept as text; no pattern matches others.
func tellable(name string) bool {
	return name != "" && len(name) <= longestFact && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || r == '"'
	})
}

// Facts are all that are kept, in no order.
func (m *Model) Facts() []Fact {
	all := make([]Fact, 0, m.facts.told)
	for _, p := range m.pages {
		for _, list := range p.facts.told {
			all = append(all, list...)
		}
	}
	return all
}
