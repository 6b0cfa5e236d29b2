package dnswatch

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/firstpacket/firstpacket/policycache/domain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	podAddr = netip.MustParseAddr("10.0.1.2")
	server  = netip.MustParseAddr("10.0.9.9")
	target  = netip.MustParseAddr("192.0.2.1")
)

// bench is a Watcher with a book of what it learned; what is in force is set by the tests.
type bench struct {
	*Watcher
	t       testing.TB
	learned []domain.Answer
	inForce bool
	full    bool
	now     int64
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t}
	b.Watcher = New(Config{
		Server:  func(s Server) bool { return s.Port == 53 && (s.Addr == server || s.Addr.Is6()) },
		InForce: func(netip.Addr, *domain.Answer) bool { return b.inForce },
		Learn: func(_ netip.Addr, a domain.Answer) bool {
			if !b.full {
				b.learned = append(b.learned, a)
			}
			return !b.full
		},
	})
	return b
}

func (b *bench) handle(p []byte) Outcome { return b.Handle(p, b.now, false) }

func (b *bench) want(what string, p []byte, want Outcome, learned int) {
	b.t.Helper()
	if got := b.handle(p); got != want || len(b.learned) != learned {
		b.t.Errorf("%s: outcome %d, learned %v; want %d, %d", what, got, b.learned, want, learned)
	}
}

// message is a query, or with an address its answer.
func message(id uint16, name string, kind dnsmessage.Type, addr netip.Addr) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: id, Response: addr.IsValid()}}
	n := dnsmessage.MustNewName(name)
	m.Questions = []dnsmessage.Question{{Name: n, Type: kind, Class: dnsmessage.ClassINET}}
	if addr.IsValid() {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}}
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func pack(src, dst netip.Addr, proto layers.IPProtocol, upper gopacket.SerializableLayer, payload []byte) []byte {
	var ip gopacket.SerializableLayer = &layers.IPv4{
		Version: 4, IHL: 5, TTL: 64, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice(),
	}
	if src.Is6() {
		ip = &layers.IPv6{Version: 6, NextHeader: proto, HopLimit: 64, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true}, ip, upper,
		gopacket.Payload(payload)); err != nil {
		panic(err)
	}
	return slices.Clone(buf.Bytes())
}

func udp(src, dst netip.AddrPort, payload []byte) []byte {
	return pack(src.Addr(), dst.Addr(), layers.IPProtocolUDP,
		&layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}, payload)
}

func tcp(src, dst netip.AddrPort, seq uint32, flags byte, payload []byte) []byte {
	return pack(src.Addr(), dst.Addr(), layers.IPProtocolTCP, &layers.TCP{
		SrcPort: layers.TCPPort(src.Port()), DstPort: layers.TCPPort(dst.Port()), Seq: seq, DataOffset: 5,
		SYN: flags&2 != 0, ACK: flags&16 != 0, RST: flags&4 != 0,
	}, payload)
}

var (
	client = netip.AddrPortFrom(podAddr, 40000)
	dns    = netip.AddrPortFrom(server, 53)
)

func TestAnswerWaitsForItsAddresses(t *testing.T) {
	b := newBench(t)
	answer := udp(dns, client, message(7, "www.example.com.", dnsmessage.TypeA, target))
	b.want("query", udp(client, dns, message(7, "www.example.com.", dnsmessage.TypeA, netip.Addr{})), Pass, 0)
	b.want("answer", answer, Wait, 1)
	b.want("woken too early", answer, Wait, 1)
	b.want("a copy", answer, Wait, 1)
	b.inForce = true
	b.want("in force", answer, Pass, 1)
	b.want("once more", answer, Drop, 1)
	if s := &b.Stats; s.Queries.Load() != 1 || s.Answers.Load() != 1 || s.Waited.Load() != 1 || s.Strangers.Load() != 1 {
		t.Errorf("%d queries, %d answers, %d waited, %d strangers", s.Queries.Load(), s.Answers.Load(), s.Waited.Load(),
			s.Strangers.Load())
	}
	a := b.learned[0]
	if !slices.Equal(a.Names, []string{"www.example.com"}) || !slices.Equal(a.Addrs, []netip.Addr{target}) {
		t.Errorf("learned %+v", a)
	}
	// What is in force already is learned again, for longer, and does not wait.
	b.want("query", udp(client, dns, message(8, "www.example.com.", dnsmessage.TypeA, netip.Addr{})), Pass, 1)
	b.want("answer", udp(dns, client, message(8, "www.example.com.", dnsmessage.TypeA, target)), Pass, 2)
}

