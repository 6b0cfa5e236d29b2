package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// TestUpdate updates the pod of a node as the DaemonSet's strategy has it done: the new pod starts beside the old one,
// with the very arguments and volumes of the template, and the old one is ended once the new one's own probe says so.
// Meanwhile every allowed connection comes about, at the first attempt, and no forbidden one; established flows go on
// without a reset or a lost datagram, and what policy has cut stays cut.
func TestUpdate(t *testing.T) {
	n, c := install(t)
	n.echo(t)
	ds, err := c.client.AppsV1().DaemonSets("firstpacket").Get(t.Context(), "firstpacket", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	update := ds.Spec.UpdateStrategy.RollingUpdate
	if update == nil || update.MaxSurge.String() != "1" || update.MaxUnavailable.String() != "0" {
		t.Fatalf("the update strategy does not let two agents overlap: %+v", ds.Spec.UpdateStrategy)
	}

	begin := func(name string) (*kubelet, *exec.Cmd, func() string) {
		k := newKubelet(t, c, n.NS(), nodeName, nodeAddress)
		output, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { output.Close() })
		cmd := k.run(t, output)
		said := func() string {
			b, err := os.ReadFile(output.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		k.waitStarted(t)
		return k, cmd, said
	}
	_, old, oldSaid := begin("old")
	cut := n.open(t, probe.TCP, forbidden)
	isolate(t, c)
	eventually(t, "the policy in force", func() bool {
		s := n.status(t)
		return s.Policies == 1 && s.Settled == s.Generation
	})
	traffic, flows := n.talk(), n.hold(t, cut)
	for traffic.made() < 20 {
		time.Sleep(10 * time.Millisecond)
	}
	flows.waitMore(t)
	k, next, nextSaid := begin("new")
	flows.waitMore(t)
	before := traffic.made()
	if err := stop(old); err != nil {
		t.Errorf("the old agent ends with %v: %s", err, oldSaid())
	}
	if !strings.Contains(oldSaid(), "another agent has taken over") {
		t.Errorf("the old agent was ended before it had been replaced: %s", oldSaid())
	}
	for traffic.made() < before+20 {
		time.Sleep(10 * time.Millisecond)
	}
	flows.waitMore(t)
	flows.end(t)
	failed, passed := traffic.end()
	if failed > 0 || passed > 0 {
		t.Errorf("%d of %d allowed connections failed, %d forbidden ones came about; new agent: %s", failed, traffic.made(),
			passed, nextSaid())
	}
	// The node's port is the new one's now.
	eventually(t, "the new agent has the node's port", func() bool {
		_, err := k.exec(t.Context(), []string{"/firstpacket", "probe", "--http-address", "127.0.0.1:9099"})
		return err == nil
	})
	if err := stop(next); err != nil {
		t.Errorf("the new agent ends with %v: %s", err, nextSaid())
	}
}
