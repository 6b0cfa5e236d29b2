package dialects

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/firstpacket/firstpacket/bench/kube"
	"github.com/firstpacket/firstpacket/bench/kube/kubetest"
	"github.com/firstpacket/firstpacket/classify/source"
	sourcekube "github.com/firstpacket/firstpacket/classify/source/kube"
	"github.com/firstpacket/firstpacket/deploy/crds"
	"github.com/firstpacket/firstpacket/policycache/clusternetpol"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/policycache/state"
)

// requests notes what a client asks for.
type requests struct {
	next http.RoundTripper
	mu   sync.Mutex
	urls []string
}

func (r *requests) RoundTrip(q *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.urls = append(r.urls, q.URL.RequestURI())
	r.mu.Unlock()
	return r.next.RoundTrip(q)
}

func (r *requests) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.urls)
}

// quiet returns what was asked for once nothing has been for some time.
func (r *requests) quiet() []string {
	for before := r.all(); ; {
		time.Sleep(2 * time.Second)
		after := r.all()
		if len(after) == len(before) {
			return after
		}
		before = after
	}
}

// TestAbsentKinds follows the kinds of every dialect in a cluster that has none of the optional ones: they hold nothing
// up, they are no errors, they cost no request while nothing happens, and they are there once they are defined.
func TestAbsentKinds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	server := kubetest.Start(t, kube.Options{})
	client, err := dynamic.NewForConfig(server.Config())
	if err != nil {
		t.Fatal(err)
	}
	seen := &requests{}
	config := server.Config()
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		seen.next = next
		return seen
	})
	queue := source.New(ctx, source.Config{
		OnError: func(kind source.Health, err error) { t.Errorf("%s: %v", kind.Kind, err) },
	})
	t.Cleanup(queue.Close)
	src := sourcekube.NewForConfig(config, "")
	for _, k := range state.Kinds() {
		if err := queue.Add(src, k); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := queue.Next(ctx); err != nil {
		t.Fatal(err)
	}
	for _, h := range queue.Health() {
		if optional := slices.ContainsFunc(state.Kinds(), func(k source.Kind) bool {
			return k.Name == h.Kind && k.Optional
		}); optional != h.Absent {
			t.Errorf("%s: absent %v, want %v", h.Kind, h.Absent, optional)
		}
	}
	t.Logf("%d requests until all is quiet", len(seen.quiet()))

	define(ctx, t, client, upstream(t))
	define(ctx, t, client, crds.AlphaNetworkPolicy)
	create(ctx, t, client, schema.GroupVersionResource{
		Group: "policy.networking.k8s.io", Version: "v1alpha2", Resource: "clusternetworkpolicies",
	}, "", `{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: late}, spec: `+
		`{tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}}`)
	await(ctx, t, queue, func(c source.Change) bool {
		p, ok := c.Object.(*rule.Policy)
		return ok && p.Ref == clusternetpol.Ref("late")
	})

	// Its objects go with the definition.
	if err := client.Resource(definitions).Delete(ctx, "clusternetworkpolicies.policy.networking.k8s.io",
		metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await(ctx, t, queue, func(c source.Change) bool {
		return c.Kind == rule.ClusterNetworkPolicy.String() && c.Key == "late" && c.Object == nil
	})
}

func await(ctx context.Context, t *testing.T, queue *source.Queue, wanted func(source.Change) bool) {
	t.Helper()
	for {
		batch, err := queue.Next(ctx)
		if err != nil {
			t.Fatalf("%v; health %+v", err, queue.Health())
		}
		if slices.ContainsFunc(batch.Changes, wanted) {
			return
		}
	}
}
