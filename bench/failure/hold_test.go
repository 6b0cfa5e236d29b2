package failure

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// delayed is a bed whose agent reads a copy of the lab's directory, so that it learns of pods later than they are
// there.
type delayed struct {
	*bed
	dir string
}

func newDelayed(t *testing.T, args ...string) *delayed {
	d := &delayed{dir: t.TempDir()}
	args = append([]string{"--manifests", d.dir}, args...)
	// A ready agent needs the node, so the first copy is made before anyone waits.
	node := []byte(`{apiVersion: v1, kind: Node, metadata: {name: one},
spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24, "fd10:244::/64"]}}`)
	if err := os.WriteFile(filepath.Join(d.dir, "node-one.yaml"), node, 0o600); err != nil {
		t.Fatal(err)
	}
	d.bed = newBedOf(t, cluster, lab.Options{AgentArgs: args})
	d.tell()
	return d
}

// tell has the agent know what the lab knows; files that were there before stay what they are.
func (d *delayed) tell() {
	d.t.Helper()
	files, err := filepath.Glob(filepath.Join(d.Dir(), "*.yaml"))
	d.must(err)
	for _, f := range files {
		content, err := os.ReadFile(f)
		d.must(err)
		d.must(os.WriteFile(filepath.Join(d.dir, ".new"), content, 0o600))
		d.must(os.Rename(filepath.Join(d.dir, ".new"), filepath.Join(d.dir, filepath.Base(f))))
	}
}

func (d *delayed) pod(name, app string) string {
	return strings.NewReplacer("NAME", name, "APP", app).Replace(
		`{apiVersion: v1, kind: Pod, metadata: {name: NAME, labels: {app: APP}},
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}]}]}}`)
}

// TestFirstConnectionOfANewPod: a pod speaks, and is spoken to, before the agent has heard of it. Its packet waits.
func TestFirstConnectionOfANewPod(t *testing.T) {
	t.Parallel()
	d := newDelayed(t, "--hold-time", "10s")
	ctx, cancel := d.ctx()
	defer cancel()
	d.must(d.ApplyYAML(ctx, admitting("client")+"\n---\n"+policyFor("fresh", "fresh", "friend")))
	d.tell()
	d.must(d.WaitApplied(ctx))
	d.must(d.ApplyYAML(ctx, d.pod("new-client", "client")+"\n---\n"+d.pod("new-stranger", "stranger")+"\n---\n"+
		d.pod("new-server", "fresh")))
	pairs := []struct {
		from, to string
		allowed  bool
	}{
		{"new-client", "server", true},
		{"new-stranger", "server", false},
		{"friend", "new-server", true},
		{"client", "new-server", false},
	}
	var probes []probe.Probe
	for _, p := range pairs {
		wait := 900 * time.Millisecond // less than it takes until a SYN is sent again
		probes = append(probes, probe.Probe{
			From: d.place(p.from).NS, To: d.place(p.to).At(false, 80), Proto: probe.TCP, Wait: wait,
		})
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		eventually(t, "packets are held", func() bool { return d.metrics().Sum("firstpacket_queue_held_packets") >= 4 })
		d.tell()
	}()
	results, err := d.Probe(ctx, probes...)
	<-told
	d.must(err)
	for i, p := range pairs {
		if r := results[i]; (r.Outcome == probe.Reached) != p.allowed {
			t.Errorf("%s to %s: %v, want allowed %t", p.from, p.to, r, p.allowed)
		}
	}
	// When the agent never hears of a pod, its connections fail.
	d.must(d.ApplyYAML(ctx, d.pod("unknown", "client")))
	d.denied("unknown", "server")
	d.denied("friend", "unknown")
}
