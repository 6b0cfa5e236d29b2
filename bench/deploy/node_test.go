package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
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
	network        *plumb.Network
	client, server *plumb.Pod
	http           *http.Client
}

const (
	nodeName    = "node-a"
	nodeAddress = "192.168.7.1"
	serverPod   = "10.1.0.3"
	allowed     = 8080
	other       = 8081
	// held and forbidden are ports of flows that last, TCP and UDP.
	held      = 8090
	forbidden = 8091
)

func newNode(t *testing.T) *node {
	t.Helper()
	network, err := plumb.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(t, network) })
	n := &node{network: network}
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

// install makes a node, and on it a control plane with the firewall's manifests and the node's pods.
func install(t *testing.T) (*node, *cluster) {
	t.Helper()
	n := newNode(t)
	c := startCluster(t, kube.Options{Netns: n.NS().FD()})
	c.apply(t, plainManifests)
	populate(t, c)
	return n, c
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

// isolate makes a policy that isolates the server's pod but for the ports that are allowed.
func isolate(t *testing.T, c *cluster) {
	t.Helper()
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "server", Namespace: "shop"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				Ports: []networkingv1.NetworkPolicyPort{
					{Port: new(intstr.FromInt32(allowed))}, {Port: new(intstr.FromInt32(held))},
					{Protocol: new(corev1.ProtocolUDP), Port: new(intstr.FromInt32(held))},
				},
				From: []networkingv1.NetworkPolicyPeer{{
					PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
				}},
			}},
		},
	}
	if _, err := c.client.NetworkingV1().NetworkPolicies("shop").
		Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
