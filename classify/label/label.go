// Package label holds Kubernetes label sets as small interned values.
//
// A cluster of 100,000 pods has few distinct label sets; each is stored once, compared by one word, and freed when
// the last value that refers to it is gone.
package label

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"unique"
)

// Set is an interned, immutable label set. Equal sets compare equal with ==; the zero value is the empty set.
type Set struct {
	// h is the canonical form: "key\x00value\x00" pairs in key order. The handle's zero value stands for the empty
	// set, so that the zero Set needs no constructor.
	h unique.Handle[string]
}

// sep ends keys and values. The API server's validation keeps it out of both (apimachinery,
// validation.IsQualifiedName).
const sep = "\x00"

// Of interns a label map, as found in metadata.labels. A nil or empty map gives the zero Set.
func Of(m map[string]string) Set {
	if len(m) == 0 {
		return Set{}
	}
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		b.WriteString(k)
		b.WriteString(sep)
		b.WriteString(m[k])
		b.WriteString(sep)
	}
	return Set{unique.Make(b.String())}
}

// Get returns the value of key and whether the set has that key. Its cost grows with the number of labels.
func (s Set) Get(key string) (string, bool) {
	for k, v := range s.All() {
		if k == key {
			return v, true
		}
	}
	return "", false
}

// All yields the labels in key order. The strings share the set's memory.
func (s Set) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		rest := s.canonical()
		for rest != "" {
			k, after, _ := strings.Cut(rest, sep)
			v, tail, _ := strings.Cut(after, sep)
			if !yield(k, v) {
				return
			}
			rest = tail
		}
	}
}

// Map copies the set into a new map; empty sets give an empty, non-nil map.
func (s Set) Map() map[string]string { return maps.Collect(s.All()) }

// With returns the set with key set to value.
func (s Set) With(key, value string) Set {
	m := s.Map()
	m[key] = value
	return Of(m)
}

// String prints the set as kubectl does: key=value, comma separated, in key order.
func (s Set) String() string {
	var b strings.Builder
	for k, v := range s.All() {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(v)
	}
	return b.String()
}

func (s Set) canonical() string {
	if s == (Set{}) {
		return ""
	}
	return s.h.Value()
}
