package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/shop"
	"github.com/firstpacket/firstpacket/deploy/crds"
	"github.com/firstpacket/firstpacket/proxy/agent"
	"github.com/firstpacket/firstpacket/proxy/report"
)

func reporting(t *testing.T) *cluster {
	t.Helper()
	objects, err := shop.Objects()
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := upstreamDefinition()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--report-policies", "--lease-namespace", "default", "--lease-duration", "2s", "--pod-events",
	}
	kinds := []string{upstream, adminDefinition, baselineDefinition, string(crds.AlphaNetworkPolicy)}
	return newClusterWith(t, args, kinds, objects...)
}

// condition is this project's condition of an object.
func (c *cluster) condition(
	r schema.GroupVersionResource, name string,
) (*metav1.Condition, *unstructured.Unstructured) {
	c.t.Helper()
	o, err := c.dynamic.Resource(r).Get(c.t.Context(), name, metav1.GetOptions{})
	c.must(err)
	var status struct {
		Conditions []metav1.Condition `json:"conditions"`
	}
	if s, ok := o.Object["status"].(map[string]any); ok {
		c.must(runtime.DefaultUnstructuredConverter.FromUnstructured(s, &status))
	}
	for i := range status.Conditions {
		if status.Conditions[i].Type == report.ConditionAccepted {
			return &status.Conditions[i], o
		}
	}
	return nil, o
}

// conditionOf waits for the condition of the object's present content.
func (c *cluster) conditionOf(r schema.GroupVersionResource, name, reason string) (*metav1.Condition, string) {
	c.t.Helper()
	var have *metav1.Condition
	var version string
	c.eventually(name+" has a condition", func() error {
		found, o := c.condition(r, name)
		if found == nil || found.ObservedGeneration != o.GetGeneration() || found.Reason != reason {
			return fmt.Errorf("%+v of generation %d", found, o.GetGeneration())
		}
		have, version = found, o.GetResourceVersion()
		return nil
	})
	return have, version
}

// events are those of firstpacket about an object, in all namespaces.
func (c *cluster) events(kind, name, reason string) []eventsv1.Event {
	c.t.Helper()
	list, err := c.client.EventsV1().Events("").List(c.t.Context(), metav1.ListOptions{})
	c.must(err)
	return slices.DeleteFunc(list.Items, func(e eventsv1.Event) bool {
		return e.ReportingController != report.Controller || e.Regarding.Kind != kind || e.Regarding.Name != name ||
			e.Reason != reason
	})
}

