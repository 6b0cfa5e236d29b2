// Package world generates clusters of any size for benchmarks, as the API objects that a cluster would have.
//
// A world has a small stage that traffic runs on, and a crowd around it: pods in namespaces of 500, in deployments of
// 20, on nodes of 100, and policies that select them. The stage is one node with one namespace, in which the server's
// addresses are pods and the client's addresses are pods. Objects are made when they are asked for, so that a world
// of a hundred thousand pods takes no memory by itself.
package world

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Names on the stage.
const (
	Node      = "stage"
	Namespace = "stage"
)

// Addresses of the stage.
var (
	// PodCIDR is the range of the stage's node.
	PodCIDR = netip.MustParsePrefix("10.244.0.0/24")
	server  = netip.MustParseAddr("10.244.0.128")
	client  = netip.MustParseAddr("10.244.0.16")
	noisy   = netip.MustParseAddr("10.244.0.8")
)

// Servers and Clients are the number of addresses on either side.
const (
	Servers = 16
	Clients = 8
)

// ServerAddrs are the addresses of the pods that policies isolate.
func ServerAddrs() []netip.Addr { return from(server, Servers) }

// ClientAddrs are the addresses of the pods that policies let reach the servers.
func ClientAddrs() []netip.Addr { return from(client, Clients) }

// NoisyAddr is the address of a pod that no policy admits.
func NoisyAddr() netip.Addr { return noisy }

func from(a netip.Addr, n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i], a = a, a.Next()
	}
	return list
}

// World says how large a cluster is.
type World struct {
	// Pods is the number of pods in the crowd.
	Pods int
	// StagePolicies select the servers; the last one, alone, lets the clients in. 0 leaves the servers open to all.
	StagePolicies int
	// Policies select pods of the crowd.
	Policies int
}

const (
	podsPerNamespace  = 500
	podsPerDeployment = 20
	podsPerNode       = 100
)

// Namespaces are the stage's and the crowd's.
func (w World) Namespaces(yield func(*corev1.Namespace) bool) {
	if !yield(namespace(Namespace)) {
		return
	}
	for i := range w.crowdNamespaces() {
		if !yield(namespace(crowdNamespace(i))) {
			return
		}
	}
}

func (w World) crowdNamespaces() int { return (w.Pods + podsPerNamespace - 1) / podsPerNamespace }

func crowdNamespace(i int) string { return fmt.Sprintf("team-%03d", i) }

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"kubernetes.io/metadata.name": name, "team": name,
		}},
	}
}

// Nodes are the stage's and the crowd's.
func (w World) Nodes(yield func(*corev1.Node) bool) {
	if !yield(node(Node, "192.0.2.1", PodCIDR.String())) {
		return
	}
	for i := range (w.Pods + podsPerNode - 1) / podsPerNode {
		address := fmt.Sprintf("192.168.%d.%d", i>>8, i&255)
		// The pods of a node are numbered through, so that no range is theirs alone.
		if !yield(node(crowdNode(i), address, "")) {
			return
		}
	}
}

func crowdNode(i int) string { return fmt.Sprintf("node-%04d", i) }

func node(name, address, podCIDR string) *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/hostname": name}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}},
	}
	if podCIDR != "" {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = podCIDR, []string{podCIDR}
	}
	return n
}

// EachPod yields the stage's pods and the crowd.
func (w World) EachPod(yield func(*corev1.Pod) bool) {
	for i, a := range ServerAddrs() {
		if !yield(pod(Namespace, fmt.Sprintf("server-%d", i), Node, a, map[string]string{"app": "server"}, i)) {
			return
		}
	}
	for i, a := range ClientAddrs() {
		if !yield(pod(Namespace, fmt.Sprintf("client-%d", i), Node, a, map[string]string{"app": "client"}, i)) {
			return
		}
	}
	if !yield(pod(Namespace, "noisy", Node, noisy, map[string]string{"app": "noisy"}, 0)) {
		return
	}
	for i := range w.Pods {
		deployment := i / podsPerDeployment
		p := pod(crowdNamespace(i/podsPerNamespace), fmt.Sprintf("app-%05d-7d4b9c6f5d-%05x", deployment, i),
			crowdNode(i/podsPerNode), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}),
			map[string]string{
				"app": fmt.Sprintf("app-%05d", deployment), "tier": [...]string{"front", "back", "data"}[deployment%3],
				"pod-template-hash": "7d4b9c6f5d",
			}, i)
		if !yield(p) {
			return
		}
	}
}

