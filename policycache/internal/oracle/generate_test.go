package oracle_test

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firstpacket/firstpacket/policycache/internal/oracle"
)

// generator makes clusters out of choices. pick(n) chooses one of 0..n-1; 0 is the simplest, so that a shrinking
// source of choices ends with simple clusters.
type generator struct {
	pick   func(n int) int
	serial int // of pods, which never repeat
}

func one[T any](g *generator, of ...T) T { return of[g.pick(len(of))] }

// some chooses a subset.
func some[T any](g *generator, of ...T) []T {
	var chosen []T
	for _, v := range of {
		if g.pick(3) == 1 {
			chosen = append(chosen, v)
		}
	}
	return chosen
}

func (g *generator) oneIn(n int) bool { return g.pick(n) == n-1 }

var (
	namespaceNames = []string{"a", "b", "c"}
	nodeNames      = []string{"n1", "n2"}
)

func (g *generator) cluster() *oracle.Cluster {
	c := &oracle.Cluster{}
	for _, name := range nodeNames {
		c.Nodes = append(c.Nodes, g.node(name))
	}
	for _, name := range namespaceNames[:1+g.pick(len(namespaceNames))] {
		c.Namespaces = append(c.Namespaces, g.namespace(name))
	}
	for range 1 + g.pick(6) {
		c.Pods = append(c.Pods, g.pod())
	}
	for i := range g.pick(6) {
		c.Policies = append(c.Policies, g.policy(g.policyNamespace(), fmt.Sprint("np", i)))
	}
	return c
}

func (g *generator) policyNamespace() string { return one(g, namespaceNames...) }

func (g *generator) node(name string) *corev1.Node {
	i := slices.Index(nodeNames, name) + 1
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: g.labels()}}
	n.Spec.PodCIDRs = []string{fmt.Sprintf("10.0.%d.0/24", i), fmt.Sprintf("fd00:%d::/64", i)}
	n.Status.Addresses = []corev1.NodeAddress{
		{Type: corev1.NodeHostName, Address: name},
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.0.%d", i)},
		{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd00:99::%d", i)},
	}
	if g.oneIn(6) {
		n.Status.Addresses = n.Status.Addresses[:2]
	}
	return n
}

func (g *generator) namespace(name string) *corev1.Namespace {
	labels := g.labels()
	labels[corev1.LabelMetadataName] = name
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func (g *generator) labels() map[string]string {
	m := map[string]string{}
	for _, key := range []string{"app", "tier"} {
		if v := one(g, "", "x", "y"); v != "" {
			m[key] = v
		}
	}
	if g.oneIn(6) {
		m["empty"] = ""
	}
	return m
}

func (g *generator) pod() *corev1.Pod {
	g.serial++
	node := g.pick(2)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: one(g, namespaceNames...), Name: fmt.Sprint("p", g.serial), Labels: g.labels(),
		// Random in life; here in no relation to the order of starts.
		UID: types.UID(fmt.Sprintf("%08x-0000-4000-8000-000000000000", uint32(g.serial)*2654435761)),
	}}
	p.Spec.NodeName = nodeNames[node]
	host := one(g, 1, 2, 3, 4)
	v4, v6 := fmt.Sprintf("10.0.%d.%d", node+1, host), fmt.Sprintf("fd00:%d::%d", node+1, host)
	for _, ip := range one(g, []string{v4}, []string{v4, v6}, []string{v6, v4}, []string{v6}, nil) {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	if g.oneIn(8) {
		p.Spec.HostNetwork = true
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("192.168.0.%d", node+1)}}
	}
	if len(p.Status.PodIPs) > 0 {
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
	p.Status.Phase = g.phase()
	start := metav1.NewTime(time.Unix(1700000000+int64(g.pick(4)), 0))
	p.Status.StartTime = &start
	for range 1 + g.pick(2) {
		p.Spec.Containers = append(p.Spec.Containers, g.container(nil))
	}
	if g.oneIn(3) {
		always := corev1.ContainerRestartPolicyAlways
		p.Spec.InitContainers = append(p.Spec.InitContainers, g.container(one(g, &always, nil)))
	}
	return p
}

