package queue

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the seed corpus of FuzzMessages")

const testNumber = 513 // differs in the other byte order

// packetMessage is a NFQNL_MSG_PACKET as the kernel makes it.
func packetMessage(t testing.TB, number uint16, attrs ...netlink.Attribute) []byte {
	t.Helper()
	b, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return rawMessage(t, msgPacket, append(binary.BigEndian.AppendUint16([]byte{unix.AF_INET, 0}, number), b...))
}

func rawMessage(t testing.TB, kind uint16, data []byte) []byte {
	t.Helper()
	m := netlink.Message{Header: netlink.Header{Length: uint32(nlHeaderLen + align(len(data))),
		Type: netlink.HeaderType(kind)}, Data: data}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func errorMessage(t testing.TB, code int32, about uint16) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(code))
	b = binary.NativeEndian.AppendUint32(b, verdictLen)
	b = binary.NativeEndian.AppendUint16(b, about)
	return rawMessage(t, unix.NLMSG_ERROR, append(b, make([]byte, 10)...))
}

func header(id uint32, hook uint8) netlink.Attribute {
	return netlink.Attribute{Type: attrPacketHdr, Data: append(be32(id), 0x08, 0x00, hook)}
}

// longer states a length that goes beyond the bytes, as in a datagram that was cut.
func longer(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, uint32(len(b)+4))
	return b
}

type messageCase struct {
	name string
	b    []byte
	want []message
}

func messageCases(t testing.TB) []messageCase {
	mark := netlink.Attribute{Type: attrMark, Data: be32(0x21000000)}
	device := netlink.Attribute{Type: attrInDev, Data: be32(2)}
	capLen := netlink.Attribute{Type: 13, Data: be32(99)} // NFQA_CAP_LEN
	payload := netlink.Attribute{Type: attrPayload, Data: []byte("payload")}
	full := func() []byte {
		return packetMessage(t, testNumber, header(7, 2), device, mark, capLen, payload)
	}
	packet := message{kind: messagePacket, id: 7, hook: 2, hasID: true, mark: 0x21000000, in: 2, payload: payload.Data}
	broken := message{kind: messageBroken}
	known := message{kind: messageBroken, id: 7, hook: 2, hasID: true}
	one := func(name string, b []byte, want message) messageCase { return messageCase{name, b, []message{want}} }
	return []messageCase{
		one("packet", full(), packet),
		one("packet-without-mark", packetMessage(t, testNumber, header(7, 2), payload),
			message{kind: messagePacket, id: 7, hook: 2, hasID: true, payload: payload.Data}),
		one("packet-empty", packetMessage(t, testNumber, header(7, 2), netlink.Attribute{Type: attrPayload}),
			message{kind: messagePacket, id: 7, hook: 2, hasID: true, payload: []byte{}}),
		{"two-packets", append(full(), full()...), []message{packet, packet}},
		{"packet-and-rest", append(full(), 1, 2, 3), []message{packet, broken}},
		{"unknown-attributes", packetMessage(t, testNumber, header(7, 2), netlink.Attribute{Type: 999, Data: []byte{1}},
			device, mark, payload), []message{packet}},
		one("packet-cut", longer(full()), message{
			kind: messageBroken, id: 7, hook: 2, hasID: true, mark: 0x21000000, in: 2,
		}),
		one("other-queue", packetMessage(t, testNumber+1, header(7, 2), payload), broken),
		one("no-payload", packetMessage(t, testNumber, header(7, 2)), known),
		one("no-header", packetMessage(t, testNumber, payload), message{kind: messageBroken, payload: payload.Data}),
		one("header-short", packetMessage(t, testNumber, netlink.Attribute{Type: attrPacketHdr, Data: be32(7)}, payload),
			broken),
		one("mark-short", packetMessage(t, testNumber, header(7, 2), netlink.Attribute{Type: attrMark, Data: []byte{1}},
			payload), known),
		one("device-short", packetMessage(t, testNumber, header(7, 2), netlink.Attribute{Type: attrInDev, Data: []byte{1}},
			payload), known),
		one("attribute-too-long", rawMessage(t, msgPacket, []byte{0, 0, 2, 1, 9, 0, 1, 0}), broken),
		one("attribute-too-short", rawMessage(t, msgPacket, []byte{0, 0, 2, 1, 3, 0, 1, 0}), broken),
		one("no-generic-header", rawMessage(t, msgPacket, nil), broken),
		one("error-verdict", errorMessage(t, -int32(unix.ENOENT), msgVerdict),
			message{kind: messageError, errno: unix.ENOENT, about: msgVerdict}),
		one("error-config", errorMessage(t, -int32(unix.EINVAL), msgConfig),
			message{kind: messageError, errno: unix.EINVAL, about: msgConfig}),
		one("acknowledgement", errorMessage(t, 0, msgConfig), message{}),
		one("error-out-of-range", errorMessage(t, -5000, msgConfig), message{}),
		one("error-short", rawMessage(t, unix.NLMSG_ERROR, be32(1)), broken),
		one("done", rawMessage(t, unix.NLMSG_DONE, be32(0)), message{}),
		one("done-cut", longer(rawMessage(t, unix.NLMSG_DONE, be32(0))), broken),
		one("length-zero", make([]byte, 20), broken),
		one("short", make([]byte, 15), broken),
	}
}

