package dialects

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/kube/kubetest"
	"github.com/firstpacket/firstpacket/deploy/crds"
	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/convert"
)

// pol1 is the body that the announcement of March 2016 posts; see TestAPIServer for what has to be added to it.
const pol1 = `{
"kind": "NetworkPolicy",
"metadata": {
"name": "pol1"
},
"spec": {
"allowIncoming": {
"from": [
{ "pods": { "segment": "frontend" } }
],
"toPorts": [
{ "port": 80, "protocol": "TCP" }
]
},
"podSelector": { "segment": "backend" }
}
}`

// specs are accepted as they are written, well-formed or not.
var specs = map[string]string{
	"list": `{podSelector: {segment: backend}, allowIncoming: [{from: [{namespaces: {}}]}, ` +
		`{toPorts: [{port: http}]}, {}]}`,
	"nothing":     `{podSelector: {}, allowIncoming: []}`,
	"nulls":       `{podSelector: null, allowIncoming: null}`,
	"both":        `{allowIncoming: {from: [{pods: {}, namespaces: {}}]}}`,
	"misspelt":    `{podselector: {a: b}, allowIncoming: {form: [{pods: {}}]}}`,
	"other-types": `{podSelector: [a], allowIncoming: "all"}`,
	"odd-ports":   `{allowIncoming: {toPorts: [{port: "80"}, {port: 80.5}, {port: -1, protocol: 6}]}}`,
}

var definitions = schema.GroupVersionResource{
	Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
}

// TestAPIServer applies the definition to a real API server, writes objects as they were written in 2016, and reads
// them back through the types that the agent uses. What firstpacket converts them to is accepted too.
func TestAPIServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server := kubetest.Start(t, kube.Options{})
	client, err := dynamic.NewForConfig(server.Config())
	if err != nil {
		t.Fatal(err)
	}
	define(ctx, t, client, crds.AlphaNetworkPolicy)
	resource := alpha.GroupVersion.WithResource(alpha.Resource)
	create(ctx, t, client, schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}, "",
		`{apiVersion: v1, kind: Namespace, metadata: {name: tenant-a, annotations: `+
			`{net.alpha.kubernetes.io/network-isolation: "on"}}}`)

	t.Run("as announced", func(t *testing.T) {
		// The path of the announcement, with the slash at its end. Third-party resources took a body without apiVersion.
		post := func(body string) error {
			return typed(t, server.Config()).Post().
				AbsPath("/apis/net.alpha.kubernetes.io/v1alpha1/namespaces/tenant-a/networkpolicys/").
				SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(ctx).Error()
		}
		if err := post(pol1); !apierrors.IsBadRequest(err) {
			t.Errorf("without apiVersion: %v; docs/dialects.md says that it is refused", err)
		}
		if err := post(strings.Replace(pol1, "{", `{"apiVersion": "net.alpha.kubernetes.io/v1alpha1",`, 1)); err != nil {
			t.Fatal(err)
		}
	})
	for name, spec := range specs {
		create(ctx, t, client, resource, "tenant-a",
			"{apiVersion: net.alpha.kubernetes.io/v1alpha1, kind: NetworkPolicy, metadata: {name: "+name+"}, spec: "+spec+"}")
	}

	var list alpha.NetworkPolicyList
	if err := typed(t, server.Config()).Get().Resource(alpha.Resource).Do(ctx).Into(&list); err != nil {
		t.Fatal(err)
	}
	if want := len(specs) + 1; len(list.Items) != want {
		t.Fatalf("%d objects, want %d", len(list.Items), want)
	}
	for i := range list.Items {
		got := &list.Items[i]
		var want alpha.NetworkPolicy
		if spec, ok := specs[got.Name]; ok {
			err = yaml.Unmarshal([]byte(spec), &want.Spec)
		} else {
			err = yaml.Unmarshal([]byte(pol1), &want)
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.Spec, got.Spec); diff != "" || got.Namespace != "tenant-a" {
			t.Errorf("%s/%s (-written +read):\n%s", got.Namespace, got.Name, diff)
		}
	}

	t.Run("converted", func(t *testing.T) {
		define(ctx, t, client, upstream(t))
		accepted(ctx, t, client)
	})
}

// accepted converts the test inputs of package convert and has the API server check the result.
func accepted(ctx context.Context, t *testing.T, client dynamic.Interface) {
	inputs, err := filepath.Glob("../../policycache/convert/testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal(inputs, err)
	}
	namespaces := schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	for _, name := range []string{"unknown", "odd", "shop"} {
		create(ctx, t, client, namespaces, "", "{apiVersion: v1, kind: Namespace, metadata: {name: "+name+"}}")
	}
	resources := map[string]schema.GroupVersionResource{
		"NetworkPolicy": {Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
		"ClusterNetworkPolicy": {
			Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies",
		},
	}
	for _, name := range inputs {
		in, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		documents, err := convert.Convert(in, convert.Options{})
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range documents {
			o := &unstructured.Unstructured{Object: d.Object}
			resource, ok := resources[o.GetKind()]
			if d.Object == nil || !ok {
				continue
			}
			_, err := client.Resource(resource).Namespace(o.GetNamespace()).Create(ctx, o,
				metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
			if err != nil {
				t.Errorf("%s: %s: %v", name, o.GetName(), err)
			}
		}
	}
}

// upstream is the definition of ClusterNetworkPolicy with its experimental fields.
func upstream(t *testing.T) []byte {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)),
		"config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// define applies a definition and waits until it is served.
func define(ctx context.Context, t *testing.T, client dynamic.Interface, text []byte) {
	t.Helper()
	name := create(ctx, t, client, definitions, "", string(text))
	for {
		o, err := client.Resource(definitions).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		raw, _, err := unstructured.NestedFieldNoCopy(o.Object, "status", "conditions")
		if err != nil {
			t.Fatal(err)
		}
		conditions, _ := raw.([]any) // null at first
		for _, c := range conditions {
			c := c.(map[string]any)
			switch {
			case c["type"] == "Established" && c["status"] == "True":
				return
			case c["type"] == "NonStructuralSchema" && c["status"] == "True":
				t.Fatal(c["message"])
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is not served: %v", name, conditions)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func create(
	ctx context.Context, t *testing.T, client dynamic.Interface, resource schema.GroupVersionResource,
	namespace, text string,
) string {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
		t.Fatal(err)
	}
	_, err := client.Resource(resource).Namespace(namespace).Create(ctx, o,
		metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		t.Fatalf("%s: %v", o.GetName(), err)
	}
	return o.GetName()
}

// typed is a client that decodes into the types of package alpha.
func typed(t *testing.T, config *rest.Config) *rest.RESTClient {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := alpha.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	config.GroupVersion = &alpha.GroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}
