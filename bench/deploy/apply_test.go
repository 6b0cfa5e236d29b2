package deploy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/kube/kubetest"
)

// The manifests to install, and those of a release with everything switched on.
const (
	plainManifests = "../../deploy/firstpacket.yaml"
	fullManifests  = "../../deploy/build/testdata/full.yaml"
)

// cluster is a control plane, as its administrator sees it.
type cluster struct {
	*kube.Cluster
	config  *rest.Config
	client  kubernetes.Interface
	dynamic dynamic.Interface
}

// warnings fails the test on what kubectl would warn of: deprecated or unknown fields, for one.
type warnings struct{ t *testing.T }

func (w warnings) HandleWarningHeader(_ int, _, text string) {
	w.t.Errorf("the API server warns: %s", text)
}

func startCluster(t *testing.T, opts kube.Options) *cluster {
	t.Helper()
	k := kubetest.Start(t, opts)
	c := &cluster{Cluster: k, config: k.Config()}
	c.config.WarningHandler = warnings{t}
	var err error
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	if c.dynamic, err = dynamic.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	return c
}

// apply applies a file of manifests as `kubectl apply --server-side` does, and returns the objects as the server has
// them. Kinds of the Prometheus operator are left out: this server does not know them.
func (c *cluster) apply(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var applied []*unstructured.Unstructured
	for decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(b), 4096); ; {
		o := &unstructured.Unstructured{}
		if err := decoder.Decode(o); errors.Is(err, io.EOF) {
			return applied
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if o.GroupVersionKind().Group == "monitoring.coreos.com" {
			continue
		}
		applied = append(applied, c.applyOne(t, o))
	}
}

func (c *cluster) applyOne(t *testing.T, o *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	body, err := o.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	options := metav1.PatchOptions{FieldManager: "test", FieldValidation: metav1.FieldValidationStrict, Force: new(true)}
	got, err := c.resource(t, o).Patch(t.Context(), o.GetName(), types.ApplyPatchType, body, options)
	if err != nil {
		t.Fatalf("apply %s %s: %v", o.GetKind(), o.GetName(), err)
	}
	return got
}

// resource is the client of the object's kind. Kinds are looked up each time: applying may add some.
func (c *cluster) resource(t *testing.T, o *unstructured.Unstructured) dynamic.ResourceInterface {
	t.Helper()
	client, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := restmapper.GetAPIGroupResources(client)
	if err != nil {
		t.Fatal(err)
	}
	kind := o.GroupVersionKind()
	mapping, err := restmapper.NewDiscoveryRESTMapper(groups).RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		t.Fatal(err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameRoot {
		return c.dynamic.Resource(mapping.Resource)
	}
	return c.dynamic.Resource(mapping.Resource).Namespace(o.GetNamespace())
}

// TestApply applies all manifests, one release after the other and twice each: the second time changes nothing.
func TestApply(t *testing.T) {
	c := startCluster(t, kube.Options{})
	for _, file := range []string{plainManifests, fullManifests} {
		first := c.apply(t, file)
		if len(first) == 0 {
			t.Errorf("%s has no objects", file)
		}
		for i, o := range c.apply(t, file) {
			if o.GetGeneration() != first[i].GetGeneration() ||
				o.GetGeneration() == 0 && o.GetResourceVersion() != first[i].GetResourceVersion() {
				t.Errorf("%s: %s %s changes each time it is applied", file, o.GetKind(), o.GetName())
			}
		}
	}
	t.Run("the namespace admits the pods", func(t *testing.T) { admitted(t, c) })
}

// admitted makes a pod of the DaemonSet's template, as its controller would: Pod Security and the priority class have
// their say.
func admitted(t *testing.T, c *cluster) {
	ds, err := c.client.AppsV1().DaemonSets("firstpacket").Get(t.Context(), "firstpacket", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := podOf(ds)
	if _, err := c.client.CoreV1().Pods("firstpacket").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	pod.Namespace = "restricted"
	ns := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{
			"name": "restricted", "labels": map[string]any{"pod-security.kubernetes.io/enforce": "restricted"},
		},
	}}
	c.applyOne(t, ns)
	pod.Spec.ServiceAccountName = ""
	_, err = c.client.CoreV1().Pods("restricted").Create(t.Context(), pod, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		t.Fatalf("pod in a namespace of level restricted: %v", err)
	}
	// What is told apart from that level is what the agent cannot do without, and nothing else.
	for _, violation := range []string{"host namespaces", "unrestricted capabilities"} {
		if !strings.Contains(err.Error(), violation) {
			t.Errorf("not told apart by %s: %v", violation, err)
		}
	}
	if n := strings.Count(err.Error(), " ("); n != 2 {
		t.Errorf("%d violations of level restricted, want 2: %v", n, err)
	}
}
