package ruleset

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/proxy/internal/nstest"
	"github.com/firstpacket/firstpacket/proxy/mark"
)

func TestMain(m *testing.M) {
	nstest.Elevate()
	goleak.VerifyTestMain(m)
}

const (
	// short is how long a test waits for an answer that must not come, long for one that must: the tests also run on an
	// emulated processor (make test-vm).
	short = 250 * time.Millisecond
	long  = 30 * time.Second

	queueNumber = 7
	generation  = 41
)

var layoutOfMarks = func() mark.Layout {
	l, err := mark.New(mark.Default)
	if err != nil {
		panic(err)
	}
	return l
}()

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// bed is a node with a pod behind it and a client in front, joined by veth pairs:
//
//	client 10.0.2.2 fd00:2::2 — 10.0.2.1 fd00:2::1 node 10.0.1.1 fd00:1::1 — 10.0.1.2 fd00:1::2 pod
//
// The pod answers on TCP and UDP ports 80 to 89 what it is sent.
type bed struct {
	t                 testing.TB
	client, node, pod *nstest.NS
}

var (
	clientAddrs = []netip.Addr{addr("10.0.2.2"), addr("fd00:2::2")}
	podAddrs    = []netip.Addr{addr("10.0.1.2"), addr("fd00:1::2")}
	gateways    = []netip.Addr{addr("10.0.1.1"), addr("fd00:1::1")}
	podCIDRs    = []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}
)

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, client: nstest.New(t), node: nstest.New(t), pod: nstest.New(t)}
	for _, ns := range []*nstest.NS{b.client, b.node, b.pod} {
		ns.Do(func() { // addresses are usable at once
			b.must(os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0))
		})
	}
	b.join(b.client, "cl0", clientAddrs, []string{"10.0.2.1", "fd00:2::1"})
	b.join(b.pod, "pod0", podAddrs, []string{"10.0.1.1", "fd00:1::1"})
	b.node.Do(func() {
		for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	for port := 80; port < 90; port++ {
		b.serve(port)
	}
	return b
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// join makes a veth pair from the node to ns, with addresses and a default route through the node.
func (b *bed) join(ns *nstest.NS, name string, addrs []netip.Addr, via []string) {
	b.t.Helper()
	node, err := netlink.NewHandleAt(b.node.Handle())
	b.must(err)
	defer node.Close()
	far, err := netlink.NewHandleAt(ns.Handle())
	b.must(err)
	defer far.Close()
	b.must(node.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0",
		PeerNamespace: netlink.NsFd(int(ns.Handle()))}))
	up := func(h *netlink.Handle, name, a string) {
		link, err := h.LinkByName(name)
		b.must(err)
		ip := net.ParseIP(a)
		bits, flags := 24, 0
		if ip.To4() == nil {
			bits, flags = 64, unix.IFA_F_NODAD
		}
		b.must(h.AddrAdd(link, &netlink.Addr{Flags: flags,
			IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, len(netip.MustParseAddr(a).AsSlice())*8)}}))
		b.must(h.LinkSetUp(link))
	}
	for i := range addrs {
		up(node, name, via[i])
		up(far, "eth0", addrs[i].String())
		b.must(far.RouteAdd(&netlink.Route{Gw: net.ParseIP(via[i])}))
	}
}

func (b *bed) serve(port int) { b.serveIn(b.pod, port) }

