package failure

import (
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

const dnsPod = `{apiVersion: v1, kind: Pod,
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}},
spec: {nodeName: one, containers: [{name: c, ports: [{name: dns, containerPort: 5353, protocol: UDP}]}]}}`

// TestDNSIsPrewarmed: the first question of an isolated pod meets a kernel that knows the answer, if policy allows it.
func TestDNSIsPrewarmed(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(dnsPod)
	b.apply(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: client-egress},
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],
egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: friend-egress},
spec: {podSelector: {matchLabels: {app: friend}}, policyTypes: [Egress], egress: []}}`)
	server, err := b.Place("kube-system/coredns")
	b.must(err)
	ask := func(from string, v6 bool) probe.Result {
		r, err := b.Probe(t.Context(), probe.Probe{From: b.place(from).NS, To: server.At(v6, 5353), Proto: probe.UDP})
		b.must(err)
		return r[0]
	}
	queued := func() float64 { return b.metrics().Sum("firstpacket_queue_packets_total") }
	inKernel := func(when string) {
		t.Helper()
		before := queued()
		for _, v6 := range []bool{false, true} {
			if r := ask("client", v6); r.Outcome != probe.Reached {
				t.Errorf("%s, allowed, IPv6 %t: %v", when, v6, r)
			}
		}
		if n := queued() - before; n != 0 {
			t.Errorf("%s, %v questions of an allowed pod went to userspace", when, n)
		}
	}
	inKernel("at first")
	// With a new range of pod addresses the cache is emptied.
	b.apply(`{apiVersion: v1, kind: Node, metadata: {name: one},
spec: {podCIDR: 10.250.0.0/24, podCIDRs: [10.250.0.0/24, "fd10:250::/64"]}}`)
	eventually(t, "the new range is settled", func() bool {
		st := b.status()
		return st.Settled == st.Generation
	})
	inKernel("after the cache was emptied")
	if r := ask("friend", false); !r.Denied() {
		t.Errorf("forbidden: %v", r)
	}
	b.apply(policyFor("client-egress", "nobody")) // another policy of the name: the client is not isolated any more
	b.apply(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: client-egress},
spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: []}}`)
	if r := ask("client", false); !r.Denied() {
		t.Errorf("forbidden now: %v", r)
	}
}
