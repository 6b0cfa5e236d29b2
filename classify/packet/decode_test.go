package packet

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the seed corpus of FuzzDecode from the test table")

var addrs = cmpopts.EquateComparable(netip.Addr{})

type testCase struct {
	name string
	b    []byte
	want Flow
}

func flow4(f Flow) Flow {
	f.Src, f.Dst, f.Form = src4, dst4, max(f.Form, Complete)
	return f
}

func flow6(f Flow) Flow {
	f.Src, f.Dst, f.Form = src6, dst6, max(f.Form, Complete)
	return f
}

func cases(t testing.TB) []testCase {
	tcpFlow := Flow{SrcPort: 40000, DstPort: 443, Proto: ProtoTCP, TCPFlags: FlagSYN}
	udpFlow := Flow{SrcPort: 40000, DstPort: 53, Proto: ProtoUDP}
	sctpFlow := Flow{SrcPort: 40000, DstPort: 3868, Proto: ProtoSCTP}
	cut4 := Flow{Src: src4, Dst: dst4}
	cut6 := Flow{Src: src6, Dst: dst6}
	data := gopacket.Payload(make([]byte, 1000))
	syn4 := func() []byte { return build(t, ip4(ProtoTCP), tcp(FlagSYN)) }
	syn6 := func() []byte { return build(t, ip6(ProtoTCP), tcp(FlagSYN)) }
	length4 := func(n int) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint16(b[2:], uint16(n)) }
	}
	length6 := func(n int) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint16(b[4:], uint16(n)) }
	}
	offset4 := func(offset uint16, more bool) *layers.IPv4 {
		ip := ip4(ProtoUDP)
		if ip.FragOffset = offset; more {
			ip.Flags = layers.IPv4MoreFragments
		}
		return ip
	}
	options4 := func(n int) *layers.IPv4 {
		ip := ip4(ProtoTCP)
		for range n {
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1, OptionLength: 1})
		}
		return ip
	}
	echo4 := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}
	unreach4 := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 4)}
	echo6 := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	chain := func(kinds ...uint8) []gopacket.SerializableLayer {
		ls := []gopacket.SerializableLayer{ip6(kinds[0])}
		for i, kind := range kinds[:len(kinds)-1] {
			switch next := kinds[i+1]; kind {
			case extAuth:
				ls = append(ls, ah(next, 12))
			case extFragment:
				ls = append(ls, frag(next, 0, false))
			default:
				ls = append(ls, ext(kind, next, 1+i%3))
			}
		}
		return ls
	}
	var long []uint8
	for range 40 {
		long = append(long, extDestination)
	}
	long = append(long, ProtoTCP)

	return []testCase{
		{"v4-tcp-syn", syn4(), flow4(tcpFlow)},
		{"v4-tcp-synack", build(t, ip4(ProtoTCP), tcp(FlagSYN|FlagACK)),
			flow4(Flow{SrcPort: 40000, DstPort: 443, Proto: ProtoTCP, TCPFlags: FlagSYN | FlagACK})},
		{"v4-tcp-cut-behind-flags", syn4()[:20+tcpNeeds], flow4(tcpFlow)},
		{"v4-tcp-cut-in-flags", syn4()[:20+tcpNeeds-1], cut4},
		{"v4-tcp-offset-small", edit(syn4(), func(b []byte) { b[32] = 4 << 4 }), cut4},
		{"v4-tcp-options-15", build(t, options4(15), tcp(FlagSYN)), flow4(tcpFlow)},
		{"v4-tcp-options-40", build(t, options4(40), tcp(FlagSYN)), flow4(tcpFlow)},
		{"v4-options-cut", build(t, options4(40), tcp(FlagSYN))[:59], Flow{}},
		{"v4-ihl-small", edit(syn4(), func(b []byte) { b[0] = 0x44 }), Flow{}},
		{"v4-ihl-zero", edit(syn4(), func(b []byte) { b[0] = 0x40 }), Flow{}},
		{"v4-total-below-header", edit(syn4(), length4(19)), Flow{}},
		{"v4-total-header-only", edit(syn4(), length4(20)), cut4},
		{"v4-total-cuts-tcp", edit(syn4(), length4(20+tcpNeeds-1)), cut4},
		{"v4-total-beyond-copy", edit(syn4(), length4(1500)), flow4(tcpFlow)},
		{"v4-total-gso", edit(syn4(), length4(65535)), flow4(tcpFlow)},
		{"v4-total-zero", edit(syn4(), length4(0)), flow4(tcpFlow)},
		{"v4-trailer", append(syn4(), make([]byte, 26)...), flow4(tcpFlow)},
		{"v4-udp", build(t, ip4(ProtoUDP), udp(), data), flow4(udpFlow)},
		{"v4-udp-copied-256", build(t, ip4(ProtoUDP), udp(), data)[:256], flow4(udpFlow)},
		{"v4-udp-cut", build(t, ip4(ProtoUDP), udp())[:27], cut4},
		{"v4-udp-length-small", edit(build(t, ip4(ProtoUDP), udp()), func(b []byte) { b[25] = 7 }), cut4},
		{"v4-udp-length-zero", edit(build(t, ip4(ProtoUDP), udp()), func(b []byte) { b[25] = 0 }), flow4(udpFlow)},
		{"v4-sctp", build(t, ip4(ProtoSCTP), sctp()), flow4(sctpFlow)},
		{"v4-sctp-cut", build(t, ip4(ProtoSCTP), sctp())[:31], cut4},
		{"v4-icmp-echo", build(t, ip4(ProtoICMP), echo4), flow4(Flow{Proto: ProtoICMP, ICMPType: 8})},
		{"v4-icmp-unreachable", build(t, ip4(ProtoICMP), unreach4),
			flow4(Flow{Proto: ProtoICMP, ICMPType: 3, ICMPCode: 4})},
		{"v4-icmp-cut", build(t, ip4(ProtoICMP), echo4)[:23], cut4},
		{"v4-udplite", build(t, ip4(136), data), flow4(Flow{Proto: 136})},
		{"v4-dccp", build(t, ip4(33), data), flow4(Flow{Proto: 33})},
		{"v4-esp", build(t, ip4(50), data), flow4(Flow{Proto: 50})},
		{"v4-ah", build(t, ip4(51), ah(ProtoTCP, 12), tcp(FlagSYN)), flow4(Flow{Proto: 51})},
		{"v4-ipip", build(t, ip4(4), gopacket.Payload(syn4())), flow4(Flow{Proto: 4})},
		{"v4-no-payload", build(t, ip4(253)), flow4(Flow{Proto: 253})},
		{"v4-fragment-first", build(t, offset4(0, true), udp(), data), flow4(udpFlow)},
		{"v4-fragment-first-tiny", build(t, offset4(0, true), gopacket.Payload(make([]byte, 7))), cut4},
		{"v4-fragment-middle", build(t, offset4(185, true), data), flow4(Flow{Proto: ProtoUDP, Form: Fragment})},
		{"v4-fragment-last", build(t, offset4(1, false), gopacket.Payload{1}),
			flow4(Flow{Proto: ProtoUDP, Form: Fragment})},
		{"v6-tcp-syn", syn6(), flow6(tcpFlow)},
		{"v6-tcp-cut-in-flags", syn6()[:40+tcpNeeds-1], cut6},
		{"v6-udp", build(t, ip6(ProtoUDP), udp(), data), flow6(udpFlow)},
		{"v6-sctp", build(t, ip6(ProtoSCTP), sctp()), flow6(sctpFlow)},
		{"v6-icmp-echo", build(t, ip6(ProtoICMPv6), echo6), flow6(Flow{Proto: ProtoICMPv6, ICMPType: 128})},
		{"v6-length-zero", edit(syn6(), length6(0)), flow6(tcpFlow)},
		{"v6-length-gso", edit(syn6(), length6(65535)), flow6(tcpFlow)},
		{"v6-length-cuts-tcp", edit(syn6(), length6(tcpNeeds-1)), cut6},
		{"v6-length-cuts-extension", edit(build(t, append(chain(extHopByHop, ProtoTCP), tcp(FlagSYN))...),
			length6(7)), cut6},
		{"v6-header-only-tcp", syn6()[:40], cut6},
		{"v6-no-next-header", build(t, ip6(extNone)), flow6(Flow{Proto: extNone})},
		{"v6-no-next-header-behind-options", build(t, chain(extDestination, extNone)...), flow6(Flow{Proto: extNone})},
		{"v6-hop-by-hop", build(t, append(chain(extHopByHop, ProtoTCP), tcp(FlagSYN))...), flow6(tcpFlow)},
		{"v6-all-extensions", build(t, append(chain(extHopByHop, extDestination, extRouting, extFragment, extAuth,
			extDestination, ProtoUDP), udp())...), flow6(udpFlow)},
		{"v6-40-extensions", build(t, append(chain(long...), tcp(FlagSYN))...), flow6(tcpFlow)},
		{"v6-longest-extension", build(t, ip6(extDestination), ext(extDestination, ProtoTCP, 256), tcp(FlagSYN)),
			flow6(tcpFlow)},
		{"v6-longest-extension-copied-256", build(t, ip6(extDestination), ext(extDestination, ProtoTCP, 256),
			tcp(FlagSYN))[:256], cut6},
		{"v6-extension-cut", build(t, chain(extDestination, ProtoTCP)...)[:47], cut6},
		{"v6-ah", build(t, ip6(extAuth), ah(ProtoTCP, 12), tcp(FlagSYN)), flow6(tcpFlow)},
		{"v6-ah-cut", build(t, ip6(extAuth), ah(ProtoTCP, 12))[:63], cut6},
		{"v6-esp", build(t, ip6(50), data), flow6(Flow{Proto: 50})},
		{"v6-mobility", build(t, ip6(135), data), flow6(Flow{Proto: 135})},
		{"v6-fragment-atomic", build(t, ip6(extFragment), frag(ProtoUDP, 0, false), udp()), flow6(udpFlow)},
		{"v6-fragment-first", build(t, ip6(extFragment), frag(ProtoUDP, 0, true), udp(), data), flow6(udpFlow)},
		{"v6-fragment-first-tiny", build(t, ip6(extFragment), frag(ProtoUDP, 0, true), gopacket.Payload{1, 2}), cut6},
		{"v6-fragment-later", build(t, ip6(extFragment), frag(ProtoUDP, 9, false), data),
			flow6(Flow{Proto: ProtoUDP, Form: Fragment})},
		{"v6-fragment-header-cut", build(t, ip6(extFragment), frag(ProtoUDP, 9, false))[:47], cut6},
		{"empty", nil, Flow{}},
		{"version-0", make([]byte, 60), Flow{}},
		{"version-5", edit(syn4(), func(b []byte) { b[0] = 0x55 }), Flow{}},
		{"v4-short", syn4()[:19], Flow{}},
		{"v6-short", syn6()[:39], Flow{}},
	}
}

