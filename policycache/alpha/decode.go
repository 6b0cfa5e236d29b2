package alpha

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/firstpacket/firstpacket/policycache/rule"
)

// UnmarshalJSON reads any JSON value and never fails, so that one bad object among many harms no other. What cannot be
// understood is noted in Problems and left out, and with it as much as is needed for the rest not to allow more than
// the whole did: an entry of a list that is bad allows nothing, a rule with an unknown field allows nothing, and so
// does a spec with one.
func (s *Spec) UnmarshalJSON(b []byte) error {
	*s = Spec{}
	var raw any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&raw); err != nil {
		s.problem("spec", "%v; the policy allows nothing", err)
		return nil
	}
	if raw == nil {
		return nil
	}
	spec, ok := raw.(map[string]any)
	if !ok {
		s.problem("spec", "it is %s, not an object; the policy allows nothing", what(raw))
		return nil
	}
	ok = s.known("spec", spec, "the policy allows nothing", "podSelector", "allowIncoming")
	pods, err := labels(spec["podSelector"])
	if err != nil {
		s.problem("spec.podSelector", "%v; the policy allows nothing", err)
		ok = false
	}
	rules := s.rules(spec["allowIncoming"])
	if ok {
		s.PodSelector, s.AllowIncoming = pods, rules
	}
	return nil
}

func (s *Spec) problem(field, format string, args ...any) {
	s.Problems = append(s.Problems, rule.Problem{Field: field, Text: fmt.Sprintf(format, args...)})
}

// known reports the fields of an object that are not among those named.
func (s *Spec) known(field string, object map[string]any, then string, fields ...string) bool {
	ok := true
	for _, k := range slices.Sorted(maps.Keys(object)) {
		if !slices.Contains(fields, k) {
			s.problem(field+"."+k, "unknown field; %s", then)
			ok = false
		}
	}
	return ok
}

// rules reads allowIncoming: one rule or a list of them.
func (s *Spec) rules(raw any) []Rule {
	const field = "spec.allowIncoming"
	var rules []Rule
	switch v := raw.(type) {
	case nil:
	case map[string]any:
		if r, ok := s.rule(field, v); ok {
			rules = append(rules, r)
		}
	case []any:
		for i, e := range v {
			if r, ok := s.rule(fmt.Sprintf("%s[%d]", field, i), e); ok {
				rules = append(rules, r)
			}
		}
	default:
		s.problem(field, "it is %s, not an object or a list of objects; nothing is allowed", what(raw))
	}
	return rules
}

// rule reads one rule; false means that nothing is left of it that allows anything.
func (s *Spec) rule(field string, raw any) (r Rule, ok bool) {
	const then = "the rule allows nothing"
	object, ok := raw.(map[string]any)
	if !ok {
		s.problem(field, "it is %s, not an object; %s", what(raw), then)
		return Rule{}, false
	}
	ok = s.known(field, object, then, "from", "toPorts")
	for i, e := range s.list(field+".from", object["from"], &ok) {
		if p, err := peer(e); err != nil {
			s.problem(fmt.Sprintf("%s.from[%d]%s", field, i, err.field), "%v; the entry allows nothing", err)
		} else {
			r.From = append(r.From, p)
		}
	}
	for i, e := range s.list(field+".toPorts", object["toPorts"], &ok) {
		if p, err := port(e); err != nil {
			s.problem(fmt.Sprintf("%s.toPorts[%d]%s", field, i, err.field), "%v; the entry allows nothing", err)
		} else {
			r.ToPorts = append(r.ToPorts, p)
		}
	}
	// A list of which nothing is left matches nothing, but an empty one would match everything.
	if lost(object["from"], len(r.From)) || lost(object["toPorts"], len(r.ToPorts)) {
		ok = false
	}
	return r, ok
}

func lost(raw any, left int) bool {
	list, _ := raw.([]any)
	return len(list) > 0 && left == 0
}

func (s *Spec) list(field string, raw any, ok *bool) []any {
	if raw == nil {
		return nil
	}
	list, isList := raw.([]any)
	if !isList {
		s.problem(field, "it is %s, not a list; the rule allows nothing", what(raw))
		*ok = false
	}
	return list
}

// fault is an error in an entry; field is relative to the entry.
type fault struct{ field, text string }

func (f *fault) Error() string { return f.text }

func peer(raw any) (Peer, *fault) {
	object, ok := raw.(map[string]any)
	if !ok {
		return Peer{}, &fault{"", "it is " + what(raw) + ", not an object"}
	}
	for _, k := range slices.Sorted(maps.Keys(object)) {
		if k != "pods" && k != "namespaces" {
			return Peer{}, &fault{"." + k, "unknown field"}
		}
	}
	pods, namespaces := object["pods"], object["namespaces"]
	switch {
	case pods != nil && namespaces != nil:
		return Peer{}, &fault{"", "pods and namespaces exclude each other"}
	case pods == nil && namespaces == nil:
		return Peer{}, &fault{"", "pods or namespaces must be set"}
	}
	if pods != nil {
		m, err := labels(pods)
		if err != nil {
			return Peer{}, &fault{".pods", err.Error()}
		}
		return Peer{Pods: m}, nil
	}
	m, err := labels(namespaces)
	if err != nil {
		return Peer{}, &fault{".namespaces", err.Error()}
	}
	return Peer{Namespaces: m}, nil
}

// labels reads a label map; an absent one is nil, an empty one is not.
func labels(raw any) (map[string]string, error) {
	if raw == nil {
		return nil, nil
	}
	object, ok := raw.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("it is %s, not a map of labels", what(raw))
	}
	m := make(map[string]string, len(object))
	for _, k := range slices.Sorted(maps.Keys(object)) {
		v, ok := object[k].(string)
		if !ok {
			return nil, fmt.Errorf("the value of %q is %s, not a string", k, what(object[k]))
		}
		m[k] = v
	}
	if _, err := rule.MatchLabels(m); err != nil {
		return nil, err
	}
	return m, nil
}

func port(raw any) (Port, *fault) {
	object, ok := raw.(map[string]any)
	if !ok {
		return Port{}, &fault{"", "it is " + what(raw) + ", not an object"}
	}
	for _, k := range slices.Sorted(maps.Keys(object)) {
		if k != "port" && k != "protocol" {
			return Port{}, &fault{"." + k, "unknown field"}
		}
	}
	var p Port
	switch v := object["protocol"].(type) {
	case nil:
	case string:
		p.Protocol = strings.ToUpper(v)
	default:
		return Port{}, &fault{".protocol", "it is " + what(v) + ", not a string"}
	}
	switch v := object["port"].(type) {
	case nil:
	case json.Number:
		n, err := strconv.ParseInt(v.String(), 10, 32)
		if err != nil {
			return Port{}, &fault{".port", v.String() + " is not a port number"}
		}
		p.Port = new(intstr.FromInt32(int32(n)))
	case string:
		p.Port = new(intstr.FromString(v))
		// A name has a letter in it, so a string of digits can only be meant as the number.
		if n, err := strconv.ParseUint(v, 10, 16); err == nil {
			p.Port = new(intstr.FromInt32(int32(n)))
		}
	default:
		return Port{}, &fault{".port", "it is " + what(v) + ", not a number or a name"}
	}
	if _, field, err := compilePort(&p); err != nil {
		return Port{}, &fault{field, err.Error()}
	}
	return p, nil
}

// what names the kind of a JSON value.
func what(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	}
	return "a number"
}
