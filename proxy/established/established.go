// Package established judges flows that conntrack knows, as policy would judge their first packets now: for the agent,
// which cuts those that are no longer allowed, and for whoever wants to know beforehand.
package established

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/proxy/conntrack"
	"github.com/firstpacket/firstpacket/proxy/mark"
)

// LocalAddresses are those of the interfaces in the network namespace of the calling thread.
func LocalAddresses() (map[netip.Addr]struct{}, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	set := map[netip.Addr]struct{}{}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			set[p.Addr().Unmap().WithZone("")] = struct{}{}
		}
	}
	return set, nil
}

// Judge gives the verdict of an established flow; local are the addresses of this node. Conntrack knows who opened it,
// except for TCP that it picked up in the middle.
func Judge(
	ev *engine.Evaluator, s *engine.Snapshot, f *conntrack.Flow, local map[netip.Addr]struct{},
) engine.Verdict {
	flow := f.Policy()
	hook := engine.Forward
	if _, here := local[flow.Dst]; here {
		hook = engine.Input
	}
	return ev.JudgeEstablished(s, &flow, hook)
}

// Change is an established flow that would be treated otherwise.
type Change struct {
	// Proto is tcp, udp, sctp or the like; Src opened the flow, and Dst is where it really goes, behind any Service.
	Proto string `json:"proto"`
	Src   Side   `json:"src"`
	Dst   Side   `json:"dst"`
	// Cut tells flows that would be cut from those that are cut now and would go on.
	Cut bool `json:"cut"`
	// Direction, Reason and Policies are those of the verdict.
	Direction string   `json:"direction,omitempty"`
	Reason    string   `json:"reason"`
	Policies  []string `json:"policies,omitempty"`
}

// Side is one end of a flow.
type Side struct {
	Addr netip.AddrPort `json:"addr"`
	// Name is namespace/name of a pod, "node NAME", or empty for addresses outside of the cluster.
	Name string `json:"name,omitempty"`
}

func (s Side) String() string {
	if s.Name == "" {
		return s.Addr.String()
	}
	return s.Name + " (" + s.Addr.String() + ")"
}

// Flows compares how two states of the cluster treat the flows of this node, in the network namespace of the calling
// thread. It returns those that change, by address, and the number of all that were looked at. marks are the agent's.
// It needs CAP_NET_ADMIN, and changes nothing.
func Flows(before, after *engine.Snapshot, marks mark.Layout) (changes []Change, looked int, err error) {
	local, err := LocalAddresses()
	if err != nil {
		return nil, 0, fmt.Errorf("addresses of this node: %w", err)
	}
	table, err := conntrack.Open(0)
	if err != nil {
		return nil, 0, err
	}
	defer table.Close()
	const pairs = 1 << 12
	ev := engine.NewEvaluator(pairs)
	err = table.Dump(conntrack.Filter{}, func(f *conntrack.Flow) bool {
		if _, own := local[f.Policy().Src]; own {
			return true // the node always reaches its pods
		}
		looked++
		was, is := Judge(ev, before, f, local), Judge(ev, after, f, local)
		// The flow itself says whether it was cut: it may be one of a policy that nobody has now.
		revoked := f.Mark&marks.Mask() == marks.Revoked()
		switch {
		case !revoked && was.Action == engine.Allow && is.Action == engine.Deny:
			changes = append(changes, changeOf(f, &is, true))
		case revoked && was.Action == engine.Deny && is.Action == engine.Allow:
			changes = append(changes, changeOf(f, &is, false))
		}
		return true
	})
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(changes, func(a, b Change) int {
		return cmp.Or(a.Src.Addr.Compare(b.Src.Addr), a.Dst.Addr.Compare(b.Dst.Addr), cmp.Compare(a.Proto, b.Proto))
	})
	return changes, looked, nil
}

func changeOf(f *conntrack.Flow, v *engine.Verdict, cut bool) Change {
	flow := f.Policy()
	c := Change{
		Proto: rule.ProtoName(flow.Proto), Cut: cut, Direction: v.Direction.String(), Reason: v.Reason.String(),
		Src: Side{netip.AddrPortFrom(flow.Src, flow.SrcPort), nameOf(v.Src)},
		Dst: Side{netip.AddrPortFrom(flow.Dst, flow.DstPort), nameOf(v.Dst)},
	}
	d := v.Ingress
	if v.Direction == engine.Egress || d == nil {
		d = v.Egress
	}
	if d != nil {
		for _, ref := range d.Policies {
			c.Policies = append(c.Policies, ref.String())
		}
	}
	return c
}

func nameOf(e *endpoint.Endpoint) string {
	switch {
	case e == nil:
		return ""
	case e.Kind == identity.Node:
		return "node " + e.Name
	}
	return e.Namespace + "/" + e.Name
}
