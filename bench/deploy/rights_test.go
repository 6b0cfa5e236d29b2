package deploy

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/policycache/state"
)

const user = "system:serviceaccount:firstpacket:firstpacket"

// right is what may be done with a resource, or with its object of a name.
type right struct{ group, resource, verb, name string }

func (r right) String() string {
	return fmt.Sprintf("%s %s.%s %s", r.verb, r.resource, r.group, r.name)
}

// TestRights: of all that can be asked of the API server, the ServiceAccount may do what the agent needs and nothing
// else that not every ServiceAccount may do.
func TestRights(t *testing.T) {
	c := startCluster(t, kube.Options{})
	var needed []right
	for _, k := range state.Kinds() {
		for _, verb := range []string{"list", "watch"} {
			needed = append(needed, right{k.GVR.Group, k.GVR.Resource, verb, ""})
		}
	}
	c.apply(t, plainManifests)
	check(t, c, needed)
	definitions(t, c)
	t.Run("with a startup taint", func(t *testing.T) {
		c.apply(t, fullManifests)
		check(t, c, append(needed, right{"", "nodes", "get", ""}, right{"", "nodes", "patch", ""}))
	})
}

func check(t *testing.T, c *cluster, needed []right) {
	t.Helper()
	asked := append(everything(t, c), needed...)
	slices.SortFunc(asked, func(a, b right) int { return slices.Compare(a.fields(), b.fields()) })
	asked = slices.Compact(asked)
	has := c.allowed(t, user, asked)
	others := c.allowed(t, "system:serviceaccount:default:other", asked)
	for _, r := range asked {
		switch {
		case slices.Contains(needed, r):
			if !has[r] {
				t.Errorf("the agent may not %s", r)
			}
		case has[r] && !others[r]:
			t.Errorf("the agent may %s without need", r)
		}
	}
}

// definitions: of the definitions of kinds, those of the optional kinds may be watched, one by one, and no others.
func definitions(t *testing.T, c *cluster) {
	t.Helper()
	const group, resource = "apiextensions.k8s.io", "customresourcedefinitions"
	var watch, no []right
	for _, k := range state.Kinds() {
		r := right{group, resource, "watch", k.GVR.GroupResource().String()}
		if k.Optional {
			watch = append(watch, r)
		} else {
			no = append(no, r)
		}
		for _, verb := range []string{"get", "list", "update", "patch", "delete"} {
			no = append(no, right{group, resource, verb, r.name})
		}
	}
	no = append(no, right{group, resource, "watch", "secrets.example.com"}, right{group, resource, "watch", ""})
	has := c.allowed(t, user, append(watch, no...))
	for _, r := range watch {
		if !has[r] {
			t.Errorf("the agent may not %s", r)
		}
	}
	for _, r := range no {
		if has[r] {
			t.Errorf("the agent may %s without need", r)
		}
	}
}

func (r right) fields() []string { return []string{r.group, r.resource, r.verb, r.name} }

// everything that the API server serves, with all verbs, and some that hide rights.
func everything(t *testing.T, c *cluster) []right {
	t.Helper()
	client, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		t.Fatal(err)
	}
	_, lists, err := client.ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	var all []right
	for _, list := range lists {
		for _, r := range list.APIResources {
			group := r.Group
			if group == "" { // that of the list
				gv, err := schema.ParseGroupVersion(list.GroupVersion)
				if err != nil {
					t.Fatal(err)
				}
				group = gv.Group
			}
			for _, verb := range []string{
				"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "impersonate", "bind",
				"escalate",
			} {
				all = append(all, right{group, r.Name, verb, ""})
			}
		}
	}
	if len(all) < 500 {
		t.Fatalf("only %d rights to ask for", len(all))
	}
	return all
}

// allowed asks the API server which of the rights a ServiceAccount has, in all namespaces.
func (c *cluster) allowed(t *testing.T, user string, rights []right) map[right]bool {
	t.Helper()
	answers := make([]bool, len(rights))
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(16)
	for i, r := range rights {
		group.Go(func() (err error) {
			answers[i], err = c.may(ctx, user, r)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	has := map[right]bool{}
	for i, r := range rights {
		has[r] = answers[i]
	}
	return has
}

func (c *cluster) may(ctx context.Context, user string, r right) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user, Groups: []string{"system:serviceaccounts", "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{Group: r.group, Resource: r.resource, Verb: r.verb, Name: r.name},
	}}
	answer, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}