func TestDecode(t *testing.T) {
	for _, tc := range cases(t) {
		t.Run(tc.name, func(t *testing.T) {
			got := Flow{SrcPort: 1, DstPort: 2, Proto: 3, TCPFlags: 4, ICMPType: 5, ICMPCode: 6, Form: Fragment}
			got.Decode(tc.b)
			if d := cmp.Diff(tc.want, got, addrs); d != "" {
				t.Errorf("Decode(%x) (-want +got):\n%s", tc.b, d)
			}
			if allocs := testing.AllocsPerRun(100, func() { got.Decode(tc.b) }); allocs != 0 {
				t.Errorf("Decode allocates %v times", allocs)
			}
			check(t, tc.b)
		})
	}
}

// check holds every property of Decode against one packet.
func check(t testing.TB, b []byte) {
	var f Flow
	f.Decode(b)
	// gopacket reads on where lengths contradict each other, so it is no judge of what is malformed.
	if want, ok := oracle(b); ok && f.Form != Malformed {
		if d := cmp.Diff(want, f, addrs); d != "" {
			t.Fatalf("Decode(%x) differs from gopacket (-gopacket +Decode):\n%s", b, d)
		}
	}
	if f.Form == Malformed && f != (Flow{Src: f.Src, Dst: f.Dst}) {
		t.Fatalf("Decode(%x) = %+v: malformed with more than addresses", b, f)
	}
	if f.Form != Malformed && (!f.Src.IsValid() || f.Src.Is4() != f.Dst.Is4() || f.Src.Zone() != "") {
		t.Fatalf("Decode(%x) = %+v: bad addresses", b, f)
	}
	if hasPorts := f.Proto == ProtoTCP || f.Proto == ProtoUDP || f.Proto == ProtoSCTP; f.SrcPort|f.DstPort != 0 &&
		(!hasPorts || f.Form != Complete) {
		t.Fatalf("Decode(%x) = %+v: ports that cannot be", b, f)
	}
	// More bytes of the same packet never change what fewer bytes could already tell.
	for n := range min(len(b), 512) {
		var short Flow
		if short.Decode(b[:n]); short.Form != Malformed && short != f {
			t.Fatalf("Decode(%x[:%d]) = %+v, but with all bytes %+v", b, n, short, f)
		}
	}
}

