package engine

import (
	"fmt"
	"net/netip"

	"github.com/firstpacket/firstpacket/classify/endpoint"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Action is what is to be done with a packet.
type Action uint8

const (
	// Deny is the zero Action on purpose: a Verdict that nobody filled in lets nothing pass.
	Deny Action = iota
	// Allow lets the flow pass.
	Allow
	// Hold asks to wait: an address inside the cluster's pod CIDRs is not known yet.
	Hold
)

func (a Action) String() string { return enum([]string{"deny", "allow", "hold"}, int(a)) }

// MarshalText makes actions readable in JSON.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Hook is the place in the kernel where the packet was seen. Only there can it be told whether an address of this
// node is the real sender or a forged one.
type Hook uint8

const (
	// Forward sees packets between pods, and between pods and other machines.
	Forward Hook = iota
	// Input sees packets to the node itself.
	Input
	// Output sees packets that the node itself sends.
	Output
)

func (h Hook) String() string { return enum([]string{"forward", "input", "output"}, int(h)) }

// MarshalText makes hooks readable in JSON.
func (h Hook) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// Direction is seen from the pod that policies select.
type Direction uint8

const (
	// NoDirection stands where no pod was judged.
	NoDirection Direction = iota
	// Ingress is judged for the destination.
	Ingress
	// Egress is judged for the source.
	Egress
)

func (d Direction) String() string { return enum([]string{"", "ingress", "egress"}, int(d)) }

// MarshalText makes directions readable in JSON.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Reason says why a verdict or decision is what it is.
type Reason uint8

const (
	// NoReason is the zero Reason; no verdict has it.
	NoReason Reason = iota
	// NoSubject: neither address belongs to a pod of this node, so there is nothing to judge here.
	NoSubject
	// NotIsolated: no policy that selects the pod covers the direction, or none decided.
	NotIsolated
	// AllowedByRule: a rule accepts the flow.
	AllowedByRule
	// DeniedByRule: a rule of the Admin or Baseline tier denies the flow.
	DeniedByRule
	// NoRuleMatches: policies isolate the pod and no rule of theirs allows the flow.
	NoRuleMatches
	// OwnNode: a pod and the node it runs on always reach each other.
	OwnNode
	// Hairpin: a pod always reaches itself.
	Hairpin
	// MidStreamReverse: a TCP packet that opens no connection is allowed as the answer in a flow of the other
	// orientation.
	MidStreamReverse
	// Malformed: the packet cannot be read and belongs to an isolated pod, or to nobody can tell whom.
	Malformed
	// MalformedNotIsolated: the packet cannot be read, but no policy is about its addresses.
	MalformedNotIsolated
	// UnknownEndpoint: an address of this node's pod CIDRs belongs to no pod that is known.
	UnknownEndpoint
	// AwaitingEndpoint: the verdict waits for the cluster to say whose address it is.
	AwaitingEndpoint

	reasons // their number
)

var reasonNames = []string{
	"", "no-local-subject", "not-isolated", "allowed-by-rule", "denied-by-rule", "no-rule-matches", "own-node",
	"hairpin", "mid-stream-reverse", "malformed", "malformed-not-isolated", "unknown-endpoint", "awaiting-endpoint",
}

func (r Reason) String() string { return enum(reasonNames, int(r)) }

// MarshalText makes reasons readable in JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Reasons yields every reason that a verdict can have, for counters made at start.
func Reasons(yield func(Reason) bool) {
	for r := NoSubject; r < reasons; r++ {
		if !yield(r) {
			return
		}
	}
}

// Decision is the outcome of one direction. Decisions are shared and immutable; they stay valid for as long as they
// are referred to, whatever becomes of the policies.
type Decision struct {
	Allow  bool   `json:"allow"`
	Reason Reason `json:"reason"`
	// Tier decided; 0 where no tier did.
	Tier rule.Tier `json:"tier,omitempty"`
	// Policies holds the policy whose rule decided, or all policies that isolate the pod if no rule matched.
	Policies []rule.Ref `json:"policies,omitempty"`
	// Rule is the index of the deciding rule in the policy's list for the direction; -1 if no rule decided.
	Rule int `json:"rule"`
	// RuleName is that rule's own name, where it has one.
	RuleName string `json:"ruleName,omitempty"`
	// Would is what would be decided if the policies in audit mode were enforced; nil where that allows, or denies,
	// just the same.
	Would *Decision `json:"would,omitempty"`
}

// would is the decision with the policies in audit mode enforced.
func (d *Decision) would() *Decision {
	if d != nil && d.Would != nil {
		return d.Would
	}
	return d
}

// allows holds for sides that nothing was decided for, too.
func (d *Decision) allows() bool { return d == nil || d.Allow }

// The decisions that no policy takes part in.
var (
	notIsolated = &Decision{Allow: true, Reason: NotIsolated, Rule: -1}
	ownNode     = &Decision{Allow: true, Reason: OwnNode, Rule: -1}
)

// Verdict is the answer for one packet. The zero Verdict denies.
type Verdict struct {
	Action Action
	Reason Reason
	// Direction is the one that denied; egress is looked at first.
	Direction Direction
	// Src and Dst own the addresses; nil for external and unknown ones.
	Src, Dst *endpoint.Endpoint
	// Egress and Ingress are what was decided for the source and for the destination; nil where that is no pod of
	// this node or was not asked. After MidStreamReverse they are the decisions of the packet's own orientation.
	Egress, Ingress *Decision
	// Awaited is the unknown address, with Hold.
	Awaited netip.Addr

	// wouldAnswer: with nothing in audit mode, the packet would be allowed as the answer in a flow of the other
	// orientation, if not by itself.
	wouldAnswer bool
}

// Would is the Action if nothing was in audit mode. After MidStreamReverse it is the Action itself: what opened the
// flow has been judged before.
func (v *Verdict) Would() Action {
	switch {
	case v.Action == Hold || v.Reason == MidStreamReverse:
		return v.Action
	case v.Reason == Malformed || v.Reason == UnknownEndpoint:
		return Deny
	case v.Egress == nil && v.Ingress == nil:
		return v.Action
	}
	if v.wouldAnswer || v.Egress.would().allows() && v.Ingress.would().allows() {
		return Allow
	}
	return Deny
}

// Enforced is the verdict if nothing was in audit mode, for the log: with the direction, the reason and the decisions
// that would count.
func (v *Verdict) Enforced() Verdict {
	e := *v
	if e.Action = v.Would(); e.Action == v.Action || v.Egress == nil && v.Ingress == nil {
		return e
	}
	e.Action, e.Reason, e.Direction = Deny, NoReason, NoDirection
	e.Egress, e.Ingress = v.Egress.would(), v.Ingress.would()
	e.conclude()
	if e.Action == Deny && v.wouldAnswer {
		e.Action, e.Reason, e.Direction = Allow, MidStreamReverse, NoDirection
	}
	return e
}

// Hypothetical is an Action that is not taken.
type Hypothetical Action

func (h Hypothetical) String() string { return enum([]string{"would-deny", "would-allow"}, int(h)) }

func enum(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("%d", i)
}