func (b *bed) serveIn(ns *nstest.NS, port int) {
	b.t.Helper()
	var l net.Listener
	var p net.PacketConn
	b.must(ns.Run(func() (err error) {
		if l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		return err
	}))
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := p.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = p.WriteTo(buf[:n], from)
			}
		}
	})
	b.t.Cleanup(func() {
		_, _ = l.Close(), p.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}

// dial opens a socket in ns; TCP connects.
func dial(ns *nstest.NS, network string, to netip.AddrPort, timeout time.Duration) (conn net.Conn, err error) {
	err = ns.Run(func() error {
		conn, err = net.DialTimeout(network, to.String(), timeout)
		return err
	})
	return conn, err
}

// talk sends a message over the connection and waits for its echo.
func talk(c net.Conn, timeout time.Duration) error {
	return talkBytes(c, []byte("hello"), timeout)
}

func talkBytes(c net.Conn, msg []byte, timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := c.Write(msg); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for got := 0; got < len(msg); {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		got += n
	}
	return nil
}

// probe opens a connection, talks over it and closes it.
func probe(ns *nstest.NS, network string, to netip.AddrPort, timeout time.Duration) error {
	c, err := dial(ns, network, to, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	return talk(c, timeout)
}

// reaches fails the test unless the probe succeeds.
func (b *bed) reaches(from *nstest.NS, network string, to netip.Addr, port uint16) {
	b.t.Helper()
	if err := probe(from, network, netip.AddrPortFrom(to, port), long); err != nil {
		b.t.Fatalf("%s to %v port %d: %v", network, to, port, err)
	}
}

// silent fails the test unless the probe gets no answer at all.
func (b *bed) silent(from *nstest.NS, network string, to netip.Addr, port uint16) {
	b.t.Helper()
	err := probe(from, network, netip.AddrPortFrom(to, port), short)
	if ne := net.Error(nil); !errors.As(err, &ne) || !ne.Timeout() {
		b.t.Fatalf("%s to %v port %d: %v, want a time-out", network, to, port, err)
	}
}

// config is the one that most tests use; change alters it.
func (b *bed) config(change ...func(*Config)) Config {
	cfg := Config{Mask: layoutOfMarks, QueueFirst: queueNumber, NetNS: int(b.node.Handle())}
	for _, c := range change {
		c(&cfg)
	}
	return cfg
}

func (b *bed) open(change ...func(*Config)) *Ruleset {
	b.t.Helper()
	r, err := Open(b.config(change...))
	b.must(err)
	return r
}

// isolated is the state in which the pod's addresses are isolated as said and the gateways are known.
func isolated(ingress, egress bool) State {
	s := State{Generation: generation, PodCIDRs: podCIDRs}
	for i := range podAddrs {
		s.Subjects = append(s.Subjects, Subject{Addr: gateways[i]},
			Subject{Addr: podAddrs[i], Pod: true, Ingress: ingress, Egress: egress})
	}
	return s
}

func (b *bed) install(s State, change ...func(*Config)) *Ruleset {
	b.t.Helper()
	r := b.open(change...)
	b.must(r.Install(s))
	return r
}

// ctMarks returns the conntrack marks of the node's flows to the address and port.
func (b *bed) ctMarks(to netip.Addr, port uint16) []uint32 {
	b.t.Helper()
	var marks []uint32
	for _, f := range b.flows(to, port) {
		marks = append(marks, f.Mark)
	}
	return marks
}

func (b *bed) flows(to netip.Addr, port uint16) []*netlink.ConntrackFlow {
	b.t.Helper()
	h, err := netlink.NewHandleAt(b.node.Handle(), unix.NETLINK_NETFILTER)
	b.must(err)
	defer h.Close()
	fam := netlink.InetFamily(unix.AF_INET6)
	if to.Is4() {
		fam = unix.AF_INET
	}
	all, err := h.ConntrackTableList(netlink.ConntrackTable, fam)
	b.must(err)
	var found []*netlink.ConntrackFlow
	for _, f := range all {
		if ip, _ := netip.AddrFromSlice(f.Forward.DstIP); ip.Unmap() == to && f.Forward.DstPort == port {
			found = append(found, f)
		}
	}
	return found
}

// side adds a base chain of another table to the node and returns a function that adds rules to it.
func (b *bed) side(name string, typ nftables.ChainType, hook *nftables.ChainHook,
	prio nftables.ChainPriority) func(...[]expr.Any) {
	b.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(b.node.Handle())))
	b.must(err)
	table := c.AddTable(&nftables.Table{Name: "side", Family: nftables.TableFamilyINet})
	ch := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: typ, Hooknum: hook, Priority: &prio})
	b.must(c.Flush())
	return func(rules ...[]expr.Any) {
		b.t.Helper()
		c, err := nftables.New(nftables.WithNetNSFd(int(b.node.Handle())))
		b.must(err)
		for _, e := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: e})
		}
		b.must(c.Flush())
	}
}

// hits returns the packets that a chain of the side table counted, by rule; 0 for rules without counter.
func (b *bed) hits(name string) []uint64 {
	b.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(b.node.Handle())))
	b.must(err)
	table := &nftables.Table{Name: "side", Family: nftables.TableFamilyINet}
	rules, err := c.GetRules(table, &nftables.Chain{Name: name, Table: table})
	b.must(err)
	var counts []uint64
	for _, r := range rules {
		var n uint64
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				n = c.Packets
			}
		}
		counts = append(counts, n)
	}
	return counts
}

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
