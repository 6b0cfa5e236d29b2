package queue

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
)

// BenchmarkConnect opens TCP connections over lo, each of whose SYNs goes through a queue and is repeated with a mark.
// One operation is one connection; what differs is the loop that serves the queue. It measures the whole way, of which
// the stack takes most (loop=none): the differences are what counts, on one machine in one run.
func BenchmarkConnect(b *testing.B) {
	type variant struct {
		name  string
		serve func(b *testing.B, ns *nstest.NS) (packets func() uint64)
	}
	loop := func(cfg Config) func(*testing.B, *nstest.NS) func() uint64 {
		return func(b *testing.B, ns *nstest.NS) func() uint64 { return serveLoop(b, ns, cfg) }
	}
	variants := []variant{
		{"none", nil},
		{"callback", serveCallback},
		{"batch1", loop(Config{Batch: 1})},
		{"batch8", loop(Config{Batch: 8})},
		{"batch32", loop(Config{})},
	}
	for _, clients := range []int{1, 8} {
		for _, v := range variants {
			b.Run(fmt.Sprintf("clients=%d/loop=%s", clients, v.name), func(b *testing.B) {
				ns := nstest.New(b)
				packets := func() uint64 { return uint64(b.N) }
				if v.serve != nil {
					divert(b, ns, unix.IPPROTO_TCP, 9000, 0, 1)
					packets = v.serve(b, ns)
				}
				connect(b, ns, clients)
				// A busy machine may have a SYN sent twice; none passes unseen.
				if n, want := packets(), uint64(b.N); n < want || n > want+10+want/100 {
					b.Fatalf("%d packets were queued for %d connections", n, want)
				}
			})
		}
	}
}

// BenchmarkHeld is BenchmarkConnect beside held packets: the kernel looks for each answered packet in a list, at whose
// head the held ones are.
func BenchmarkHeld(b *testing.B) {
	for _, held := range []int{0, 64, 256, 1024} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			ns := nstest.New(b)
			divert(b, ns, unix.IPPROTO_TCP, 9000, 0, 1)
			divert(b, ns, unix.IPPROTO_UDP, 9000, 0, 1)
			q, _ := start(b, ns, Config{HoldTime: time.Hour}, func(p *Packet) Verdict {
				if p.Payload[9] == unix.IPPROTO_UDP {
					return Verdict{Kind: Hold}
				}
				return Verdict{Kind: Repeat, Mark: acceptMark}
			})
			conns := make([]net.Conn, 0, held)
			ns.Do(func() {
				for len(conns) < held {
					c, err := net.Dial("udp4", "127.0.0.1:9000")
					if err != nil {
						b.Fatal(err)
					}
					conns = append(conns, c)
					if _, err := c.Write([]byte("x")); err != nil {
						b.Fatal(err)
					}
				}
			})
			defer func() {
				for _, c := range conns {
					_ = c.Close()
				}
			}()
			eventually(b, "all held", func() bool { return q.Stats().HeldNow == held })
			connect(b, ns, 1)
		})
	}
}

func serveLoop(b *testing.B, ns *nstest.NS, cfg Config) func() uint64 {
	q, _ := start(b, ns, cfg, func(*Packet) Verdict { return Verdict{Kind: Repeat, Mark: acceptMark} })
	return func() uint64 {
		eventually(b, "all counted", func() bool { return q.Stats().Packets >= uint64(b.N) })
		return q.Stats().Packets
	}
}

// serveCallback serves the queue the way go-nfqueue means it.
func serveCallback(b *testing.B, ns *nstest.NS) func() uint64 {
	var nfq *nfqueue.Nfqueue
	var packets atomic.Uint64
	ctx, cancel := context.WithCancel(context.Background())
	err := ns.Run(func() (err error) {
		nfq, err = nfqueue.Open(&nfqueue.Config{
			MaxQueueLen: DefaultMaxLen, MaxPacketLen: DefaultCopyRange, Copymode: nfqueue.NfQnlCopyPacket,
			Flags: nfqueue.NfQaCfgFlagGSO,
		})
		if err != nil {
			return err
		}
		return nfq.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int {
			packets.Add(1)
			if err := nfq.SetVerdictWithOption(*a.PacketID, nfqueue.NfRepeat, nfqueue.WithMark(acceptMark)); err != nil {
				b.Error(err)
			}
			return 0
		}, func(error) int { return 0 })
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cancel(); _ = nfq.Close() })
	return packets.Load
}

// connect makes b.N connections from a number of threads at once and ends each with a reset, which leaves no state.
func connect(b *testing.B, ns *nstest.NS, clients int) {
	b.Helper()
	to := &unix.SockaddrInet4{Port: 9000, Addr: [4]byte{127, 0, 0, 1}}
	var listener int
	ns.Do(func() {
		var err error
		if listener, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			b.Fatal(err)
		}
		if err = unix.Bind(listener, to); err != nil {
			b.Fatal(err)
		}
		if err = unix.Listen(listener, 4096); err != nil {
			b.Fatal(err)
		}
	})
	defer unix.Close(listener)
	// The clients would be other processes: they must not compete with the loop for Go's processors.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + clients + 1))
	var all sync.WaitGroup
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	for range clients {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ns.Do(func() {
				for left.Add(-1) >= 0 {
					if err := connectOnce(to, listener); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
}

// connectOnce also does the server's part, so that no further thread has to wake up for it.
func connectOnce(to unix.Sockaddr, listener int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	for {
		err := unix.Connect(fd, to)
		if err == nil || err == unix.EISCONN {
			break
		}
		if err != unix.EINTR && err != unix.EALREADY {
			return err
		}
	}
	// The connection is there as a rule, or another client took it, or this one finds that of another later.
	for {
		peer, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			return unix.Close(peer)
		case unix.EAGAIN:
			return nil
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return err
		}
	}
}
