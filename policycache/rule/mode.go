package rule

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ModeAnnotation, on a policy object of any dialect, says whether it is enforced.
const ModeAnnotation = "firstpacket.dev/mode"

// The values of ModeAnnotation. Absent means ModeEnforce.
const (
	ModeEnforce = "enforce"
	// ModeAudit has the policy evaluated and never enforced.
	ModeAudit = "audit"
)

// SetObject reads the metadata of the policy's object.
func (p *Policy) SetObject(o metav1.Object) {
	p.Object = Object{UID: string(o.GetUID()), Generation: o.GetGeneration()}
	p.setMode(o.GetAnnotations())
}

// setMode reads the annotations of the policy's object. A value that is unknown is a problem, and the policy is
// enforced: whoever wrote it has not asked for audit.
func (p *Policy) setMode(annotations map[string]string) {
	switch value := annotations[ModeAnnotation]; value {
	case ModeAudit:
		p.Audit = true
	case "", ModeEnforce:
	default:
		p.Problems = append(p.Problems, Problem{
			Field: "metadata.annotations[" + ModeAnnotation + "]",
			Text:  fmt.Sprintf("%q is neither %s nor %s; the policy is enforced", value, ModeAudit, ModeEnforce),
		})
	}
}
