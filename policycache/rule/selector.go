package rule

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/firstpacket/firstpacket/classify/label"
)

// Selector is a compiled label selector. The zero Selector matches everything.
type Selector struct{ requirements []requirement }

// requirement is one condition; all of a selector's must hold.
type requirement struct {
	key    string
	op     metav1.LabelSelectorOperator
	values []string // sorted
}

// ErrSelector is wrapped by every error of NewSelector.
var ErrSelector = errors.New("invalid label selector")

// NewSelector compiles a label selector: the conditions of matchLabels and matchExpressions, all of which must hold
// (metav1.LabelSelector). An empty selector matches everything; absent ones are the caller's to interpret.
//
// On an error the selector returned holds the conditions that could be understood, so it matches at least what was
// meant. That is right for subjects, which must not lose their isolation, and wrong for peers.
func NewSelector(s *metav1.LabelSelector) (Selector, error) {
	var (
		sel  Selector
		errs []error
	)
	add := func(r requirement) {
		if err := r.validate(); err != nil {
			errs = append(errs, fmt.Errorf("%w: %w", ErrSelector, err))
			return
		}
		slices.Sort(r.values)
		sel.requirements = append(sel.requirements, r)
	}
	for k, v := range s.MatchLabels {
		add(requirement{key: k, op: metav1.LabelSelectorOpIn, values: []string{v}})
	}
	for _, e := range s.MatchExpressions {
		add(requirement{key: e.Key, op: e.Operator, values: slices.Clone(e.Values)})
	}
	slices.SortFunc(sel.requirements, requirement.compare)
	return sel, errors.Join(errs...)
}

// MatchLabels compiles a plain label map, as the oldest dialect has it.
func MatchLabels(m map[string]string) (Selector, error) {
	return NewSelector(&metav1.LabelSelector{MatchLabels: m})
}

// Matches tells whether all conditions hold for the label set. It allocates nothing.
func (s *Selector) Matches(set label.Set) bool {
	for i := range s.requirements {
		if !s.requirements[i].matches(set) {
			return false
		}
	}
	return true
}

// Everything tells whether the selector has no conditions.
func (s *Selector) Everything() bool { return len(s.requirements) == 0 }

// String prints the conditions as kubectl's --selector takes them; "*" stands for none.
func (s Selector) String() string {
	if s.Everything() {
		return "*"
	}
	var b strings.Builder
	for i, r := range s.requirements {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(r.String())
	}
	return b.String()
}

func (r *requirement) matches(set label.Set) bool {
	value, has := set.Get(r.key)
	switch r.op {
	case metav1.LabelSelectorOpIn:
		return has && slices.Contains(r.values, value)
	case metav1.LabelSelectorOpNotIn:
		return !has || !slices.Contains(r.values, value)
	case metav1.LabelSelectorOpExists:
		return has
	}
	return !has // DoesNotExist: validate admits no other operator
}

// validate holds a condition to the rules of the API: a label key that can exist, an operator that is known, values
// where the operator has them.
func (r *requirement) validate() error {
	if msgs := validation.IsQualifiedName(r.key); len(msgs) > 0 {
		return fmt.Errorf("key %q: %s", r.key, strings.Join(msgs, "; "))
	}
	switch r.op {
	case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
		if len(r.values) == 0 {
			return fmt.Errorf("key %q: operator %s needs values", r.key, r.op)
		}
	case metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist:
		if len(r.values) > 0 {
			return fmt.Errorf("key %q: operator %s takes no values", r.key, r.op)
		}
	default:
		return fmt.Errorf("key %q: unknown operator %q", r.key, r.op)
	}
	for _, v := range r.values {
		if msgs := validation.IsValidLabelValue(v); len(msgs) > 0 {
			return fmt.Errorf("key %q: value %q: %s", r.key, v, strings.Join(msgs, "; "))
		}
	}
	return nil
}

func (r requirement) compare(o requirement) int {
	if c := strings.Compare(r.key, o.key); c != 0 {
		return c
	}
	if c := strings.Compare(string(r.op), string(o.op)); c != 0 {
		return c
	}
	return slices.Compare(r.values, o.values)
}

func (r requirement) String() string {
	switch r.op {
	case metav1.LabelSelectorOpIn:
		if len(r.values) == 1 {
			return r.key + "=" + r.values[0]
		}
		return r.key + " in (" + strings.Join(r.values, ",") + ")"
	case metav1.LabelSelectorOpNotIn:
		return r.key + " notin (" + strings.Join(r.values, ",") + ")"
	case metav1.LabelSelectorOpExists:
		return r.key
	}
	return "!" + r.key
}
