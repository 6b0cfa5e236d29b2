package queue

import (
	"context"
	"encoding/binary"
	"errors"
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
