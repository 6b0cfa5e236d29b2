package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/classify/packet"
)

const (
	mask     = 0x3f000000
	admitted = 0x01000000
	revoked  = 0x02000000
	others   = 0x80000005 // bits that are not ours
)

var (
	loopback = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	service  = []netip.Addr{netip.MustParseAddr("127.9.9.9"), netip.MustParseAddr("fd00:96::1")}
)

func TestFlowsAsPolicySeesThem(t *testing.T) {
	h := newHost(t)
	c := h.open()
	for i := range loopback {
		t.Run(fmt.Sprintf("v%d", 4+2*i), func(t *testing.T) {
			check := func(what string, f Flow, want packet.Flow, status uint32) {
				t.Helper()
				if got := f.Policy(); got != want {
					t.Errorf("%s: policy sees %+v, want %+v", what, got, want)
				}
				if f.Mark != others|admitted || f.Zone != 0 || f.Status&(StatusConfirmed|status) != StatusConfirmed|status {
					t.Errorf("%s: mark %#x zone %d status %#x", what, f.Mark, f.Zone, f.Status)
				}
			}
			plain := netip.AddrPortFrom(loopback[i], 9)
			from := h.udp(plain)
			check("udp", h.find(c, packet.ProtoUDP, plain), packet.Flow{Src: from.Addr(), Dst: loopback[i],
				SrcPort: from.Port(), DstPort: 9, Proto: packet.ProtoUDP, Form: packet.Complete}, 0)

			vip := netip.AddrPortFrom(service[i], 80)
			from = h.udp(vip)
			check("udp service", h.find(c, packet.ProtoUDP, vip), packet.Flow{Src: from.Addr(), Dst: loopback[i],
				SrcPort: from.Port(), DstPort: 8080, Proto: packet.ProtoUDP, Form: packet.Complete}, StatusDNAT)

			from = h.tcp(vip, 8080)
			check("tcp service", h.find(c, packet.ProtoTCP, vip), packet.Flow{Src: from.Addr(), Dst: loopback[i],
				SrcPort: from.Port(), DstPort: 8080, Proto: packet.ProtoTCP, TCPFlags: packet.FlagSYN,
				Form: packet.Complete}, StatusDNAT|StatusSeenReply|StatusAssured)

			h.ping(loopback[i], 4711)
			proto, typ := uint8(packet.ProtoICMP), uint8(8)
			if i == 1 {
				proto, typ = packet.ProtoICMPv6, 128
			}
			ping := h.find(c, proto, netip.AddrPortFrom(loopback[i], 0))
			check("ping", ping, packet.Flow{Src: loopback[i], Dst: loopback[i], Proto: proto, ICMPType: typ,
				Form: packet.Complete}, 0)
			if ping.ICMPID != 4711 {
				t.Errorf("ping: identifier %d", ping.ICMPID)
			}
		})
	}
}

func TestSetMarksOfEveryKindOfFlow(t *testing.T) {
	h := newHost(t)
	c := h.open()
	for i := range loopback {
		h.udp(netip.AddrPortFrom(loopback[i], 9))
		h.udp(netip.AddrPortFrom(service[i], 80))
		h.tcp(netip.AddrPortFrom(loopback[i], 8080), 8080)
		h.ping(loopback[i], 77)
	}
	flows := h.dump(c, Filter{Mark: admitted, Mask: mask})
	if len(flows) != 8 {
		t.Fatalf("%d flows, want 8: %v", len(flows), flows)
	}
	// Three of the flows never were.
	missing := flows[0]
	missing.Original.SrcPort, missing.Original.DstPort, missing.Proto = 1, 2, packet.ProtoUDP
	all := slices.Concat([]Flow{missing}, flows[:4], []Flow{missing}, flows[4:], []Flow{missing})
	if n, err := c.SetMarks(all, revoked|^uint32(mask), mask); err != nil || n != len(flows) {
		t.Fatalf("changed %d, %v; want %d", n, err, len(flows))
	}
	for _, f := range h.dump(c, Filter{}) {
		if f.Mark != others|revoked {
			t.Errorf("%v: mark %#x", &f, f.Mark)
		}
	}
	if left := h.dump(c, Filter{Mark: admitted, Mask: mask}); len(left) != 0 {
		t.Errorf("admitted still: %v", left)
	}
	if n, err := c.SetMarks(nil, revoked, mask); n != 0 || err != nil {
		t.Errorf("no flows: %d, %v", n, err)
	}
}

