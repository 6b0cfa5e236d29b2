package feed_test

import (
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/rest"

	"github.com/firstpacket/firstpacket/bench/feed"
	"github.com/firstpacket/firstpacket/bench/world"
	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/classify/source/kube"
	"github.com/firstpacket/firstpacket/policycache/netpol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestReflectorsFollow lists through client-go what the world generates, and then sees a change.
func TestReflectorsFollow(t *testing.T) {
	w := world.World{Pods: 1200, StagePolicies: 3, Policies: 40}
	f := feed.New(w)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- f.Serve(l) }()
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	q := source.New(t.Context(), source.Config{
		OnError: func(kind source.Health, err error) { t.Errorf("%s: %v", kind.Kind, err) },
	})
	defer q.Close()
	src := kube.NewForConfig(&rest.Config{Host: "http://" + l.Addr().String()}, "test")
	if err := src.WaitReachable(t.Context(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	policies := source.Kind{
		Name: "NetworkPolicy", GVR: networkingv1.SchemeGroupVersion.WithResource("networkpolicies"), Namespaced: true,
		Example: &networkingv1.NetworkPolicy{}, AddToScheme: networkingv1.AddToScheme,
		Transform: source.Typed(netpol.Compile),
	}
	for _, k := range []source.Kind{source.Namespaces(), source.Nodes(), source.Pods(), policies} {
		if err := q.Add(src, k); err != nil {
			t.Fatal(err)
		}
	}
	b, err := q.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, c := range b.Changes {
		got[c.Kind]++
	}
	want := map[string]int{
		"Namespace": 1 + 3, "Node": 1 + 12, "Pod": world.Servers + world.Clients + 1 + 1200, "NetworkPolicy": 3 + 40,
	}
	for kind, n := range want {
		if got[kind] != n {
			t.Errorf("%d of kind %s, want %d", got[kind], kind, n)
		}
	}
	if _, err := f.Update(world.StagePolicy(1, "other", 80)); err != nil {
		t.Fatal(err)
	}
	b, err = q.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Changes) != 1 || b.Changes[0].Key != "stage/servers-00001" || b.Versions["NetworkPolicy"] != "2" {
		t.Errorf("after an update: %+v", b)
	}
}
