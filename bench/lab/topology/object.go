// Package topology turns ordinary manifests into the plan of a small cluster.
//
// What a real cluster fills in by itself - addresses of pods and nodes, ClusterIPs, EndpointSlices, the phase of a
// pod, the namespace's own label - is filled in here, so that a manifest for the lab can be as short as one written
// for kubectl, and the completed objects look as kubectl get -o yaml prints them.
package topology

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Object is what every decoded manifest is: a *corev1.Namespace, *corev1.Node, *corev1.Pod, *corev1.Service or
// *discoveryv1.EndpointSlice; everything else, policies included, an *unstructured.Unstructured.
type Object = metav1.Object

// Ref names an object.
type Ref struct {
	// Kind is the kind with its API group, as in NetworkPolicy.networking.k8s.io; core kinds have no dot.
	Kind string
	// Namespace is empty for objects that have none.
	Namespace string
	Name      string
}

// String is kind/namespace/name, or kind/name.
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + "/" + r.Name
	}
	return r.Kind + "/" + r.Namespace + "/" + r.Name
}

// RefOf names the object.
func RefOf(o Object) Ref {
	r := Ref{Namespace: o.GetNamespace(), Name: o.GetName()}
	switch o := o.(type) {
	case *corev1.Namespace:
		r.Kind = "Namespace"
	case *corev1.Node:
		r.Kind = "Node"
	case *corev1.Pod:
		r.Kind = "Pod"
	case *corev1.Service:
		r.Kind = "Service"
	case *discoveryv1.EndpointSlice:
		r.Kind = "EndpointSlice." + discoveryv1.GroupName
	case *unstructured.Unstructured:
		r.Kind = o.GetKind()
		if g := o.GroupVersionKind().Group; g != "" {
			r.Kind += "." + g
		}
	}
	return r
}

// Parse decodes the documents of one manifest; lists are taken apart. Errors name the source and the document.
func Parse(source string, content []byte) ([]Object, error) {
	var objects []Object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for number := 1; ; number++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err == nil {
			var more []Object
			more, err = parseDocument(document)
			objects = append(objects, more...)
		}
		if err != nil {
			return nil, fmt.Errorf("%s, document %d: %w", source, number, err)
		}
	}
}

func parseDocument(document []byte) ([]Object, error) {
	var content map[string]any
	if err := yaml.Unmarshal(document, &content); err != nil {
		return nil, err
	}
	if len(content) == 0 {
		return nil, nil // comments only
	}
	u := &unstructured.Unstructured{Object: content}
	if u.IsList() {
		var objects []Object
		err := u.EachListItem(func(item apiObject) error {
			o, err := typed(item.(*unstructured.Unstructured))
			objects = append(objects, o)
			return err
		})
		return objects, err
	}
	o, err := typed(u)
	return []Object{o}, err
}

// typed gives the object the Go type of its kind, if the lab knows the kind.
func typed(u *unstructured.Unstructured) (Object, error) {
	var o Object
	switch u.GetAPIVersion() + " " + u.GetKind() {
	case "v1 Namespace":
		o = &corev1.Namespace{}
	case "v1 Node":
		o = &corev1.Node{}
	case "v1 Pod":
		o = &corev1.Pod{}
	case "v1 Service":
		o = &corev1.Service{}
	case "discovery.k8s.io/v1 EndpointSlice":
		o = &discoveryv1.EndpointSlice{}
	default:
		if u.GetKind() == "" || u.GetAPIVersion() == "" {
			return nil, errors.New("apiVersion and kind must be set")
		}
		if u.GetName() == "" {
			return nil, fmt.Errorf("%s: metadata.name must be set", u.GetKind())
		}
		return u, nil
	}
	b, err := yaml.Marshal(u.Object)
	if err != nil {
		return nil, err
	}
	if err := yaml.UnmarshalStrict(b, o); err != nil {
		return nil, fmt.Errorf("%s %s: %w", u.GetKind(), u.GetName(), err)
	}
	if o.GetName() == "" {
		return nil, fmt.Errorf("%s: metadata.name must be set", u.GetKind())
	}
	return o, nil
}

// Load parses all .yaml, .yml and .json files below root, in the order of their paths. Names that begin with a dot are
// skipped.
func Load(fsys fs.FS, root string) ([]Object, error) {
	var objects []Object
	err := walk(fsys, root, func(_ string, found []Object) error {
		objects = append(objects, found...)
		return nil
	})
	return objects, err
}

// walk parses file by file.
func walk(fsys fs.FS, root string, each func(name string, found []Object) error) error {
	err := fs.WalkDir(fsys, root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(path.Base(name), ".") && name != root
		if entry.IsDir() {
			if hidden {
				return fs.SkipDir
			}
			return nil
		}
		if hidden || !slices.Contains([]string{".yaml", ".yml", ".json"}, path.Ext(name)) {
			return nil
		}
		content, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		found, err := Parse(name, content)
		if err != nil {
			return err
		}
		return each(name, found)
	})
	if err != nil {
		return fmt.Errorf("load manifests: %w", err)
	}
	return nil
}
