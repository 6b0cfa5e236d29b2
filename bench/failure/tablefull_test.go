package failure

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"testing"
	"time"

	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/proxy/conntrack"
)

// fillConntrack makes entries in the node's conntrack table until the kernel takes no more. The limit is one number for
// the whole machine (net.netfilter.nf_conntrack_max), but each network namespace counts for itself. The entries are
// assured, so that the kernel does not throw one out for each that comes.
func (b *bed) fillConntrack() {
	b.t.Helper()
	node, err := b.Place("node/one")
	b.must(err)
	number := func(name string) int {
		text, err := node.NS.ReadSysctl("netfilter/" + name)
		b.must(err)
		n, err := strconv.Atoi(text)
		b.must(err)
		return n
	}
	limit := number("nf_conntrack_max")
	var fd int
	b.must(node.NS.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	}))
	defer unix.Close(fd)
	const some = 1000
	source := []byte{198, 18, 0, 0}
	one := entry(b, source)
	batch := bytes.Repeat(one, some)
	first := bytes.Index(one, source)
	second := first + 1 + bytes.Index(one[first+1:], source)
	for made := 0; number("nf_conntrack_count") < limit; made += some {
		if made > 2*limit {
			b.t.Fatalf("%d entries made, and %d of %d are there", made, number("nf_conntrack_count"), limit)
		}
		for i := range some {
			address := binary.BigEndian.Uint32(source) + uint32(made+i)
			binary.BigEndian.PutUint32(batch[i*len(one)+first:], address)
			binary.BigEndian.PutUint32(batch[i*len(one)+second:], address)
		}
		b.must(unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
		// A refusal is of no interest: the count tells.
		for {
			if _, _, err := unix.Recvfrom(fd, make([]byte, 4096), unix.MSG_DONTWAIT); err != nil {
				break
			}
		}
	}
}

// entry is a request for a UDP flow from that address (linux/netfilter/nfnetlink_conntrack.h).
func entry(b *bed, near []byte) []byte {
	far := []byte{203, 0, 113, 1}
	tuple := func(ae *mdnetlink.AttributeEncoder, source, destination []byte) {
		ae.Nested(1, func(ip *mdnetlink.AttributeEncoder) error { // CTA_TUPLE_IP
			ip.Bytes(1, source)
			ip.Bytes(2, destination)
			return nil
		})
		ae.Nested(2, func(proto *mdnetlink.AttributeEncoder) error { // CTA_TUPLE_PROTO
			proto.Uint8(1, unix.IPPROTO_UDP)
			proto.Bytes(2, []byte{0, 9})
			proto.Bytes(3, []byte{0, 9})
			return nil
		})
	}
	ae := mdnetlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Nested(1, func(e *mdnetlink.AttributeEncoder) error { tuple(e, near, far); return nil }) // CTA_TUPLE_ORIG
	ae.Nested(2, func(e *mdnetlink.AttributeEncoder) error { tuple(e, far, near); return nil }) // CTA_TUPLE_REPLY
	ae.Uint32(3, conntrack.StatusSeenReply|conntrack.StatusAssured|conntrack.StatusConfirmed)   // CTA_STATUS
	ae.Uint32(7, 600)                                                                           // CTA_TIMEOUT, seconds
	attrs, err := ae.Encode()
	b.must(err)
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+4+len(attrs)))
	m = binary.NativeEndian.AppendUint16(m, unix.NFNL_SUBSYS_CTNETLINK<<8) // IPCTNL_MSG_CT_NEW
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	m = append(m, 0, 0, 0, 0, 0, 0, 0, 0) // sequence, port
	return append(append(m, unix.AF_INET, unix.NFNETLINK_V0, 0, 0), attrs...)
}

// TestConntrackTableFull: the kernel drops what it cannot track. Established flows go on, and are cut if policy says
// so.
func TestConntrackTableFull(t *testing.T) {
	b := newBed(t)
	b.apply(admitting("friend"))
	held := b.flow("friend", "server", probe.TCP, false)
	udp := b.flow("friend", "server", probe.UDP, true)
	b.reaches("friend", "server") // a tuple that the kernel knows
	b.fillConntrack()
	for _, who := range []string{"friend", "client"} {
		if r := b.probe(who, "server", probe.TCP, 0); r.Outcome != probe.Silent {
			t.Errorf("a new connection of %s: %v", who, r)
		}
	}
	for _, f := range []*probe.Flow{held, udp} {
		if r := f.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("established flow: %v", r)
		}
	}
	// The agent cannot be asked: a connection over loopback needs an entry, too.
	ctx, cancel := b.ctx()
	defer cancel()
	b.must(b.ApplyYAML(ctx, admitting("client")))
	for _, f := range []*probe.Flow{held, udp} {
		f.Wait = probe.DefaultWait
		eventually(t, "the established flow, not allowed any more, is cut", func() bool {
			return f.Exchange().Outcome != probe.Reached
		})
	}
	b.flushConntrack()
	b.must(b.WaitApplied(ctx))
	b.reaches("client", "server")
	b.denied("friend", "server")
	b.apply(admitting("friend"))
	b.asBefore()
}

// TestCacheFull: more tuples are allowed and denied than the kernel's cache has room for. All are judged as they should
// be; it is counted and logged that the cache was full.
func TestCacheFull(t *testing.T) {
	t.Parallel()
	b := newBed(t, "--cache-size", "64")
	b.apply(admitting("friend"))
	const n = 500
	probes := func(from string, wait time.Duration) []probe.Result {
		var all []probe.Probe
		for port := range uint16(n) {
			// Nobody listens: a refusal is the server's own.
			all = append(all, probe.Probe{From: b.place(from).NS, To: b.place("server").At(false, 1000+port), Proto: probe.TCP,
				Wait: wait})
		}
		results, err := b.Probe(t.Context(), all...)
		b.must(err)
		return results
	}
	for i, r := range probes("friend", patience) {
		if r.Outcome != probe.Refused {
			t.Errorf("allowed connection %d: %v", i, r)
		}
	}
	allowed := b.metrics().Sum("firstpacket_kernel_packets_total", `outcome="unlearnt"`)
	if allowed == 0 {
		t.Error("no verdict found the cache full")
	}
	for i, r := range probes("client", 50*time.Millisecond) {
		if !r.Denied() {
			t.Errorf("denied connection %d: %v", i, r)
		}
	}
	if m := b.metrics(); m.Sum("firstpacket_kernel_packets_total", `outcome="unlearnt"`) == allowed {
		t.Error("no denial found the cache full")
	} else if held := m.Sum("firstpacket_cached_tuples"); held > 64 {
		t.Errorf("%v tuples are said to be in a cache of 64", held)
	}
	eventually(t, "it is logged", func() bool { return told(b.agent(), "verdict cache was full") })
	b.asBefore()
}
