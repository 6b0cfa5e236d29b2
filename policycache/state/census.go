package state

import "github.com/firstpacket/firstpacket/policycache/rule"

// Census is how many policies there are of each kind; none is not in it.
type Census map[Kind]int

// Kind is what policies are counted by.
type Kind struct {
	Dialect rule.Dialect
	Standing
}

// Standing is what becomes of a policy.
type Standing string

const (
	// Enforced policies count for verdicts.
	Enforced Standing = "enforced"
	// Audited ones are evaluated and never enforced.
	Audited Standing = "audited"
	// Failing ones could not be understood in full, and fail closed.
	Failing Standing = "failing"
)

func kindOf(p *rule.Policy) Kind {
	switch {
	case len(p.Problems) > 0:
		return Kind{p.Ref.Dialect, Failing}
	case p.Audit:
		return Kind{p.Ref.Dialect, Audited}
	}
	return Kind{p.Ref.Dialect, Enforced}
}

// replace counts one policy in the place of another; either may be nil.
func (c Census) replace(old, next *rule.Policy) {
	if next != nil {
		c[kindOf(next)]++
	}
	if old == nil {
		return
	}
	kind := kindOf(old)
	if c[kind]--; c[kind] == 0 {
		delete(c, kind)
	}
}
