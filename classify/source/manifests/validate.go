package manifests

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var (
	protocols = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	podPhases = []corev1.PodPhase{
		corev1.PodPending, corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed, corev1.PodUnknown,
	}
)

// validateMeta checks metadata as the API server does.
func validateMeta(o Object, namespaced bool, name apivalidation.ValidateNameFunc) field.ErrorList {
	path := field.NewPath("metadata")
	if o.GetName() == "" {
		return field.ErrorList{field.Required(path.Child("name"), "manifests are not created, so no name is generated")}
	}
	return apivalidation.ValidateObjectMetaAccessor(o, namespaced, name, path)
}

func validateNamespace(o Object) field.ErrorList {
	return validateMeta(o, false, apivalidation.NameIsDNSLabel)
}

func validateNode(o Object) field.ErrorList {
	n := o.(*corev1.Node)
	errs := validateMeta(n, false, apivalidation.NameIsDNSSubdomain)

	cidrs := field.NewPath("spec", "podCIDRs")
	addrOfCIDR := func(path *field.Path, s string) (netip.Addr, field.ErrorList) {
		p, errs := validateCIDR(path, s)
		return p.Addr(), errs
	}
	errs = append(errs, validateFamilies(cidrs, n.Spec.PodCIDRs, addrOfCIDR)...)
	if len(n.Spec.PodCIDRs) > 0 && n.Spec.PodCIDR != n.Spec.PodCIDRs[0] {
		errs = append(errs, field.Invalid(field.NewPath("spec", "podCIDR"), n.Spec.PodCIDR, "must be the first of podCIDRs"))
	}
	for i, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			_, e := validateAddr(field.NewPath("status", "addresses").Index(i).Child("address"), a.Address)
			errs = append(errs, e...)
		}
	}
	return errs
}

func validatePod(o Object) field.ErrorList {
	p := o.(*corev1.Pod)
	errs := validateMeta(p, true, apivalidation.NameIsDNSSubdomain)
	spec := field.NewPath("spec")
	errs = append(errs, validateContainers(spec.Child("initContainers"), p.Spec.InitContainers)...)
	errs = append(errs, validateContainers(spec.Child("containers"), p.Spec.Containers)...)
	if p.Spec.NodeName != "" {
		for _, msg := range apivalidation.NameIsDNSSubdomain(p.Spec.NodeName, false) {
			errs = append(errs, field.Invalid(spec.Child("nodeName"), p.Spec.NodeName, msg))
		}
	}

	status := field.NewPath("status")
	ips := make([]string, len(p.Status.PodIPs))
	for i := range p.Status.PodIPs {
		ips[i] = p.Status.PodIPs[i].IP
	}
	errs = append(errs, validateFamilies(status.Child("podIPs"), ips, validateAddr)...)
	if len(ips) > 0 && p.Status.PodIP != ips[0] {
		errs = append(errs, field.Invalid(status.Child("podIP"), p.Status.PodIP, "must be the first of podIPs"))
	}
	if !slices.Contains(podPhases, p.Status.Phase) {
		errs = append(errs, field.NotSupported(status.Child("phase"), p.Status.Phase, podPhases))
	}
	return errs
}

func validateContainers(path *field.Path, containers []corev1.Container) field.ErrorList {
	var errs field.ErrorList
	for i := range containers {
		names := map[string]bool{}
		for j, port := range containers[i].Ports {
			path := path.Index(i).Child("ports").Index(j)
			errs = append(errs, validatePortNumber(path.Child("containerPort"), port.ContainerPort)...)
			errs = append(errs, validateProtocol(path.Child("protocol"), port.Protocol)...)
			if port.Name == "" {
				continue
			}
			for _, msg := range validation.IsValidPortName(port.Name) {
				errs = append(errs, field.Invalid(path.Child("name"), port.Name, msg))
			}
			if names[port.Name] {
				errs = append(errs, field.Duplicate(path.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
	}
	return errs
}

func validateService(o Object) field.ErrorList {
	s := o.(*corev1.Service)
	errs := validateMeta(s, true, apivalidation.NameIsDNSLabel)
	spec := field.NewPath("spec")
	for i, ip := range s.Spec.ClusterIPs {
		if ip != corev1.ClusterIPNone {
			_, e := validateAddr(spec.Child("clusterIPs").Index(i), ip)
			errs = append(errs, e...)
		}
	}
	for i, port := range s.Spec.Ports {
		path := spec.Child("ports").Index(i)
		errs = append(errs, validatePortNumber(path.Child("port"), port.Port)...)
		errs = append(errs, validateProtocol(path.Child("protocol"), port.Protocol)...)
		errs = append(errs, validatePortOrName(path.Child("targetPort"), port.TargetPort)...)
	}
	return errs
}

func validateEndpointSlice(o Object) field.ErrorList {
	s := o.(*discoveryv1.EndpointSlice)
	return validateMeta(s, true, apivalidation.NameIsDNSSubdomain)
}

func validatePortNumber(path *field.Path, port int32) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range validation.IsValidPortNum(int(port)) {
		errs = append(errs, field.Invalid(path, port, msg))
	}
	return errs
}

func validatePortOrName(path *field.Path, port intstr.IntOrString) field.ErrorList {
	if port.Type == intstr.Int {
		return validatePortNumber(path, port.IntVal)
	}
	var errs field.ErrorList
	for _, msg := range validation.IsValidPortName(port.StrVal) {
		errs = append(errs, field.Invalid(path, port.StrVal, msg))
	}
	return errs
}

func validateProtocol(path *field.Path, p corev1.Protocol) field.ErrorList {
	if slices.Contains(protocols, p) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, p, protocols)}
}

// validateAddr refuses what the API server refuses, and in addition what different programs read differently: leading
// zeros and IPv4-mapped IPv6 addresses.
func validateAddr(path *field.Path, s string) (netip.Addr, field.ErrorList) {
	if errs := validation.IsValidIPForLegacyField(path, s, true, nil); len(errs) > 0 {
		return netip.Addr{}, errs
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, field.ErrorList{field.Invalid(path, s, "must be an IP address")}
	}
	return a, nil
}

// validateCIDR is validateAddr for prefixes. Bits beyond the prefix length are let through, as the API server does.
func validateCIDR(path *field.Path, s string) (netip.Prefix, field.ErrorList) {
	if errs := validation.IsValidCIDRForLegacyField(path, s, false, nil); len(errs) > 0 {
		return netip.Prefix{}, errs
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, field.ErrorList{field.Invalid(path, s, "must not have leading zeros")}
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, field.ErrorList{field.Invalid(path, s, "must not have an IPv4-mapped IPv6 address")}
	}
	return p, nil
}

// validateFamilies checks each value, and that there is at most one of each address family.
func validateFamilies(
	path *field.Path, values []string, validate func(*field.Path, string) (netip.Addr, field.ErrorList),
) field.ErrorList {
	var errs field.ErrorList
	families := map[bool]bool{}
	for i, s := range values {
		a, e := validate(path.Index(i), s)
		errs = append(errs, e...)
		if !a.IsValid() {
			continue
		}
		if families[a.Is4()] {
			errs = append(errs, field.Invalid(path.Index(i), s, "must be the only one of its address family"))
		}
		families[a.Is4()] = true
	}
	return errs
}
