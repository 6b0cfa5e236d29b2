package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestAgent runs the agent as its DaemonSet says, and as nothing more.
func TestAgent(t *testing.T) {
	n, c := install(t)
	k := newKubelet(t, c, n.NS(), nodeName, nodeAddress)

	output, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		output.Close()
		if t.Failed() {
			said, _ := os.ReadFile(output.Name())
			t.Logf("the agent says:\n%s", said)
		}
	})
	agent := k.run(t, output)
	ended := false
	t.Cleanup(func() {
		if !ended {
			_ = agent.Process.Kill() // it has failed already
			_ = agent.Wait()
		}
	})
	k.waitStarted(t)
	for name, probe := range map[string]*corev1.Probe{
		"readiness": k.spec.ReadinessProbe, "liveness": k.spec.LivenessProbe,
	} {
		if said, err := k.exec(t.Context(), probe.Exec.Command); err != nil {
			t.Errorf("%s probe: %v: %s", name, err, said)
		}
	}
	process(t, k, agent.Process.Pid)
	if mapped(k.container.User) {
		bare := *k
		bare.container.Capabilities = nil
		said, err := bare.exec(t.Context(), []string{"/firstpacket", "version"})
		if err == nil || !strings.Contains(string(said), "operation not permitted") {
			t.Errorf("without NET_ADMIN for the container: %v: %s; docs/security.md says that it does not start", err, said)
		}
	}

	s := n.status(t)
	if s.Node != nodeName || len(s.Errors) > 0 {
		t.Errorf("status %+v", s)
	}
	required := map[string]bool{"Namespace": true, "Node": true, "Pod": true, "NetworkPolicy": true}
	for _, source := range s.Sources {
		// Kinds that the cluster does not have are not synced, but asking for them must not be forbidden either.
		if source.Synced != required[source.Kind] || source.Error != "" {
			t.Errorf("%s: synced %v, %s", source.Kind, source.Synced, source.Error)
		}
	}
	for _, port := range []int{allowed, other} {
		if !n.reaches(port) {
			t.Errorf("port %d is closed without a policy", port)
		}
	}
	isolate(t, c)
	eventually(t, "the policy in force", func() bool {
		s = n.status(t)
		return s.Policies == 1 && s.Settled == s.Generation
	})
	if !n.reaches(allowed) {
		t.Errorf("port %d is closed", allowed)
	}
	if n.reaches(other) {
		t.Errorf("port %d is open", other)
	}

	metrics := n.get(t, "/metrics")
	wanted := []string{
		"firstpacket_ready 1",
		`firstpacket_verdicts_total{direction="ingress",`,
		`firstpacket_policies{dialect="NetworkPolicy",state="enforced"} 1`,
	}
	if mapped(k.container.User) {
		// Only the group root may read the kernel's counters of the queues.
		wanted = append(wanted, "firstpacket_queue_dropped_packets_total{")
	}
	for _, want := range wanted {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "process_resident_memory_bytes") {
			t.Log(strings.TrimSpace(line))
		}
	}

	reports(t, c, n)

	ended = true
	if err := stop(agent); err != nil {
		t.Errorf("the agent ends with %v", err)
	}
	if n.reaches(other) {
		t.Errorf("port %d is open after the agent", other)
	}
	said, err := os.ReadFile(output.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(said), `"verdict":"deny"`) {
		t.Error("the flow log has no denied flow")
	}
}

// reports looks at what the agent writes under its own rights: it is elected, and tells of what it cannot understand.
func reports(t *testing.T, c *cluster, n *node) {
	t.Helper()
	odd := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "odd", Annotations: map[string]string{"net.alpha.kubernetes.io/network-isolation": "perhaps"},
	}}
	if _, err := c.client.CoreV1().Namespaces().Create(t.Context(), odd, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an event about what cannot be understood", func() bool {
		events, err := c.client.EventsV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events.Items {
			if e.Regarding.Kind == "Namespace" && e.Regarding.Name == "odd" && e.ReportingInstance == nodeName {
				return true
			}
		}
		return false
	})
	lease, err := c.client.CoordinationV1().Leases("firstpacket").Get(t.Context(), "firstpacket", metav1.GetOptions{})
	if err != nil || !strings.HasPrefix(*lease.Spec.HolderIdentity, nodeName) || !n.status(t).Reports.Elected {
		t.Errorf("lease %+v, %v; status %+v", lease, err, n.status(t).Reports)
	}
}

// process looks at the credentials that the agent ended up with.
func process(t *testing.T, k *kubelet, init int) {
	t.Helper()
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", init))
	if err != nil {
		t.Fatal(err)
	}
	var pid string
	for _, c := range children {
		b, err := os.ReadFile(c)
		if err != nil {
			t.Fatal(err)
		}
		pid += strings.TrimSpace(string(b))
	}
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	want := map[string]string{
		"CapEff": "0000000000001000", "CapPrm": "0000000000001000", "CapBnd": "0000000000001000", "NoNewPrivs": "1",
	}
	if mapped(k.container.User) {
		want["Uid"] = "65532 65532 65532 65532"
		want["Groups"] = "0 65532"
	}
	for name, value := range want {
		if fields[name] != value {
			t.Errorf("%s is %q, want %q", name, fields[name], value)
		}
	}
}