func TestZones(t *testing.T) {
	h := newHost(t)
	nft, err := nftables.New(nftables.WithNetNSFd(int(h.ns.Handle())))
	h.must(err)
	table := nft.AddTable(&nftables.Table{Name: "zone", Family: nftables.TableFamilyINet})
	ch := nft.AddChain(&nftables.Chain{Name: "zone", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw})
	nft.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint16(nil, 5)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: 1, SourceRegister: true},
	}})
	h.must(nft.Flush())
	c := h.open()
	to := netip.AddrPortFrom(loopback[0], 9)
	h.udp(to)
	for _, f := range h.dump(c, Filter{Mark: admitted, Mask: mask}) {
		if f.Zone != 5 || f.ZoneOriginal {
			t.Errorf("%v: zone %d, original only %t", &f, f.Zone, f.ZoneOriginal)
		}
		if n, err := c.SetMarks([]Flow{f}, revoked, mask); n != 1 || err != nil {
			t.Errorf("changed %d, %v", n, err)
		}
	}
	if left := h.dump(c, Filter{Mark: revoked, Mask: mask}); len(left) == 0 {
		t.Error("nothing was revoked")
	}
}

// An entry that the kernel does not take is an error, and names the flow.
func TestSetMarksError(t *testing.T) {
	h := newHost(t)
	c := h.open()
	h.udp(netip.AddrPortFrom(loopback[0], 9))
	good := h.dump(c, Filter{})
	if len(good) != 1 {
		t.Fatalf("%d flows", len(good))
	}
	bad := good[0]
	bad.Proto, bad.ICMPType = packet.ProtoICMP, 3 // errors make no flow of their own (icmp_nlattr_to_tuple)
	n, err := c.SetMarks([]Flow{bad, good[0]}, revoked, mask)
	if err == nil || n != 1 {
		t.Fatalf("changed %d, %v; want 1 and an error", n, err)
	}
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v does not wrap EINVAL", err)
	}
	if f := h.dump(c, Filter{}); f[0].Mark != others|revoked {
		t.Errorf("the good flow has mark %#x", f[0].Mark)
	}
}

func TestDumpStops(t *testing.T) {
	h := newHost(t)
	c := h.open()
	h.many(300)
	var n int
	h.must(c.Dump(Filter{}, func(*Flow) bool { n++; return n < 10 }))
	if n != 10 {
		t.Errorf("%d calls, want 10", n)
	}
	if got := len(h.dump(c, Filter{})); got != 300 {
		t.Errorf("then %d flows, want 300", got)
	}
}

// many makes UDP flows over both families.
func (h *host) many(count int) {
	h.t.Helper()
	h.ns.Do(func() {
		const perSocket = 500
		for made := 0; made < count; made += perSocket {
			i := made / perSocket % 2
			p, err := net.ListenPacket("udp", netip.AddrPortFrom(loopback[i], 0).String())
			h.must(err)
			for port := 1; port <= min(perSocket, count-made); port++ {
				to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback[i], uint16(port)))
				if _, err = p.WriteTo([]byte("x"), to); errors.Is(err, unix.ECONNREFUSED) { // heard of an earlier one
					_, err = p.WriteTo([]byte("x"), to)
				}
				h.must(err)
			}
			h.must(p.Close())
		}
	})
}

