package convert

import (
	"bufio"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/policycache/alpha"
)

const (
	kindNetworkPolicy        = "NetworkPolicy"
	kindClusterNetworkPolicy = "ClusterNetworkPolicy"
)

// What is written.
var (
	networkingVersion = networkingv1.SchemeGroupVersion.String()
	policyVersion     = v1alpha2.GroupVersion.String()
)

// object is one object of the input.
type object struct {
	metav1.TypeMeta `json:",inline"`
	header          `json:"metadata"`
	// Spec is nil where the object has none.
	Spec any `json:"spec"`

	raw   []byte // JSON
	place string
}

type header struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (o *object) String() string {
	return fmt.Sprintf("%s (%s %s)", o.place, o.Kind, o.Name)
}

func (o *object) is(apiVersion, kind string) bool {
	return o.APIVersion == apiVersion && o.Kind == kind
}

// isAlpha recognises objects of the alpha, also those that leave the version to the path that they are posted to, as
// the example of the announcement does.
func (o *object) isAlpha() bool {
	if o.is("", alpha.Kind) {
		spec, _ := o.Spec.(map[string]any)
		_, ok := spec["allowIncoming"]
		return ok
	}
	return o.is(alpha.GroupVersion.String(), alpha.Kind)
}

// decode reads the object into its Go type, with the API server's leniency: unknown fields are ignored.
func (o *object) decode(into any) error { return json.Unmarshal(o.raw, into) }

// read splits the input into objects; lists give their items.
func read(in io.Reader) ([]*object, error) {
	var objects []*object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for n := 1; ; n++ {
		place := fmt.Sprintf("document %d", n)
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", place, err)
		}
		raw, err := yaml.YAMLToJSON(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", place, err)
		}
		if objects, err = appendObjects(objects, raw, place, 0); err != nil {
			return nil, err
		}
	}
}

// maxDepth bounds lists of lists.
const maxDepth = 4

func appendObjects(objects []*object, raw []byte, place string, depth int) ([]*object, error) {
	o := &object{raw: raw, place: place}
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("%s: %w", place, err)
	}
	if o.Kind == "" {
		return objects, nil // an empty document
	}
	var list struct {
		Items []stdjson.RawMessage `json:"items"`
	}
	if !strings.HasSuffix(o.Kind, "List") || depth == maxDepth {
		return append(objects, o), nil
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", place, err)
	}
	for i, item := range list.Items {
		var err error
		if objects, err = appendObjects(objects, item, fmt.Sprintf("%s, item %d", place, i+1), depth+1); err != nil {
			return nil, err
		}
	}
	return objects, nil
}
