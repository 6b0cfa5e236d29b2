package failure

import (
	"slices"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
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

// TestFloodOfRandomPorts: one pod opens flows to ever new ports as fast as it can; the packets of another, of the same
// queue, are not lost for it.
func TestFloodOfRandomPorts(t *testing.T) {
	b := newBed(t, "--queues", "1")
	b.apply(admitting("friend", "client"))
	const n = 200
	quiet := b.connects("friend", 10_000, n)
	stop := b.flood("client", 100_000)
	time.Sleep(200 * time.Millisecond)
	during := b.connects("friend", 20_000, n)
	sent := stop()
	m := b.metrics()
	t.Logf("uncached connection: median %v, p90 %v; during a flood of %d packets: median %v, p90 %v; %v were shed",
		quiet[n/2], quiet[n*9/10], sent, during[n/2], during[n*9/10], m.Sum("firstpacket_shed_packets_total"))
	if m.Sum("firstpacket_shed_packets_total") == 0 {
		t.Errorf("nothing of a flood of %d packets was shed", sent)
	}
	// A lost SYN is sent again after a second.
	resent := func(d time.Duration) bool { return d > time.Second }
	if lost := n - slices.IndexFunc(append(during, time.Hour), resent); lost > 2 {
		t.Errorf("%d of %d connections lost a packet", lost, n)
	}
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
