package traps

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/dns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

// namePolicy lets the clients ask the cluster's DNS, and reach *.example.com and exact.org.
var namePolicy = `
apiVersion: v1
kind: Pod
metadata: {name: coredns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {nodeName: %s, containers: [{name: c}]}
---` + namesAccepted("*.example.com", "exact.org")

// namesAccepted is the policy with other names.
func namesAccepted(names ...string) string {
	return fmt.Sprintf(`
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: names}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: client}}}}
  egress:
  - {action: Accept, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}}]}
  - {action: Accept, to: [{domainNames: ["%s"]}]}
  - {action: Deny, to: [{networks: [0.0.0.0/0, "::/0"]}]}
`, strings.Join(names, `", "`))
}

// namesBed is a bed with a DNS server in a pod on that node.
type namesBed struct {
	bed
	server *dns.Server
	dns    lab.Place
}

func newNamesBed(t *testing.T, node string, opts lab.Options) *namesBed {
	b := &namesBed{bed: newBed(t, opts, fmt.Sprintf(namePolicy, node))}
	b.dns = b.place("kube-system/coredns")
	var err error
	if b.server, err = dns.Serve(b.dns.NS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// asks resolves the name in the pod, over a family, for addresses of one.
func (b *namesBed) asks(pod, name string, over6, for6 bool) []netip.Addr {
	b.Helper()
	addrs, err := dns.Resolve(dns.Question{
		From: b.place(pod).NS, To: b.dns.At(over6, dns.Port), Name: name, V6: for6, Wait: patience,
	})
	if err != nil {
		b.Error(err)
	}
	return addrs
}

// messages is how many messages of a kind the agents have counted.
func (b *namesBed) messages(kind string) float64 {
	b.Helper()
	m, err := b.lab.Metrics(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return m.Sum("firstpacket_names_messages_total", fmt.Sprintf("kind=%q", kind))
}

// worldAt is where the machine outside answers.
func worldAt(v6 bool) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(world.Addrs[1], 443)
	}
	return netip.AddrPortFrom(world.Addrs[0], 443)
}

func zone() []dns.Record {
	v4, v6 := world.Addrs[0], world.Addrs[1]
	return []dns.Record{
		{Name: "www.example.com", TTL: 0, Addr: v4}, {Name: "www.example.com", TTL: 86400, Addr: v6},
		{Name: "a.b.example.com", TTL: 60, Alias: "cdn.net"}, {Name: "cdn.net", TTL: 60, Alias: "edge.cdn.net"},
		{Name: "edge.cdn.net", TTL: 60, Addr: v4}, {Name: "edge.cdn.net", TTL: 60, Addr: v6},
		{Name: "exact.org", TTL: 60, Addr: v4}, {Name: "exact.org", TTL: 60, Addr: v6},
		{Name: "example.com", TTL: 60, Addr: v4}, {Name: "other.net", TTL: 60, Addr: v4},
		{Name: "front.net", TTL: 60, Alias: "www.example.com"},
		{Name: "large.example.com", TTL: 60, Addr: v4}, {Name: "large.example.com", TTL: 60, Addr: v6},
	}
}

// TestNames: every way to learn a name opens its addresses to the pod that asked, to no other, and nothing else does.
func TestNames(t *testing.T) {
	for _, node := range []string{"one", "two"} {
		t.Run("DNS on "+node, func(t *testing.T) {
			t.Parallel()
			b := newNamesBed(t, node, lab.Options{})
			b.server.Set(zone()...)
			for _, c := range []struct {
				name  string
				opens bool
			}{
				{"example.com", false}, {"other.net", false}, {"www.example.com", true}, {"a.b.example.com", true},
				{"exact.org", true}, {"front.net", true}, {"large.example.com", true},
			} {
				for i, over6 := range []bool{false, true} {
					pod := fmt.Sprintf("asker-%d", i)
					b.apply(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {role: client}},
spec: {nodeName: one, containers: [{name: c}]}}`, pod))
					b.denied(pod, worldAt(false), probe.TCP)
					if got := b.asks(pod, c.name, over6, false); len(got) != 1 || got[0] != world.Addrs[0] {
						t.Errorf("%s asks for %s: %v", pod, c.name, got)
					}
					if c.opens {
						b.reaches(pod, worldAt(false), probe.TCP)
						b.reaches(pod, netip.AddrPortFrom(world.Addrs[0], 444), probe.TCP)
						b.denied(pod, worldAt(true), probe.TCP)
						b.asks(pod, c.name, over6, true)
						b.reaches(pod, worldAt(true), probe.TCP)
					} else {
						b.denied(pod, worldAt(false), probe.TCP)
					}
					b.denied("client", worldAt(false), probe.TCP)
					b.denied("client", worldAt(true), probe.TCP)
					if err := b.lab.Delete(t.Context(), topology.Ref{Kind: "Pod", Namespace: "default", Name: pod}); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// TestFirstConnectionAfterAnAnswer: it never comes before the address is in force. A datagram is sent once, so one that
// came too early would be lost.
func TestFirstConnectionAfterAnAnswer(t *testing.T) {
	t.Parallel()
	const pods, addrs = 8, 125
	var records []dns.Record
	var targets []netip.Addr
	for i := range addrs {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + i)})
		targets = append(targets, a)
		records = append(records, dns.Record{Name: fmt.Sprintf("h%d.example.com", i), TTL: 60, Addr: a})
	}
	b := newNamesBed(t, "one", lab.Options{Outside: []lab.Outside{{
		Name: "many", Addrs: targets, Ports: []corev1.ContainerPort{{ContainerPort: 53, Protocol: corev1.ProtocolUDP}},
	}}})
	b.server.Set(records...)
	var wg sync.WaitGroup
	var mu sync.Mutex
	reached := 0
	for p := range pods {
		pod := fmt.Sprintf("first-%d", p)
		b.apply(fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {role: client}},
spec: {nodeName: one, containers: [{name: c}]}}`, pod))
	}
	for p := range pods {
		from := b.place(fmt.Sprintf("first-%d", p))
		wg.Go(func() {
			for i, target := range targets {
				if got := b.asks(from.Name, records[i].Name, i%2 == 0, false); len(got) != 1 {
					return
				}
				r := b.try(probe.Probe{From: from.NS, To: netip.AddrPortFrom(target, 53), Proto: probe.UDP, Wait: patience / 4})
				if r.Outcome != probe.Reached {
					b.Errorf("%s to %v after its answer: %v", from.Name, target, r)
				}
				mu.Lock()
				reached++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if reached != pods*addrs {
		t.Errorf("%d connections were tried", reached)
	}
	if answers, late := b.messages("answer"), b.messages("late"); answers < pods*addrs || late > 0 {
		t.Errorf("%v answers were read, and %v of them passed too early", answers, late)
	}
}

// TestForgedAnswers open nothing, whoever sends them and whatever they guess wrong.
func TestForgedAnswers(t *testing.T) {
	t.Parallel()
	b := newNamesBed(t, "one", lab.Options{})
	b.server.Set(dns.Record{Name: "www.example.com", TTL: 60, Addr: netip.MustParseAddr("198.51.100.1")})
	client, stranger := b.place("client"), b.place("stranger")
	from, to := b.tap(client), b.tap(stranger)
	families(func(v6 bool) {
		server, pod, other := b.dns.At(v6, dns.Port), client.At(v6, 40000), stranger.At(v6, dns.Port)
		query, err := dns.Query(7, "www.example.com", false)
		if err != nil {
			t.Fatal(err)
		}
		forged := func(id uint16, name string) []byte { return answer(t, id, name, world.Addrs[0]) }
		strangers, queries := b.messages("stranger"), b.messages("query")
		inject := func(payload []byte, src, dst netip.AddrPort) {
			if err := stranger.Inject(to, udp(t, src, dst, payload)); err != nil {
				t.Fatal(err)
			}
		}
		// The question goes to a server that does not answer it: nobody listens there for this name.
		b.server.Set()
		if err := client.Inject(from, udp(t, pod, server, query)); err != nil {
			t.Fatal(err)
		}
		for b.messages("query") == queries && t.Context().Err() == nil { // the flow exists from here on
			time.Sleep(time.Millisecond)
		}
		inject(forged(7, "www.example.com"), other, pod)
		inject(forged(8, "www.example.com"), server, pod)
		inject(forged(7, "w.example.com"), server, pod)
		inject(forged(7, "www.example.com"), server, client.At(v6, 40001))
		inject(forged(7, "www.example.com"), netip.AddrPortFrom(server.Addr(), 54), pod)
		b.denied("client", worldAt(false), probe.TCP)
		if n := b.messages("stranger") - strangers; n < 2 {
			t.Errorf("%v of the forged answers were seen", n)
		}
		// Asked by another pod.
		b.server.Set(zone()...)
		b.asks("remote", "www.example.com", v6, false)
		b.denied("client", worldAt(false), probe.TCP)
	})
}

// worldResolves lets the clients ask a DNS server outside of the cluster.
const worldResolves = `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: resolver}
spec:
  tier: Admin
  priority: 9
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: client}}}}
  egress:
  - action: Accept
    to: [{networks: [203.0.113.7/32, "2001:db8::7/128"]}]
    protocols: [{udp: {destinationPort: {number: 53}}}, {tcp: {destinationPort: {number: 53}}}]
`

// TestServersOutside: a server that a pod may ask is believed only if it is one of the cluster's or was named.
func TestServersOutside(t *testing.T) {
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("named %t", named), func(t *testing.T) {
			t.Parallel()
			opts := lab.Options{}
			if named {
				opts.AgentArgs = []string{"--dns-server", "203.0.113.7", "--dns-server", "[2001:db8::7]:53"}
			}
			b := newNamesBed(t, "two", opts)
			b.apply(worldResolves)
			server, err := dns.Serve(b.place("outside/world").NS)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := server.Close(); err != nil {
					t.Error(err)
				}
			})
			server.Set(zone()...)
			for i, name := range []string{"www.example.com", "large.example.com"} { // over UDP, and over TCP too
				v6 := i == 1
				at := netip.AddrPortFrom(worldAt(v6).Addr(), dns.Port)
				addrs, err := dns.Resolve(dns.Question{
					From: b.place("client").NS, To: at, Name: name, V6: v6, Wait: patience,
				})
				if err != nil || len(addrs) != 1 || addrs[0] != at.Addr() {
					t.Fatalf("%s at %v: %v, %v", name, at, addrs, err)
				}
				if named {
					b.reaches("client", worldAt(v6), probe.TCP)
				} else {
					b.denied("client", worldAt(v6), probe.TCP)
				}
			}
			if n := b.messages("answer"); (n > 0) != named {
				t.Errorf("%v answers were read", n)
			}
		})
	}
}

func answer(t *testing.T, id uint16, name string, addr netip.Addr) []byte {
	t.Helper()
	n := dnsmessage.MustNewName(name + ".")
	b, err := (&dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, Response: true},
		Questions: []dnsmessage.Question{{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Answers: []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}},
	}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestParallelQuestions: A and AAAA at once from one socket, as resolvers send them.
func TestParallelQuestions(t *testing.T) {
	t.Parallel()
	b := newNamesBed(t, "two", lab.Options{})
	b.server.Set(zone()...)
	var wg sync.WaitGroup
	for _, v6 := range []bool{false, true} {
		wg.Go(func() { b.asks("client", "www.example.com", false, v6) })
	}
	wg.Wait()
	families(func(v6 bool) { b.reaches("client", worldAt(v6), probe.TCP) })
}
