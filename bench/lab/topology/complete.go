package topology

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Where the lab takes addresses from when manifests leave them open. Node i has the i-th /24 and /64 of the pod
// ranges. The first address of a node's pod range is its gateway and is not given to pods.
const (
	nodeRange4    = "172.30.0.0/24"
	nodeRange6    = "fd30::/64"
	serviceRange4 = "10.96.0.0/16"
	serviceRange6 = "fd96::/112"
	firstNodePort = 30000
)

// Complete fills in what a cluster would. It may be called again after each change; what is filled in stays. An error
// names the object that cannot be part of a lab.
func (c *Cluster) Complete() error {
	c.completeNamespaces()
	if err := c.completeNodes(); err != nil {
		return err
	}
	if err := c.completePods(); err != nil {
		return err
	}
	if err := c.completeServices(); err != nil {
		return err
	}
	c.completeSlices()
	return nil
}

// completeNamespaces makes the namespaces that objects live in, with the label that the API server gives them.
func (c *Cluster) completeNamespaces() {
	for _, ref := range slices.Clone(c.order) {
		name := Ref{Kind: "Namespace", Name: ref.Namespace}
		if ref.Namespace != "" && c.objects[name] == nil {
			c.Apply(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ref.Namespace}})
		}
	}
	for _, ns := range c.Namespaces() {
		ns.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
		metav1.SetMetaDataLabel(&ns.ObjectMeta, corev1.LabelMetadataName, ns.Name)
		ns.Status.Phase = corev1.NamespaceActive
	}
}

func (c *Cluster) completeNodes() error {
	used := make(map[string]bool)
	for _, n := range c.Nodes() {
		if len(n.Spec.PodCIDRs) == 0 && n.Spec.PodCIDR != "" {
			n.Spec.PodCIDRs = []string{n.Spec.PodCIDR}
		}
		for _, cidr := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(cidr)
			if err != nil {
				return fmt.Errorf("node %s, spec.podCIDRs: %w", n.Name, err)
			}
			used[p.Masked().String()] = true
		}
		addrs, err := NodeAddrs(n)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			used[a.String()] = true
		}
	}
	for _, n := range c.Nodes() {
		n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
		metav1.SetMetaDataLabel(&n.ObjectMeta, corev1.LabelHostname, n.Name)
		if len(n.Spec.PodCIDRs) == 0 {
			n.Spec.PodCIDRs = freePodCIDRs(used)
		}
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
		if len(n.Status.Addresses) == 0 {
			for _, r := range []string{nodeRange4, nodeRange6} {
				a := free(netip.MustParsePrefix(r), 10, used)
				n.Status.Addresses = append(n.Status.Addresses,
					corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
			}
		}
	}
	return nil
}

// freePodCIDRs takes the first pair of pod ranges that no node has.
func freePodCIDRs(used map[string]bool) []string {
	for i := 0; ; i++ {
		pair := []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd10:244:0:%x::/64", i)}
		if !used[pair[0]] && !used[pair[1]] {
			used[pair[0]], used[pair[1]] = true, true
			return pair
		}
	}
}

// free takes the first unused address of the range, skipping the first ones.
func free(r netip.Prefix, skip int, used map[string]bool) netip.Addr {
	a := r.Masked().Addr()
	for range skip {
		a = a.Next()
	}
	for used[a.String()] {
		a = a.Next()
	}
	used[a.String()] = true
	return a
}

func (c *Cluster) completePods() error {
	used := make(map[string]bool)
	load := make(map[string]int)
	for _, p := range c.Pods() {
		addrs, err := PodAddrs(p)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			used[a.String()] = true
		}
		load[p.Spec.NodeName]++
	}
	nodes := c.Nodes()
	for _, p := range c.Pods() {
		p.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		if p.Status.Phase != "" && p.Status.Phase != corev1.PodRunning {
			continue
		}
		if p.Spec.NodeName == "" && len(nodes) > 0 {
			least := slices.MinFunc(nodes, func(a, b *corev1.Node) int { return load[a.Name] - load[b.Name] })
			p.Spec.NodeName = least.Name
			load[least.Name]++
		}
		node, _ := c.objects[Ref{Kind: "Node", Name: p.Spec.NodeName}].(*corev1.Node)
		if node == nil {
			return fmt.Errorf("pod %s/%s, spec.nodeName: there is no node %q", p.Namespace, p.Name, p.Spec.NodeName)
		}
		p.Status.Phase = corev1.PodRunning
		completePod(p, node, used)
	}
	return nil
}

func completePod(p *corev1.Pod, node *corev1.Node, used map[string]bool) {
	p.Status.HostIPs = nil
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: a.Address})
		}
	}
	if len(p.Status.HostIPs) > 0 {
		p.Status.HostIP = p.Status.HostIPs[0].IP
	}
	switch {
	case len(p.Status.PodIPs) > 0:
	case p.Status.PodIP != "":
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	case p.Spec.HostNetwork:
		for _, h := range p.Status.HostIPs {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP(h))
		}
	default:
		for _, cidr := range node.Spec.PodCIDRs {
			a := free(netip.MustParsePrefix(cidr), 2, used) // parsed by completeNodes before
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
	}
	if len(p.Status.PodIPs) > 0 {
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
}

// PodAddrs parses status.podIPs, or status.podIP where that is all there is.
func PodAddrs(p *corev1.Pod) ([]netip.Addr, error) {
	ips := p.Status.PodIPs
	if len(ips) == 0 && p.Status.PodIP != "" {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	addrs := make([]netip.Addr, 0, len(ips))
	for _, ip := range ips {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return nil, fmt.Errorf("pod %s/%s, status.podIPs: %w", p.Namespace, p.Name, err)
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// NodeAddrs parses the addresses of the node that are IP addresses, the internal ones first.
func NodeAddrs(n *corev1.Node) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range n.Status.Addresses {
			if a.Type != kind {
				continue
			}
			parsed, err := netip.ParseAddr(a.Address)
			if err != nil {
				return nil, fmt.Errorf("node %s, status.addresses: %w", n.Name, err)
			}
			addrs = append(addrs, parsed)
		}
	}
	return addrs, nil
}

// PodCIDRs parses the node's pod ranges.
func PodCIDRs(n *corev1.Node) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, 0, len(n.Spec.PodCIDRs))
	for _, cidr := range n.Spec.PodCIDRs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fmt.Errorf("node %s, spec.podCIDRs: %w", n.Name, err)
		}
		prefixes = append(prefixes, p.Masked())
	}
	return prefixes, nil
}
