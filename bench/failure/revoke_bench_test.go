package failure

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manyFlows is the number of established flows that one change of policy cuts.
const manyFlows = 10_000

// openMany makes that many UDP flows from the client to the server, each of a source port of its own.
func (b *bed) openMany() {
	b.t.Helper()
	to := b.place("server").At(false, 53)
	source, _ := b.place("client").Addr(false)
	b.must(b.place("client").NS.Do(func() error {
		for i := range manyFlows {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: source.As4(), Port: 10_000 + i})
			if err == nil {
				err = unix.Sendto(fd, []byte("?"), 0, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
			}
			if err == nil {
				// The answer assures that the flow is there; the first ones wait for the verdict.
				err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
			}
			if err == nil {
				_, _, err = unix.Recvfrom(fd, make([]byte, 512), 0)
			}
			_ = unix.Close(fd)
			if err != nil {
				return &net.OpError{Op: "flow", Err: err}
			}
		}
		return nil
	}))
}

// BenchmarkRevoke cuts 10,000 established flows by one change of policy. settle-ms is from the moment when new flows
// obey to the last mark; total-ms is from the writing of the manifest to the agent's acknowledgement, by a client that
// asks every 10 ms.
func BenchmarkRevoke(bb *testing.B) {
	b := newBed(bb)
	var settle, total time.Duration
	for range bb.N {
		b.apply(admitting("client"))
		before := b.status().Revoked
		b.openMany()
		began := time.Now()
		b.apply(admitting("friend"))
		total += time.Since(began)
		s := b.status()
		settle += time.Duration(s.SettleSeconds * float64(time.Second))
		if n := s.Revoked - before; n < manyFlows {
			bb.Fatalf("%d flows revoked, want %d", n, manyFlows)
		}
	}
	bb.ReportMetric(float64(settle.Milliseconds())/float64(bb.N), "settle-ms")
	bb.ReportMetric(float64(total.Milliseconds())/float64(bb.N), "total-ms")
}
