package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// manager is the value of endpointslice.kubernetes.io/managed-by on the slices that the lab makes.
const manager = "lab.firstpacket.dev"

// completeServices gives ClusterIPs of both families, and node ports, to the services that ask for them.
func (c *Cluster) completeServices() error {
	used := make(map[string]bool)
	for _, s := range c.Services() {
		if len(s.Spec.ClusterIPs) == 0 && s.Spec.ClusterIP != "" {
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		}
		for _, ip := range s.Spec.ClusterIPs {
			if _, err := netip.ParseAddr(ip); err != nil && ip != corev1.ClusterIPNone {
				return fmt.Errorf("service %s/%s, spec.clusterIPs: %w", s.Namespace, s.Name, err)
			}
			used[ip] = true
		}
		for _, p := range s.Spec.Ports {
			used[fmt.Sprint(p.NodePort)] = true
		}
	}
	for _, s := range c.Services() {
		s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
		if s.Spec.Type == "" {
			s.Spec.Type = corev1.ServiceTypeClusterIP
		}
		if s.Spec.Type != corev1.ServiceTypeExternalName {
			completeService(s, used)
		}
	}
	return nil
}

func completeService(s *corev1.Service, used map[string]bool) {
	if len(s.Spec.IPFamilies) == 0 {
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
		if len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] != corev1.ClusterIPNone {
			only := 0
			if netip.MustParseAddr(s.Spec.ClusterIPs[0]).Is6() {
				only = 1
			}
			s.Spec.IPFamilies = s.Spec.IPFamilies[only : only+1]
		}
	}
	if len(s.Spec.ClusterIPs) == 0 {
		for _, family := range s.Spec.IPFamilies {
			r := serviceRange4
			if family == corev1.IPv6Protocol {
				r = serviceRange6
			}
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, free(netip.MustParsePrefix(r), 1, used).String())
		}
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	nodePort := int32(firstNodePort)
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.Protocol == "" {
			p.Protocol = corev1.ProtocolTCP
		}
		if p.TargetPort == (intstr.IntOrString{}) {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
		if s.Spec.Type == corev1.ServiceTypeClusterIP || p.NodePort != 0 {
			continue
		}
		for used[fmt.Sprint(nodePort)] {
			nodePort++
		}
		used[fmt.Sprint(nodePort)] = true
		p.NodePort = nodePort
	}
}

// completeSlices makes the slices of the services that have a selector: one for each family and list of ports, since
// a named target port may have another number on each pod.
func (c *Cluster) completeSlices() {
	wanted := make(map[Ref]bool)
	for _, s := range c.Services() {
		if len(s.Spec.Selector) == 0 {
			continue
		}
		for _, slice := range c.slicesOf(s) {
			c.Apply(slice)
			wanted[RefOf(slice)] = true
		}
	}
	for _, slice := range c.Slices() {
		if slice.Labels[discoveryv1.LabelManagedBy] == manager && !wanted[RefOf(slice)] {
			c.Delete(RefOf(slice))
		}
	}
}

func (c *Cluster) slicesOf(s *corev1.Service) []*discoveryv1.EndpointSlice {
	var found []*discoveryv1.EndpointSlice
	selector := labels.SelectorFromSet(s.Spec.Selector)
	// By name, so that the slices are the same whatever order the manifests come in.
	pods := c.Pods()
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range pods {
		if p.Namespace != s.Namespace || !Running(p) || !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		ports := targets(s, p)
		if len(ports) == 0 {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			family := discoveryv1.AddressTypeIPv4
			if strings.Contains(ip.IP, ":") {
				family = discoveryv1.AddressTypeIPv6
			}
			if !slices.Contains(s.Spec.IPFamilies, corev1.IPFamily(family)) {
				continue
			}
			slice := sliceFor(&found, s, family, ports)
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses:  []string{ip.IP},
				Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
				NodeName:   new(p.Spec.NodeName),
				TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name},
			})
		}
	}
	return found
}

// sliceFor finds or makes the service's slice for the family and the ports.
func sliceFor(found *[]*discoveryv1.EndpointSlice, s *corev1.Service, family discoveryv1.AddressType,
	ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	same := func(a, b discoveryv1.EndpointPort) bool {
		return *a.Name == *b.Name && *a.Port == *b.Port && *a.Protocol == *b.Protocol
	}
	for _, slice := range *found {
		if slice.AddressType == family && slices.EqualFunc(slice.Ports, ports, same) {
			return slice
		}
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace,
			Name:      fmt.Sprintf("%s-%s-%d", s.Name, strings.ToLower(string(family)), len(*found)),
			Labels:    map[string]string{discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: manager},
		},
		AddressType: family,
		Ports:       ports,
	}
	*found = append(*found, slice)
	return slice
}

// targets resolves the target ports of the service on the pod; a name that the pod does not have is left out.
func targets(s *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	var ports []discoveryv1.EndpointPort
	for i := range s.Spec.Ports {
		sp := &s.Spec.Ports[i]
		number := sp.TargetPort.IntVal
		if sp.TargetPort.Type == intstr.String {
			number = 0
			for _, cp := range Ports(p) {
				if cp.Name == sp.TargetPort.StrVal && cp.Protocol == sp.Protocol {
					number = cp.ContainerPort
				}
			}
		}
		if number != 0 {
			ports = append(ports, discoveryv1.EndpointPort{Name: &sp.Name, Port: new(number), Protocol: &sp.Protocol})
		}
	}
	return ports
}
