// Package oracle is a slow and obvious judge of NetworkPolicy, written from the API documentation over plain API
// objects. It shares no code with the compiled path that it is compared with, keeps no state, and looks at everything
// again for every question. Only tests use it.
//
// Sentences in quotes are from k8s.io/api/networking/v1, types.go.
package oracle

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Cluster is all that a verdict depends on.
type Cluster struct {
	Namespaces []*corev1.Namespace           `json:"namespaces,omitempty"`
	Nodes      []*corev1.Node                `json:"nodes,omitempty"`
	Pods       []*corev1.Pod                 `json:"pods,omitempty"`
	Policies   []*networkingv1.NetworkPolicy `json:"policies,omitempty"`
}

// Hook is where the packet is seen: "forward", "input" or "output".
type Hook string

// Probe is a packet, and the place that it is judged at.
type Probe struct {
	Src, Dst         netip.Addr
	Protocol         corev1.Protocol // any other text is a protocol without ports
	SrcPort, DstPort int32
	// MidStream: TCP, and not the first packet of a connection.
	MidStream bool
	// Fragment: not the first fragment, so the ports are not known.
	Fragment bool
	Hook     Hook
	// Node is the one that judges; its pods are protected. Empty protects the pods of all nodes.
	Node string
}

// Allowed is the verdict.
func (c *Cluster) Allowed(p Probe) bool {
	if p.Src == p.Dst {
		return true // a pod always reaches itself
	}
	if verdict, unknown := c.unknownPod(p); unknown {
		return verdict
	}
	host := c.betweenPodAndItsNode(p)
	if c.orientation(p, host) {
		return true
	}
	if !p.MidStream {
		return false
	}
	p.Src, p.Dst, p.SrcPort, p.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
	return c.orientation(p, host)
}

// unknownPod denies packets of addresses that must be pods of the node, but of none that is known. The node itself
// reaches such pods all the same.
func (c *Cluster) unknownPod(p Probe) (verdict, unknown bool) {
	src := p.Hook != "output" && c.owner(p.Src) == nil && c.inPodCIDRs(p.Node, p.Src)
	dst := p.Hook != "input" && c.owner(p.Dst) == nil && c.inPodCIDRs(p.Node, p.Dst)
	if dst && !src && p.Hook == "output" {
		if node, ok := c.owner(p.Src).(*corev1.Node); ok && node.Name == p.Node {
			return true, true
		}
	}
	return false, src || dst
}

// betweenPodAndItsNode: traffic is allowed "if the traffic source is the pod's local node", and a pod reaches its node.
func (c *Cluster) betweenPodAndItsNode(p Probe) bool {
	if pod := c.protected(p.Node, p.Src); pod != nil {
		if node, ok := c.owner(p.Dst).(*corev1.Node); ok && node.Name == pod.Spec.NodeName {
			return true
		}
		if _, ok := c.owner(p.Dst).(*corev1.Pod); !ok && p.Hook == "input" {
			return true
		}
	}
	if pod := c.protected(p.Node, p.Dst); pod != nil && p.Hook == "output" {
		if node, ok := c.owner(p.Src).(*corev1.Node); ok && node.Name == pod.Spec.NodeName {
			return true
		}
		if c.owner(p.Src) == nil && c.inPodCIDRs(p.Node, p.Src) {
			return true
		}
	}
	return false
}

// orientation judges the packet as one from a client to a server.
func (c *Cluster) orientation(p Probe, host bool) bool {
	if pod := c.protected(p.Node, p.Src); pod != nil && !host && !c.egressAllowed(pod, p) {
		return false
	}
	if pod := c.protected(p.Node, p.Dst); pod != nil && !host && !c.ingressAllowed(pod, p) {
		return false
	}
	return true
}

