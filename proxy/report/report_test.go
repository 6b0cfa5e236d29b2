package report

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"k8s.io/client-go/rest"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// TestEventsOfPodsAreBounded: a pod has its own bound, and all pods of a node share one.
func TestEventsOfPodsAreBounded(t *testing.T) {
	p, err := NewPods(PodsConfig{API: &rest.Config{Host: "https://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	admitted := func(pod string) (n int) {
		for range 100 {
			if p.admits(pod) {
				n++
			}
		}
		return n
	}
	if n := admitted("shop/noisy"); n != podBurst {
		t.Errorf("%d events of one pod, want %d", n, podBurst)
	}
	if n := admitted("shop/quiet"); n != podBurst {
		t.Errorf("%d events of another, want %d", n, podBurst)
	}
	all := 2 * podBurst
	for i := range 100 {
		all += admitted(fmt.Sprintf("shop/pod-%d", i))
	}
	if all < nodeBurst || all > 2*nodeBurst {
		t.Errorf("%d events of the node at once, want about %d", all, nodeBurst)
	}
	for i := range 2 * remembered {
		p.admits(fmt.Sprintf("shop/many-%d", i))
	}
	if n := p.pods.Len(); n != remembered {
		t.Errorf("%d pods are remembered", n)
	}
}

// TestOutcome: conditions and notes say what was made of a policy, and fit into the API's fields.
func TestOutcome(t *testing.T) {
	good := &rule.Policy{Object: rule.Object{UID: "u", Generation: 3}}
	bad := *good
	for i := range 200 {
		bad.Problems = append(bad.Problems, rule.Problem{
			Field: fmt.Sprintf("spec.egress[%d]", i), Text: strings.Repeat("ä", i),
		})
	}
	for _, c := range []struct {
		policy *rule.Policy
		audit  bool
		reason string
	}{
		{good, false, ReasonEnforced}, {good, true, ReasonAudit}, {&bad, false, ReasonInvalid}, {&bad, true, ReasonInvalid},
	} {
		o := outcomeOf(c.policy, c.audit)
		condition := o.condition()
		if o.reason != c.reason || (condition.Status == "True") != (c.reason != ReasonInvalid) ||
			condition.ObservedGeneration != 3 {
			t.Errorf("%+v", condition)
		}
		if len(o.message) > 1024 || !utf8.ValidString(o.message) {
			t.Errorf("%d bytes: %s", len(o.message), o.message)
		}
	}
	o := outcomeOf(&bad, false)
	if !strings.Contains(o.message, "more") || !strings.Contains(o.message, "spec.egress[0]") {
		t.Error(o.message)
	}
	if a, b := outcomeOf(&bad, false), outcomeOf(&bad, false); a != b {
		t.Error("the same policy has two outcomes")
	}
	long := bad.Problems[199:]
	long[0].Text = strings.Repeat("ä", 2000)
	if s := list(long); len(s) > 1024 || !utf8.ValidString(s) {
		t.Errorf("%d bytes: %s", len(s), s)
	}
}

// TestEventsAreNamedByWhatTheySay: the same is said once, by whomever, and anything else has another name.
func TestEventsAreNamedByWhatTheySay(t *testing.T) {
	ref := rule.Ref{Dialect: rule.AlphaNetworkPolicy, Namespace: "shop", Name: strings.Repeat("a", 229) + ".b"}
	about := regarding(ref, rule.Object{UID: "u"})
	first := newEvent(about, "one", EventPolicyInvalid, actionCompile, "note")
	if again := newEvent(about, "two", EventPolicyInvalid, actionCompile, "note"); again.Name != first.Name {
		t.Errorf("%s and %s", first.Name, again.Name)
	}
	if len(first.Name) > 253 || strings.Contains(first.Name, "..") || first.Namespace != "shop" {
		t.Errorf("%s/%s", first.Namespace, first.Name)
	}
	another := about
	another.UID = "v"
	for _, other := range []string{
		newEvent(about, "one", EventPolicyInvalid, actionCompile, "another note").Name,
		newEvent(another, "one", EventPolicyInvalid, actionCompile, "note").Name,
		newEvent(about, "one", EventConnectionDenied, actionCompile, "note").Name,
	} {
		if other == first.Name {
			t.Error("two events have one name")
		}
	}
	isolation := rule.Ref{Dialect: rule.AlphaNetworkPolicy, Namespace: "shop", Name: "namespace/isolation"}
	if r := regarding(isolation, rule.Object{}); r.Kind != "Namespace" || r.Name != "shop" {
		t.Errorf("%+v", r)
	}
}