func TestAnswerThatCannotWait(t *testing.T) {
	b := newBench(t)
	b.full = true
	answer := udp(dns, client, message(7, "a.b.", dnsmessage.TypeA, target))
	b.want("query", udp(client, dns, message(7, "a.b.", dnsmessage.TypeA, netip.Addr{})), Pass, 0)
	b.want("no room", answer, Wait, 0)
	b.full = false
	b.want("room again", answer, Wait, 1)
	if out := b.Handle(answer, b.now, true); out != Pass || b.Stats.Late.Load() != 1 {
		t.Errorf("at the end of its time: %d, %d late", out, b.Stats.Late.Load())
	}
}

// TestStrangersChangeNothing: whatever differs from the question, nothing is learned, and the answer itself counts.
func TestStrangersChangeNothing(t *testing.T) {
	other := netip.MustParseAddr("10.0.1.3")
	good := message(7, "www.example.com.", dnsmessage.TypeA, target)
	for name, p := range map[string][]byte{
		"id":              udp(dns, client, message(8, "www.example.com.", dnsmessage.TypeA, target)),
		"name":            udp(dns, client, message(7, "ww.example.com.", dnsmessage.TypeA, target)),
		"case":            udp(dns, client, message(7, "WWW.example.com.", dnsmessage.TypeA, target)),
		"type":            udp(dns, client, message(7, "www.example.com.", dnsmessage.TypeAAAA, target)),
		"pod":             udp(dns, netip.AddrPortFrom(other, 40000), good),
		"port of the pod": udp(dns, netip.AddrPortFrom(podAddr, 40001), good),
		"server":          udp(netip.AddrPortFrom(other, 53), client, good),
		"port":            udp(netip.AddrPortFrom(server, 54), client, good),
		"protocol":        tcp(dns, client, 1, 16, append([]byte{0, byte(len(good))}, good...)),
		"direction":       udp(client, dns, good),
		"a query":         udp(dns, client, message(7, "www.example.com.", dnsmessage.TypeA, netip.Addr{})),
		"cut":             udp(dns, client, good)[:30+len(good)/2],
		"nothing":         udp(dns, client, nil),
		"noise":           udp(dns, client, bytes.Repeat([]byte("x"), 100)),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.handle(udp(client, dns, message(7, "www.example.com.", dnsmessage.TypeA, netip.Addr{})))
			b.handle(p)
			if len(b.learned) != 0 {
				t.Errorf("learned %v", b.learned)
			}
			b.want("the answer itself", udp(dns, client, good), Wait, 1)
		})
	}
	t.Run("too late", func(t *testing.T) {
		b := newBench(t)
		b.handle(udp(client, dns, message(7, "www.example.com.", dnsmessage.TypeA, netip.Addr{})))
		b.now = int64(patience) + 1
		b.want("too late", udp(dns, client, good), Drop, 0)
	})
	t.Run("unasked", func(t *testing.T) {
		b := newBench(t)
		b.want("unasked", udp(dns, client, good), Drop, 0)
	})
}

