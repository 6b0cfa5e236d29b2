package traps

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/dns"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// restart replaces the agent of node one; meanwhile runs while there is none.
func (b *namesBed) restart(kill bool, meanwhile func()) {
	b.Helper()
	var err error
	if kill {
		err = b.lab.Kill("one")
	} else {
		err = b.lab.Stop(b.Context(), "one")
	}
	if err != nil {
		b.Fatal(err)
	}
	meanwhile()
	if err := b.lab.Start(b.Context(), "one"); err != nil {
		b.Fatal(err)
	}
	b.applied()
}

// handOver starts another agent on node one, which takes over from the one that runs.
func (b *namesBed) handOver() {
	b.Helper()
	path, err := binary.Path()
	if err != nil {
		b.Fatal(err)
	}
	began, starter := time.Now(), ns.NewStarter()
	next := agents.New(agents.Config{
		Binary: path, Args: []string{"--queues", "1"}, Node: "one", Manifests: b.lab.Dir(), Starter: starter,
		Namespace: b.place("node/one").NS,
	})
	b.Cleanup(func() {
		if b.Failed() {
			b.Log(next.Output().Lines())
		}
		next.Kill()
		starter.Close()
	})
	old := b.lab.Agent("one")
	if err := next.Start(); err != nil {
		b.Fatal(err)
	}
	for old.Running() { // it answers for both
		if time.Since(began) > patience {
			b.Fatal("the old agent goes on")
		}
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	if err := next.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
}

// asksAgain resolves a name as resolvers do: a question that is on its way when agents change is asked again.
func (b *namesBed) asksAgain(pod, name string) (addrs []netip.Addr) {
	b.Helper()
	for begun := time.Now(); addrs == nil && time.Since(begun) < patience; {
		addrs, _ = dns.Resolve(dns.Question{
			From: b.place(pod).NS, To: b.dns.At(false, dns.Port), Name: name, Wait: silence,
		})
	}
	if addrs == nil {
		b.Errorf("%s cannot resolve %s", pod, name)
	}
	return addrs
}

// open opens a connection that must come to be.
func (b *namesBed) open(from string, to netip.AddrPort) *probe.Flow {
	b.Helper()
	f, r, err := probe.Open(b.Context(), probe.Probe{From: b.place(from).NS, To: to, Proto: probe.TCP, Wait: patience})
	if err != nil || f == nil {
		b.Fatalf("%s to %v: %v, %v", from, to, r, err)
	}
	b.Cleanup(func() { _ = f.Close() })
	b.talks(f)
	return f
}

func (b *namesBed) talks(f *probe.Flow) {
	b.Helper()
	f.Wait = patience
	if r := f.Exchange(); r.Outcome != probe.Reached {
		b.Errorf("an established connection: %v", r)
	}
}

func (b *namesBed) isCut(f *probe.Flow) {
	b.Helper()
	f.Wait = silence
	if r := f.Exchange(); !r.Denied() {
		b.Errorf("an established connection: %v, want it cut", r)
	}
}

// table is that of node one, which has no agent.
func (b *namesBed) table() *ruleset.Ruleset {
	b.Helper()
	marks, err := mark.New(mark.Default)
	if err != nil {
		b.Fatal(err)
	}
	r, err := ruleset.Open(ruleset.Config{Mask: marks, NetNS: b.place("node/one").NS.FD()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Close)
	return r
}

// age has the time go by that names hold: what pods were told ends now.
func (b *namesBed) age() {
	b.Helper()
	r := b.table()
	told, err := r.Told()
	if err != nil || len(told) == 0 {
		b.Fatalf("%v, %v", told, err)
	}
	generation, err := r.Generation()
	if err != nil {
		b.Fatal(err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		b.Fatal(err)
	}
	update := ruleset.Update{Generation: generation, Untold: told}
	for _, t := range told {
		t.Until = time.Duration(now.Nano()).Truncate(time.Millisecond)
		update.Told = append(update.Told, t)
	}
	if err := r.Apply(update); err != nil {
		b.Fatal(err)
	}
}

// TestNamesAcrossAgents: a new agent knows what pods were told before it came. Connections under names go on, and new
// ones need no new question, for as long as the names hold.
func TestNamesAcrossAgents(t *testing.T) {
	nothing := func() {}
	for how, replace := range map[string]func(*namesBed){
		"SIGTERM":   func(b *namesBed) { b.restart(false, nothing) },
		"SIGKILL":   func(b *namesBed) { b.restart(true, nothing) },
		"hand-over": (*namesBed).handOver,
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b := newNamesBed(t, "two", lab.Options{})
			b.server.Set(zone()...)
			var held []*probe.Flow
			families(func(v6 bool) {
				b.asks("client", "www.example.com", false, v6)
				held = append(held, b.open("client", worldAt(v6)))
			})
			replace(b)
			for _, f := range held {
				b.talks(f)
			}
			families(func(v6 bool) {
				b.reaches("client", worldAt(v6), probe.TCP)
				b.reaches("client", netip.AddrPortFrom(worldAt(v6).Addr(), 444), probe.TCP) // of which the kernel knows nothing
			})
			b.apply(`{apiVersion: v1, kind: Pod, metadata: {name: another, labels: {role: client}},
spec: {nodeName: one, containers: [{name: c}]}}`)
			b.denied("another", worldAt(false), probe.TCP)
		})
	}
}

// TestNamesHeardAtAHandOver: every answer that a pod was given is known after it, whichever agent gave it.
func TestNamesHeardAtAHandOver(t *testing.T) {
	t.Parallel()
	const addrs = 120
	many := lab.Outside{Name: "many", Ports: []corev1.ContainerPort{{ContainerPort: 53, Protocol: corev1.ProtocolUDP}}}
	var records []dns.Record
	for i := range addrs {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + i)}))
		records = append(records, dns.Record{Name: fmt.Sprintf("h%d.example.com", i), TTL: 60, Addr: many.Addrs[i]})
	}
	b := newNamesBed(t, "two", lab.Options{Outside: []lab.Outside{many}})
	b.server.Set(records...)
	over, asked := make(chan struct{}), make(chan []netip.Addr)
	go func() {
		var told []netip.Addr
		defer func() { asked <- told }()
		for i, after := 0, 0; i < addrs && after < 10; i++ {
			select {
			case <-over:
				after++
			default:
			}
			told = append(told, b.asksAgain("client", records[i].Name)...)
		}
	}()
	b.handOver()
	close(over)
	told := <-asked
	for _, a := range told {
		to := netip.AddrPortFrom(a, 53)
		r := b.try(probe.Probe{From: b.place("client").NS, To: to, Proto: probe.UDP, Wait: patience / 4})
		if r.Outcome != probe.Reached {
			t.Errorf("%v: %v", a, r)
		}
	}
	if len(told) < 12 {
		t.Errorf("%d answers prove nothing", len(told))
	}
	t.Logf("%d answers", len(told))
}

