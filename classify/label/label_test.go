package label

import (
	"maps"
	"testing"
)

func TestSetIsInterned(t *testing.T) {
	a := Of(map[string]string{"app": "web", "tier": "front"})
	b := Of(map[string]string{"tier": "front", "app": "web"})
	if a != b {
		t.Errorf("the same labels in another order give another set: %s, %s", a, b)
	}
	if a == Of(map[string]string{"app": "web"}) {
		t.Error("a subset compares equal")
	}
	if Of(nil) != (Set{}) || Of(map[string]string{}) != (Set{}) {
		t.Error("the empty set is not the zero value")
	}
}

func TestSetReadsBack(t *testing.T) {
	m := map[string]string{"app": "web", "empty": "", "a.b/c": "d"}
	s := Of(m)
	if got := s.Map(); !maps.Equal(got, m) {
		t.Errorf("Map() = %v, want %v", got, m)
	}
	for k, want := range m {
		if v, ok := s.Get(k); !ok || v != want {
			t.Errorf("Get(%q) = %q, %v", k, v, ok)
		}
	}
	if _, ok := s.Get("ap"); ok {
		t.Error("a prefix of a key was found")
	}
	if got, want := s.String(), "a.b/c=d,app=web,empty="; got != want {
		t.Errorf("String() = %q, want %q", got, want)
	}
	if got := (Set{}).String(); got != "" {
		t.Errorf("empty String() = %q", got)
	}
	if got := (Set{}).With("k", "v"); got != Of(map[string]string{"k": "v"}) {
		t.Errorf("With on the empty set = %s", got)
	}
}