// parseAll is the loop's way through a datagram.
func parseAll(b []byte) []message {
	var all []message
	for len(b) > 0 {
		var m message
		rest := m.parse(b, testNumber)
		if len(rest) >= len(b) {
			panic("no progress")
		}
		b = rest
		all = append(all, m)
	}
	return all
}

func TestParse(t *testing.T) {
	for _, tc := range messageCases(t) {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, parseAll(tc.b), cmp.AllowUnexported(message{})); d != "" {
				t.Errorf("parse(%x) (-want +got):\n%s", tc.b, d)
			}
			var m message
			if n := testing.AllocsPerRun(100, func() { m.parse(tc.b, testNumber) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// checkMessages holds what the loop depends on, whatever the bytes.
func checkMessages(t testing.TB, b []byte) {
	for _, m := range parseAll(b) {
		switch m.kind {
		case messagePacket:
			if !m.hasID || m.payload == nil {
				t.Fatalf("parse(%x): packet without id or payload: %+v", b, m)
			}
		case messageError:
			if m.errno <= 0 || m.errno >= 4096 {
				t.Fatalf("parse(%x): errno %d", b, m.errno)
			}
		case messageIgnored:
			if m.hasID {
				t.Fatalf("parse(%x): packet ignored: %+v", b, m)
			}
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) { checkMessages(t, b) })
}

// TestSeedCorpus keeps the seeds of FuzzMessages the same as the table; -update writes them. They are in the byte order
// of little-endian machines.
func TestSeedCorpus(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return
	}
	dir := filepath.Join("testdata", "fuzz", "FuzzMessages")
	for _, tc := range messageCases(t) {
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

// TestVerdictMessages reads what appendVerdict wrote with the netlink library.
func TestVerdictMessages(t *testing.T) {
	for _, tc := range []struct {
		v    Verdict
		want uint32
	}{
		{Verdict{}, 0}, {Verdict{Kind: Drop, Mark: 1}, 0}, {Verdict{Kind: Accept, Mark: 1}, 1},
		{Verdict{Kind: Repeat, Mark: 0x3f000001}, 4}, {Verdict{Kind: Hold}, 0}, {Verdict{Kind: 99}, 0},
	} {
		b := appendVerdict(nil, testNumber, 0x01020304, tc.v)
		var m netlink.Message
		if err := m.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if m.Header.Type != msgVerdict || m.Header.Flags != netlink.Request || int(m.Header.Length) != len(b) {
			t.Errorf("%+v: header %+v", tc.v, m.Header)
		}
		if n := binary.BigEndian.Uint16(m.Data[2:]); n != testNumber {
			t.Errorf("%+v: queue %d", tc.v, n)
		}
		want := []netlink.Attribute{{Length: 12, Type: attrVerdictHdr, Data: append(be32(tc.want), 1, 2, 3, 4)}}
		if tc.v.Kind == Repeat {
			want = append(want, netlink.Attribute{Length: 8, Type: attrMark, Data: be32(tc.v.Mark)})
		}
		got, err := netlink.UnmarshalAttributes(m.Data[4:])
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%+v: %v (-want +got):\n%s", tc.v, err, d)
		}
	}
}

func TestParseKernelStats(t *testing.T) {
	got, err := parseKernelStats([]byte("    0   1234     5 2   256     1     2      99  1\n" +
		"   17 4294962585     0 2   256 4294967295     0       0  1\n"))
	want := []KernelStats{{0, 5, 1, 2}, {17, 0, 4294967295, 0}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if _, err := parseKernelStats([]byte("nonsense\n")); err == nil {
		t.Error("nonsense accepted")
	}
	if got, err := parseKernelStats(nil); err != nil || len(got) != 0 {
		t.Errorf("no queues: %v, %v", got, err)
	}
}

// last is the slot of the packet that came last.
func last(h *holdList) int32 {
	i := h.list.First()
	for h.list.Next(i) != none {
		i = h.list.Next(i)
	}
	return i
}

// TestHoldList runs the list beside a plain slice.
func TestHoldList(t *testing.T) {
	type model struct {
		id       uint32
		deadline int64
		woken    bool // to be judged again
	}
	rapid.Check(t, func(t *rapid.T) {
		const slots = 5
		var h holdList
		h.init(slots, 4)
		var list []model
		var id uint32
		var now int64
		remove := func(i int) { list = append(list[:i:i], list[i+1:]...) }
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				id++
				now++
				payload := []byte{byte(id), 1, 2, 3, 4, 5}[:rapid.IntRange(0, 6).Draw(t, "length")]
				ok := h.add(&Packet{ID: id, Payload: payload}, now+10)
				if ok != (len(list) < slots) {
					t.Fatalf("add = %v with %d held", ok, len(list))
				}
				if !ok {
					return
				}
				list = append(list, model{id, now + 10, false})
				p := h.list.At(last(&h)).packet
				if !p.Held || !bytes.Equal(p.Payload, payload[:min(len(payload), 4)]) {
					t.Fatalf("held %+v, want payload %v", p, payload)
				}
			},
			"wake": func(*rapid.T) {
				h.wakeAll()
				for i := range list {
					list[i].woken = true
				}
			},
			"judge": func(t *rapid.T) {
				i := 0
				for i < len(list) && !list[i].woken {
					i++
				}
				slot := h.nextWoken()
				if i == len(list) {
					if slot != none {
						t.Fatalf("packet %d was not woken", h.list.At(slot).packet.ID)
					}
					return
				}
				if slot == none || h.list.At(slot).packet.ID != list[i].id {
					t.Fatalf("slot %d instead of packet %d", slot, list[i].id)
				}
				list[i].woken = false
				if rapid.Bool().Draw(t, "answered") {
					h.remove(slot)
					remove(i)
				}
			},
			"expire": func(t *rapid.T) {
				now += rapid.Int64Range(0, 4).Draw(t, "passes")
				for len(list) > 0 && list[0].deadline <= now {
					slot := h.nextExpired(now)
					if slot == none || h.list.At(slot).packet.ID != list[0].id {
						t.Fatalf("slot %d instead of packet %d", slot, list[0].id)
					}
					h.remove(slot)
					remove(0)
				}
				if slot := h.nextExpired(now); slot != none {
					t.Fatalf("packet %d is not over", h.list.At(slot).packet.ID)
				}
			},
			"": func(t *rapid.T) {
				var got []uint32
				for i := h.list.First(); i != none; i = h.list.Next(i) {
					got = append(got, h.list.At(i).packet.ID)
				}
				var want []uint32
				for _, m := range list {
					want = append(want, m.id)
				}
				if d := cmp.Diff(want, got); d != "" || h.list.Len() != len(want) {
					t.Fatalf("held (-want +got):\n%s", d)
				}
			},
		})
	})
}