func (g *generator) phase() corev1.PodPhase {
	return one(g, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning,
		corev1.PodPending, corev1.PodSucceeded, corev1.PodFailed)
}

func (g *generator) container(restart *corev1.ContainerRestartPolicy) corev1.Container {
	return corev1.Container{Name: "c", RestartPolicy: restart, Ports: some(g,
		corev1.ContainerPort{Name: "http", ContainerPort: 80},
		corev1.ContainerPort{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP},
		corev1.ContainerPort{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
		corev1.ContainerPort{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolTCP},
		corev1.ContainerPort{Name: "sig", ContainerPort: 80, Protocol: corev1.ProtocolSCTP},
		corev1.ContainerPort{ContainerPort: 81},
	)}
}

func (g *generator) policy(namespace, name string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	np.Spec.PodSelector = *g.selector()
	np.Spec.PolicyTypes = one(g, nil, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, []networkingv1.PolicyType{},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress})
	np.Spec.Ingress = one(g, nil, []networkingv1.NetworkPolicyIngressRule{})
	for range g.pick(4) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.peers(), Ports: g.ports()})
	}
	np.Spec.Egress = one(g, nil, []networkingv1.NetworkPolicyEgressRule{})
	for range g.pick(4) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: g.peers(), Ports: g.ports()})
	}
	return np
}

func (g *generator) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if g.oneIn(3) {
		s.MatchLabels = map[string]string{one(g, "app", "tier"): one(g, "x", "y")}
	}
	for range max(0, g.pick(4)-1) {
		e := metav1.LabelSelectorRequirement{Key: one(g, "app", "tier", "empty", "absent")}
		e.Operator = one(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn,
			metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = one(g, []string{"x"}, []string{"y", "x"}, []string{"z"}, []string{""})
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (g *generator) namespaceSelector() *metav1.LabelSelector {
	if g.oneIn(4) {
		name := one(g, namespaceNames...)
		return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: name}}
	}
	return g.selector()
}

func (g *generator) peers() []networkingv1.NetworkPolicyPeer {
	list := one(g, nil, []networkingv1.NetworkPolicyPeer{})
	for range g.pick(4) {
		var p networkingv1.NetworkPolicyPeer
		switch g.pick(5) {
		case 0:
			p.PodSelector = g.selector()
		case 1:
			p.NamespaceSelector = g.namespaceSelector()
		case 2:
			p.PodSelector, p.NamespaceSelector = g.selector(), g.namespaceSelector()
		default:
			p.IPBlock = g.block()
		}
		list = append(list, p)
	}
	return list
}

func (g *generator) block() *networkingv1.IPBlock {
	b := one(g,
		networkingv1.IPBlock{
			CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/8", "10.0.1.0/24", "10.0.1.1/32", "192.168.0.0/16"},
		},
		networkingv1.IPBlock{CIDR: "0.0.0.0/1", Except: []string{"10.0.2.0/23", "10.0.1.2/31"}},
		networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.0.1.0/24", "10.0.1.0/25", "10.0.2.2/32"}},
		networkingv1.IPBlock{CIDR: "10.0.1.0/24", Except: []string{"10.0.1.0/30", "10.0.1.1/32"}},
		networkingv1.IPBlock{CIDR: "10.0.2.9/24", Except: []string{"10.0.2.3/30"}},
		networkingv1.IPBlock{CIDR: "10.0.1.1/32"},
		networkingv1.IPBlock{CIDR: "192.168.0.1/32"},
		networkingv1.IPBlock{CIDR: "203.0.113.0/24", Except: []string{"203.0.113.7/32", "203.0.113.0/28"}},
		networkingv1.IPBlock{CIDR: "::/0", Except: []string{"fd00::/8", "fd00:1::/64", "2001:db8::/32"}},
		networkingv1.IPBlock{CIDR: "fd00:1::/64", Except: []string{"fd00:1::1/128", "fd00:1::/126"}},
		networkingv1.IPBlock{CIDR: "fd00:2::2/128"},
		networkingv1.IPBlock{CIDR: "2001:db8::/32"},
	)
	b.Except = some(g, b.Except...)
	return &b
}

