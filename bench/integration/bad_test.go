package integration

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/proxy/report"
)

// TestBadPolicy gives the agents a policy that the API server accepts and that means nothing. It fails closed for the
// pods that it selects, says so in an event, a metric, the log and the status, and leaves all others alone.
func TestBadPolicy(t *testing.T) {
	c := reporting(t)
	c.waitApplied()
	c.checkMatrix()

	c.applyYAML(`
apiVersion: v1
kind: Namespace
metadata:
  name: monitoring
  labels: {team: operations}
  annotations: {net.alpha.kubernetes.io/network-isolation: "on"}`)
	objects, err := topology.Parse("test", []byte(badAlphaPolicy))
	c.must(err)
	c.must(c.lab.Apply(t.Context(), objects...))
	c.create(alphaPolicies, badAlphaPolicy)
	c.waitApplied()
	c.checkMatrix() // nobody reaches the pods of that namespace, and all else is as before

	const policy = "NetworkPolicy.v1alpha1/monitoring/both"
	const problem = "spec.allowIncoming.from[0]"
	if e := c.event("NetworkPolicy", "both", report.EventPolicyInvalid); !strings.Contains(e.Note, problem) {
		t.Errorf("the event says %q", e.Note)
	}
	for _, node := range c.lab.Nodes() {
		a := c.agents[node.Node]
		m, err := a.Metrics(t.Context())
		c.must(err)
		if n := m.Sum("firstpacket_policies_with_problems"); n != 1 {
			t.Errorf("%s: %v policies with problems in the metrics", node.Node, n)
		}
		said := strings.Join(a.Output().Lines(), "\n")
		if !strings.Contains(said, "cannot be understood in full") || !strings.Contains(said, policy) {
			t.Errorf("%s: the log does not name the policy", node.Node)
		}
		screen, err := c.screen(node.Node)
		c.must(err)
		for _, want := range []string{"1 with problems", policy, problem} {
			if !strings.Contains(screen, want) {
				t.Errorf("%s: no %q in what status shows:\n%s", node.Node, want, screen)
			}
		}
	}
	// What has been put right is no problem any more.
	c.must(c.lab.Delete(t.Context(), topology.Ref{
		Kind: "NetworkPolicy.net.alpha.kubernetes.io", Namespace: "monitoring", Name: "both",
	}))
	c.deleteAlpha("monitoring", "both")
	c.waitApplied()
	c.checkMatrix()
	for node, a := range c.agents {
		c.eventually("the log says that the problem is gone", func() error {
			if said := strings.Join(a.Output().Lines(), "\n"); !strings.Contains(said, "no problems any more") {
				return fmt.Errorf("the log of %s does not", node)
			}
			return nil
		})
	}
}

// screen is what `firstpacket status` prints on a node.
func (c *cluster) screen(node string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	program, err := binary.Path()
	if err != nil {
		return "", err
	}
	place, err := c.lab.Place("node/" + node)
	if err != nil {
		return "", err
	}
	var out []byte
	err = place.NS.Do(func() error {
		out, err = exec.CommandContext(ctx, program, "status").CombinedOutput()
		return err
	})
	return string(out), err
}