// ingressAllowed: "Traffic is allowed to a pod if there are no NetworkPolicies selecting the pod, OR if the traffic
// matches at least one ingress rule across all of the NetworkPolicy objects whose podSelector matches the pod."
func (c *Cluster) ingressAllowed(pod *corev1.Pod, p Probe) bool {
	isolated := false
	for _, np := range c.Policies {
		if !selectsPod(np, pod) || !affects(np, networkingv1.PolicyTypeIngress) {
			continue
		}
		isolated = true
		for _, r := range np.Spec.Ingress {
			if c.peers(np, r.From, p.Src) && c.ports(r.Ports, p) {
				return true
			}
		}
	}
	return !isolated
}

// egressAllowed is the same for egress rules.
func (c *Cluster) egressAllowed(pod *corev1.Pod, p Probe) bool {
	isolated := false
	for _, np := range c.Policies {
		if !selectsPod(np, pod) || !affects(np, networkingv1.PolicyTypeEgress) {
			continue
		}
		isolated = true
		for _, r := range np.Spec.Egress {
			if c.peers(np, r.To, p.Dst) && c.ports(r.Ports, p) {
				return true
			}
		}
	}
	return !isolated
}

// selectsPod: "podSelector selects the pods to which this NetworkPolicy object applies. An empty selector matches all
// pods in the policy's namespace."
func selectsPod(np *networkingv1.NetworkPolicy, pod *corev1.Pod) bool {
	return np.Namespace == pod.Namespace && selects(&np.Spec.PodSelector, pod.Labels)
}

// affects: "If this field is not specified, it will default based on the existence of ingress or egress rules; policies
// that contain an egress section are assumed to affect egress, and all policies (whether or not they contain an ingress
// section) are assumed to affect ingress."
func affects(np *networkingv1.NetworkPolicy, t networkingv1.PolicyType) bool {
	if len(np.Spec.PolicyTypes) == 0 {
		return t == networkingv1.PolicyTypeIngress || len(np.Spec.Egress) > 0
	}
	return slices.Contains(np.Spec.PolicyTypes, t)
}

// peers: "Items in this list are combined using a logical OR operation. If this field is empty or missing, this rule
// matches all sources."
func (c *Cluster) peers(np *networkingv1.NetworkPolicy, list []networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	for _, peer := range list {
		if c.peer(np, peer, a) {
			return true
		}
	}
	return len(list) == 0
}

func (c *Cluster) peer(np *networkingv1.NetworkPolicy, peer networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	if peer.IPBlock != nil {
		return inBlock(peer.IPBlock, a)
	}
	pod, ok := c.owner(a).(*corev1.Pod)
	if !ok {
		return false
	}
	// "If namespaceSelector is also set, then the NetworkPolicyPeer as a whole selects the pods matching podSelector in
	// the Namespaces selected by NamespaceSelector. Otherwise it selects the pods matching podSelector in the policy's
	// own namespace."
	if peer.NamespaceSelector == nil {
		if pod.Namespace != np.Namespace {
			return false
		}
	} else if !selects(peer.NamespaceSelector, c.namespaceLabels(pod.Namespace)) {
		return false
	}
	// "If podSelector is also set [...]. Otherwise it selects all pods in the namespaces selected by namespaceSelector."
	return peer.PodSelector == nil || selects(peer.PodSelector, pod.Labels)
}

// inBlock: "except is a slice of CIDRs that should not be included within an IPBlock".
func inBlock(b *networkingv1.IPBlock, a netip.Addr) bool {
	for _, e := range b.Except {
		if inCIDR(e, a) {
			return false
		}
	}
	return inCIDR(b.CIDR, a)
}

func inCIDR(cidr string, a netip.Addr) bool {
	_, n, err := net.ParseCIDR(cidr)
	if err != nil {
		panic(err) // the API server admits none
	}
	return a.Is4() == !strings.Contains(cidr, ":") && n.Contains(a.AsSlice())
}

// ports: "Each item in this list is combined using a logical OR. If this field is empty or missing, this rule matches
// all ports (traffic not restricted by port)."
func (c *Cluster) ports(list []networkingv1.NetworkPolicyPort, p Probe) bool {
	for _, port := range list {
		if c.port(port, p) {
			return true
		}
	}
	return len(list) == 0
}

