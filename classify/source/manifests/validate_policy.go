package manifests

import (
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var policyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}

// validateNetworkPolicy holds a policy to the API server's rules for networking.k8s.io/v1.
func validateNetworkPolicy(o Object) field.ErrorList {
	np := o.(*networkingv1.NetworkPolicy)
	errs := validateMeta(np, true, apivalidation.NameIsDNSSubdomain)
	spec := field.NewPath("spec")
	errs = append(errs, validateSelector(spec.Child("podSelector"), &np.Spec.PodSelector)...)
	for i, rule := range np.Spec.Ingress {
		path := spec.Child("ingress").Index(i)
		errs = append(errs, validatePolicyPorts(path.Child("ports"), rule.Ports)...)
		errs = append(errs, validatePeers(path.Child("from"), rule.From)...)
	}
	for i, rule := range np.Spec.Egress {
		path := spec.Child("egress").Index(i)
		errs = append(errs, validatePolicyPorts(path.Child("ports"), rule.Ports)...)
		errs = append(errs, validatePeers(path.Child("to"), rule.To)...)
	}
	for i, t := range np.Spec.PolicyTypes {
		path := spec.Child("policyTypes").Index(i)
		switch {
		case !slices.Contains(policyTypes, t):
			errs = append(errs, field.NotSupported(path, t, policyTypes))
		case i > 0 && slices.Contains(np.Spec.PolicyTypes[:i], t):
			errs = append(errs, field.Duplicate(path, t))
		}
	}
	return errs
}

func validatePolicyPorts(path *field.Path, ports []networkingv1.NetworkPolicyPort) field.ErrorList {
	var errs field.ErrorList
	for i, p := range ports {
		path := path.Index(i)
		if p.Protocol != nil {
			errs = append(errs, validateProtocol(path.Child("protocol"), *p.Protocol)...)
		}
		if p.Port != nil {
			errs = append(errs, validatePortOrName(path.Child("port"), *p.Port)...)
		}
		if p.EndPort == nil {
			continue
		}
		end := path.Child("endPort")
		switch {
		case p.Port == nil:
			errs = append(errs, field.Invalid(end, *p.EndPort, "needs port, the first of the range"))
		case p.Port.Type == intstr.String:
			errs = append(errs, field.Invalid(end, *p.EndPort, "must not be combined with a named port"))
		case *p.EndPort < p.Port.IntVal:
			errs = append(errs, field.Invalid(end, *p.EndPort, "must not be less than port"))
		default:
			errs = append(errs, validatePortNumber(end, *p.EndPort)...)
		}
	}
	return errs
}

func validatePeers(path *field.Path, peers []networkingv1.NetworkPolicyPeer) field.ErrorList {
	var errs field.ErrorList
	for i, peer := range peers {
		path := path.Index(i)
		if peer.PodSelector != nil {
			errs = append(errs, validateSelector(path.Child("podSelector"), peer.PodSelector)...)
		}
		if peer.NamespaceSelector != nil {
			errs = append(errs, validateSelector(path.Child("namespaceSelector"), peer.NamespaceSelector)...)
		}
		selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
		switch {
		case peer.IPBlock != nil && selects:
			errs = append(errs, field.Forbidden(path, "ipBlock may not be combined with selectors"))
		case peer.IPBlock == nil && !selects:
			errs = append(errs, field.Required(path, "must have podSelector, namespaceSelector or ipBlock"))
		case peer.IPBlock != nil:
			errs = append(errs, validateIPBlock(path.Child("ipBlock"), peer.IPBlock)...)
		}
	}
	return errs
}

func validateIPBlock(path *field.Path, block *networkingv1.IPBlock) field.ErrorList {
	if block.CIDR == "" {
		return field.ErrorList{field.Required(path.Child("cidr"), "")}
	}
	cidr, errs := validateCIDR(path.Child("cidr"), block.CIDR)
	for i, s := range block.Except {
		path := path.Child("except").Index(i)
		except, e := validateCIDR(path, s)
		errs = append(errs, e...)
		if cidr.IsValid() && except.IsValid() && !strictlyWithin(except, cidr) {
			errs = append(errs, field.Invalid(path, s, "must be a strict subset of cidr"))
		}
	}
	return errs
}

func strictlyWithin(inner, outer netip.Prefix) bool {
	return inner.Bits() > outer.Bits() && outer.Contains(inner.Addr())
}

func validateSelector(path *field.Path, s *metav1.LabelSelector) field.ErrorList {
	return metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, path)
}
