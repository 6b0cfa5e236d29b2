package agent

import (
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/metrics"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// pairCache is the number of compiled identity pairs that each queue thread keeps.
const pairCache = 1 << 14

// maxBatch is how many packets' latencies a judge can note between Begin and End.
const maxBatch = 256

// judge answers the packets of one queue thread. It is the packet path: it neither allocates, locks nor formats.
type judge struct {
	publisher *publisher
	user      *viewUser
	marks     mark.Layout
	evaluator *engine.Evaluator
	learned   *ring[ruleset.Tuple]
	denied    *flowlog.Ring
	counts    *metrics.Verdicts
	clock     *clock
	fair      fairness
	// audit: every packet passes, those too that there is no time to judge.
	audit bool
	// whole is the number of the queue that shows all of a packet; 0 for the judge of that queue.
	whole uint16

	// view is the one in use between Begin and End.
	view *view
	// early: the kernel does not enforce the view yet.
	early    bool
	flow     packet.Flow
	received [maxBatch]int64
	batch    int
}

// Begin takes the snapshot that the batch is judged with.
func (j *judge) Begin() {
	j.view = j.user.acquire(j.publisher)
	j.fair.begin()
	j.early = j.publisher.committed.Load() != j.view.generation
}

// End notes the latency of the batch, whose verdicts the kernel has acted on, and lets go of the snapshot.
func (j *judge) End() {
	j.user.release()
	if j.batch > 0 {
		now := queue.Now()
		for _, r := range j.received[:j.batch] {
			j.counts.Latency.Observe(time.Duration(now - r))
		}
		j.batch = 0
	}
}

// Handle gives the verdict on one packet. Allowed and denied packets go back to the head of the chain with a mark: the
// kernel acts on it if the generation is still the current one, and asks again otherwise.
func (j *judge) Handle(p *queue.Packet) queue.Verdict {
	if j.publisher.passing.Load() {
		return queue.Verdict{Kind: queue.Repeat, Mark: j.marks.With(p.Mark, 0)}
	}
	j.flow.Decode(p.Payload)
	if !p.Held && !j.fair.admits(j.view.snapshot, &j.flow, p.In, p.Received) {
		if j.audit {
			return queue.Verdict{Kind: queue.Accept}
		}
		return queue.Verdict{Kind: queue.Drop}
	}
	if j.whole != 0 && j.flow.Form == packet.Malformed && len(p.Payload) >= queue.DefaultCopyRange {
		return queue.Verdict{Kind: queue.Requeue, Queue: j.whole} // the port may be behind what was copied
	}
	if j.early && !p.Expired && !j.audit {
		return queue.Verdict{Kind: queue.Hold} // until the controller, having committed, wakes the queue
	}
	v := j.evaluator.Judge(j.view.snapshot, &j.flow, hookOf(p.Hook), p.Expired)
	if v.Action == engine.Hold {
		j.counts.Held.Add(1)
		return queue.Verdict{Kind: queue.Hold}
	}
	if j.batch < maxBatch {
		j.received[j.batch] = p.Received
		j.batch++
	}
	j.counts.Count(&v)
	if v.Would() != v.Action {
		j.logWould(&v)
	}
	if j.audit && j.early {
		// The kernel does not know the generation yet. Coming round until it does could cost the packet.
		return queue.Verdict{Kind: queue.Accept}
	}
	if v.Reason == engine.MidStreamReverse {
		// This packet only: it passes as an answer in a connection of the other orientation. Admitting the flow that
		// conntrack makes of it would let its sender open connections on the same ports.
		return queue.Verdict{Kind: queue.Accept}
	}
	if v.Action == engine.Allow {
		if cached(&j.flow) {
			j.learned.put(tupleOf(&j.flow))
		}
		return queue.Verdict{Kind: queue.Repeat, Mark: j.marks.With(p.Mark, j.marks.Allow(j.view.generation))}
	}
	j.log(&v)
	if v.Reason == engine.Malformed {
		// No rule could read more of it than the engine did.
		return queue.Verdict{Kind: queue.Drop}
	}
	return queue.Verdict{Kind: queue.Repeat, Mark: j.marks.With(p.Mark, j.marks.Deny(j.view.generation))}
}

// log puts the denial on the flow log's ring.
func (j *judge) log(v *engine.Verdict) {
	r := recordOf(v, &j.flow)
	r.Time = j.clock.wall()
	j.denied.Put(&r)
}

// logWould puts on the flow log's ring what would become of the flow if the policies in audit mode were enforced.
func (j *judge) logWould(v *engine.Verdict) {
	e := v.Enforced()
	r := recordOf(&e, &j.flow)
	r.Verdict = engine.Hypothetical(e.Action)
	r.Time = j.clock.wall()
	j.denied.Put(&r)
}

// recordOf is the flow log's view of a denial.
func recordOf(v *engine.Verdict, f *packet.Flow) flowlog.Record {
	r := flowlog.Record{
		Src:         netip.AddrPortFrom(f.Src, f.SrcPort),
		Dst:         netip.AddrPortFrom(f.Dst, f.DstPort),
		SrcEndpoint: v.Src, DstEndpoint: v.Dst,
		Verdict: v.Action, Direction: v.Direction, Reason: v.Reason,
		Proto: f.Proto,
	}
	d := v.Ingress
	if v.Direction == engine.Egress || d == nil {
		d = v.Egress
	}
	if d != nil {
		r.Policies = cited{d}
	}
	return r
}

// cited lists the policies of a decision when the log asks for them. It is one pointer, so that making an interface of
// it does not allocate.
type cited struct{ *engine.Decision }

// Policies implements flowlog.Policies.
func (c cited) Policies() []string {
	names := make([]string, len(c.Decision.Policies))
	for i, ref := range c.Decision.Policies {
		names[i] = ref.String()
	}
	return names
}

// cached tells whether the kernel caches the tuple of an allowed flow; the rules of ruleset's admit chains say the
// same.
func cached(f *packet.Flow) bool {
	if f.Form != packet.Complete {
		return false
	}
	switch f.Proto {
	case packet.ProtoTCP:
		return !f.MidStream()
	case packet.ProtoUDP, packet.ProtoSCTP:
		return true
	}
	return false
}

func tupleOf(f *packet.Flow) ruleset.Tuple {
	return ruleset.Tuple{Src: f.Src, Dst: f.Dst, Proto: f.Proto, DstPort: f.DstPort}
}

// hookOf translates the netfilter hook number (linux/netfilter.h, enum nf_inet_hooks).
func hookOf(h uint8) engine.Hook {
	switch h {
	case unix.NF_INET_LOCAL_IN:
		return engine.Input
	case unix.NF_INET_LOCAL_OUT:
		return engine.Output
	}
	return engine.Forward
}

// clock tells the time of day to queue threads without a system call of theirs.
type clock struct {
	// offset is what to add to queue.Now for nanoseconds since the Unix epoch; the wall clock may be set while we run.
	offset atomic.Int64
}

func newClock() *clock {
	c := &clock{}
	c.sync()
	return c
}

// wall is the time of day in nanoseconds since the Unix epoch.
func (c *clock) wall() int64 { return queue.Now() + c.offset.Load() }

// sync follows the wall clock.
func (c *clock) sync() { c.offset.Store(time.Now().UnixNano() - queue.Now()) }