// TestQuestionsWithoutAnAgent wait: no answer passes that nobody has read.
func TestQuestionsWithoutAnAgent(t *testing.T) {
	t.Parallel()
	b := newNamesBed(t, "two", lab.Options{})
	b.server.Set(zone()...)
	b.asks("client", "other.net", false, false)
	b.restart(true, func() {
		if _, err := dns.Resolve(dns.Question{
			From: b.place("client").NS, To: b.dns.At(false, dns.Port), Name: "www.example.com", Wait: silence,
		}); err == nil {
			t.Error("an answer passed that no agent has read")
		}
	})
	b.denied("client", worldAt(false), probe.TCP)
	b.asks("client", "www.example.com", false, false)
	b.reaches("client", worldAt(false), probe.TCP)
}

// TestNamesThatEndWithoutAnAgent: what was told is true for as long as it was told for, and only under policies that
// have the name.
func TestNamesThatEndWithoutAnAgent(t *testing.T) {
	t.Parallel()
	b := newNamesBed(t, "two", lab.Options{})
	b.server.Set(zone()...)
	b.asks("client", "www.example.com", false, false)
	b.asks("client", "exact.org", false, true)
	held, other := b.open("client", worldAt(false)), b.open("client", worldAt(true))
	b.restart(true, b.age)
	b.talks(held)
	b.denied("client", worldAt(false), probe.TCP)
	b.denied("client", netip.AddrPortFrom(worldAt(false).Addr(), 444), probe.TCP)
	b.asks("client", "www.example.com", false, false)
	b.reaches("client", worldAt(false), probe.TCP)

	b.restart(false, func() {
		if err := b.lab.ApplyYAML(t.Context(), namesAccepted("exact.org")); err != nil {
			t.Fatal(err)
		}
	})
	b.isCut(held)
	b.talks(other)
	b.denied("client", worldAt(false), probe.TCP)
}

// TestNamesOfAPodThatWent: a pod that gets the address of another while no agent is there knows nothing of what that
// one was told. Where nothing is kept, nothing is known, and a question mends it.
func TestNamesOfAPodThatWent(t *testing.T) {
	t.Parallel()
	b := newNamesBed(t, "two", lab.Options{})
	b.server.Set(zone()...)
	b.asks("client", "www.example.com", false, false)
	b.reaches("client", worldAt(false), probe.TCP)
	var told []ruleset.Told
	b.restart(true, func() {
		r := b.table()
		var err error
		if told, err = r.Told(); err != nil || len(told) == 0 {
			t.Fatalf("%v, %v", told, err)
		}
		generation, err := r.Generation()
		if err != nil {
			t.Fatal(err)
		}
		// The other pod's, under this one's address; and one that ends when no answer can.
		update := ruleset.Update{Generation: generation, Untold: told}
		for _, x := range told {
			x.Of++
			update.Told = append(update.Told, x)
			x.Of, x.Until = x.Of-1, x.Until+24*time.Hour
			update.Told = append(update.Told, x)
		}
		if err := r.Apply(update); err != nil {
			t.Fatal(err)
		}
	})
	b.denied("client", worldAt(false), probe.TCP)
	b.denied("client", netip.AddrPortFrom(worldAt(false).Addr(), 444), probe.TCP)
	if told, err := b.table().Told(); err != nil || len(told) != 0 {
		t.Errorf("kept on: %v, %v", told, err)
	}
	b.asks("client", "www.example.com", false, false)
	held := b.open("client", worldAt(false))
	b.restart(true, func() {
		if err := b.table().Cleanup(); err != nil {
			t.Fatal(err)
		}
	})
	b.isCut(held)
	b.asks("client", "www.example.com", false, false)
	b.reaches("client", worldAt(false), probe.TCP)
}