// pod is as an API server has it, with what firstpacket does not need left out but for a container.
func pod(namespace, name, node string, a netip.Addr, labels map[string]string, serial int) *corev1.Pod {
	started := metav1.Unix(1_700_000_000+int64(serial), 0)
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, Labels: labels, CreationTimestamp: started,
			UID: types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", serial, a.As4())),
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{
			Name: "main", Image: "registry.example/app:v1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: a.String(), PodIPs: []corev1.PodIP{{IP: a.String()}}, StartTime: &started,
		},
	}
}

// EachPolicy yields the policies of the stage, and then the crowd's.
func (w World) EachPolicy(yield func(*networkingv1.NetworkPolicy) bool) {
	for i := range w.StagePolicies {
		peer := fmt.Sprintf("peer-%d", i)
		if i == w.StagePolicies-1 {
			peer = "client"
		}
		if !yield(StagePolicy(i, peer, 1)) {
			return
		}
	}
	for i := range w.Policies {
		if !yield(w.crowdPolicy(i)) {
			return
		}
	}
}

// StagePolicy lets the pods labelled app=peer reach the servers, on every TCP and UDP port from first on.
func StagePolicy(number int, peer string, first int32) *networkingv1.NetworkPolicy {
	return policy(Namespace, fmt.Sprintf("servers-%05d", number), "server", networkingv1.NetworkPolicyIngressRule{
		From: []networkingv1.NetworkPolicyPeer{{PodSelector: app(peer)}},
		Ports: []networkingv1.NetworkPolicyPort{
			{Protocol: new(corev1.ProtocolTCP), Port: new(intstr.FromInt32(first)), EndPort: new(int32(65535))},
			{Protocol: new(corev1.ProtocolUDP), Port: new(intstr.FromInt32(first)), EndPort: new(int32(65535))},
		},
	})
}

// crowdPolicy has peers of all kinds: pods of the namespace, of another one, and addresses.
func (w World) crowdPolicy(i int) *networkingv1.NetworkPolicy {
	namespaces := max(w.crowdNamespaces(), 1)
	in := i % namespaces
	first := in * podsPerNamespace / podsPerDeployment
	deployment := func(n int) string {
		return fmt.Sprintf("app-%05d", first+n%(podsPerNamespace/podsPerDeployment))
	}
	return policy(crowdNamespace(in), fmt.Sprintf("policy-%05d", i), deployment(i/namespaces),
		networkingv1.NetworkPolicyIngressRule{
			From: []networkingv1.NetworkPolicyPeer{
				{PodSelector: app(deployment(i/namespaces + 1))},
				{
					NamespaceSelector: &metav1.LabelSelector{
						MatchLabels: map[string]string{"team": crowdNamespace((in + 1) % namespaces)},
					},
					PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "front"}},
				},
				{IPBlock: &networkingv1.IPBlock{
					CIDR:   fmt.Sprintf("172.%d.%d.0/24", 16+i>>8&15, i&255),
					Except: []string{fmt.Sprintf("172.%d.%d.128/25", 16+i>>8&15, i&255)},
				}},
			},
			Ports: []networkingv1.NetworkPolicyPort{
				{Protocol: new(corev1.ProtocolTCP), Port: new(intstr.FromString("http"))},
				{Protocol: new(corev1.ProtocolTCP), Port: new(intstr.FromInt32(int32(1000 + i%1000)))},
			},
		})
}

func app(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func policy(
	namespace, name, subject string, ingress networkingv1.NetworkPolicyIngressRule,
) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *app(subject),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{ingress},
		},
	}
}
