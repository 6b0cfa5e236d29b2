package explain

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/policycache/term"
)

// WriteText writes the answer in words.
func (a *Answer) WriteText(w io.Writer, style term.Style) error {
	t := text{Style: style}
	for i := range a.Flows {
		if i > 0 {
			t.line("")
		}
		t.flow(&a.Flows[i])
	}
	if _, err := io.WriteString(w, t.String()); err != nil {
		return fmt.Errorf("writing the explanation: %w", err)
	}
	return nil
}

// text is what has been put into words.
type text struct {
	strings.Builder
	term.Style
}

func (t *text) line(format string, args ...any) {
	fmt.Fprintf(t, format, args...)
	t.WriteByte('\n')
}

func (t *text) flow(x *engine.Explanation) {
	verdict := t.Bad("DENY ")
	if x.Action == engine.Allow {
		verdict = t.Good("ALLOW")
	}
	t.line("%s  %s -> %s, %s", verdict, nameOf(&x.Source), nameOf(&x.Destination), portOf(x))
	t.line("       %s", sentence(x))
	if x.Would != x.Action {
		t.line("       %s", t.Mixed("With the policies in audit mode enforced, it would be "+would(x.Would)+"."))
	}
	t.side("Egress of", x, &x.Source, x.Egress)
	t.side("Ingress of", x, &x.Destination, x.Ingress)
}

func would(a engine.Action) string {
	if a == engine.Allow {
		return "allowed"
	}
	return "denied"
}

func nameOf(p *engine.Party) string {
	switch p.Kind {
	case "pod":
		return fmt.Sprintf("%s/%s (%s)", p.Namespace, p.Name, p.Addr)
	case "node":
		return fmt.Sprintf("node %s (%s)", p.Name, p.Addr)
	}
	return fmt.Sprintf("%s (no pod or node)", p.Addr)
}

func portOf(x *engine.Explanation) string {
	if x.Destination.Port == 0 {
		return x.Protocol
	}
	return fmt.Sprintf("port %d/%s", x.Destination.Port, x.Protocol)
}

// sentence says why the verdict is what it is.
func sentence(x *engine.Explanation) string {
	switch x.Reason {
	case engine.NoSubject:
		return "Neither side is a pod whose policies are judged here."
	case engine.NotIsolated:
		return "No policy decides about it, and what no policy isolates is allowed."
	case engine.AllowedByRule:
		return "Every side that is judged allows it."
	case engine.DeniedByRule:
		return fmt.Sprintf("A rule denies it on %s.", x.Direction)
	case engine.NoRuleMatches:
		return fmt.Sprintf("Policies isolate the pod for %s, and none of their rules allows it.", x.Direction)
	case engine.OwnNode:
		return "A pod and the node that it runs on always reach each other."
	case engine.Hairpin:
		return "A pod always reaches itself."
	case engine.UnknownEndpoint:
		addr := x.Destination.Addr
		if x.Direction == engine.Egress {
			addr = x.Source.Addr
		}
		return unknown(addr)
	}
	return "The reason is " + x.Reason.String() + "."
}

func unknown(a netip.Addr) string {
	return fmt.Sprintf("%s is an address for pods, and no pod is known to have it.", a)
}

// side explains one direction.
func (t *text) side(title string, x *engine.Explanation, p *engine.Party, j *engine.Judgement) {
	if p.Kind != "pod" || x.Reason == engine.Hairpin || x.Reason == engine.UnknownEndpoint {
		return // no policy was asked
	}
	t.line("")
	name := t.Bold(title + " " + p.Namespace + "/" + p.Name)
	if j == nil {
		t.line("%s is judged by the agent of node %s, not here.", name, p.Node)
		return
	}
	t.line("%s: %s", name, t.decision(j))
	for i := range j.Policies {
		t.policy(i+1, j.Direction, &j.Policies[i])
	}
}

func (t *text) decision(j *engine.Judgement) string {
	d := j.Decision
	verdict := t.Bad("deny")
	if d.Allow {
		verdict = t.Good("allow")
	}
	switch d.Reason {
	case engine.NotIsolated:
		if len(j.Policies) == 0 {
			return verdict + ", no policy selects the pod for " + j.Direction.String()
		}
		return verdict + ", no policy decides"
	case engine.OwnNode:
		return verdict + ", the other side is the pod's own node"
	case engine.NoRuleMatches:
		return verdict + ", no rule allows it and the pod is isolated by " + refs(d.Policies)
	}
	return fmt.Sprintf("%s by %s of %s", verdict, ruleName(j.Direction, d.Rule, d.RuleName), refs(d.Policies))
}

func refs(list []rule.Ref) string {
	names := make([]string, len(list))
	for i, r := range list {
		names[i] = r.String()
	}
	return strings.Join(names, ", ")
}

func ruleName(d engine.Direction, index int, name string) string {
	if name != "" {
		return fmt.Sprintf("%s[%d] (%s)", d, index, name)
	}
	return fmt.Sprintf("%s[%d]", d, index)
}

// policy lists what was considered, in the order of evaluation.
func (t *text) policy(number int, d engine.Direction, c *engine.Considered) {
	about := []string{"tier " + c.Tier.String()}
	if c.Tier != rule.Namespaced {
		about = append(about, fmt.Sprintf("priority %d", c.Priority))
	}
	switch {
	case c.Audit:
		about = append(about, "in audit mode, not enforced")
	case c.Isolates:
		about = append(about, "isolates")
	}
	t.line("  %d. %s: %s; selects %s", number, t.Bold(c.Policy.String()), strings.Join(about, ", "), c.Selects)
	for _, p := range c.Problems {
		t.line("     %s %s", t.Bad("problem:"), p)
	}
	if len(c.Rules) == 0 {
		t.line("     no rules")
	}
	for i := range c.Rules {
		r := &c.Rules[i]
		outcome := t.Dim("no match")
		switch {
		case r.Decides && r.Action == rule.Pass:
			outcome = t.Mixed("passes to the next tier")
		case r.Decides && r.Action == rule.Deny:
			outcome = t.Bad("matches and decides")
		case r.Decides:
			outcome = t.Good("matches and decides")
		case r.Matches:
			outcome = "matches, does not count any more"
		}
		t.line("     %s %s: %s: %s", ruleName(d, r.Index, r.Name), r.Action, outcome, r.Why)
	}
}