// TestAnswersWithoutAddresses pass, and close the question.
func TestAnswersWithoutAddresses(t *testing.T) {
	b := newBench(t)
	query := message(7, "www.example.com.", dnsmessage.TypeA, netip.Addr{})
	truncated := slices.Clone(query)
	truncated[2] |= 0x82
	b.want("query", udp(client, dns, query), Pass, 0)
	b.want("truncated", udp(dns, client, truncated), Pass, 0)
	b.want("once more", udp(dns, client, truncated), Drop, 0)
	b.want("another type", udp(client, dns, message(9, "a.b.", dnsmessage.TypeTXT, netip.Addr{})), Pass, 0)
	b.want("its answer", udp(dns, client, message(9, "a.b.", dnsmessage.TypeTXT, target)), Pass, 0)
}

func TestIPv6(t *testing.T) {
	b := newBench(t)
	pod6, dns6 := netip.MustParseAddrPort("[fd00::2]:4000"), netip.MustParseAddrPort("[fd00::53]:53")
	b.want("query", udp(pod6, dns6, message(7, "a.b.", dnsmessage.TypeA, netip.Addr{})), Pass, 0)
	b.want("answer", udp(dns6, pod6, message(7, "a.b.", dnsmessage.TypeA, target)), Wait, 1)
}

func TestBounds(t *testing.T) {
	b := newBench(t)
	ask := func(id uint16) []byte { return udp(client, dns, message(id, "a.b.", dnsmessage.TypeA, netip.Addr{})) }
	for id := range uint16(maxQuestions + 10) {
		b.handle(ask(id))
	}
	b.want("the oldest", udp(dns, client, message(0, "a.b.", dnsmessage.TypeA, target)), Drop, 0)
	b.want("the newest", udp(dns, client, message(maxQuestions, "a.b.", dnsmessage.TypeA, target)), Wait, 1)
	for i := range 2 * maxPods {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1)
		b.handle(udp(from, dns, message(1, "a.b.", dnsmessage.TypeA, netip.Addr{})))
	}
	if n := b.pods.Len(); n != maxPods {
		t.Errorf("%d pods", n)
	}
	for port := range uint16(3 * maxStreams) {
		b.handle(tcp(netip.AddrPortFrom(podAddr, 1000+port), dns, 1, 2, nil))
	}
	if n := b.pod(podAddr).streams.Len(); n != maxStreams {
		t.Errorf("%d streams", n)
	}
}

func framed(messages ...[]byte) (all []byte) {
	for _, m := range messages {
		all = append(binary.BigEndian.AppendUint16(all, uint16(len(m))), m...)
	}
	return all
}

func TestStream(t *testing.T) {
	b := newBench(t)
	query := framed(message(1, "a.b.", dnsmessage.TypeA, netip.Addr{}), message(2, "c.d.", dnsmessage.TypeA, netip.Addr{}))
	first := framed(message(1, "a.b.", dnsmessage.TypeA, target))
	second := framed(message(2, "c.d.", dnsmessage.TypeA, target))
	b.want("data of a stream that began before", tcp(client, dns, 101, 16, query), Drop, 0)
	b.want("SYN with data", tcp(client, dns, 100, 2, query), Drop, 0)
	b.want("SYN", tcp(client, dns, 100, 2, nil), Pass, 0)
	b.want("SYN ACK", tcp(dns, client, 0xffffffff, 18, nil), Pass, 0)
	b.want("ACK", tcp(client, dns, 101, 16, nil), Pass, 0)
	b.want("ahead of its turn", tcp(client, dns, 102, 16, query[1:]), Drop, 0)
	b.want("queries", tcp(client, dns, 101, 16, query), Pass, 0)
	b.want("sent again", tcp(client, dns, 101, 16, query), Pass, 0)
	b.want("the beginning of an answer", tcp(dns, client, 0, 16, first[:10]), Pass, 0)
	b.want("with its end", tcp(dns, client, 5, 16, first[5:]), Wait, 1)
	b.want("sent again", tcp(dns, client, 5, 16, first[5:]), Wait, 1)
	b.want("its beginning, too", tcp(dns, client, 0, 16, first[:10]), Wait, 1)
	b.want("the next", tcp(dns, client, uint32(len(first)), 16, second), Wait, 2)
	b.inForce = true
	b.want("in force", tcp(dns, client, 5, 16, first[5:]), Pass, 2)
	b.want("the next", tcp(dns, client, uint32(len(first)), 16, second), Pass, 2)
	b.want("an answer to nothing", tcp(dns, client, uint32(len(first)+len(second)), 16, first), Pass, 2)
	b.want("another connection", tcp(netip.AddrPortFrom(podAddr, 40001), dns, 101, 16, query), Drop, 2)
}

