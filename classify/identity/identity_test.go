package identity

import (
	"testing"

	"github.com/firstpacket/firstpacket/classify/label"
)

func TestIntern(t *testing.T) {
	web := Identity{
		Kind: Pod, Namespace: "shop",
		NamespaceLabels: label.Of(map[string]string{"team": "a"}), Labels: label.Of(map[string]string{"app": "web"}),
	}
	same := web
	if Intern(web) != Intern(same) || Intern(web).Identity() != web {
		t.Error("equal identities are not one handle")
	}
	for name, change := range map[string]func(*Identity){
		"kind":             func(id *Identity) { id.Kind = Node },
		"namespace":        func(id *Identity) { id.Namespace = "other" },
		"namespace labels": func(id *Identity) { id.NamespaceLabels = label.Set{} },
		"labels":           func(id *Identity) { id.Labels = label.Of(map[string]string{"app": "db"}) },
	} {
		other := web
		change(&other)
		if Intern(other) == Intern(web) {
			t.Errorf("another %s is the same handle", name)
		}
	}
}

func TestZeroHandleIsExternal(t *testing.T) {
	var h Handle
	if !h.IsZero() || h.Identity() != (Identity{}) || h.Identity().Kind.String() != "external" {
		t.Errorf("%+v", h.Identity())
	}
	if Intern(Identity{}).IsZero() {
		t.Error("an interned identity is the zero handle")
	}
}

func TestHandlesCompareWithoutAllocation(t *testing.T) {
	a, b := Intern(Identity{Kind: Pod}), Intern(Identity{Kind: Node})
	if n := testing.AllocsPerRun(100, func() { _ = a == b; _ = a.Identity() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
