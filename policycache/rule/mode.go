package rule

import "fmt"

// ModeAnnotation, on a policy object of any dialect, says whether it is enforced.
const ModeAnnotation = "firstpacket.dev/mode"

// The values of ModeAnnotation. Absent means ModeEnforce.
const (
	ModeEnforce = "enforce"
	// ModeAudit has the policy evaluated and never enforced.
	ModeAudit = "audit"
)

// SetMode reads the annotations of the policy's object. A value that is unknown is a problem, and the policy is
// enforced: whoever wrote it has not asked for audit.
func (p *Policy) SetMode(annotations map[string]string) {
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
