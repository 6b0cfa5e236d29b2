package cases

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/json"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/policycache/alpha"
)

// policies are the kinds of policies that cases may have, with a value to decode each into.
var policies = map[schema.GroupVersionKind]func() any{
	networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"): func() any { return &networkingv1.NetworkPolicy{} },
	schema.GroupVersion(v1alpha2.GroupVersion).WithKind("ClusterNetworkPolicy"): func() any {
		return &v1alpha2.ClusterNetworkPolicy{}
	},
	schema.GroupVersion(v1alpha1.GroupVersion).WithKind("AdminNetworkPolicy"): func() any {
		return &v1alpha1.AdminNetworkPolicy{}
	},
	schema.GroupVersion(v1alpha1.GroupVersion).WithKind("BaselineAdminNetworkPolicy"): func() any {
		return &v1alpha1.BaselineAdminNetworkPolicy{}
	},
	extensionsv1beta1.SchemeGroupVersion.WithKind("NetworkPolicy"): func() any {
		return &extensionsv1beta1.NetworkPolicy{}
	},
	alpha.GroupVersion.WithKind(alpha.Kind): func() any { return &alpha.NetworkPolicy{} },
}

// check refuses what an API server would refuse for its form: a misspelt field in a case would pass for its absence.
// Specs of the alpha have no form that could be checked.
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
		typed := policies[u.GroupVersionKind()]
		if typed == nil {
			return fmt.Errorf("%s %s: cases know no such policies", u.GetAPIVersion(), u.GetKind())
		}
		b, err := u.MarshalJSON()
		if err != nil {
			return fmt.Errorf("encode %s: %w", topology.RefOf(o), err)
		}
		strict, err := json.UnmarshalStrict(b, typed())
		if err := errors.Join(append(strict, err)...); err != nil {
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
