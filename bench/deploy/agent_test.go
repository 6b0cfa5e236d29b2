package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/plumb"
)

// node is a node with two pods, and what is asked of the agent there.
type node struct {
	*plumb.Host
	client, server *plumb.Pod
	http           *http.Client
}

const (
	nodeName    = "node-a"
	nodeAddress = "192.168.7.1"
	serverPod   = "10.1.0.3"
	allowed     = 8080
	other       = 8081
)

func newNode(t *testing.T) *node {
	t.Helper()
	network, err := plumb.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, network) })
	n := &node{}
	if n.Host, err = network.AddHost(plumb.HostConfig{
		Name: nodeName, Addrs: []netip.Addr{netip.MustParseAddr(nodeAddress)}, Node: true,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, n.Host) })
	for _, p := range []struct {
		pod        **plumb.Pod
		name, addr string
	}{{&n.client, "client", "10.1.0.2"}, {&n.server, "server", serverPod}} {
		if *p.pod, err = n.AddPod(p.name, []netip.Addr{netip.MustParseAddr(p.addr)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeAll(t, *p.pod) })
	}
	for _, port := range []int{allowed, other} {
		n.listen(t, port)
	}
	n.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, _, a string) (net.Conn, error) { return dial(n.NS(), a) },
	}}
	return n
}

func closeAll(t *testing.T, c io.Closer) {
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// listen accepts connections in the server's pod.
func (n *node) listen(t *testing.T, port int) {
	t.Helper()
	var l net.Listener
	if err := n.server.NS().Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("%s:%d", serverPod, port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

// patience is how long a connection may take that is to be refused silently.
const patience = 1500 * time.Millisecond

func dial(from *ns.Namespace, address string) (conn net.Conn, err error) {
	err = from.Do(func() error {
		conn, err = net.DialTimeout("tcp", address, patience)
		return err
	})
	return conn, err
}

// reaches tells whether the client's pod can connect to the server's.
func (n *node) reaches(port int) bool {
	c, err := dial(n.client.NS(), fmt.Sprintf("%s:%d", serverPod, port))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// get asks the agent.
func (n *node) get(t *testing.T, path string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:9099"+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := n.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// status is the part of /status that matters here.
type status struct {
	Node                string
	Generation, Settled uint32
	Policies            int
	Errors              []string
	Reports             struct{ Elected bool }
	Sources             []struct {
		Kind, Error string
		Synced      bool
	}
}

func (n *node) status(t *testing.T) (s status) {
	t.Helper()
	if err := json.Unmarshal([]byte(n.get(t, "/status")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually asks again until the answer is yes.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !yes() {
		select {
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// populate makes the objects of the node and its pods.
func populate(t *testing.T, c *cluster) {
	t.Helper()
	ctx, core := t.Context(), c.client.CoreV1()
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName},
		Spec:       corev1.NodeSpec{PodCIDR: "10.1.0.0/24", PodCIDRs: []string{"10.1.0.0/24"}},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddress}},
		},
	}
	if _, err := core.Nodes().Create(ctx, n, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	shop := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	if _, err := core.Namespaces().Create(ctx, shop, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{"client": "10.1.0.2", "server": serverPod} {
		pod, err := core.Pods("shop").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
			Spec: corev1.PodSpec{
				NodeName: nodeName, Containers: []corev1.Container{{Name: "main", Image: "main"}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod.Status.Phase = corev1.PodRunning
		pod.Status.PodIP, pod.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
		if _, err := core.Pods("shop").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// policy isolates the server's pod but for one port.
func policy() *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "server", Namespace: "shop"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(allowed))}},
				From: []networkingv1.NetworkPolicyPeer{{
					PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
				}},
			}},
		},
	}
}

// TestAgent runs the agent as its DaemonSet says, and as nothing more.
func TestAgent(t *testing.T) {
	n := newNode(t)
	c := startCluster(t, kube.Options{Netns: n.NS().FD()})
	c.apply(t, plainManifests)
	populate(t, c)
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
	eventually(t, "the startup probe", func() bool {
		_, err := k.exec(t.Context(), k.spec.StartupProbe.Exec.Command)
		return err == nil
	})
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
	policies := c.client.NetworkingV1().NetworkPolicies("shop")
	if _, err := policies.Create(t.Context(), policy(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
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
	wanted := []string{"firstpacket_ready 1", `firstpacket_verdicts_total{direction="ingress",`, "firstpacket_policies 1"}
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
