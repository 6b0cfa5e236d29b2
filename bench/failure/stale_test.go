package failure

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// attempt is one connection of a storm.
type attempt struct {
	begun, ended time.Time
	err          error
}

// storm opens TCP connections from one pod to ports of another, on several threads, until stop is called.
type storm struct {
	mu       sync.Mutex
	attempts []attempt
	done     atomic.Bool
	wg       sync.WaitGroup
}

// startStorm serves the ports at the destination and connects to them round and round, each thread after a pause.
// timeout bounds one connection; below a second, a lost first packet is an error.
func (b *bed) startStorm(from, to string, ports, threads int, pause, timeout time.Duration) *storm {
	b.t.Helper()
	const first = 2000
	target, _ := b.place(to).Addr(false)
	for port := first; port < first+ports; port++ {
		b.serve(b.place(to).NS, netip.AddrPortFrom(target, uint16(port)))
	}
	s := &storm{}
	source := b.place(from)
	for i := range threads {
		s.wg.Go(func() {
			_ = source.NS.Do(func() error {
				for n := i; !s.done.Load(); n += threads {
					address := net.JoinHostPort(target.String(), strconv.Itoa(first+n%ports))
					a := attempt{begun: time.Now()}
					c, err := net.DialTimeout("tcp", address, timeout)
					a.ended, a.err = time.Now(), err
					if err == nil {
						_ = c.(*net.TCPConn).SetLinger(0)
						_ = c.Close()
					}
					s.mu.Lock()
					s.attempts = append(s.attempts, a)
					s.mu.Unlock()
					time.Sleep(pause)
				}
				return nil
			})
		})
	}
	b.t.Cleanup(func() { s.stop() })
	return s
}

func (s *storm) stop() []attempt {
	s.done.Store(true)
	s.wg.Wait()
	return s.attempts
}

// serve accepts TCP connections until the test ends.
func (b *bed) serve(n *ns.Namespace, at netip.AddrPort) {
	b.t.Helper()
	var l net.Listener
	b.must(n.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	})
	b.t.Cleanup(func() { _ = l.Close(); wg.Wait() })
}

// cache opens the kernel's table of a node for reading.
func cache(t testing.TB, l *lab.Lab, node string) *ruleset.Ruleset {
	t.Helper()
	p, err := l.Place("node/" + node)
	if err != nil {
		t.Fatal(err)
	}
	layout, err := mark.New(mark.Default)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ruleset.Open(ruleset.Config{Mask: layout, NetNS: p.NS.FD()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNoStaleVerdict flips policy against a storm of new connections: none that began after the agent had acknowledged
// the denial is admitted, and no tuple of the storm stays in the kernel's cache.
func TestNoStaleVerdict(t *testing.T) {
	b := newBed(t, "--deny-with", "reject")
	b.apply(admitting("friend"))
	table := cache(t, b.Lab, "one")
	s := b.startStorm("client", "server", 64, 6, 0, 300*time.Millisecond)
	type period struct{ from, to time.Time }
	var forbidden []period
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var cached int
	for range 15 {
		b.must(b.ApplyYAML(ctx, admitting("client")))
		b.must(b.WaitApplied(ctx))
		time.Sleep(10 * time.Millisecond)
		b.must(b.ApplyYAML(ctx, admitting("friend")))
		b.must(b.WaitApplied(ctx))
		p := period{from: time.Now()}
		held, err := table.Allowed()
		b.must(err)
		cached += len(held)
		time.Sleep(20 * time.Millisecond)
		p.to = time.Now()
		forbidden = append(forbidden, p)
	}
	attempts := s.stop()
	var admitted, refused, wrong int
	for _, a := range attempts {
		if a.err != nil {
			refused++
			continue
		}
		admitted++
		for _, p := range forbidden {
			if a.begun.After(p.from) && a.ended.Before(p.to) {
				wrong++
			}
		}
	}
	t.Logf("%d connections admitted, %d refused, over %d changes", admitted, refused, 2*len(forbidden))
	if wrong > 0 || cached > 0 {
		t.Errorf("%d connections were admitted after the denial was acknowledged, %d tuples were still cached", wrong, cached)
	}
	if admitted == 0 || refused == 0 {
		t.Errorf("%d admitted and %d refused: the storm proves nothing", admitted, refused)
	}
}
