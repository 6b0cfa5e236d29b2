package endpoint

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/classify/identity"
	"github.com/firstpacket/firstpacket/classify/label"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func pod(name, address string, change ...func(*cluster.Pod)) *cluster.Pod {
	p := &cluster.Pod{
		Namespace: "shop", Name: name, Node: "n1", Running: true, Started: 1,
		Labels: label.Of(map[string]string{"app": "web"}), Addrs: []netip.Addr{addr(address)},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func owner(t *testing.T, x *Index, address, want string) {
	t.Helper()
	got := ""
	if ep := x.Lookup(addr(address)); ep != nil {
		got = ep.Name
	}
	if got != want {
		t.Fatalf("owner of %s: got %q, want %q", address, got, want)
	}
}

func TestIndexReusedAddress(t *testing.T) {
	older := pod("older", "10.0.0.1")
	newer := pod("newer", "10.0.0.1", func(p *cluster.Pod) { p.Started = 2 })
	pending := pod("pending", "10.0.0.1", func(p *cluster.Pod) { p.Started = 3; p.Running = false })

	for name, order := range map[string][]*cluster.Pod{
		"in order": {older, newer, pending}, "backwards": {pending, newer, older},
	} {
		t.Run(name, func(t *testing.T) {
			x := NewIndex()
			for _, p := range order {
				x.SetPod(p)
			}
			owner(t, x, "10.0.0.1", "newer")
			if c := x.Counts(); c.Contested != 1 {
				t.Fatalf("counts: %+v", c)
			}
			x.Flush()
			x.DeletePod("shop/newer")
			owner(t, x, "10.0.0.1", "older")
			x.DeletePod("shop/older")
			owner(t, x, "10.0.0.1", "pending")
			changes := x.Flush()
			if len(changes) != 1 || changes[0].Old.Name != "newer" || changes[0].New.Name != "pending" {
				t.Fatalf("changes: %+v", changes)
			}
			x.DeletePod("shop/pending")
			owner(t, x, "10.0.0.1", "")
		})
	}
}

func TestIndexTerminatedAndHostNetworkPodsOwnNothing(t *testing.T) {
	x := NewIndex()
	x.SetPod(pod("job", "10.0.0.1"))
	x.SetPod(pod("agent", "192.0.2.1", func(p *cluster.Pod) { p.HostNetwork = true }))
	x.SetNode(&cluster.Node{Name: "n1", Addrs: []netip.Addr{addr("192.0.2.1")}})
	owner(t, x, "10.0.0.1", "job")
	owner(t, x, "192.0.2.1", "n1")
	if got := x.Lookup(addr("192.0.2.1")).Kind; got != identity.Node {
		t.Fatalf("kind of a host address: %v", got)
	}
	x.SetPod(pod("job", "10.0.0.1", func(p *cluster.Pod) { p.Terminated = true }))
	owner(t, x, "10.0.0.1", "")
	if p, _, ok := x.Pod("shop", "job"); !ok || !p.Terminated {
		t.Fatalf("the terminated pod is not known any more: %+v", p)
	}
}

func TestIndexNamespaceLabelsReachPods(t *testing.T) {
	x := NewIndex()
	x.SetPod(pod("web-1", "10.0.0.1"))
	x.SetPod(pod("web-2", "10.0.0.2"))
	first := x.Flush()
	if len(first) != 2 || first[0].New.Identity != first[1].New.Identity {
		t.Fatalf("replicas are not one identity: %+v", first)
	}
	id := first[0].New.Identity.Identity()
	if want := (label.Set{}).With("kubernetes.io/metadata.name", "shop"); id.NamespaceLabels != want {
		t.Fatalf("labels of an unknown namespace: %s", id.NamespaceLabels)
	}
	labels := label.Of(map[string]string{"kubernetes.io/metadata.name": "shop", "team": "a"})
	x.SetNamespace(&cluster.Namespace{Name: "shop", Labels: labels})
	changes := x.Flush()
	if len(changes) != 2 || changes[0].New.Identity.Identity().NamespaceLabels != labels {
		t.Fatalf("changes after the namespace came: %+v", changes)
	}
	x.SetNamespace(&cluster.Namespace{Name: "shop", Labels: labels, Isolation: "on"})
	if changes := x.Flush(); changes != nil {
		t.Fatalf("an annotation changed endpoints: %+v", changes)
	}
	x.DeleteNamespace("shop")
	if changes := x.Flush(); len(changes) != 2 || changes[0].New.Identity != first[0].New.Identity {
		t.Fatalf("changes after the namespace went: %+v", changes)
	}
}

func TestIndexKeepsEndpointWhenNothingMatters(t *testing.T) {
	x := NewIndex()
	x.SetPod(pod("web", "10.0.0.1"))
	x.Flush()
	before := x.Lookup(addr("10.0.0.1"))

	x.SetPod(pod("web", "10.0.0.1", func(p *cluster.Pod) { p.Started = 9; p.Running = false }))
	x.DeletePod("shop/web")
	x.SetPod(pod("web", "10.0.0.1"))
	if changes := x.Flush(); changes != nil {
		t.Fatalf("changes: %+v", changes)
	}
	if x.Lookup(addr("10.0.0.1")) != before {
		t.Fatal("an equal endpoint is another pointer")
	}
}

func TestIndexPodCIDRs(t *testing.T) {
	shared, own := netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("10.1.0.0/24")
	x := NewIndex()
	x.SetNode(&cluster.Node{Name: "n1", PodCIDRs: []netip.Prefix{shared}})
	x.SetNode(&cluster.Node{Name: "n2", PodCIDRs: []netip.Prefix{shared, own}})
	if got := fmt.Sprint(x.PodCIDRs()); got != "[10.0.0.0/16 10.1.0.0/24]" {
		t.Fatal(got)
	}
	x.DeleteNode("n2")
	if got := fmt.Sprint(x.PodCIDRs()); got != "[10.0.0.0/16]" {
		t.Fatal(got)
	}
	if n, ok := x.Node("n1"); !ok || n.Name != "n1" {
		t.Fatalf("node: %+v", n)
	}
}

// bigCluster makes pods as a large cluster has them: deployments of 20 replicas in namespaces of 500 pods. The keys are
// made as cluster.NewPod makes them, so that their memory counts.
func bigCluster(n int) func(yield func(*cluster.Pod) bool) {
	return func(yield func(*cluster.Pod) bool) {
		ports := cluster.InternPorts([]NamedPort{{Name: "http", Proto: 6, Port: 8080}})
		nodes := make([]string, 1000)
		for i := range nodes {
			nodes[i] = fmt.Sprintf("node-%04d", i)
		}
		for i := range n {
			key := fmt.Sprintf("namespace-%03d/deployment-%05d-7d4b9c6f5d-%05x", i/500, i/20, i)
			p := &cluster.Pod{
				Namespace: key[:13], Name: key[14:], Node: nodes[i%1000], Running: true,
				Labels:  label.Of(map[string]string{"app": fmt.Sprintf("deployment-%05d", i/20), "tier": "backend"}),
				Addrs:   []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
				Started: int64(i), Ports: ports,
			}
			if !yield(p) {
				return
			}
		}
	}
}

// TestIndexBytesPerPod holds the index to its share of the agent's 120 MB: at most 480 bytes for a pod with one
// address, of which the Endpoint, the record and the pod's name take 210, the two tables about 80, labels and
// identities of a deployment shared between its replicas about 30.
func TestIndexBytesPerPod(t *testing.T) {
	const pods, budget = measuredPods, 480
	before := heap()
	x := NewIndex()
	for p := range bigCluster(pods) {
		x.SetPod(p)
	}
	x.Flush()
	perPod := (heap() - before) / pods
	t.Logf("%d bytes per pod", perPod)
	if measured && perPod > budget {
		t.Errorf("%d bytes per pod, more than %d", perPod, budget)
	}
	runtime.KeepAlive(x)
}

func heap() int64 {
	var m runtime.MemStats
	for range 3 { // interned values go one collection after their last user
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func BenchmarkIndexSetPod(b *testing.B) {
	for _, size := range []int{100, 100_000} {
		b.Run(fmt.Sprint(size, " pods"), func(b *testing.B) {
			x := NewIndex()
			for p := range bigCluster(size) {
				x.SetPod(p)
			}
			x.Flush()
			moves := []*cluster.Pod{pod("extra", "192.0.2.7"), pod("extra", "192.0.2.8")}
			x.SetPod(moves[1])
			x.Flush()
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				x.SetPod(moves[i%2])
				if n := len(x.Flush()); n != 2 {
					b.Fatalf("%d changes", n)
				}
				i++
			}
		})
	}
}

func BenchmarkIndexRelabelNamespace(b *testing.B) {
	x := NewIndex()
	for p := range bigCluster(100_000) {
		x.SetPod(p)
	}
	x.Flush()
	var namespaces [2]*cluster.Namespace
	for i := range namespaces {
		namespaces[i] = &cluster.Namespace{
			Name: "namespace-007", Labels: label.Of(map[string]string{"version": fmt.Sprint(i)}),
		}
	}
	i := 0
	for b.Loop() {
		x.SetNamespace(namespaces[i%2])
		if n := len(x.Flush()); n != 500 {
			b.Fatalf("%d changes", n)
		}
		i++
	}
}
