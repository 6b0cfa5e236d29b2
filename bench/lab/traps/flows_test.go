package traps

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
	"github.com/firstpacket/firstpacket/proxy/mark"
)

// conntrack calls f with a handle on the conntrack table of a namespace.
func conntrack(t *testing.T, n *ns.Namespace, f func(*netlink.Handle) error) {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(n.FD()), unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := f(h); err != nil {
		t.Fatal(err)
	}
}

func (b bed) flush(node string) {
	b.Helper()
	conntrack(b.T, b.place(node).NS, func(h *netlink.Handle) error {
		return h.ConntrackTableFlush(netlink.ConntrackTable)
	})
}

const clientsToServer = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: clients}
spec:
  podSelector: {matchLabels: {role: client}}
  policyTypes: [Ingress, Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: server}}}]
    ports: [{port: 80}]
`

// TestMidStream: a connection goes on when the node has forgotten it, whoever speaks first, and forgetting opens no way
// for others.
func TestMidStream(t *testing.T) {
	b := newBed(t, lab.Options{}, clientsToServer)
	for _, client := range []string{"client", "remote"} {
		families(func(v6 bool) {
			flow, r, err := probe.Open(t.Context(), probe.Probe{
				From: b.place(client).NS, To: b.place("server").At(v6, 80), Proto: probe.TCP, Wait: patience,
			})
			if err != nil || r.Outcome != probe.Reached {
				t.Fatal(r, err)
			}
			forget := func() {
				b.flush("node/one")
				b.flush("node/two")
			}
			forget()
			if r := flow.Exchange(); r.Outcome != probe.Reached {
				t.Errorf("%s, client first: %s", client, r)
			}
			forget()
			back := b.crossing("server", client)
			data := func(sport uint16, mark string) []byte {
				return tcp(t, b.place("server").At(v6, sport), flow.Local(), mark,
					func(h *layers.TCP) { h.ACK, h.PSH, h.Ack = true, true, 1 })
			}
			back.passes("the server's word", "server first", data(80, "server first"))
			if r := flow.Exchange(); r.Outcome != probe.Reached {
				t.Errorf("%s, after the server: %s", client, r)
			}
			forget()
			back.stopped("the word of another port", "not the server", data(81, "not the server"))
			if err := flow.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	ack := func(h *layers.TCP) { h.ACK, h.Ack = true, 1 }
	families(func(v6 bool) {
		// Neither may stranger call closed nor closed stranger; server, which may call anyone, may have called stranger.
		c := b.crossing("stranger", "closed")
		from, to := c.ports(v6, 4200, 80)
		c.stopped("mid-stream TCP", "sneak", tcp(t, from, to, "sneak", ack))
		c = b.crossing("stranger", "server")
		from, to = c.ports(v6, 4200, 80)
		c.passes("mid-stream TCP", "answer", tcp(t, from, to, "answer", ack))
	})
}

// TestUntracked: packets that other software takes away from conntrack are judged one by one.
func TestUntracked(t *testing.T) {
	b := newBed(t, lab.Options{})
	conn, table := b.rules("node/one")
	raw := conn.AddChain(&nftables.Chain{
		Name: "raw", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRaw,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: raw, Exprs: []expr.Any{&expr.Notrack{}}})
	b.commit(conn)
	families(func(v6 bool) {
		for range 3 {
			b.reaches("client", b.place("server").At(v6, 80), probe.TCP)
			b.reaches("client", b.place("server").At(v6, 53), probe.UDP)
			b.denied("stranger", b.place("server").At(v6, 80), probe.TCP)
			b.denied("stranger", b.place("server").At(v6, 53), probe.UDP)
			b.denied("client", b.place("server").At(v6, 81), probe.TCP)
			b.reaches("stranger", b.place("far").At(v6, 80), probe.TCP)
		}
	})
}

// rules begins a transaction of other software on a node.
func (b bed) rules(node string) (*nftables.Conn, *nftables.Table) {
	b.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(b.place(node).NS.FD()))
	if err != nil {
		b.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "other-software"})
	return conn, table
}

func (b bed) commit(conn *nftables.Conn) {
	b.Helper()
	if err := conn.Flush(); err != nil {
		b.Fatal(err)
	}
}

// The bits of others: everything outside our mask, some of it set.
const (
	othersPacketMark = 0xc0f0aa55
	othersCtMark     = 0x80c0aa55
)

func word(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// TestMarksOfOthers: packet and conntrack marks of other software are the same, bit for bit, after a packet has been to
// userspace and back, and a conntrack mark that others put into the packet mark is taken for nothing else.
func TestMarksOfOthers(t *testing.T) {
	b := newBed(t, lab.Options{})
	conn, table := b.rules("node/one")
	chain := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return conn.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority,
		})
	}
	add := func(c *nftables.Chain, exprs ...expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: exprs})
	}
	before := chain("before", nftables.ChainHookPrerouting, *nftables.ChainPriorityMangle)
	add(before,
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(mark.Default), Xor: word(othersCtMark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true})
	add(before,
		&expr.Immediate{Register: 1, Data: word(othersPacketMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
	// Packets that have lost a bit, or kept one of ours, go no further.
	add(chain("after", nftables.ChainHookForward, *nftables.ChainPriorityFilter+1),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: word(othersPacketMark)},
		&expr.Verdict{Kind: expr.VerdictDrop})
	b.commit(conn)

	families(func(v6 bool) {
		b.reaches("client", b.place("server").At(v6, 80), probe.TCP)
		b.reaches("client", b.place("server").At(v6, 53), probe.UDP)
		b.reaches("remote", b.place("server").At(v6, 80), probe.TCP)
		b.denied("stranger", b.place("server").At(v6, 80), probe.TCP)
	})
	layout, err := mark.New(mark.Default)
	if err != nil {
		t.Fatal(err)
	}
	flows := 0
	conntrack(t, b.place("node/one").NS, func(h *netlink.Handle) error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			table, err := h.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range table {
				if f.Mark&mark.Default != layout.Admitted() {
					continue
				}
				flows++
				if f.Mark != layout.Admitted()|othersCtMark {
					t.Errorf("conntrack mark %#x of %s, want %#x", f.Mark, f, layout.Admitted()|othersCtMark)
				}
			}
		}
		return nil
	})
	if flows < 6 {
		t.Errorf("%d admitted flows, want 6", flows)
	}
}

// TestCtMarkRestored: software that copies the conntrack mark into the packet mark, all bits of it, neither lets
// anybody in nor keeps anybody out.
func TestCtMarkRestored(t *testing.T) {
	b := newBed(t, lab.Options{})
	conn, table := b.rules("node/one")
	restore := conn.AddChain(&nftables.Chain{
		Name: "restore", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityMangle,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: restore, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	b.commit(conn)
	families(func(v6 bool) {
		for range 2 {
			b.reaches("client", b.place("server").At(v6, 80), probe.TCP)
			b.denied("stranger", b.place("server").At(v6, 80), probe.TCP)
			b.denied("far", b.place("server").At(v6, 80), probe.TCP)
		}
	})
}

// TestGSO: a first packet that segmentation offload has left together is judged and passes as a whole, and so does the
// bulk of a connection.
func TestGSO(t *testing.T) {
	b := newBed(t, lab.Options{})
	const segment, segments = 1000, 20
	send := func(c crossing, v6 bool, mark string) {
		payload := bytes.Repeat([]byte(mark+strings.Repeat(".", segment-len(mark))), segments)
		err := c.from.NS.Do(func() error {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(c.to.At(v6, 53)))
			if err != nil {
				return err
			}
			raw, err := conn.SyscallConn()
			if err != nil {
				return err
			}
			if cerr := raw.Control(func(fd uintptr) {
				err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment))
			}); cerr != nil {
				return cerr
			}
			if err == nil {
				_, err = conn.Write(payload)
			}
			return errors.Join(err, conn.Close())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	families(func(v6 bool) {
		for _, client := range []string{"client", "remote"} {
			c := b.crossing(client, "server")
			send(c, v6, "bulk")
			got := 0
			for got < segments {
				p, ok, err := c.in.Next(patience, func(p wire.Packet) bool {
					return !p.Outgoing && bytes.Contains(p.Data, []byte("bulk..."))
				})
				if err != nil || !ok {
					t.Fatalf("%s: %d of %d segments arrive: %v", client, got, segments, err)
				}
				got += bytes.Count(p.Data, []byte("bulk..."))
			}
			if got != segments {
				t.Errorf("%s: %d segments arrive, want %d", client, got, segments)
			}
			if err := transfer(b.place(client).NS, b.place("server").At(v6, 80).String(), 4<<20); err != nil {
				t.Errorf("%s: %v", client, err)
			}
		}
		c := b.crossing("stranger", "server")
		send(c, v6, "evil")
		if c.arrives("evil...", silence) {
			t.Error("segments of a stranger arrive")
		}
	})
}

// transfer sends so many bytes to an echoing server and waits for as many.
func transfer(n *ns.Namespace, to string, size int) error {
	var conn net.Conn
	if err := n.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp", to, patience)
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := conn.Write(make([]byte, size))
		sent <- err
	}()
	buf := make([]byte, 64<<10)
	for got := 0; got < size; {
		n, err := conn.Read(buf)
		if got += n; err != nil {
			return fmt.Errorf("after %d bytes: %w", got, err)
		}
	}
	return <-sent
}

// TestTwoQueriesOnOneSocket: resolvers send the queries for A and AAAA at once from one port. Both are answered at the
// first attempt, though both are first packets of one flow.
func TestTwoQueriesOnOneSocket(t *testing.T) {
	b := newBed(t, lab.Options{})
	families(func(v6 bool) {
		for _, client := range []string{"client", "remote"} {
			for _, to := range []netip.AddrPort{b.lab.Service("default", "server", v6, 53), b.place("server").At(v6, 53)} {
				if err := twoQueries(b.place(client).NS, to.String()); err != nil {
					t.Errorf("%s to %s: %v", client, to, err)
				}
			}
		}
	})
}

func twoQueries(n *ns.Namespace, to string) error {
	var conn net.Conn
	if err := n.Do(func() (err error) {
		conn, err = net.Dial("udp", to)
		return err
	}); err != nil {
		return err
	}
	defer conn.Close()
	for _, query := range []string{"A", "AAAA"} {
		if _, err := conn.Write([]byte(query)); err != nil {
			return err
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for i := range 2 {
		if _, err := conn.Read(buf); err != nil {
			return fmt.Errorf("answer %d of 2: %w", i+1, err)
		}
	}
	return nil
}
