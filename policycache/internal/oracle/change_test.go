package oracle_test

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/internal/oracle"
	"github.com/firstpacket/firstpacket/policycache/netpol"
)

// change alters the cluster in one random way and tells the system, as the watches would. It returns what it did.
func (g *generator) change(c *oracle.Cluster, s *system) string {
	setPod := func(p *corev1.Pod) {
		i := slices.IndexFunc(c.Pods, func(o *corev1.Pod) bool { return o.Name == p.Name && o.Namespace == p.Namespace })
		if i < 0 {
			c.Pods = append(c.Pods, p)
		} else {
			c.Pods[i] = p
		}
		s.index.SetPod(cluster.NewPod(p))
	}
	deletePod := func(p *corev1.Pod) {
		c.Pods = slices.DeleteFunc(c.Pods, func(o *corev1.Pod) bool { return o == p })
		s.index.DeletePod(p.Namespace + "/" + p.Name)
	}
	anyPod := func() *corev1.Pod {
		if len(c.Pods) == 0 {
			return nil
		}
		return c.Pods[g.pick(len(c.Pods))]
	}
	switch g.pick(12) {
	case 0:
		p := g.pod()
		setPod(p)
		return "add pod " + p.Name
	case 1:
		if p := anyPod(); p != nil {
			deletePod(p)
			return "delete pod " + p.Name
		}
	case 2:
		if p := anyPod(); p != nil {
			p = p.DeepCopy()
			p.Labels = g.labels()
			setPod(p)
			return "relabel pod " + p.Name
		}
	case 3:
		if p := anyPod(); p != nil {
			p = p.DeepCopy()
			p.Status.Phase = g.phase()
			setPod(p)
			return fmt.Sprintf("pod %s is %s", p.Name, p.Status.Phase)
		}
	case 4: // restart: another pod takes over the addresses, before or after the old one goes
		if old := anyPod(); old != nil {
			p := g.pod()
			p.Status.PodIPs, p.Status.PodIP = old.Status.PodIPs, old.Status.PodIP
			p.Spec.HostNetwork, p.Spec.NodeName = old.Spec.HostNetwork, old.Spec.NodeName
			if g.oneIn(2) {
				p.Labels, p.Namespace = old.Labels, old.Namespace
			}
			if g.oneIn(2) {
				setPod(p)
				deletePod(old)
			} else {
				deletePod(old)
				setPod(p)
			}
			return fmt.Sprintf("pod %s replaces %s", p.Name, old.Name)
		}
	case 5:
		ns := g.namespace(one(g, namespaceNames...))
		i := slices.IndexFunc(c.Namespaces, func(o *corev1.Namespace) bool { return o.Name == ns.Name })
		if i < 0 {
			c.Namespaces = append(c.Namespaces, ns)
		} else {
			c.Namespaces[i] = ns
		}
		s.index.SetNamespace(cluster.NewNamespace(ns))
		return "set namespace " + ns.Name
	case 6:
		name := one(g, namespaceNames...)
		c.Namespaces = slices.DeleteFunc(c.Namespaces, func(o *corev1.Namespace) bool { return o.Name == name })
		s.index.DeleteNamespace(name)
		return "delete namespace " + name
	case 7, 8:
		np := g.policy(g.policyNamespace(), fmt.Sprint("np", g.pick(5)))
		c.Policies = append(without(c.Policies, np), np)
		s.model.SetPolicy(netpol.Compile(np))
		return "set policy " + np.Namespace + "/" + np.Name
	case 9:
		if len(c.Policies) > 0 {
			np := c.Policies[g.pick(len(c.Policies))]
			c.Policies = without(c.Policies, np)
			s.model.DeletePolicy(netpol.Ref(np.Namespace, np.Name))
			return "delete policy " + np.Namespace + "/" + np.Name
		}
	case 10:
		name := one(g, nodeNames...)
		c.Nodes = slices.DeleteFunc(c.Nodes, func(o *corev1.Node) bool { return o.Name == name })
		if g.oneIn(3) {
			s.index.DeleteNode(name)
			return "delete node " + name
		}
		n := g.node(name)
		c.Nodes = append(c.Nodes, n)
		s.index.SetNode(cluster.NewNode(n))
		return "set node " + name
	case 11:
		if p := anyPod(); p != nil {
			p = p.DeepCopy()
			p.Spec.Containers = []corev1.Container{g.container(nil)}
			setPod(p)
			return "other ports for pod " + p.Name
		}
	}
	return "nothing"
}

func without(list []*networkingv1.NetworkPolicy, np *networkingv1.NetworkPolicy) []*networkingv1.NetworkPolicy {
	return slices.DeleteFunc(list, func(o *networkingv1.NetworkPolicy) bool {
		return o.Name == np.Name && o.Namespace == np.Namespace
	})
}