// TestDecodeRandom compares Decode with what a random packet was built from, and with gopacket.
func TestDecodeRandom(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		want := Flow{Src: src4, Dst: dst4, Form: Complete}
		var upper []gopacket.SerializableLayer
		port := rapid.Uint16()
		switch rapid.SampledFrom([]string{"tcp", "udp", "sctp", "icmp", "other"}).Draw(rt, "upper") {
		case "tcp":
			l := tcp(FlagSYN)
			l.SrcPort, l.DstPort = layers.TCPPort(port.Draw(rt, "src")), layers.TCPPort(port.Draw(rt, "dst"))
			l.SYN, l.ACK, l.PSH = rapid.Bool().Draw(rt, "syn"), rapid.Bool().Draw(rt, "ack"), rapid.Bool().Draw(rt, "psh")
			want.Proto, want.SrcPort, want.DstPort = ProtoTCP, uint16(l.SrcPort), uint16(l.DstPort)
			for bit, on := range map[uint8]bool{FlagSYN: l.SYN, FlagACK: l.ACK, 0x08: l.PSH} {
				if on {
					want.TCPFlags |= bit
				}
			}
			upper = append(upper, l)
		case "udp":
			l := udp()
			l.SrcPort, l.DstPort = layers.UDPPort(port.Draw(rt, "src")), layers.UDPPort(port.Draw(rt, "dst"))
			want.Proto, want.SrcPort, want.DstPort = ProtoUDP, uint16(l.SrcPort), uint16(l.DstPort)
			upper = append(upper, l)
		case "sctp":
			l := sctp()
			l.SrcPort, l.DstPort = layers.SCTPPort(port.Draw(rt, "src")), layers.SCTPPort(port.Draw(rt, "dst"))
			want.Proto, want.SrcPort, want.DstPort = ProtoSCTP, uint16(l.SrcPort), uint16(l.DstPort)
			upper = append(upper, l)
		case "icmp":
			want.ICMPType, want.ICMPCode = rapid.Byte().Draw(rt, "type"), rapid.Byte().Draw(rt, "code")
			want.Proto = ProtoICMP
			upper = append(upper, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(want.ICMPType, want.ICMPCode)})
		default:
			want.Proto = rapid.SampledFrom([]uint8{2, 33, 47, 50, 89, 136, 253}).Draw(rt, "proto")
		}
		upper = append(upper, gopacket.Payload(rapid.SliceOfN(rapid.Byte(), 8, 64).Draw(rt, "payload")))

		var ls []gopacket.SerializableLayer
		if rapid.Bool().Draw(rt, "v6") {
			want.Src, want.Dst = src6, dst6
			kinds := rapid.SliceOfN(rapid.SampledFrom([]uint8{extHopByHop, extRouting, extDestination, extAuth,
				extFragment}), 0, 8).Draw(rt, "extensions")
			kinds = append(kinds, want.Proto)
			ls = append(ls, ip6(kinds[0]))
			for i, kind := range kinds[:len(kinds)-1] {
				switch next := kinds[i+1]; kind {
				case extAuth:
					ls = append(ls, ah(next, 4*rapid.IntRange(0, 16).Draw(rt, "icv")))
				case extFragment:
					ls = append(ls, frag(next, 0, rapid.Bool().Draw(rt, "more")))
				default:
					ls = append(ls, ext(kind, next, rapid.IntRange(1, 20).Draw(rt, "units")))
				}
			}
		} else {
			ip := ip4(want.Proto)
			for range rapid.IntRange(0, 40).Draw(rt, "options") {
				ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1, OptionLength: 1})
			}
			ls = append(ls, ip)
		}
		b := build(t, append(ls, upper...)...)
		var got Flow
		if got.Decode(b); got != want {
			rt.Fatalf("Decode(%x) (-want +got):\n%s", b, cmp.Diff(want, got, addrs))
		}
		check(t, b)

		// Any damage gives some answer, and one that gopacket does not contradict.
		b[rapid.IntRange(0, min(len(b)-1, 79)).Draw(rt, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		check(t, b[:rapid.IntRange(0, len(b)).Draw(rt, "cut")])
	})
}

