package cases

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

// check refuses what an API server would refuse for its form: a misspelt field in a case would pass for its absence.
func check(manifest string) error {
	objects, err := topology.Parse("manifest", []byte(manifest))
	if err != nil {
		return err
	}
	for _, o := range objects {
		u, ok := o.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		if u.GroupVersionKind() != networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy") {
			return fmt.Errorf("%s %s: cases are about networking.k8s.io/v1 NetworkPolicy", u.GetAPIVersion(), u.GetKind())
		}
		b, err := yaml.Marshal(u.Object)
		if err != nil {
			return fmt.Errorf("encode %s: %w", topology.RefOf(o), err)
		}
		if err := yaml.UnmarshalStrict(b, &networkingv1.NetworkPolicy{}); err != nil {
			return fmt.Errorf("%s: %w", topology.RefOf(o), err)
		}
	}
	return nil
}

// world is the objects as the case left them, before the lab completed anything in them.
type world map[topology.Ref]topology.Object

// parseFor parses manifests for a lab of so many nodes.
func parseFor(manifest string, nodes int) ([]topology.Object, error) {
	objects, err := topology.Parse("manifest", []byte(manifest))
	if err != nil || nodes == 2 {
		return objects, err
	}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Pod:
			if o.Spec.NodeName == "two" {
				o.Spec.NodeName = "one"
			}
		case *corev1.Node:
			// One bit less takes in the ranges of node two.
			for i, cidr := range o.Spec.PodCIDRs {
				p, err := netip.ParsePrefix(cidr)
				if err != nil {
					return nil, fmt.Errorf("node %s: %w", o.Name, err)
				}
				o.Spec.PodCIDRs[i] = netip.PrefixFrom(p.Addr(), p.Bits()-1).String()
			}
		}
	}
	return slices.DeleteFunc(objects, func(o topology.Object) bool {
		n, ok := o.(*corev1.Node)
		return ok && n.Name == "two"
	}), nil
}

// clone is a copy for the lab, which makes what it is given its own.
func clone(o topology.Object) topology.Object {
	return o.(runtime.Object).DeepCopyObject().(topology.Object)
}

// relabel changes the labels of an object of the world and returns it.
func (w world) relabel(r relabel) (topology.Object, error) {
	o := w[r.ref]
	if o == nil {
		return nil, fmt.Errorf("%w: there is no %s to label", errCase, r.ref)
	}
	o = clone(o)
	labels := maps.Clone(o.GetLabels())
	if labels == nil {
		labels = make(map[string]string)
	}
	maps.Copy(labels, r.set)
	for _, key := range r.remove {
		delete(labels, key)
	}
	o.SetLabels(labels)
	w[r.ref] = o
	return o, nil
}
