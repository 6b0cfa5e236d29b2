package queue

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

func TestHoldUntilWake(t *testing.T) {
	ns := nstest.New(t)
	divert(t, ns, unix.IPPROTO_UDP, 9000, 0, 1)
	w := newWire(t, ns, "127.0.0.1", 9000)
	var known atomic.Value
	known.Store("")
	var handled atomic.Int64
	q, _ := start(t, ns, Config{HoldTime: time.Hour}, func(p *Packet) Verdict {
		handled.Add(1)
		if p.Expired {
			t.Errorf("%q expired", text(p))
		}
		switch s := text(p); {
		case s == "pass":
			return Verdict{Kind: Accept}
		case s == known.Load() && !p.Held:
			t.Errorf("%q was not held", s)
			return Verdict{}
		case s == known.Load():
			return Verdict{Kind: Repeat, Mark: acceptMark}
		default:
			return Verdict{Kind: Hold}
		}
	})
	w.send("one")
	w.send("two")
	w.send("pass")
	w.expect("pass")
	eventually(t, "two packets held", func() bool { return q.Stats().HeldNow == 2 })
	w.expectNothing()

	known.Store("two")
	q.Wake()
	w.expect("two")
	eventually(t, "one packet held", func() bool { return q.Stats().HeldNow == 1 })
	before := handled.Load()
	q.Wake() // to no avail
	eventually(t, "the held packet judged again", func() bool { return handled.Load() == before+1 })
	w.expectNothing()
	known.Store("one")
	q.Wake()
	w.expect("one")
	eventually(t, "nothing held", func() bool { return q.Stats().HeldNow == 0 })
	if s := q.Stats(); s.Held != 2 || s.Repeated != 2 || s.Accepted != 1 || s.Packets != 3 || s.Expired != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestWakeCoversMoreThanABatch has every held packet judged once for each wake, while new ones come.
func TestWakeCoversMoreThanABatch(t *testing.T) {
	const packets = 100
	ns := nstest.New(t)
	divert(t, ns, unix.IPPROTO_UDP, 9000, 0, 1)
	w := newWire(t, ns, "127.0.0.1", 9000)
	var open atomic.Bool
	var again atomic.Int64
	q, _ := start(t, ns, Config{HoldTime: time.Hour, Batch: 3}, func(p *Packet) Verdict {
		if p.Held {
			again.Add(1)
		}
		if open.Load() {
			return Verdict{Kind: Accept}
		}
		return Verdict{Kind: Hold}
	})
	var texts []string
	for i := range packets {
		texts = append(texts, fmt.Sprint(i))
		w.send(texts[i])
	}
	eventually(t, "all held", func() bool { return q.Stats().HeldNow == packets })
	q.Wake()
	eventually(t, "all judged again", func() bool { return again.Load() == packets })
	w.expectNothing()
	open.Store(true)
	q.Wake()
	w.expect(texts...)
	eventually(t, "nothing held", func() bool { return q.Stats().HeldNow == 0 })
	if n := again.Load(); n != 2*packets {
		t.Errorf("held packets were judged %d times, want %d", n, 2*packets)
	}
}

func TestHoldExpires(t *testing.T) {
	ns := nstest.New(t)
	divert(t, ns, unix.IPPROTO_UDP, 9000, 0, 1)
	w := newWire(t, ns, "127.0.0.1", 9000)
	const hold = 50 * time.Millisecond
	q, _ := start(t, ns, Config{HoldTime: hold}, func(p *Packet) Verdict {
		if p.Held != p.Expired {
			t.Errorf("packet %+v", p)
		}
		if p.Expired && time.Duration(Now()-p.Received) < hold {
			t.Errorf("expired %v after it was received", time.Duration(Now()-p.Received))
		}
		if p.Expired && text(p) == "accept" {
			return Verdict{Kind: Accept}
		}
		return Verdict{Kind: Hold}
	})
	w.send("drop")
	w.send("accept")
	w.expect("accept")
	eventually(t, "both expired", func() bool { return q.Stats().Expired == 2 })
	if s := q.Stats(); s.Accepted != 1 || s.Dropped != 1 || s.HeldNow != 0 {
		t.Errorf("stats %+v", s)
	}
	w.expectNothing()
}

func TestHoldListFull(t *testing.T) {
	ns := nstest.New(t)
	divert(t, ns, unix.IPPROTO_UDP, 9000, 0, 1)
	w := newWire(t, ns, "127.0.0.1", 9000)
	q, _ := start(t, ns, Config{HoldSlots: 2, HoldTime: time.Hour}, func(p *Packet) Verdict {
		if p.Expired && !p.Held && text(p) == "accept" {
			return Verdict{Kind: Accept}
		}
		return Verdict{Kind: Hold}
	})
	for _, s := range []string{"held", "held", "accept", "drop"} {
		w.send(s)
	}
	w.expect("accept")
	eventually(t, "all handled", func() bool { return q.Stats().Packets == 4 })
	if s := q.Stats(); s.HeldNow != 2 || s.HoldFull != 2 || s.Accepted != 1 || s.Dropped != 1 {
		t.Errorf("stats %+v", s)
	}
	ns.Do(func() {
		stats, err := ReadKernelStats()
		if err != nil || len(stats) != 1 || stats[0] != (KernelStats{Number: 0, Waiting: 2}) {
			t.Errorf("kernel stats %+v, %v", stats, err)
		}
	})
}
