package integration

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/firstpacket/firstpacket/policycache/alpha"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

// Resources of kinds that clusters need not have.
var (
	definitions = schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	}
	clusterPolicies = schema.GroupVersionResource{
		Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies",
	}
	adminPolicies = schema.GroupVersionResource{
		Group: "policy.networking.k8s.io", Version: "v1alpha1", Resource: "adminnetworkpolicies",
	}
	baselinePolicies = schema.GroupVersionResource{
		Group: "policy.networking.k8s.io", Version: "v1alpha1", Resource: "baselineadminnetworkpolicies",
	}
	alphaPolicies = alpha.GroupVersion.WithResource(alpha.Resource)
)

var dialects = map[schema.GroupVersionResource]rule.Dialect{
	clusterPolicies: rule.ClusterNetworkPolicy, adminPolicies: rule.AdminNetworkPolicy,
	baselinePolicies: rule.BaselineAdminNetworkPolicy,
	alphaPolicies:    rule.AlphaNetworkPolicy,
}

// adminDefinition is a definition of AdminNetworkPolicy as an old cluster may have it, which checks nothing: the API
// publishes none any more.
const adminDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: adminnetworkpolicies.policy.networking.k8s.io
  annotations: {api-approved.kubernetes.io: "unapproved, for a test"}
spec:
  group: policy.networking.k8s.io
  scope: Cluster
  names: {kind: AdminNetworkPolicy, plural: adminnetworkpolicies, singular: adminnetworkpolicy}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status:
            type: object
            properties:
              conditions:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [type]
                items:
                  type: object
                  required: [type]
                  properties:
                    type: {type: string}
                    status: {type: string}
                    reason: {type: string}
                    message: {type: string}
                    observedGeneration: {type: integer}
                    lastTransitionTime: {type: string, format: date-time}
`

// baselineDefinition is the same for BaselineAdminNetworkPolicy.
var baselineDefinition = strings.NewReplacer(
	"AdminNetworkPolicy", "BaselineAdminNetworkPolicy", "adminnetworkpolic", "baselineadminnetworkpolic",
).Replace(adminDefinition)

// upstreamDefinition is the definition of ClusterNetworkPolicy that the API publishes.
func upstreamDefinition() (string, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)),
		"config/crd/experimental/policy.networking.k8s.io_clusternetworkpolicies.yaml"))
	return string(text), err
}

// define applies a definition and waits until it is served.
func (c *cluster) define(text string) {
	c.t.Helper()
	made := c.create(definitions, text)
	c.eventually(made.GetName()+" is served", func() error {
		o, err := c.dynamic.Resource(definitions).Get(c.t.Context(), made.GetName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, condition := range conditions {
			if m, ok := condition.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
				return nil
			}
		}
		return errors.New("not established")
	})
}

// create makes an object of any kind, and has the agents catch up with it if it is a policy.
func (c *cluster) create(r schema.GroupVersionResource, text string) *unstructured.Unstructured {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	o := &unstructured.Unstructured{}
	c.must(yaml.Unmarshal([]byte(text), &o.Object))
	made, err := c.dynamic.Resource(r).Namespace(o.GetNamespace()).Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatalf("%s: %v", r.Resource, err)
	}
	if d, ok := dialects[r]; ok {
		c.note(d.String(), made)
	}
	return made
}

// deleteAlpha deletes a policy of the alpha and has the agents catch up with that.
func (c *cluster) deleteAlpha(namespace, name string) {
	c.t.Helper()
	policies := c.dynamic.Resource(alphaPolicies).Namespace(namespace)
	c.deleteNoted(rule.AlphaNetworkPolicy.String(), name, policies.Watch, func(ctx context.Context) error {
		return policies.Delete(ctx, name, metav1.DeleteOptions{})
	})
}
