package state

import (
	"reflect"
	"strings"

	extensionsv1beta1 "k8s.io/api/extensions/v1beta1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/network-policy-api/apis/v1alpha1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/adminnetpol"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/beta"
	"github.com/firstpacket/firstpacket/policycache/clusternetpol"
	"github.com/firstpacket/firstpacket/policycache/netpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Kinds are the objects that verdicts depend on, as an API server has them. Policy kinds are named after their dialect.
// All but NetworkPolicy are optional: a cluster need not have them, and may get them later.
func Kinds() []source.Kind {
	return []source.Kind{
		source.Namespaces(), source.Nodes(), source.Pods(),
		{
			Name: rule.NetworkPolicy.String(), Namespaced: true,
			GVR:     networkingv1.SchemeGroupVersion.WithResource("networkpolicies"),
			Example: &networkingv1.NetworkPolicy{}, AddToScheme: networkingv1.AddToScheme,
			Transform: source.Typed(netpol.Compile),
		},
		{
			Name: rule.ClusterNetworkPolicy.String(), Optional: true,
			GVR:     schema.GroupVersion(v1alpha2.GroupVersion).WithResource("clusternetworkpolicies"),
			Example: &v1alpha2.ClusterNetworkPolicy{}, AddToScheme: v1alpha2.Install,
			Transform: source.Typed(clusternetpol.Compile),
		},
		{
			Name: rule.AdminNetworkPolicy.String(), Optional: true,
			GVR:     schema.GroupVersion(v1alpha1.GroupVersion).WithResource("adminnetworkpolicies"),
			Example: &v1alpha1.AdminNetworkPolicy{}, AddToScheme: v1alpha1.Install,
			Transform: source.Typed(adminnetpol.Compile),
		},
		{
			Name: rule.BaselineAdminNetworkPolicy.String(), Optional: true,
			GVR:     schema.GroupVersion(v1alpha1.GroupVersion).WithResource("baselineadminnetworkpolicies"),
			Example: &v1alpha1.BaselineAdminNetworkPolicy{}, AddToScheme: v1alpha1.Install,
			Transform: source.Typed(adminnetpol.CompileBaseline),
		},
		{
			Name: rule.AlphaNetworkPolicy.String(), Namespaced: true, Optional: true,
			GVR:     alpha.GroupVersion.WithResource(alpha.Resource),
			Example: &alpha.NetworkPolicy{}, AddToScheme: alpha.AddToScheme,
			Transform: source.Typed(alpha.Compile),
		},
	}
}

// DirectoryKinds are Kinds and what no API server serves any more.
func DirectoryKinds() []source.Kind {
	return append(Kinds(), source.Kind{
		Name: rule.BetaNetworkPolicy.String(), Namespaced: true, Optional: true,
		GVR:     extensionsv1beta1.SchemeGroupVersion.WithResource("networkpolicies"),
		Example: &extensionsv1beta1.NetworkPolicy{}, AddToScheme: extensionsv1beta1.AddToScheme,
		Transform: source.Typed(beta.Compile),
	})
}

// ManifestKinds are the kinds that a directory of manifests may hold: those that manifests.Kinds knows, and the
// policies of all dialects. The latter are not validated but compiled, with Problems.
func ManifestKinds() []manifests.Kind {
	compiled := func(manifests.Object) field.ErrorList { return nil }
	return append(manifests.Kinds(),
		manifests.Kind{
			GroupVersionKind: schema.GroupVersion(v1alpha2.GroupVersion).WithKind("ClusterNetworkPolicy"),
			Resource:         "clusternetworkpolicies", Validate: compiled,
			New: func() manifests.Object { return &v1alpha2.ClusterNetworkPolicy{} },
		},
		manifests.Kind{
			GroupVersionKind: schema.GroupVersion(v1alpha1.GroupVersion).WithKind("AdminNetworkPolicy"),
			Resource:         "adminnetworkpolicies", Validate: compiled,
			New: func() manifests.Object { return &v1alpha1.AdminNetworkPolicy{} },
		},
		manifests.Kind{
			GroupVersionKind: schema.GroupVersion(v1alpha1.GroupVersion).WithKind("BaselineAdminNetworkPolicy"),
			Resource:         "baselineadminnetworkpolicies", Validate: compiled,
			New: func() manifests.Object { return &v1alpha1.BaselineAdminNetworkPolicy{} },
		},
		manifests.Kind{
			GroupVersionKind: alpha.GroupVersion.WithKind(alpha.Kind),
			Resource:         alpha.Resource, Namespaced: true, Validate: compiled,
			New: func() manifests.Object { return &alpha.NetworkPolicy{} }, Bare: alpha.Bare,
		},
		manifests.Kind{
			GroupVersionKind: extensionsv1beta1.SchemeGroupVersion.WithKind(alpha.ThirdPartyResource),
			Resource:         "thirdpartyresources", Explain: alpha.ExplainThirdParty,
		},
		manifests.Kind{
			GroupVersionKind: extensionsv1beta1.SchemeGroupVersion.WithKind("NetworkPolicy"),
			Resource:         "networkpolicies", Namespaced: true, Validate: compiled,
			New: func() manifests.Object { return &extensionsv1beta1.NetworkPolicy{} },
		},
	)
}

// refOf is the name of the policy that a change of a policy kind is about.
func refOf(kind, key string) rule.Ref {
	namespace, name, namespaced := strings.Cut(key, "/")
	if !namespaced {
		namespace, name = "", key
	}
	switch kind {
	case rule.ClusterNetworkPolicy.String():
		return clusternetpol.Ref(name)
	case rule.AdminNetworkPolicy.String():
		return adminnetpol.Ref(name)
	case rule.BaselineAdminNetworkPolicy.String():
		return adminnetpol.BaselineRef(name)
	case rule.AlphaNetworkPolicy.String():
		return alpha.Ref(namespace, name)
	case rule.BetaNetworkPolicy.String():
		return beta.Ref(namespace, name)
	}
	return netpol.Ref(namespace, name)
}

// Of makes changes of the objects of manifests that were read once.
func Of(objects manifests.Objects) ([]source.Change, error) {
	kinds := map[reflect.Type]source.Kind{}
	for _, k := range DirectoryKinds() {
		kinds[reflect.TypeOf(k.Example)] = k
	}
	var changes []source.Change
	for _, o := range objects.List {
		k, ok := kinds[reflect.TypeOf(o.Object)]
		if !ok {
			continue // Services and the like
		}
		key := keyOf(o.Object)
		compact, err := k.Transform(o.Object)
		if err != nil {
			return nil, &source.ObjectError{Kind: k.Name, Key: key, Err: err}
		}
		changes = append(changes, source.Change{Kind: k.Name, Key: key, Object: compact})
	}
	return changes, nil
}

// keyOf is the key that a source gives the object: namespace/name, or the name alone.
func keyOf(o manifests.Object) string {
	if ns := o.GetNamespace(); ns != "" {
		return ns + "/" + o.GetName()
	}
	return o.GetName()
}