func TestTenThousandFlowsAreRevoked(t *testing.T) {
	const count = 10_000
	h := newHost(t)
	c := h.open()
	h.many(count)
	flows := h.dump(c, Filter{Mark: admitted, Mask: mask})
	if len(flows) != count {
		t.Fatalf("%d flows, want %d", len(flows), count)
	}
	if n, err := c.SetMarks(flows, revoked, mask); n != count || err != nil {
		t.Fatalf("changed %d, %v", n, err)
	}
	var n int
	h.must(c.Dump(Filter{Mark: revoked, Mask: mask}, func(f *Flow) bool {
		if f.Mark == others|revoked {
			n++
		}
		return true
	}))
	if n != count {
		t.Errorf("%d revoked, want %d", n, count)
	}
}

// A dump allocates nothing per flow, and a change of marks nothing once its buffer has grown.
func TestAllocations(t *testing.T) {
	h := newHost(t)
	c := h.open()
	h.many(1000)
	flows := h.dump(c, Filter{})
	change := func() {
		if _, err := c.SetMarks(flows, admitted, mask); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	dump := func() { h.must(c.Dump(Filter{}, func(*Flow) bool { n++; return true })) }
	change()
	dump()
	// Per send: the closure and the socket address.
	if got := mallocs(change); got > 10*uint64(len(flows)/batch+1) {
		t.Errorf("SetMarks: %d allocations for %d flows", got, len(flows))
	}
	if got := mallocs(dump); got > 20 {
		t.Errorf("Dump: %d allocations for %d flows", got, len(flows))
	}
}

func mallocs(f func()) uint64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

func TestWithoutPermission(t *testing.T) {
	h := newHost(t)
	result := make(chan error)
	go func() { // its thread loses its capabilities and ends with it
		runtime.LockOSThread()
		result <- func() error {
			if err := netns.Set(h.ns.Handle()); err != nil {
				return err
			}
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&header, &none[0]); err != nil {
				return err
			}
			c, err := Open(0)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Dump(Filter{}, func(*Flow) bool { return true })
		}()
	}()
	if err := <-result; !errors.Is(err, ErrPermission) || !errors.Is(err, unix.EPERM) {
		t.Errorf("%v, want ErrPermission", err)
	}
}

// FuzzFlow: any bytes give a flow or none; and a flow's key reads back as it was.
func FuzzFlow(f *testing.F) {
	h := newHost(f)
	c := h.open()
	for i := range loopback {
		h.udp(netip.AddrPortFrom(service[i], 80))
		h.ping(loopback[i], 1)
	}
	for _, flow := range h.dump(c, Filter{}) {
		c.begin()
		c.encodeKey(&flow)
		original, reply := slices.Clone(c.out), slices.Clone(c.out)
		binary.NativeEndian.PutUint16(reply[2:], ctaTupleReply|nested)
		f.Add(slices.Concat(original, reply))
	}
	f.Add([]byte{4, 0, 1, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest, ok := b, true; ok; {
			_, _, rest, ok = next(rest)
		}
		var flow, again Flow
		whole := flow.decode(b)
		if !whole {
			return
		}
		e := &Conn{}
		e.encodeKey(&flow)
		again.decode(e.out)
		if again.Original.Src != flow.Original.Src || again.Original.Dst != flow.Original.Dst ||
			again.Proto != flow.Proto || again.Zone != flow.Zone {
			t.Fatalf("%+v encodes as %+v", flow, again)
		}
	})
}

func BenchmarkRevoke10000(b *testing.B) {
	const count = 10_000
	h := newHost(b)
	c := h.open()
	h.many(count)
	var flows []Flow
	value := []uint32{revoked, admitted}
	at := uint32(admitted)
	for i := 0; b.Loop(); i++ {
		flows = flows[:0]
		h.must(c.Dump(Filter{Mark: at, Mask: mask}, func(f *Flow) bool {
			flows = append(flows, *f)
			return true
		}))
		at = value[i%2]
		n, err := c.SetMarks(flows, at, mask)
		if n != count || err != nil {
			b.Fatalf("changed %d, %v", n, err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()*1e3/float64(b.N), "ms/revocation")
}
