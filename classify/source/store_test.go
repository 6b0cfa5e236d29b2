package source

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	"github.com/firstpacket/firstpacket/classify/cluster"
)

// bare makes a store whose reflector is the test.
func bare(q *Queue, k Kind) *store {
	s := &store{q: q, kind: k, objects: map[string]uint64{}, failing: map[string]struct{}{}}
	q.stores = append(q.stores, s)
	return s
}

// picky refuses pods with the annotation "bad".
func picky() Kind {
	k := Pods()
	whole := k.Transform
	k.Transform = func(o runtime.Object) (any, error) {
		if o.(*corev1.Pod).Annotations["bad"] != "" {
			return nil, errors.New("bad")
		}
		return whole(o)
	}
	return k
}

func bad(p *corev1.Pod) *corev1.Pod {
	p.Annotations = map[string]string{"bad": "yes"}
	return p
}

type fataler interface {
	Helper()
	Fatal(...any)
}

func must(t fataler, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestStoreCoalesces(t *testing.T) {
	q := newQueue(t, Config{})
	s := bare(q, Pods())
	must(t, s.Replace([]any{pod("a", "1"), pod("b", "2")}, "2"))
	must(t, s.Update(pod("a", "3")), s.Add(pod("c", "4")), s.Delete(pod("b", "5")), s.Update(pod("c", "6")))
	if got := printed(next(t, q).Changes); got != "+shop/a -shop/b +shop/c" {
		t.Error(got)
	}
	must(t, s.Delete(pod("a", "7")), s.Add(pod("a", "8")))
	if got := printed(next(t, q).Changes); got != "+shop/a" {
		t.Error(got)
	}
}

func TestStoreGap(t *testing.T) {
	q := newQueue(t, Config{})
	s := bare(q, Pods())
	must(t, s.Replace([]any{pod("same", "1"), pod("changed", "2"), pod("gone", "3")}, "3"))
	next(t, q)
	must(t, s.Replace([]any{pod("same", "1"), pod("changed", "5"), pod("new", "6")}, "6"))
	b := next(t, q)
	if got := printed(b.Changes); got != "-shop/gone +shop/changed +shop/new" || b.Versions[KindPod] != "6" {
		t.Errorf("%s %v", got, b.Versions)
	}
}

func TestStoreRefusedObjects(t *testing.T) {
	q := newQueue(t, Config{})
	s := bare(q, picky())
	must(t, s.Replace([]any{pod("a", "1"), bad(pod("never", "2"))}, "2"))
	if got := printed(next(t, q).Changes); got != "+shop/a" {
		t.Error(got)
	}
	// The last good form stays, over a gap too.
	must(t, s.Update(bad(pod("a", "3"))), s.Replace([]any{bad(pod("a", "3")), bad(pod("never", "2"))}, "4"))
	if got := printed(next(t, q).Changes); got != "" {
		t.Error(got)
	}
	if h := q.Health()[0]; h.Failing != 2 || h.Objects != 1 || h.Failures != 4 {
		t.Errorf("health: %+v", h)
	}
	// An object that never was in force ends silently, one that was does not.
	must(t, s.Delete(bad(pod("never", "5"))), s.Delete(bad(pod("a", "6"))))
	if got := printed(next(t, q).Changes); got != "-shop/a" {
		t.Error(got)
	}
	if h := q.Health()[0]; h.Failing != 0 || h.Objects != 0 {
		t.Errorf("health: %+v", h)
	}
	must(t, s.Add(bad(pod("b", "7"))), s.Update(pod("b", "8")))
	if got := printed(next(t, q).Changes); got != "+shop/b" {
		t.Error(got)
	}
}

func TestStoreWrongType(t *testing.T) {
	q := newQueue(t, Config{})
	s := bare(q, Pods())
	must(t, s.Add(node("n1", "1")), s.Add("no object"))
	if h := q.Health()[0]; h.Failures != 2 || h.Objects != 0 {
		t.Errorf("health: %+v", h)
	}
}

// TestStoreAgainstModel feeds random events and lists, takes batches at random times, and checks that what a consumer
// of the batches knows is what the cluster was at the version of the last batch.
func TestStoreAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := New(t.Context(), Config{})
		defer q.Close()
		s := bare(q, Pods())
		truth, known := map[string]int64{}, map[string]int64{}
		version := 0
		apply := func(b Batch) {
			seen := map[string]bool{}
			for _, c := range b.Changes {
				if seen[c.Key] {
					t.Fatalf("%s comes twice in one batch", c.Key)
				}
				seen[c.Key] = true
				if c.Object == nil {
					delete(known, c.Key)
				} else {
					known[c.Key] = c.Object.(*cluster.Pod).Started
				}
			}
			if b.Versions[KindPod] != fmt.Sprint(version) || !maps.Equal(truth, known) {
				t.Fatalf("at %v: known %v, truth %v at %d", b.Versions, known, truth, version)
			}
		}
		object := func(name string) *corev1.Pod {
			started := truth["shop/"+name]
			p := pod(name, fmt.Sprint(started))
			at := metav1.NewTime(time.Unix(0, started))
			p.Status.StartTime = &at
			return p
		}
		relist := func() {
			var all []any
			for key := range truth {
				all = append(all, object(key[len("shop/"):]))
			}
			must(t, s.Replace(all, fmt.Sprint(version)))
		}
		name := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		relist()
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				version++
				n := name.Draw(t, "name")
				truth["shop/"+n] = int64(version)
				must(t, s.Update(object(n)))
				s.UpdateResourceVersion(fmt.Sprint(version))
			},
			"delete": func(t *rapid.T) {
				version++
				n := name.Draw(t, "name")
				delete(truth, "shop/"+n)
				must(t, s.Delete(pod(n, fmt.Sprint(version))))
				s.UpdateResourceVersion(fmt.Sprint(version))
			},
			"gap": func(t *rapid.T) {
				for range rapid.IntRange(0, 3).Draw(t, "changes") {
					version++
					key := "shop/" + name.Draw(t, "name")
					if rapid.Bool().Draw(t, "delete") {
						delete(truth, key)
					} else {
						truth[key] = int64(version)
					}
				}
				relist()
			},
			"take": func(t *rapid.T) {
				if b, ok := q.take(); ok {
					apply(b)
				}
			},
		})
		if b, ok := q.take(); ok {
			apply(b)
		}
		if !maps.Equal(truth, known) {
			t.Fatalf("known %v, truth %v", known, truth)
		}
	})
}
