package traps

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// TestNodeBoundary: egress is judged on the client's node, ingress on the server's, and both on the one node that has
// both pods. The denied-flow log tells which agent refused, and for which direction; egress is looked at first.
func TestNodeBoundary(t *testing.T) {
	const policy = "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\n" +
		"spec: {podSelector: {matchLabels: {%s}}, policyTypes: [%s]}\n"
	egress := fmt.Sprintf(policy, "no-egress", "role: stranger", "Egress")
	ingress := fmt.Sprintf(policy, "no-ingress", "role: client", "Ingress")
	for _, test := range []struct {
		name, policies, client, server string
		// node and direction are of the only record.
		node, direction string
	}{
		{"egress alone, two nodes", egress, "stranger", "remote", "one", "egress"},
		{"ingress alone, two nodes", ingress, "stranger", "remote", "two", "ingress"},
		{"both, two nodes", egress + ingress, "stranger", "remote", "one", "egress"},
		{"egress alone, two nodes, the other way", egress, "far", "client", "two", "egress"},
		{"ingress alone, two nodes, the other way", ingress, "far", "client", "one", "ingress"},
		{"egress alone, one node", egress, "stranger", "client", "one", "egress"},
		{"ingress alone, one node", ingress, "far", "remote", "two", "ingress"},
		{"both, one node", egress + ingress, "far", "remote", "two", "egress"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBed(t, lab.Options{}, test.policies)
			to := b.place(test.server).At(false, 80)
			b.denied(test.client, to, probe.TCP)
			got := b.denials("default", test.server)
			if want := []string{test.node + " " + test.direction}; !slices.Equal(got, want) {
				t.Errorf("refused by %q, want %q", got, want)
			}
		})
	}
}

// denials waits for records of refused flows to a pod and returns each node and direction that has some.
func (b bed) denials(namespace, pod string) []string {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	for {
		var found []string
		for _, r := range b.lab.Denied() {
			if r.Dst.Namespace == namespace && r.Dst.Pod == pod {
				found = append(found, r.Node+" "+r.Direction)
			}
		}
		if slices.Sort(found); len(found) > 0 {
			return slices.Compact(found)
		}
		select {
		case <-ctx.Done():
			b.Fatalf("no record of a refusal: %v", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
