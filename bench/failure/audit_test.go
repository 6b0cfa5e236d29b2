package failure

import (
	"slices"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// logged tells whether the agent's flow log has a line for TCP from one pod to port 80 of another.
func logged(a *agents.Agent, verdict, reason, from, to string, policies ...string) bool {
	return slices.ContainsFunc(a.Output().Records(), func(r agents.Record) bool {
		return r.Verdict == verdict && r.Reason == reason && r.Src.Pod == from && r.Dst.Pod == to && r.Proto == "tcp" &&
			r.Dst.Port == 80 && slices.Equal(r.Policies, policies)
	})
}

// TestAudit runs an agent that only audits: nothing is refused, be it there or not, and the log says what would be.
func TestAudit(t *testing.T) {
	t.Parallel()
	b := newBedOf(t, cluster, lab.Options{AgentArgs: []string{"--audit"}})
	old := b.flow("client", "server", probe.TCP, false)
	b.apply(admitting("friend"))
	const policy = "NetworkPolicy/default/server"
	for _, from := range []string{"friend", "client", "bystander"} {
		b.reaches(from, "server")
	}
	for _, from := range []string{"client", "bystander"} {
		eventually(t, "the log names what would be denied: "+from, func() bool {
			return logged(b.agent(), "would-deny", "no-rule-matches", from, "server", policy)
		})
	}
	// Established flows never open a connection that could be told of.
	eventually(t, "the log names the established flow that would be cut", func() bool {
		return logged(b.agent(), "would-deny", "revoked", "client", "server", policy)
	})
	if r := old.Exchange(); r.Outcome != probe.Reached {
		t.Errorf("the established flow: %v", r)
	}
	if s := b.status(); !s.Audit || s.Revoked != 0 {
		t.Errorf("status %+v, want audit and nothing revoked", s)
	}
	for _, r := range b.agent().Output().Records() {
		if r.Verdict != "would-deny" || r.Src.Pod == "friend" {
			t.Errorf("the log says %s", r.Line)
		}
	}
	if n := b.metrics().Sum("firstpacket_kernel_packets_total", `="refused"`); n != 0 {
		t.Errorf("%v packets were refused", n)
	}

	b.apply(policyFor("friend", "friend"))
	b.must(b.Kill("one"))
	b.reaches("client", "server")
	b.reaches("client", "friend") // a tuple that nobody has learnt, and nobody to ask
}

// TestAuditAndBack changes the mode at the hand-over from one agent to the next, with flows that policy forbids.
func TestAuditAndBack(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend"))
	b.denied("client", "server") // the kernel remembers this refusal for seconds
	cut := b.flow("friend", "server", probe.TCP, false)
	b.apply(admitting())
	cut.Wait = probe.DefaultWait
	if r := cut.Exchange(); !r.Denied() {
		t.Fatalf("a flow that is no longer allowed: %v", r)
	}
	next := func(old *agents.Agent, args ...string) *agents.Agent {
		t.Helper()
		ctx, cancel := b.ctx()
		defer cancel()
		a := b.second(args...)
		b.must(a.Start())
		eventually(t, "the old agent ends", func() bool { return !old.Running() })
		b.must(a.WaitReady(ctx))
		return a
	}
	auditing := next(b.agent(), "--audit")
	cut.Wait = patience
	b.reaches("client", "server")
	if r := cut.Exchange(); r.Outcome != probe.Reached {
		t.Errorf("a flow that an earlier agent cut: %v", r)
	}
	passed := b.flow("client", "server", probe.TCP, false)
	eventually(t, "the log names what would be denied", func() bool {
		return logged(auditing, "would-deny", "no-rule-matches", "client", "server", "NetworkPolicy/default/server")
	})

	enforcing := next(auditing)
	for _, f := range []*probe.Flow{cut, passed} {
		f.Wait = probe.DefaultWait
		if r := f.Exchange(); !r.Denied() {
			t.Errorf("a flow that passed while nothing was enforced: %v", r)
		}
	}
	b.denied("client", "server") // though its tuple had been learnt
	b.denied("friend", "server")
	if s, err := statusOf(enforcing); err != nil || s.Audit || s.Revoked < 2 {
		t.Errorf("status %+v, %v; want two flows revoked", s, err)
	}
}

// TestAuditedPolicies: policies in audit mode beside one that is enforced, in two tiers.
func TestAuditedPolicies(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend") + `
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy,
 metadata: {name: next, annotations: {firstpacket.dev/mode: audit}},
 spec: {podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}}
---
{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy,
 metadata: {name: fence, annotations: {firstpacket.dev/mode: audit}},
 spec: {tier: Admin, priority: 10,
        subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: bystander}}}},
        ingress: [{action: Deny, from: [{namespaces: {}}]}]}}`)
	b.denied("client", "server")
	b.reaches("friend", "server")
	b.reaches("client", "bystander")
	eventually(t, "the log names what would be allowed", func() bool {
		return logged(b.agent(), "would-allow", "allowed-by-rule", "client", "server", "NetworkPolicy/default/next")
	})
	eventually(t, "and, beside it, what is denied", func() bool {
		return logged(b.agent(), "deny", "no-rule-matches", "client", "server", "NetworkPolicy/default/server")
	})
	eventually(t, "and what would be denied", func() bool {
		return logged(b.agent(), "would-deny", "denied-by-rule", "client", "bystander", "ClusterNetworkPolicy/fence")
	})
	if logged(b.agent(), "would-deny", "no-rule-matches", "friend", "server", "NetworkPolicy/default/server") {
		t.Error("what is allowed in both modes is told of")
	}
}