// event waits for the one event about an object.
func (c *cluster) event(kind, name, reason string) eventsv1.Event {
	c.t.Helper()
	var found []eventsv1.Event
	c.eventually("there is an event about "+name, func() error {
		if found = c.events(kind, name, reason); len(found) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	return found[0]
}

// elected returns the name of the node whose agent is elected, and says whether there is one alone.
func (c *cluster) elected() (name string, err error) {
	for node, a := range c.agents {
		if !a.Running() {
			continue
		}
		body, err := a.Get(c.t.Context(), "/status")
		if err != nil {
			return "", err
		}
		var s agent.Status
		if err := json.Unmarshal(body, &s); err != nil {
			return "", err
		}
		if s.Reports == nil {
			return "", errors.New(node + " does not report")
		}
		if s.Reports.Elected {
			if name != "" {
				return "", errors.New("two are elected")
			}
			name = node
		}
	}
	if name == "" {
		return "", errors.New("nobody is elected")
	}
	return name, nil
}

const (
	goodClusterPolicy = `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: good}
spec:
  {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {none: such}}},
   ingress: [{action: Deny, from: [{namespaces: {}}]}]}`
	// The mode is misspelt, which no API server sees.
	badClusterPolicy = `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: bad, annotations: {firstpacket.dev/mode: audited}}
spec:
  {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {none: such}}},
   ingress: [{action: Deny, from: [{namespaces: {}}]}]}`
	badAdminPolicy = `
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: wrong}
spec:
  priority: 3
  subject: {namespaces: {matchLabels: {none: such}}}
  egress: [{action: Deny, to: [{networks: [10.0.0.0/33]}]}]`
	goodAdminPolicy = `
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata: {name: right}
spec:
  priority: 4
  subject: {namespaces: {matchLabels: {none: such}}}
  egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}]}]`
	badBaselinePolicy = `
apiVersion: policy.networking.k8s.io/v1alpha1
kind: BaselineAdminNetworkPolicy
metadata: {name: default}
spec:
  subject: {namespaces: {matchLabels: {none: such}}}
  egress: [{action: Pass, to: [{networks: [10.0.0.0/8]}]}]`
	badAlphaPolicy = `
apiVersion: net.alpha.kubernetes.io/v1alpha1
kind: NetworkPolicy
metadata: {name: both, namespace: monitoring}
spec: {allowIncoming: {from: [{pods: {app: shop}, namespaces: {team: shop}}]}}`
)

// TestReports has two agents, one of which writes what was made of the policies; when it ends, the other one does.
func TestReports(t *testing.T) {
	c := reporting(t)
	c.create(clusterPolicies, goodClusterPolicy)
	c.create(clusterPolicies, badClusterPolicy)
	c.create(adminPolicies, badAdminPolicy)
	c.create(adminPolicies, goodAdminPolicy)
	c.create(baselinePolicies, badBaselinePolicy)
	c.create(alphaPolicies, badAlphaPolicy)
	good, _ := c.conditionOf(clusterPolicies, "good", report.ReasonEnforced)
	if good.Status != metav1.ConditionTrue {
		t.Errorf("condition %+v", good)
	}
	bad, badVersion := c.conditionOf(clusterPolicies, "bad", report.ReasonInvalid)
	if bad.Status != metav1.ConditionFalse || !strings.Contains(bad.Message, `"audited" is neither`) {
		t.Errorf("condition %+v", bad)
	}
	wrong, _ := c.conditionOf(adminPolicies, "wrong", report.ReasonInvalid)
	if wrong.Status != metav1.ConditionFalse || !strings.Contains(wrong.Message, "10.0.0.0/33") {
		t.Errorf("condition %+v", wrong)
	}
	if right, _ := c.conditionOf(adminPolicies, "right", report.ReasonEnforced); right.Status != metav1.ConditionTrue {
		t.Errorf("condition %+v", right)
	}
	// The baseline has no Pass; once that is put right, the condition is another one.
	baseline, _ := c.conditionOf(baselinePolicies, "default", report.ReasonInvalid)
	if baseline.Status != metav1.ConditionFalse || !strings.Contains(baseline.Message, `"Pass"`) {
		t.Errorf("condition %+v", baseline)
	}
	put, err := c.dynamic.Resource(baselinePolicies).Patch(t.Context(), "default", types.MergePatchType,
		[]byte(`{"spec": {"egress": [{"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}]}]}}`), metav1.PatchOptions{})
	c.must(err)
	mended, _ := c.conditionOf(baselinePolicies, "default", report.ReasonEnforced)
	if mended.Status != metav1.ConditionTrue || mended.ObservedGeneration != put.GetGeneration() {
		t.Errorf("condition %+v of generation %d", mended, put.GetGeneration())
	}
	// Namespaced by name, uid and the object's own namespace, so that kubectl describe shows it.
	both, err := c.dynamic.Resource(alphaPolicies).Namespace("monitoring").Get(t.Context(), "both", metav1.GetOptions{})
	c.must(err)
	e := c.event("NetworkPolicy", "both", report.EventPolicyInvalid)
	if e.Namespace != "monitoring" || e.Regarding.UID != both.GetUID() || e.Type != "Warning" ||
		!strings.Contains(e.Note, "spec.allowIncoming") {
		t.Errorf("event %+v", e)
	}
	for kind, name := range map[string]string{
		"ClusterNetworkPolicy": "bad", "AdminNetworkPolicy": "wrong", "BaselineAdminNetworkPolicy": "default",
	} {
		if e := c.event(kind, name, report.EventPolicyInvalid); e.Namespace != "default" {
			t.Errorf("event %+v", e)
		}
	}

	first, err := c.elected()
	c.must(err)
	c.t.Logf("%s is elected", first)
	// A change of the spec is observed, and the rest is left alone.
	o, err := c.dynamic.Resource(clusterPolicies).Get(t.Context(), "good", metav1.GetOptions{})
	c.must(err)
	c.must(unstructured.SetNestedField(o.Object, int64(7), "spec", "priority"))
	_, err = c.dynamic.Resource(clusterPolicies).Update(t.Context(), o, metav1.UpdateOptions{})
	c.must(err)
	c.eventually("the change is observed", func() error {
		if now, _ := c.condition(clusterPolicies, "good"); now.ObservedGeneration != 2 ||
			!now.LastTransitionTime.Equal(&good.LastTransitionTime) {
			return fmt.Errorf("condition %+v", now)
		}
		return nil
	})
	_, version := c.conditionOf(clusterPolicies, "good", report.ReasonEnforced)

	for i, end := range []string{"kill", "stop"} {
		ended, err := c.elected()
		c.must(err)
		if end == "kill" {
			c.agents[ended].Kill()
		} else {
			c.must(c.agents[ended].Stop(t.Context()))
		}
		c.eventually("the other one is elected", func() error {
			now, err := c.elected()
			if err == nil && now == ended {
				err = errors.New("the one that ended is")
			}
			return err
		})
		name := fmt.Sprintf("late-%d", i)
		c.create(clusterPolicies, strings.ReplaceAll(badClusterPolicy, "name: bad", "name: "+name))
		c.conditionOf(clusterPolicies, name, report.ReasonInvalid)
		c.event("ClusterNetworkPolicy", name, report.EventPolicyInvalid)
		c.must(c.agents[ended].Start())
		c.must(c.agents[ended].WaitReady(t.Context()))
	}
	// Each new writer has looked at everything, and found nothing to change or to say again.
	for name, want := range map[string]string{"good": version, "bad": badVersion} {
		if _, o := c.condition(clusterPolicies, name); o.GetResourceVersion() != want {
			t.Errorf("%s has been written again", name)
		}
	}
	for kind, name := range map[string]string{
		"ClusterNetworkPolicy": "bad", "AdminNetworkPolicy": "wrong", "NetworkPolicy": "both",
	} {
		if n := len(c.events(kind, name, report.EventPolicyInvalid)); n != 1 {
			t.Errorf("%d events about %s %s", n, kind, name)
		}
	}
}

// TestPodEvents denies connections and looks for the event on the pod, from its node.
func TestPodEvents(t *testing.T) {
	c := reporting(t)
	c.waitApplied()
	denied := func() {
		t.Helper()
		from, err := c.lab.Place("kube-system/dns")
		c.must(err)
		to, err := c.lab.Place("shop/database")
		c.must(err)
		results, err := c.lab.Probe(t.Context(), probe.Probe{From: from.NS, To: to.At(false, 5432), Proto: probe.TCP})
		c.must(err)
		if !results[0].Denied() {
			t.Fatalf("not denied: %v", results[0])
		}
	}
	denied()
	e := c.event("Pod", "database", report.EventConnectionDenied)
	pod, err := c.client.CoreV1().Pods("shop").Get(t.Context(), "database", metav1.GetOptions{})
	c.must(err)
	if e.Regarding.UID != pod.UID || e.Namespace != "shop" || e.ReportingInstance != pod.Spec.NodeName ||
		!strings.Contains(e.Note, "from pod kube-system/dns") ||
		!strings.Contains(e.Note, "by NetworkPolicy/shop/") {
		t.Errorf("event %+v", e)
	}
	c.eventually("repeats are counted", func() error {
		denied()
		all := c.events("Pod", "database", report.EventConnectionDenied)
		if len(all) != 1 || all[0].Series == nil || all[0].Series.Count < 2 {
			return fmt.Errorf("%d events, %+v", len(all), all[0].Series)
		}
		return nil
	})
}