// TestDecodeMillionPacketsAllocateNothing counts exactly, since AllocsPerRun rounds down.
func TestDecodeMillionPacketsAllocateNothing(t *testing.T) {
	all := cases(t)
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		b := append([]byte(nil), all[random.IntN(len(all))].b...)
		if len(b) > 0 {
			b[random.IntN(len(b))] = byte(random.Uint32())
		}
		all = append(all, testCase{b: b})
	}
	const packets = 1_000_000
	var f Flow
	var forms [3]int
	var before, after runtime.MemStats
	// The runtime itself may allocate now and then; a Decode that did would show in every attempt.
	for range 5 {
		runtime.ReadMemStats(&before)
		for i := range packets {
			f.Decode(all[i%len(all)].b)
			forms[f.Form]++
		}
		runtime.ReadMemStats(&after)
		if after.Mallocs == before.Mallocs {
			break
		}
	}
	if n := after.Mallocs - before.Mallocs; n != 0 {
		t.Errorf("%d allocations in %d packets", n, packets)
	}
	for form, n := range forms {
		if n == 0 {
			t.Errorf("no packet of form %d", form)
		}
	}
}

// TestSeedCorpus keeps the seeds of FuzzDecode the same as the table; -update writes them.
func TestSeedCorpus(t *testing.T) {
	dir := filepath.Join("testdata", "fuzz", "FuzzDecode")
	for _, tc := range cases(t) {
		name := filepath.Join(dir, "table-"+tc.name)
		want := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", tc.b)
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s is not the seed of the table (run with -update): %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) { check(t, b) })
}

