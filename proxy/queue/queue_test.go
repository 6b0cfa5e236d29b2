package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

func TestMain(m *testing.M) {
	nstest.Elevate()
	goleak.VerifyTestMain(m)
}

// acceptMark on a packet lets it pass the rules of divert.
const acceptMark = 0x21000000

// patience is how long tests wait for something that has to happen; none waits so long when all is well.
const patience = 10 * time.Second

// divert sends what leaves the namespace over proto to port to one of count queues from first on, unless it carries
// acceptMark.
func divert(t testing.TB, ns *nstest.NS, proto byte, port uint16, first, count uint16) {
	t.Helper()
	// struct xt_NFQ_info_v3 (linux/netfilter/xt_NFQUEUE.h): __u16 queuenum, queues_total, flags; aligned to 8 bytes.
	target := make([]byte, 8)
	binary.NativeEndian.PutUint16(target, first)
	binary.NativeEndian.PutUint16(target[2:], count)
	info := xt.Unknown(target)
	err := install(ns, proto, port, &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info})
	if errors.Is(err, unix.ENOENT) { // a kernel without nft_compat
		err = install(ns, proto, port, &expr.Queue{Num: first, Total: count})
	}
	if err != nil {
		t.Fatalf("install rules: %v", err)
	}
}

func install(ns *nstest.NS, proto byte, port uint16, queue expr.Any) error {
	return ns.Run(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "test", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{
			Name: "output", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput,
			Priority: nftables.ChainPriorityFilter,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, acceptMark)},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
		match := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		}
		if proto == unix.IPPROTO_TCP { // SYN without ACK
			match = append(match,
				&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x12}, Xor: []byte{0}},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
			)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(match, queue)})
		return c.Flush()
	})
}

// handler is a Handler made of a function, which also holds the order of its calls against the interface.
type handler struct {
	t       testing.TB
	handle  func(p *Packet) Verdict
	inside  bool
	batches atomic.Int64
}

func (h *handler) Begin() {
	if h.inside {
		h.t.Error("Begin within a batch")
	}
	h.inside = true
}

func (h *handler) Handle(p *Packet) Verdict {
	if !h.inside {
		h.t.Error("Handle outside of a batch")
	}
	return h.handle(p)
}

func (h *handler) End() {
	if !h.inside {
		h.t.Error("End outside of a batch")
	}
	h.inside = false
	h.batches.Add(1)
}

// start opens a queue in the namespace and runs it until the test ends or stop is called, which returns Run's error.
func start(t testing.TB, ns *nstest.NS, cfg Config, handle func(p *Packet) Verdict) (q *Queue, stop func() error) {
	t.Helper()
	cfg.Handler = &handler{t: t, handle: handle}
	err := ns.Run(func() (err error) { q, err = Open(cfg); return err })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return q, stop
}

// wire is a pair of UDP sockets in the namespace.
type wire struct {
	t        testing.TB
	from, to *net.UDPConn
}

func newWire(t testing.TB, ns *nstest.NS, address string, port int) *wire {
	t.Helper()
	w := &wire{t: t}
	ns.Do(func() {
		var err error
		if w.to, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address), Port: port}); err != nil {
			t.Fatal(err)
		}
		if w.from, err = net.DialUDP("udp", nil, w.to.LocalAddr().(*net.UDPAddr)); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = w.from.Close(); _ = w.to.Close() })
	return w
}

func (w *wire) send(text string) {
	w.t.Helper()
	if _, err := w.from.Write([]byte(text)); err != nil {
		w.t.Fatalf("send %q: %v", text, err)
	}
}

// expect fails unless the packets arrive, in this order and no other before them.
func (w *wire) expect(texts ...string) {
	w.t.Helper()
	for _, text := range texts {
		b := make([]byte, 65536)
		_ = w.to.SetReadDeadline(time.Now().Add(patience))
		n, err := w.to.Read(b)
		if err != nil || string(b[:n]) != text {
			w.t.Fatalf("received %q, %v; want %q", b[:n], err, text)
		}
	}
}

// expectNothing fails if a packet is there. A packet on lo arrives within the call that lets it go.
func (w *wire) expectNothing() {
	w.t.Helper()
	_ = w.to.SetReadDeadline(time.Now().Add(time.Millisecond))
	b := make([]byte, 65536)
	if n, err := w.to.Read(b); err == nil {
		w.t.Fatalf("received %q, want nothing", b[:n])
	}
}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// text is the UDP payload of an IPv4 packet without options.
func text(p *Packet) string { return string(p.Payload[28:]) }

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
	var sum uint64
	used := 0
	for _, q := range all {
		eventually(t, "counted", func() bool { s := q.Stats(); return s.Packets == s.Accepted })
		if n := q.Stats().Packets; n > 0 {
			used++
			sum += n
		}
	}
	if sum != packets || used < 2 {
		t.Errorf("%d packets over %d queues, want %d over several", sum, used, packets)
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
