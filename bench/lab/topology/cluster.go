package topology

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// apiObject is what functions over lists hand out.
type apiObject = runtime.Object

// Cluster is a set of objects, kept in the order in which they were first applied. It is not safe for concurrent use.
type Cluster struct {
	objects map[Ref]Object
	order   []Ref
}

// New makes an empty cluster.
func New() *Cluster { return &Cluster{objects: make(map[Ref]Object)} }

// Apply adds the objects or replaces those of the same name. Pods, Services, slices and policies without a namespace
// go to the namespace default. What the cluster had filled into an object that is replaced, addresses above all, is
// kept where the new one leaves it open. The objects belong to the cluster from now on.
func (c *Cluster) Apply(objects ...Object) {
	for _, o := range objects {
		if o.GetNamespace() == "" && namespaced(o) {
			o.SetNamespace("default")
		}
		ref := RefOf(o)
		old, present := c.objects[ref]
		if !present {
			c.order = append(c.order, ref)
		} else {
			inherit(o, old)
		}
		c.objects[ref] = o
	}
}

// inherit keeps what the cluster once assigned.
func inherit(o, old Object) {
	switch o := o.(type) {
	case *corev1.Pod:
		old := old.(*corev1.Pod)
		if o.Spec.NodeName == "" {
			o.Spec.NodeName = old.Spec.NodeName
		}
		if len(o.Status.PodIPs) == 0 && o.Spec.NodeName == old.Spec.NodeName {
			o.Status.PodIPs, o.Status.PodIP = old.Status.PodIPs, old.Status.PodIP
		}
	case *corev1.Node:
		old := old.(*corev1.Node)
		if len(o.Spec.PodCIDRs) == 0 {
			o.Spec.PodCIDRs, o.Spec.PodCIDR = old.Spec.PodCIDRs, old.Spec.PodCIDR
		}
		if len(o.Status.Addresses) == 0 {
			o.Status.Addresses = old.Status.Addresses
		}
	case *corev1.Service:
		old := old.(*corev1.Service)
		if len(o.Spec.ClusterIPs) == 0 && o.Spec.ClusterIP == "" {
			o.Spec.ClusterIPs, o.Spec.ClusterIP = old.Spec.ClusterIPs, old.Spec.ClusterIP
		}
	}
}

// namespaced says whether objects of this kind live in namespaces. Of the kinds that the lab does not know, those
// whose names begin with Cluster or Admin, and the baseline and custom resource definition kinds, do not.
func namespaced(o Object) bool {
	switch o := o.(type) {
	case *corev1.Namespace, *corev1.Node:
		return false
	case *unstructured.Unstructured:
		kind := o.GetKind()
		return !slices.ContainsFunc([]string{"Cluster", "Admin", "Baseline", "Custom", "ThirdParty"},
			func(prefix string) bool { return strings.HasPrefix(kind, prefix) })
	}
	return true
}

// Delete removes the objects; those that are not there are ignored.
func (c *Cluster) Delete(refs ...Ref) {
	for _, ref := range refs {
		if _, ok := c.objects[ref]; ok {
			delete(c.objects, ref)
			c.order = slices.DeleteFunc(c.order, func(r Ref) bool { return r == ref })
		}
	}
}

// Get returns the object, nil if there is none. It must not be changed but through Apply.
func (c *Cluster) Get(ref Ref) Object { return c.objects[ref] }

// All returns every object in order.
func (c *Cluster) All() []Object { return list[Object](c) }

// Namespaces returns the namespaces in order.
func (c *Cluster) Namespaces() []*corev1.Namespace { return list[*corev1.Namespace](c) }

// Nodes returns the nodes in order.
func (c *Cluster) Nodes() []*corev1.Node { return list[*corev1.Node](c) }

// Pods returns all pods in order, those that do not run included; see Running.
func (c *Cluster) Pods() []*corev1.Pod { return list[*corev1.Pod](c) }

// Services returns the services in order.
func (c *Cluster) Services() []*corev1.Service { return list[*corev1.Service](c) }

// Slices returns the endpoint slices in order.
func (c *Cluster) Slices() []*discoveryv1.EndpointSlice { return list[*discoveryv1.EndpointSlice](c) }

func list[T Object](c *Cluster) []T {
	var found []T
	for _, ref := range c.order {
		if o, ok := c.objects[ref].(T); ok {
			found = append(found, o)
		}
	}
	return found
}

// Running says whether the pod has (or shares) a network: it has a node and has not ended.
func Running(p *corev1.Pod) bool {
	return p.Spec.NodeName != "" && p.Status.Phase == corev1.PodRunning
}

// Ports returns the ports that the pod's containers declare and serve for as long as the pod runs, native sidecars
// included, each number and protocol once. The protocol is filled in.
func Ports(p *corev1.Pod) []corev1.ContainerPort {
	var ports []corev1.ContainerPort
	add := func(containers []corev1.Container, sidecarsOnly bool) {
		for i := range containers {
			policy := containers[i].RestartPolicy
			if sidecarsOnly && (policy == nil || *policy != corev1.ContainerRestartPolicyAlways) {
				continue
			}
			for _, port := range containers[i].Ports {
				if port.Protocol == "" {
					port.Protocol = corev1.ProtocolTCP
				}
				if !slices.ContainsFunc(ports, func(other corev1.ContainerPort) bool {
					return other.ContainerPort == port.ContainerPort && other.Protocol == port.Protocol &&
						(other.Name == port.Name || port.Name == "")
				}) {
					ports = append(ports, port)
				}
			}
		}
	}
	add(p.Spec.Containers, false)
	add(p.Spec.InitContainers, true)
	return ports
}
