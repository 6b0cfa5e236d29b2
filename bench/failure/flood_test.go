package failure

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
)

// connects opens connections with tuples that the kernel does not know, one after the other, and returns their times.
func (b *bed) connects(from string, first uint16, n int) []time.Duration {
	b.t.Helper()
	source := b.place(from)
	var times []time.Duration
	for i := range n {
		// Nobody listens: the refusal is the server's own, so the packet has passed.
		began := time.Now()
		r, err := b.Probe(b.t.Context(), probe.Probe{
			From: source.NS, To: b.place("server").At(false, first+uint16(i)), Proto: probe.TCP, Wait: 5 * time.Second,
		})
		b.must(err)
		if r[0].Outcome != probe.Refused {
			b.t.Fatalf("connection %d: %v", i, r[0])
		}
		times = append(times, time.Since(began))
	}
	slices.Sort(times)
	return times
}

// syns sends a flood of SYNs from a pod's interface, as fast as it goes, until stop is called, which returns how many.
func (b *bed) syns(from string, source netip.Prefix) (stop func() int) {
	b.t.Helper()
	target, _ := b.place("server").Addr(false)
	f := wire.Flood{Source: source, Targets: []netip.Addr{target}, Interface: "eth0", Rate: 50_000}
	ctx, cancel := context.WithCancel(b.t.Context())
	sent := make(chan int, 1)
	place := b.place(from)
	go func() {
		n := 0
		if err := place.NS.Do(func() (err error) { n, err = f.Run(ctx); return err }); err != nil {
			b.t.Error(err)
		}
		sent <- n
	}()
	return func() int { cancel(); return <-sent }
}

// besideFlood opens connections of one pod, each of a tuple that the kernel does not know, while a flood goes on, and
// holds them to have lost no packet.
func (b *bed) besideFlood(source netip.Prefix) agents.Metrics {
	b.t.Helper()
	const n = 200
	quiet := b.connects("friend", 10_000, n)
	before := b.metrics()
	stop := b.syns("client", source)
	time.Sleep(300 * time.Millisecond)
	during := b.connects("friend", 20_000, n)
	sent := stop()
	after := b.metrics()
	for name := range after {
		after[name] -= before[name]
	}
	agent := after.Sum("firstpacket_shed_packets_total")
	kernel := after.Sum("firstpacket_kernel_packets_total", `outcome="shed"`)
	b.t.Logf("uncached connection: median %v, p90 %v, p99 %v; beside a flood of %d packets: median %v, p90 %v, p99 %v; "+
		"shed by the agent %v, by the kernel %v", quiet[n/2], quiet[n*9/10], quiet[n*99/100], sent, during[n/2],
		during[n*9/10], during[n*99/100], agent, kernel)
	if agent+kernel < float64(sent)/2 {
		b.t.Errorf("of a flood of %d packets, %v were shed", sent, agent+kernel)
	}
	// A lost SYN is sent again after a second.
	resent := func(d time.Duration) bool { return d > time.Second }
	if lost := n - slices.IndexFunc(append(during, time.Hour), resent); lost > 0 {
		b.t.Errorf("%d of %d connections lost a packet", lost, n)
	}
	b.reaches("bystander", "friend")
	return after
}

// TestFloodOfRandomPorts: one pod opens connections to ever new ports as fast as it can, all of them allowed; the
// packets of another, of the same queue, are not lost for it. The kernel itself drops most of the flood.
func TestFloodOfRandomPorts(t *testing.T) {
	b := newBed(t, "--queues", "1")
	b.apply(admitting("friend", "client"))
	source, _ := b.place("client").Addr(false)
	m := b.besideFlood(netip.PrefixFrom(source, source.BitLen()))
	if n := m.Sum("firstpacket_kernel_packets_total", `outcome="shed"`); n == 0 {
		t.Error("the kernel was not told to hold the source back")
	}
	b.apply(admitting("friend"))
	b.asBefore()
}

// TestFloodOfRandomSources: a pod sends with a forged source, another one in each packet, from outside of the cluster.
func TestFloodOfRandomSources(t *testing.T) {
	b := newBed(t, "--queues", "1")
	b.apply(admitting("friend"))
	b.besideFlood(netip.MustParsePrefix("198.18.0.0/15"))
	b.asBefore()
}

// TestFloodInAnothersName: a pod forges the address of another one, which is not held to account for it.
func TestFloodInAnothersName(t *testing.T) {
	b := newBed(t, "--queues", "1")
	b.apply(admitting("friend"))
	victim, _ := b.place("friend").Addr(false)
	b.besideFlood(netip.PrefixFrom(victim, victim.BitLen()))
	b.asBefore()
}

// TestFloodOfDeniedConnections stays in the kernel.
func TestFloodOfDeniedConnections(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend"))
	b.denied("client", "server")
	before := b.metrics()
	var probes []probe.Probe
	for range 2000 {
		probes = append(probes, probe.Probe{From: b.place("client").NS, To: b.place("server").At(false, 80), Proto: probe.TCP,
			Wait: time.Millisecond})
	}
	_, err := b.Probe(t.Context(), probes...)
	b.must(err)
	after := b.metrics()
	queued := after.Sum("firstpacket_queue_packets_total") - before.Sum("firstpacket_queue_packets_total")
	refused := after.Sum("firstpacket_kernel_packets_total", `outcome="refused"`) -
		before.Sum("firstpacket_kernel_packets_total", `outcome="refused"`)
	if refused < 1000 || queued > refused/10 {
		t.Errorf("of %v refused packets %v went to userspace", refused, queued)
	}
	b.reaches("friend", "server")
}
