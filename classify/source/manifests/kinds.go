package manifests

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is a decoded manifest: a pointer to one of the API's Go types.
type Object interface {
	runtime.Object
	metav1.Object
}

// Kind is a kind of objects that manifests may hold.
type Kind struct {
	schema.GroupVersionKind
	// Resource is the plural name that requests use: "pods".
	Resource   string
	Namespaced bool
	// New returns an empty object.
	New func() Object
	// Default sets what an API server would set in a new object. May be nil.
	Default func(Object)
	// Validate finds what is wrong with a defaulted object, its metadata included.
	Validate func(Object) field.ErrorList
	// Bare tells whether an object of that kind which names no apiVersion is one of these, as once was enough where
	// the path of a request named it. Nil means that none is.
	Bare func(object []byte) bool
	// Explain, if set, makes this a kind that is recognised and means nothing here: of each object, by its name, it
	// says why. All other fields but the names are unused then.
	Explain func(name string) string
}

// Kinds returns the kinds that are understood unless Options say otherwise. Append to it to have more.
func Kinds() []Kind {
	core, networking := corev1.SchemeGroupVersion, networkingv1.SchemeGroupVersion
	return []Kind{
		{
			GroupVersionKind: core.WithKind("Namespace"), Resource: "namespaces",
			New:     func() Object { return &corev1.Namespace{} },
			Default: func(o Object) { defaultNamespace(o.(*corev1.Namespace)) }, Validate: validateNamespace,
		},
		{
			GroupVersionKind: core.WithKind("Node"), Resource: "nodes",
			New:     func() Object { return &corev1.Node{} },
			Default: func(o Object) { defaultNode(o.(*corev1.Node)) }, Validate: validateNode,
		},
		{
			GroupVersionKind: core.WithKind("Pod"), Resource: "pods", Namespaced: true,
			New:     func() Object { return &corev1.Pod{} },
			Default: func(o Object) { defaultPod(o.(*corev1.Pod)) }, Validate: validatePod,
		},
		{
			GroupVersionKind: core.WithKind("Service"), Resource: "services", Namespaced: true,
			New:     func() Object { return &corev1.Service{} },
			Default: func(o Object) { defaultService(o.(*corev1.Service)) }, Validate: validateService,
		},
		{
			GroupVersionKind: discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"),
			Resource:         "endpointslices", Namespaced: true,
			New: func() Object { return &discoveryv1.EndpointSlice{} }, Validate: validateEndpointSlice,
		},
		{
			GroupVersionKind: networking.WithKind("NetworkPolicy"), Resource: "networkpolicies", Namespaced: true,
			New:     func() Object { return &networkingv1.NetworkPolicy{} },
			Default: func(o Object) { defaultNetworkPolicy(o.(*networkingv1.NetworkPolicy)) }, Validate: validateNetworkPolicy,
		},
	}
}

func (k *Kind) gvr() schema.GroupVersionResource {
	return k.GroupVersion().WithResource(k.Resource)
}

// registry finds kinds by their names.
type registry struct {
	byKind map[schema.GroupVersionKind]*Kind
	// versions has the version that is understood of each group and kind.
	versions map[schema.GroupKind]string
	// bare has the kinds that objects without apiVersion may be of, by their names.
	bare map[string][]*Kind
}

func newRegistry(kinds []Kind) *registry {
	if kinds == nil {
		kinds = Kinds()
	}
	r := &registry{map[schema.GroupVersionKind]*Kind{}, map[schema.GroupKind]string{}, map[string][]*Kind{}}
	for i := range kinds {
		if kinds[i].Bare != nil {
			r.bare[kinds[i].Kind] = append(r.bare[kinds[i].Kind], &kinds[i])
		}
		r.byKind[kinds[i].GroupVersionKind] = &kinds[i]
		r.versions[kinds[i].GroupKind()] = kinds[i].Version
	}
	return r
}
