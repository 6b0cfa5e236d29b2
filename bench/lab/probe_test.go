package lab_test

import (
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
)

// forbid adds a rule to a node's forward hook: the given verdict for everything to the port.
func forbid(t *testing.T, n *ns.Namespace, port byte, verdict expr.Any) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(n.FD()))
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "test"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, port}},
		verdict,
	}})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestDenialsAreTold(t *testing.T) {
	l := newLab(t, small, lab.Options{})
	forbid(t, place(t, l, "node/one").NS, 80, &expr.Verdict{Kind: expr.VerdictDrop})
	forbid(t, place(t, l, "node/two").NS, 53, &expr.Reject{
		Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED,
	})
	from := place(t, l, "default/web-2").NS
	for _, v6 := range []bool{false, true} {
		r := one(t, l, probe.Probe{
			From: from, To: place(t, l, "default/solo").At(v6, 80), Proto: probe.TCP, Wait: probe.DefaultWait,
		})
		if r.Outcome != probe.Silent || r.Connected {
			t.Errorf("dropped: %s, want silent", r)
		}
		// More than any rate limit on ICMP would let through.
		probes := make([]probe.Probe, 50)
		for i := range probes {
			probes[i] = probe.Probe{From: from, To: place(t, l, "default/web-1").At(v6, 53), Proto: probe.UDP, Wait: patient}
		}
		results, err := l.Probe(t.Context(), probes...)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Outcome != probe.Refused {
				t.Fatalf("rejected, IPv6 %t: %s, want refused", v6, r)
			}
		}
	}
}

func TestFlowsOutliveTheirFirstPacket(t *testing.T) {
	l := newLab(t, small, lab.Options{})
	from, to := place(t, l, "default/solo"), place(t, l, "default/web-2")
	tcp, r, err := probe.Open(t.Context(), probe.Probe{
		From: from.NS, To: to.At(false, 8081), Proto: probe.TCP, Wait: patient,
	})
	if err != nil || r.Outcome != probe.Reached {
		t.Fatal(r, err)
	}
	udp, _, err := probe.Open(t.Context(), probe.Probe{
		From: from.NS, To: to.At(true, 53), Proto: probe.UDP, Wait: patient,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*probe.Flow{tcp, udp} {
		for range 3 {
			if r := f.Exchange(); r.Outcome != probe.Reached || r.By != "default/web-2" || r.Seen != f.Local() {
				t.Errorf("from %s: %s", f.Local(), r)
			}
		}
	}
	if err := l.Delete(t.Context(), topology.Ref{Kind: "Pod", Namespace: "default", Name: "web-2"}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*probe.Flow{tcp, udp} {
		f.Wait = probe.DefaultWait
		if r := f.Exchange(); r.Outcome == probe.Reached {
			t.Errorf("after the server's end: %s", r)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestCraftedPackets(t *testing.T) {
	l := newLab(t, small, lab.Options{})
	from, to := place(t, l, "default/solo"), place(t, l, "default/web-2")
	out, err := from.Tap()
	if err != nil {
		t.Fatal(err)
	}
	in, err := to.Tap()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := out.Close(); err != nil {
			t.Error(err)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}()
	source, _ := from.Addr(false)
	target, _ := to.Addr(false)
	ip := &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocolSCTP, SrcIP: source.AsSlice(), DstIP: target.AsSlice(),
	}
	sctp := &layers.SCTP{SrcPort: 5000, DstPort: 9}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		ip, sctp, &layers.SCTPInit{SCTPChunk: layers.SCTPChunk{Type: layers.SCTPChunkTypeInit}, InitiateTag: 1,
			OutboundStreams: 1, InboundStreams: 1}); err != nil {
		t.Fatal(err)
	}
	if err := from.Inject(out, buf.Bytes()); err != nil {
		t.Fatal(err)
	}
	_, ok, err := in.Next(patient, func(p wire.Packet) bool {
		return !p.Outgoing && p.Data[0]>>4 == 4 && p.Data[9] == unix.IPPROTO_SCTP
	})
	if err != nil || !ok {
		t.Errorf("the crafted packet did not arrive: %v", err)
	}
}