func (g *generator) ports() []networkingv1.NetworkPolicyPort {
	list := one(g, nil, []networkingv1.NetworkPolicyPort{})
	for range max(0, g.pick(5)-1) {
		var p networkingv1.NetworkPolicyPort
		if proto := one(g, "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP); proto != "" {
			p.Protocol = &proto
		}
		switch g.pick(5) {
		case 0:
		case 1:
			v := intstr.FromString(one(g, "http", "dns", "sig", "unknown"))
			p.Port = &v
		case 2:
			v := intstr.FromInt32(one[int32](g, 1, 53, 80, 8000))
			end := v.IntVal + one[int32](g, 0, 1, 100)
			if g.oneIn(4) {
				end = 65535
			}
			p.Port, p.EndPort = &v, &end
		default:
			v := intstr.FromInt32(one[int32](g, 80, 53, 81, 8080, 65535))
			p.Port = &v
		}
		list = append(list, p)
	}
	return list
}

// strangers are addresses of nobody: outside of the cluster, and inside its pod CIDRs.
var strangers = []string{
	"203.0.113.7", "203.0.113.99", "8.8.8.8", "10.0.1.77", "10.0.2.77", "10.0.3.1",
	"2001:db8::1", "fd00:1::77", "fd00:2::2", "2a00::1",
}

// addresses are all that are worth asking about, each once.
func addresses(c *oracle.Cluster) []netip.Addr {
	var list []netip.Addr
	add := func(s string) {
		if a, err := netip.ParseAddr(s); err == nil {
			list = append(list, a)
		}
	}
	for _, p := range c.Pods {
		for _, ip := range p.Status.PodIPs {
			add(ip.IP)
		}
	}
	for _, n := range c.Nodes {
		for _, a := range n.Status.Addresses {
			add(a.Address)
		}
	}
	for _, s := range strangers {
		add(s)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// sample chooses which of all probes are asked: every stride-th from the offset on. Many clusters asked a little find
// more than few that are asked everything.
type sample struct{ stride, offset int }

var everything = sample{stride: 1}

func (g *generator) sample() sample { return sample{stride: 9, offset: g.pick(9)} }

// probes yields packets between all addresses of one family.
func probes(addrs []netip.Addr, node string, part sample) func(func(oracle.Probe) bool) {
	kinds := []oracle.Probe{
		{Protocol: corev1.ProtocolTCP, SrcPort: 40000, DstPort: 80},
		{Protocol: corev1.ProtocolTCP, SrcPort: 80, DstPort: 8080},
		{Protocol: corev1.ProtocolTCP, SrcPort: 80, DstPort: 40000, MidStream: true},
		{Protocol: corev1.ProtocolTCP, SrcPort: 53, DstPort: 65535},
		{Protocol: corev1.ProtocolTCP, SrcPort: 1, DstPort: 53},
		{Protocol: corev1.ProtocolTCP, Fragment: true},
		{Protocol: corev1.ProtocolUDP, SrcPort: 40000, DstPort: 53},
		{Protocol: corev1.ProtocolUDP, SrcPort: 53, DstPort: 81},
		{Protocol: corev1.ProtocolSCTP, SrcPort: 40000, DstPort: 80},
		{Protocol: "ICMP"},
		{Protocol: corev1.ProtocolTCP, SrcPort: 40000, DstPort: 80, Hook: "output"},
		{Protocol: corev1.ProtocolTCP, SrcPort: 40000, DstPort: 80, Hook: "input"},
	}
	return func(yield func(oracle.Probe) bool) {
		i := 0
		for _, src := range addrs {
			for _, dst := range addrs {
				if src.Is4() != dst.Is4() {
					continue
				}
				for _, p := range kinds {
					if i++; i%part.stride != part.offset {
						continue
					}
					p.Src, p.Dst, p.Node = src, dst, node
					if p.Hook == "" {
						p.Hook = "forward"
					}
					if !yield(p) {
						return
					}
				}
			}
		}
	}
}
