package integration

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firstpacket/firstpacket/bench/lab/shop"
)

func TestShopOnAPIServer(t *testing.T) {
	objects, err := shop.Objects()
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, objects...)
	c.waitApplied()
	c.checkMatrix()

	t.Log("a policy is added, and another one changed")
	c.applyYAML(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: kube-system, name: closed}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: database}
spec:
  podSelector: {matchLabels: {app: database}}
  ingress: [{from: [{podSelector: {matchLabels: {app: frontend}}}], ports: [{port: sql}]}]`)
	c.waitApplied()
	c.checkMatrix()

	t.Log("a policy is removed")
	c.deletePolicy("kube-system", "closed")
	c.waitApplied()
	c.checkMatrix()

	t.Log("labels of a pod and of a namespace change, and a pod is added")
	c.applyYAML(`
apiVersion: v1
kind: Namespace
metadata: {name: monitoring, labels: {team: shop}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: frontend-1, labels: {app: backend}}
spec: {nodeName: node-a, containers: [{name: web, image: i, ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: frontend-3, labels: {app: frontend}}
spec: {nodeName: node-b, containers: [{name: web, image: i, ports: [{name: http, containerPort: 8080}]}]}`)
	c.waitApplied()
	c.checkMatrix()
}

// TestOddObjects feeds the agents what an API server accepts and nobody would write.
func TestOddObjects(t *testing.T) {
	objects, err := shop.Objects()
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, objects...)
	c.waitApplied()
	ctx := t.Context()

	name, number, end := intstr.FromString("no-such-port"), intstr.FromInt32(1), int32(65535)
	sctp, udp := corev1.ProtocolSCTP, corev1.ProtocolUDP
	policies := []networkingv1.NetworkPolicySpec{
		{},
		{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}},
		{Ingress: []networkingv1.NetworkPolicyIngressRule{{}}},
		{Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{
			{Port: &name}, {Port: &number, EndPort: &end, Protocol: &udp}, {Protocol: &sctp},
		}}}},
		{Egress: []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{
			{IPBlock: &networkingv1.IPBlock{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8", "10.1.0.0/16"}}},
			{IPBlock: &networkingv1.IPBlock{CIDR: "::/0"}},
			{IPBlock: &networkingv1.IPBlock{CIDR: "192.0.2.1/32"}},
			{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: &metav1.LabelSelector{
				MatchExpressions: []metav1.LabelSelectorRequirement{
					{Key: "a", Operator: metav1.LabelSelectorOpDoesNotExist},
					{Key: "b", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"", "x"}},
				},
			}},
		}}}},
	}
	odd := "odd"
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: odd, Annotations: map[string]string{
			"net.alpha.kubernetes.io/network-isolation": "perhaps",
			"net.beta.kubernetes.io/network-policy":     "{not json",
		},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, spec := range policies {
		made, err := c.client.NetworkingV1().NetworkPolicies(odd).Create(ctx, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i)}, Spec: spec,
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.note("NetworkPolicy", made)
	}
	// Pods without addresses, on no node or on one that does not exist, with an address of another pod, of both families
	// the wrong way round, with doubled and nameless ports.
	frontend, err := c.lab.Place("shop/frontend-1")
	if err != nil {
		t.Fatal(err)
	}
	taken, _ := frontend.Addr(false)
	addrs := [][]netip.Addr{nil, {taken}, {netip.MustParseAddr("fd99::1"), netip.MustParseAddr("192.0.2.9")}}
	for i, list := range addrs {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod%d", i)},
			Spec: corev1.PodSpec{NodeName: []string{"", "nowhere", "node-a"}[i], Containers: []corev1.Container{
				{Name: "a", Image: "i", Ports: []corev1.ContainerPort{{ContainerPort: 1}, {ContainerPort: 2, Name: "x"}}},
				{Name: "b", Image: "i", Ports: []corev1.ContainerPort{
					{ContainerPort: 2, Protocol: udp}, {ContainerPort: 3, Name: "y"},
				}},
			}},
		}
		made, err := c.client.CoreV1().Pods(odd).Create(ctx, pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Status.Phase = corev1.PodPending
		for _, a := range list {
			made.Status.PodIPs = append(made.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
		if len(list) > 0 {
			made.Status.PodIP = list[0].String()
		}
		if made, err = c.client.CoreV1().Pods(odd).UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.note("Pod", made)
	}
	node, err := c.client.CoreV1().Nodes().Create(ctx,
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "bare"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.note("Node", node)

	c.waitApplied()
	for name, a := range c.agents {
		if !a.Running() {
			t.Errorf("the agent of %s ended", name)
		}
		c.must(a.WaitReady(ctx))
	}
	// Nothing of this is about the shop: a pending pod does not take a running pod's address away.
	c.checkMatrix()
}
