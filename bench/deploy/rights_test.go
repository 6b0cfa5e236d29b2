package deploy

import (
	"context"
	"fmt"
	"slices"
	"strings"
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
	// reports are what conditions and events of policies need, pods what events of pods do.
	reports := []right{{"events.k8s.io", "events", "create", ""}}
	pods := []right{
		{"events.k8s.io", "events", "create", ""}, {"events.k8s.io", "events", "patch", ""}, {"", "pods", "get", ""},
	}
	for _, resource := range []string{"clusternetworkpolicies", "adminnetworkpolicies", "baselineadminnetworkpolicies"} {
		for _, verb := range []string{"get", "patch"} {
			reports = append(reports, right{"policy.networking.k8s.io", resource + "/status", verb, ""})
		}
	}
	c.apply(t, plainManifests)
	check(t, c, slices.Concat(needed, reports))
	definitions(t, c)
	t.Run("the lease", func(t *testing.T) { checkLease(t, c) })
	t.Run("with a startup taint and events of pods, without reports", func(t *testing.T) {
		c.apply(t, fullManifests)
		check(t, c, slices.Concat(needed, pods, []right{{"", "nodes", "get", ""}, {"", "nodes", "patch", ""}}))
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

// checkLease: in its own namespace the agent may make leases, and read and change the one of its election.
func checkLease(t *testing.T, c *cluster) {
	t.Helper()
	for _, q := range []struct {
		namespace, name, verb string
		may                   bool
	}{
		{"firstpacket", "", "create", true}, {"firstpacket", "firstpacket", "get", true},
		{"firstpacket", "firstpacket", "update", true}, {"firstpacket", "firstpacket", "delete", false},
		{"firstpacket", "another", "get", false}, {"firstpacket", "another", "update", false},
		{"firstpacket", "", "list", false}, {"kube-system", "", "create", false},
		{"kube-system", "firstpacket", "update", false},
	} {
		may, err := c.mayDo(t.Context(), user, authorizationv1.ResourceAttributes{
			Group: "coordination.k8s.io", Resource: "leases", Verb: q.verb, Namespace: q.namespace, Name: q.name,
		})
		if err != nil {
			t.Fatal(err)
		}
		if may != q.may {
			t.Errorf("%s lease %s/%s: %v, want %v", q.verb, q.namespace, q.name, may, q.may)
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
	resource, subresource, _ := strings.Cut(r.resource, "/")
	return c.mayDo(ctx, user, authorizationv1.ResourceAttributes{
		Group: r.group, Resource: resource, Subresource: subresource, Verb: r.verb, Name: r.name,
	})
}

func (c *cluster) mayDo(ctx context.Context, user string, what authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user, Groups: []string{"system:serviceaccounts", "system:authenticated"},
		ResourceAttributes: &what,
	}}
	answer, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return answer.Status.Allowed, nil
}
