// Package reach tells who reaches whom in a whole cluster, and how that differs between two states of it.
//
// It asks the engine that enforces. Addresses that no rule can tell apart are one class, and ports that no rule can
// tell apart one span, so that one question stands for many and the answers are still exact: what is asked are the
// pairs of classes, for each span.
package reach

import (
	"iter"
	"net/netip"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// World is one state of the cluster. Its snapshot must be of an engine without a node of its own, so that every pod is
// judged.
type World struct {
	Snapshot *engine.Snapshot
	// Policies are those that the snapshot was made of.
	Policies map[rule.Ref]*rule.Policy
	// PodCIDRs are the ranges of addresses for pods.
	PodCIDRs []netip.Prefix
}

// rules yields the rules of all policies.
func (w *World) rules() iter.Seq[*rule.Rule] {
	return func(yield func(*rule.Rule) bool) {
		for _, p := range w.Policies {
			for _, d := range []*rule.Direction{p.Ingress, p.Egress} {
				if d == nil {
					continue
				}
				for i := range d.Rules {
					if !yield(&d.Rules[i]) {
						return
					}
				}
			}
		}
	}
}

// blocks are the distinct address blocks of all rules.
func blocks(worlds []World) []*rule.Block {
	var list []*rule.Block
	seen := map[string]bool{}
	for _, w := range worlds {
		for r := range w.rules() {
			for i := range r.Peers {
				b := r.Peers[i].Block
				if b == nil || seen[b.String()] {
					continue
				}
				seen[b.String()] = true
				list = append(list, b)
			}
		}
	}
	return list
}

// membership tells which blocks contain the address; equal strings are equal answers.
func membership(list []*rule.Block, a netip.Addr, buf []byte) []byte {
	buf = buf[:0]
	for i, b := range list {
		if i%8 == 0 {
			buf = append(buf, 0)
		}
		if b.Contains(a) {
			buf[i/8] |= 1 << (i % 8)
		}
	}
	return buf
}

// Progress hears how many of the questions have been asked. It may be nil.
type Progress func(done, total int)

func (p Progress) tell(done, total int) {
	if p != nil {
		p(done, total)
	}
}
