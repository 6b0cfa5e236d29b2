package report

import (
	"context"
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// ConditionAccepted is the type of the condition. The prefix keeps it apart from those of other implementations, which
// share the list.
const ConditionAccepted = "firstpacket.dev/Accepted"

// Reasons of the condition. ReasonInvalid is that of events too.
const (
	// ReasonEnforced: every part is understood, and enforced on every node.
	ReasonEnforced = "Enforced"
	// ReasonAudit: every part is understood, and nothing is enforced.
	ReasonAudit = "Audit"
	// ReasonInvalid: something could not be understood and fails closed.
	ReasonInvalid = "Invalid"
)

// kind is what is to be known of a dialect's objects.
type kind struct {
	api, name, resource string
	// conditions: the objects have a status for them.
	conditions bool
}

var kinds = map[rule.Dialect]kind{
	rule.NetworkPolicy: {api: "networking.k8s.io/v1", name: "NetworkPolicy", resource: "networkpolicies"},
	rule.AlphaNetworkPolicy: {
		api: "net.alpha.kubernetes.io/v1alpha1", name: "NetworkPolicy", resource: "networkpolicys",
	},
	rule.BetaNetworkPolicy:    {api: "extensions/v1beta1", name: "NetworkPolicy", resource: "networkpolicies"},
	rule.ClusterNetworkPolicy: policyAPI("v1alpha2", "ClusterNetworkPolicy", "clusternetworkpolicies"),
	rule.AdminNetworkPolicy:   policyAPI("v1alpha1", "AdminNetworkPolicy", "adminnetworkpolicies"),
	rule.BaselineAdminNetworkPolicy: policyAPI("v1alpha1", "BaselineAdminNetworkPolicy",
		"baselineadminnetworkpolicies"),
}

func policyAPI(version, name, resource string) kind {
	return kind{api: "policy.networking.k8s.io/" + version, name: name, resource: resource, conditions: true}
}

// outcome is what was made of a policy. It is comparable.
type outcome struct {
	object          rule.Object
	accepted        bool
	reason, message string
}

func outcomeOf(p *rule.Policy, audit bool) outcome {
	o := outcome{object: p.Object, accepted: len(p.Problems) == 0}
	switch {
	case !o.accepted:
		o.reason, o.message = ReasonInvalid, "Fails closed: "+list(p.Problems)
	case p.Audit || audit:
		o.reason, o.message = ReasonAudit, "Understood in full, evaluated and not enforced."
	default:
		o.reason, o.message = ReasonEnforced, "Understood in full and enforced."
	}
	return o
}

// list joins problems, as many as fit into the note of an event (1024 bytes, k8s.io/api/events/v1).
func list(problems []rule.Problem) string {
	const room = 900
	var b strings.Builder
	for i, p := range problems {
		text := p.String()
		if i > 0 && b.Len()+len(text) > room {
			fmt.Fprintf(&b, "; and %d more", len(problems)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(shorten(text, room))
	}
	return b.String()
}

// shorten cuts a text to so many bytes, at the beginning of a character.
func shorten(s string, size int) string {
	if len(s) <= size {
		return s
	}
	return strings.ToValidUTF8(s[:size], "") + "..."
}

// object is what matters of a policy as the server has it. It is also what is applied.
type object struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name       string `json:"name"`
		UID        string `json:"uid,omitempty"`
		Generation int64  `json:"generation,omitempty"`
	} `json:"metadata"`
	Status struct {
		Conditions []metav1.Condition `json:"conditions"`
	} `json:"status"`
}

// setCondition writes the condition if the server has another one. done is false when the object is another one there,
// or has another content.
func (w *Writer) setCondition(ctx context.Context, ref rule.Ref, o *outcome) (done bool, err error) {
	k := kinds[ref.Dialect]
	path := "/apis/" + k.api + "/" + k.resource + "/" + ref.Name + "/status"
	var now object
	err = w.client.get(ctx, path, &now)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the status of %s: %w", ref, err)
	}
	if now.Metadata.UID != o.object.UID || now.Metadata.Generation != o.object.Generation {
		return false, nil
	}
	next := o.condition()
	for i := range now.Status.Conditions {
		switch c := &now.Status.Conditions[i]; {
		case c.Type != next.Type:
		case c.Status == next.Status && c.Reason == next.Reason && c.Message == next.Message &&
			c.ObservedGeneration == next.ObservedGeneration:
			return true, nil
		case c.Status == next.Status:
			next.LastTransitionTime = c.LastTransitionTime
		}
	}
	apply := object{APIVersion: k.api, Kind: k.name}
	apply.Metadata.Name, apply.Metadata.UID = ref.Name, o.object.UID // another object of the name is a conflict
	apply.Status.Conditions = []metav1.Condition{next}
	err = w.client.patch(ctx, path, types.ApplyYAMLPatchType, apply)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write the status of %s: %w", ref, err)
	}
	w.written.Add(1)
	return true, nil
}

func (o *outcome) condition() metav1.Condition {
	c := metav1.Condition{
		Type: ConditionAccepted, Status: metav1.ConditionFalse, Reason: o.reason, Message: o.message,
		ObservedGeneration: o.object.Generation, LastTransitionTime: metav1.Now(),
	}
	if o.accepted {
		c.Status = metav1.ConditionTrue
	}
	return c
}