func (c *Cluster) port(port networkingv1.NetworkPolicyPort, p Probe) bool {
	if p.Fragment {
		return false // whatever the rule says of ports, this packet shows none
	}
	// "If not specified, this field defaults to TCP."
	protocol := corev1.ProtocolTCP
	if port.Protocol != nil {
		protocol = *port.Protocol
	}
	if protocol != p.Protocol {
		return false
	}
	switch {
	case port.Port == nil:
		return true // "this matches all port names and numbers"
	case port.Port.Type == intstr.String:
		return c.isNamed(p.Dst, port.Port.StrVal, protocol, p.DstPort)
	case port.EndPort != nil:
		return port.Port.IntVal <= p.DstPort && p.DstPort <= *port.EndPort
	}
	return port.Port.IntVal == p.DstPort
}

// isNamed: "This can either be a numerical or named port on a pod." The pod is the one that the packet goes to, its
// containers are those that run beside each other: the ordinary ones and the sidecars.
func (c *Cluster) isNamed(dst netip.Addr, name string, protocol corev1.Protocol, number int32) bool {
	pod, ok := c.owner(dst).(*corev1.Pod)
	if !ok {
		return false
	}
	containers := append([]corev1.Container(nil), pod.Spec.Containers...)
	for _, init := range pod.Spec.InitContainers {
		if init.RestartPolicy != nil && *init.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, init)
		}
	}
	for _, container := range containers {
		for _, have := range container.Ports {
			proto := have.Protocol
			if proto == "" {
				proto = corev1.ProtocolTCP
			}
			if have.Name == name && proto == protocol && have.ContainerPort == number {
				return true
			}
		}
	}
	return false
}

// protected is the pod of the judging node that owns the address, or nil.
func (c *Cluster) protected(node string, a netip.Addr) *corev1.Pod {
	pod, ok := c.owner(a).(*corev1.Pod)
	if !ok || node != "" && pod.Spec.NodeName != node {
		return nil
	}
	return pod
}

// owner is the *corev1.Node or *corev1.Pod that an address belongs to; nil for nobody. Host-network pods use the
// address of their node, pods that have ended no longer use theirs. The pod that got an address last has it.
func (c *Cluster) owner(a netip.Addr) any {
	var best *corev1.Node
	for _, n := range c.Nodes {
		for _, have := range n.Status.Addresses {
			if sameAddr(have.Address, a) && (best == nil || n.Name > best.Name) {
				best = n
			}
		}
	}
	if best != nil {
		return best
	}
	var pod *corev1.Pod
	for _, p := range c.Pods {
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if sameAddr(ip.IP, a) && (pod == nil || newer(p, pod)) {
				pod = p
			}
		}
	}
	if pod != nil {
		return pod
	}
	return nil
}

// newer tells which of two pods with one address has it: running before pending, then the later start, then the UID.
func newer(p, than *corev1.Pod) bool {
	if running := p.Status.Phase == corev1.PodRunning; running != (than.Status.Phase == corev1.PodRunning) {
		return running
	}
	if !p.Status.StartTime.Equal(than.Status.StartTime) {
		return than.Status.StartTime.Before(p.Status.StartTime)
	}
	return p.UID > than.UID
}

func (c *Cluster) inPodCIDRs(node string, a netip.Addr) bool {
	for _, n := range c.Nodes {
		for _, cidr := range n.Spec.PodCIDRs {
			if n.Name == node && inCIDR(cidr, a) {
				return true
			}
		}
	}
	return false
}

// namespaceLabels always contain the name, as the API server sees to.
func (c *Cluster) namespaceLabels(name string) map[string]string {
	set := map[string]string{}
	for _, ns := range c.Namespaces {
		if ns.Name == name {
			maps.Copy(set, ns.Labels)
		}
	}
	set[corev1.LabelMetadataName] = name
	return set
}

func selects(s *metav1.LabelSelector, set map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		panic(err) // the API server admits none
	}
	return sel.Matches(labels.Set(set))
}

func sameAddr(text string, a netip.Addr) bool {
	have, err := netip.ParseAddr(text)
	return err == nil && have == a
}
