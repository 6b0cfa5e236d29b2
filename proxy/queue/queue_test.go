package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

func TestVerdicts(t *testing.T) {
	for name, address := range map[string]string{"IPv4": "127.0.0.1", "IPv6": "::1"} {
		t.Run(name, func(t *testing.T) {
			ns := nstest.New(t)
			divert(t, ns, unix.IPPROTO_UDP, 9000, 7, 1)
			w := newWire(t, ns, address, 9000)
			var repeats atomic.Int64
			q, _ := start(t, ns, Config{Number: 7}, func(p *Packet) Verdict {
				if p.Hook != 3 { // NF_INET_LOCAL_OUT
					t.Errorf("hook %d", p.Hook)
				}
				if p.Held || p.Expired || p.Received == 0 || p.Received > Now() {
					t.Errorf("first handling of %+v", p)
				}
				switch s := string(p.Payload[len(p.Payload)-6:]); s {
				case "accept":
					return Verdict{Kind: Accept}
				case "repeat": // passes the accepting rule on its second way
					repeats.Add(1)
					return Verdict{Kind: Repeat, Mark: acceptMark}
				case "again!": // comes back to the queue, with its mark
					if repeats.Add(1); p.Mark == 0x05000000 {
						return Verdict{Kind: Accept}
					}
					return Verdict{Kind: Repeat, Mark: 0x05000000}
				case "wrong!":
					return Verdict{Kind: 77}
				default:
					return Verdict{Mark: acceptMark}
				}
			})
			for _, s := range []string{"1accept", "2drop!!", "3repeat", "4wrong!", "5accept", "6again!"} {
				w.send(s)
			}
			w.expect("1accept", "3repeat", "5accept", "6again!")
			if n := repeats.Load(); n != 3 {
				t.Errorf("repeated packets were handled %d times, want 3", n)
			}
			eventually(t, "all counted", func() bool { return q.Stats().Packets == 7 })
			s := q.Stats()
			if s.Accepted != 3 || s.Dropped != 2 || s.Repeated != 2 || s.Malformed+s.SendErrors+s.ReceiveErrors != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func TestLongPacketIsCopiedInPart(t *testing.T) {
	ns := nstest.New(t)
	divert(t, ns, unix.IPPROTO_UDP, 9000, 0, 1)
	w := newWire(t, ns, "127.0.0.1", 9000)
	var copied, total atomic.Int64
	start(t, ns, Config{CopyRange: 100}, func(p *Packet) Verdict {
		copied.Store(int64(len(p.Payload)))
		total.Store(int64(binary.BigEndian.Uint16(p.Payload[2:])))
		return Verdict{Kind: Accept}
	})
	long := string(make([]byte, 30000))
	w.send(long)
	w.expect(long)
	if copied.Load() != 100 || total.Load() != 30028 {
		t.Errorf("copied %d of %d bytes, want 100 of 30028", copied.Load(), total.Load())
	}
}

func TestSeveralQueues(t *testing.T) {
	const queues, packets = 4, 64
	ns := nstest.New(t)
	divert(t, ns, unix.IPPROTO_UDP, 9000, 10, queues)
	var all []*Queue
	for i := range queues {
		q, _ := start(t, ns, Config{Number: uint16(10 + i)}, func(*Packet) Verdict { return Verdict{Kind: Accept} })
		if q.Number() != uint16(10+i) {
			t.Errorf("number %d", q.Number())
		}
		all = append(all, q)
	}
	for i := range packets { // balanced by the hash of the addresses
		w := newWire(t, ns, fmt.Sprintf("127.0.0.%d", 1+i), 9000)
		w.send("x")
		w.expect("x")
	}
	// The counts are published after the packets have arrived.
	used := 0
	eventually(t, "all counted", func() bool {
		var sum uint64
		used = 0
		for _, q := range all {
			if n := q.Stats().Accepted; n > 0 {
				used++
				sum += n
			}
		}
		return sum == packets
	})
	if used < 2 {
		t.Errorf("%d packets went to %d queue, want several", packets, used)
	}
}

func TestTakenAndReleased(t *testing.T) {
	ns := nstest.New(t)
	_, stop := start(t, ns, Config{Number: 3}, func(*Packet) Verdict { return Verdict{} })
	open := func() (q *Queue, err error) {
		err = ns.Run(func() error {
			q, err = Open(Config{Number: 3, Handler: &handler{t: t}})
			return err
		})
		return q, err
	}
	if _, err := open(); !errors.Is(err, ErrTaken) || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) {
		t.Errorf("second Open: %v, want ErrTaken with its errno", err)
	}
	if err := stop(); err != nil {
		t.Errorf("Run after its context ended: %v", err)
	}
	q, err := open()
	if err != nil {
		t.Fatalf("Open of a released number: %v", err)
	}
	q.Close()
	q.Close()
	q.Wake()
	if err := q.Run(t.Context()); err == nil {
		t.Error("a closed queue runs")
	}
	if q, err = open(); err != nil {
		t.Fatalf("Open after Close: %v", err)
	}
	q.Close()
}

func TestPacketsWaitFromOpenToRun(t *testing.T) {
	ns := nstest.New(t)
	divert(t, ns, unix.IPPROTO_UDP, 9000, 0, 1)
	w := newWire(t, ns, "127.0.0.1", 9000)
	var q *Queue
	h := &handler{t: t, handle: func(*Packet) Verdict { return Verdict{Kind: Accept} }}
	if err := ns.Run(func() (err error) { q, err = Open(Config{Handler: h}); return err }); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		w.send(fmt.Sprint(i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- q.Run(ctx) }()
	for i := range 40 {
		w.expect(fmt.Sprint(i))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := h.batches.Load(); n > 3 {
		t.Errorf("40 waiting packets took %d batches of up to %d", n, DefaultBatch)
	}
}

func TestIdleLoopSleeps(t *testing.T) {
	ns := nstest.New(t)
	q, _ := start(t, ns, Config{}, func(*Packet) Verdict { return Verdict{} })
	eventually(t, "asleep", func() bool { return q.Stats().Waits > 0 })
	before := q.Stats().Waits
	time.Sleep(50 * time.Millisecond)
	if n := q.Stats().Waits - before; n > 3 { // a signal of the runtime may interrupt
		t.Errorf("an idle loop woke up %d times", n)
	}
	q.Wake()
	eventually(t, "asleep again", func() bool { return q.Stats().Waits > before })
}

// TestPermission opens a queue on a thread without CAP_NET_ADMIN.
func TestPermission(t *testing.T) {
	ns := nstest.New(t)
	ns.Do(func() { // locks the thread, to which the capabilities belong
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capget(&header, &caps[0]); err != nil {
			t.Fatal(err)
		}
		less := caps
		less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err := unix.Capset(&header, &less[0]); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Capset(&header, &caps[0]); err != nil {
				t.Error(err)
			}
		}()
		if _, err := Open(Config{Handler: &handler{t: t}}); !errors.Is(err, ErrPermission) ||
			!errors.Is(err, unix.EPERM) || errors.Is(err, ErrTaken) {
			t.Errorf("Open = %v, want ErrPermission with its errno", err)
		}
	})
}

// TestFailOpen fills a queue that nobody serves.
func TestFailOpen(t *testing.T) {
	for _, failOpen := range []bool{false, true} {
		ns := nstest.New(t)
		divert(t, ns, unix.IPPROTO_UDP, 9000, 0, 1)
		w := newWire(t, ns, "127.0.0.1", 9000)
		var q *Queue
		if err := ns.Run(func() (err error) {
			q, err = Open(Config{Handler: &handler{t: t}, MaxLen: 1, HoldSlots: -1, FailOpen: failOpen})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		w.send("queued")
		if _, err := w.from.Write([]byte("too many")); failOpen && err != nil {
			t.Errorf("fail open: send: %v", err)
		}
		if failOpen {
			w.expect("too many")
		}
		w.expectNothing()
		ns.Do(func() {
			stats, err := ReadKernelStats()
			want := KernelStats{Waiting: 1, QueueDropped: 1}
			if failOpen {
				want.QueueDropped = 0
			}
			if err != nil || len(stats) != 1 || stats[0] != want {
				t.Errorf("kernel stats %+v, %v; want %+v", stats, err, want)
			}
		})
		q.Close()
	}
}

// TestDeadSocket ends the loop from below.
func TestDeadSocket(t *testing.T) {
	ns := nstest.New(t)
	var q *Queue
	if err := ns.Run(func() (err error) { q, err = Open(Config{Handler: &handler{t: t}}); return err }); err != nil {
		t.Fatal(err)
	}
	// A descriptor that is no socket stands in for it.
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Dup3(null, q.fd, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(null)
	if err := q.Run(t.Context()); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("Run = %v, want ENOTSOCK", err)
	}
	if q.Stats().ReceiveErrors != 1 {
		t.Errorf("stats %+v", q.Stats())
	}
}

func TestConfig(t *testing.T) {
	h := &handler{t: t}
	for name, cfg := range map[string]Config{
		"no handler":      {},
		"holds too many":  {Handler: h, MaxLen: 10, HoldSlots: 10},
		"default holds":   {Handler: h, MaxLen: 1024},
		"copy too short":  {Handler: h, CopyRange: 59},
		"copy too long":   {Handler: h, CopyRange: 65532},
		"batch too big":   {Handler: h, Batch: 1025},
		"batch negative":  {Handler: h, Batch: -1},
		"hold negative":   {Handler: h, HoldTime: -1},
		"buffer negative": {Handler: h, ReceiveBuffer: -1},
	} {
		if q, err := Open(cfg); err == nil {
			t.Errorf("%s: opened", name)
			q.Close()
		}
	}
}