// TestStreamsAreTheReferences cuts messages in random places, sends segments again, leaves some out and mixes their
// order, as the network does; in the end each message must have been read once, in order.
func TestStreamsAreTheReferences(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for range 300 {
		var messages [][]byte
		for range 1 + r.IntN(5) {
			m := make([]byte, r.IntN(one(r, 5, 300, 9000)))
			for i := range m {
				m[i] = byte(r.Uint32())
			}
			messages = append(messages, m)
		}
		all := framed(messages...)
		limit := one(r, 200, 5000, 65535)
		start := r.Uint32()
		var s stream
		s.begin(start)
		var got [][]byte
		for sent := 0; sent < len(all); {
			// A segment from anywhere around what is expected.
			from := max(0, sent-r.IntN(50)+r.IntN(20))
			to := min(len(all), from+r.IntN(1500))
			if from > to {
				continue
			}
			seq := start + 1 + uint32(from)
			behind := int32(s.next - seq)
			if behind < 0 || int(behind) >= to-from {
				continue
			}
			s.feed(all[from+int(behind):to], limit, func(m []byte) { got = append(got, slices.Clone(m)) })
			sent = to
			if cap(s.message) > 2*(limit+lengthLen)+keep {
				t.Fatalf("holds %d bytes for messages up to %d", cap(s.message), limit)
			}
		}
		var want [][]byte
		for _, m := range messages {
			if len(m) <= limit {
				want = append(want, m)
			}
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Fatalf("got %d messages, want %d", len(got), len(want))
		}
	}
}

func one[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// FuzzHandle: no packet makes it panic, and without a question nothing is learned.
func FuzzHandle(f *testing.F) {
	answer := message(7, "www.example.com.", dnsmessage.TypeA, target)
	f.Add(udp(dns, client, answer), []byte{})
	f.Add(tcp(client, dns, 1, 2, nil), tcp(dns, client, 5, 18, nil))
	f.Add(tcp(dns, client, 6, 16, framed(answer)), udp(client, dns, answer[:3]))
	f.Fuzz(func(t *testing.T, p, q []byte) {
		b := newBench(t)
		for _, packet := range [][]byte{p, q, p} {
			b.handle(packet)
		}
		if len(b.learned) > 0 && b.Stats.Queries.Load() == 0 {
			t.Errorf("learned %v", b.learned)
		}
	})
}

// FuzzStream: a stream has the same messages however it is cut, and never holds more than one.
func FuzzStream(f *testing.F) {
	f.Add(framed([]byte("abc"), nil, []byte("de")), uint8(3))
	f.Fuzz(func(t *testing.T, all []byte, cut uint8) {
		var whole, parts stream
		var a, b [][]byte
		whole.feed(all, 1000, func(m []byte) { a = append(a, slices.Clone(m)) })
		for chunk := range slices.Chunk(all, int(cut)+1) {
			parts.feed(chunk, 1000, func(m []byte) { b = append(b, slices.Clone(m)) })
			if len(parts.message) > 1000+lengthLen {
				t.Fatalf("holds %d bytes", len(parts.message))
			}
		}
		if !slices.EqualFunc(a, b, bytes.Equal) || whole.next != parts.next {
			t.Errorf("%q and %q", a, b)
		}
	})
}
