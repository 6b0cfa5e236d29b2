package domain

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// How long an address is reachable under a name after an answer, and how many of them a pod can have.
const (
	// MinTTL and MaxTTL bound the TTL that counts: servers give 0 to balance load, and a day to be asked less.
	MinTTL = 30 * time.Second
	MaxTTL = time.Hour
	// Grace is added, since a resolver may hand an address out at the end of its TTL, and the connection follows.
	Grace = 30 * time.Second
	// MaxAddrs and maxNames bound what is kept for a pod: addresses, and names of each.
	MaxAddrs = 4096
	maxNames = 64
)

// Lifetime is how long the addresses of an answer are reachable.
func Lifetime(ttl time.Duration) time.Duration { return min(max(ttl, MinTTL), MaxTTL) + Grace }

// Page holds the addresses that one pod was told, and the names that it was told them for. A name whose time is over is
// remembered as lapsed: connections that exist go on under it. The zero Page is empty and ready. It belongs to one
// goroutine.
type Page struct {
	addrs map[netip.Addr]*heard
	// next is when the first name lapses; zero if none is live.
	next time.Time
}

// heard are the names of an address.
type heard struct {
	names map[string]*span
	end   time.Time // the latest of all
}

type span struct {
	until time.Time
	live  bool
}

// Learn takes an answer over that holds until then. It returns the addresses whose names are others than before, live
// or lapsed.
func (p *Page) Learn(a Answer, until time.Time) (changed []netip.Addr) {
	if p.addrs == nil {
		p.addrs = make(map[netip.Addr]*heard)
	}
	if p.next.IsZero() || until.Before(p.next) {
		p.next = until
	}
	for _, addr := range a.Addrs {
		h := p.addrs[addr]
		if h == nil {
			h = &heard{names: make(map[string]*span)}
			p.addrs[addr] = h
		}
		if h.learn(a.Names, until) {
			changed = append(changed, addr)
		}
	}
	return append(changed, p.trim()...)
}

func (h *heard) learn(names []string, until time.Time) (changed bool) {
	if until.After(h.end) {
		h.end = until
	}
	for _, name := range names {
		s := h.names[name]
		if s == nil {
			s = &span{}
			h.names[name] = s
		}
		changed = changed || !s.live
		s.live = true
		if until.After(s.until) {
			s.until = until
		}
	}
	for len(h.names) > maxNames {
		first := ""
		for name, s := range h.names {
			if f := h.names[first]; f == nil || s.until.Before(f.until) || s.until.Equal(f.until) && name < first {
				first = name
			}
		}
		delete(h.names, first)
	}
	return changed
}

// trim makes room where there are too many addresses: those that end first go, a quarter at a time, so that going
// through all of them is rare. It returns them.
func (p *Page) trim() []netip.Addr {
	if len(p.addrs) <= MaxAddrs {
		return nil
	}
	all := p.Addrs()
	slices.SortFunc(all, func(a, b netip.Addr) int {
		return cmp.Or(p.addrs[a].end.Compare(p.addrs[b].end), a.Compare(b))
	})
	gone := all[:len(all)-MaxAddrs*3/4]
	for _, a := range gone {
		delete(p.addrs, a)
	}
	return gone
}

// Expire has names lapse whose time is over, and returns their addresses.
func (p *Page) Expire(now time.Time) (changed []netip.Addr) {
	if p.next.IsZero() || now.Before(p.next) {
		return nil
	}
	p.next = time.Time{}
	for addr, h := range p.addrs {
		lapsed := false
		for _, s := range h.names {
			switch {
			case !s.live:
			case !now.Before(s.until):
				s.live, lapsed = false, true
			case p.next.IsZero() || s.until.Before(p.next):
				p.next = s.until
			}
		}
		if lapsed {
			changed = append(changed, addr)
		}
	}
	return changed
}

// Addrs are the addresses that have names, live or lapsed, in no order.
func (p *Page) Addrs() []netip.Addr {
	all := make([]netip.Addr, 0, len(p.addrs))
	for a := range p.addrs {
		all = append(all, a)
	}
	return all
}

// Names are those of an address, sorted.
func (p *Page) Names(a netip.Addr) (live, lapsed []string) {
	h := p.addrs[a]
	if h == nil {
		return nil, nil
	}
	for name, s := range h.names {
		if s.live {
			live = append(live, name)
		} else {
			lapsed = append(lapsed, name)
		}
	}
	slices.Sort(live)
	slices.Sort(lapsed)
	return live, lapsed
}

// Until yields all names of an address, live or lapsed, with the time up to which each holds, in no order.
func (p *Page) Until(a netip.Addr) iter.Seq2[string, time.Time] {
	return func(yield func(string, time.Time) bool) {
		h := p.addrs[a]
		if h == nil {
			return
		}
		for name, s := range h.names {
			if !yield(name, s.until) {
				return
			}
		}
	}
}

// Len is the number of addresses.
func (p *Page) Len() int { return len(p.addrs) }
