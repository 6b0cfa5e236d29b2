// Package domain holds the domain names that policies use as peers.
//
// The names are those of policy.networking.k8s.io/v1alpha2, DomainName: exact, or with the wildcard "*" as the first
// label, which stands for one or more whole labels.
package domain

import (
	"errors"
	"fmt"
	"strings"
)

// ErrName is wrapped by every error of Parse.
var ErrName = errors.New("not a domain name")

// Limits of names in text form without the dot at the end (RFC 1035, 2.3.4).
const (
	maxName  = 253
	maxLabel = 63
)

// Pattern matches domain names. It is comparable; the zero Pattern matches nothing.
type Pattern struct {
	// name is in lower case and has no dot at the end and no wildcard.
	name     string
	wildcard bool
}

// Parse reads a name as the API takes it: two or more labels, an optional dot at the end, an optional "*." in front.
func Parse(s string) (Pattern, error) {
	name, wildcard := strings.CutPrefix(s, "*.")
	name = strings.TrimSuffix(name, ".")
	labels := strings.Split(name, ".")
	switch {
	case len(name) > maxName:
		return Pattern{}, fmt.Errorf("%w: it has more than %d bytes", ErrName, maxName)
	case len(labels) < 2:
		return Pattern{}, fmt.Errorf("%w: %q has less than two labels", ErrName, s)
	}
	for _, l := range labels {
		if !validLabel(l) {
			return Pattern{}, fmt.Errorf("%w: %q has the label %q", ErrName, s, l)
		}
	}
	return Pattern{name: strings.ToLower(name), wildcard: wildcard}, nil
}

// validLabel follows the pattern of the API field: letters, digits, "_" and "-", beginning with none but a letter, a
// digit or "_" and ending with a letter or digit.
func validLabel(l string) bool {
	if l == "" || len(l) > maxLabel {
		return false
	}
	for i := range len(l) {
		switch c := l[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '_' && i < len(l)-1:
		case c == '-' && i > 0 && i < len(l)-1:
		default:
			return false
		}
	}
	return true
}

// Matches tells whether a name, with or without the dot at the end and in any case, is one that the pattern means.
func (p Pattern) Matches(name string) bool {
	if p.name == "" {
		return false
	}
	name = strings.TrimSuffix(name, ".")
	if !p.wildcard {
		return strings.EqualFold(name, p.name)
	}
	// At least one byte of a label must stand before the dot.
	head := len(name) - len(p.name) - 1
	return head > 0 && name[head] == '.' && name[head-1] != '.' && strings.EqualFold(name[head+1:], p.name)
}

// String prints the pattern in its normal form: lower case, no dot at the end.
func (p Pattern) String() string {
	if p.wildcard {
		return "*." + p.name
	}
	return p.name
}