func TestMidStream(t *testing.T) {
	for _, tc := range []struct {
		flags uint8
		want  bool
	}{
		{FlagSYN, false}, {FlagSYN | FlagACK, true}, {FlagACK, true}, {0, true}, {FlagRST, true},
		{FlagSYN | FlagFIN, false},
	} {
		var f Flow
		b := build(t, ip4(ProtoTCP), tcp(tc.flags))
		if f.Decode(b); f.MidStream() != tc.want {
			t.Errorf("flags %#x: MidStream = %v", tc.flags, f.MidStream())
		}
	}
	for _, f := range []Flow{{Proto: ProtoUDP, Form: Complete}, {Proto: ProtoTCP, Form: Fragment}, {}} {
		if f.MidStream() {
			t.Errorf("%+v is mid-stream", f)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, tc := range cases(b) {
		switch tc.name {
		case "v4-tcp-syn", "v4-tcp-options-40", "v4-udp-copied-256", "v4-fragment-middle", "v6-tcp-syn", "v6-udp",
			"v6-all-extensions", "v6-40-extensions", "v6-tcp-cut-in-flags":
		default:
			continue
		}
		family, kind, _ := strings.Cut(tc.name, "-")
		b.Run(fmt.Sprintf("family=%s/packet=%s", family, kind), func(b *testing.B) {
			b.ReportAllocs()
			var f Flow
			for b.Loop() {
				f.Decode(tc.b)
			}
			if f != tc.want {
				b.Fatalf("Decode = %+v, want %+v", f, tc.want)
			}
		})
	}
}
