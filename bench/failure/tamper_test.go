package failure

import (
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// TestTamperedTable: whatever somebody else does to the table is undone within seconds, counted and logged.
func TestTamperedTable(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend"))
	node, err := b.Place("node/one")
	b.must(err)
	table := &nftables.Table{Name: ruleset.TableName, Family: nftables.TableFamilyINet}
	server, _ := b.place("server").Addr(false)
	client, _ := b.place("client").Addr(false)
	held := b.flow("friend", "server", probe.TCP, false)
	for _, harm := range []struct {
		name string
		do   func(c *nftables.Conn) error
	}{
		{"everything flushed", func(c *nftables.Conn) error { c.FlushRuleset(); return nil }},
		{"table deleted", func(c *nftables.Conn) error { c.DelTable(table); return nil }},
		{"chain flushed", func(c *nftables.Conn) error {
			c.FlushChain(&nftables.Chain{Name: "judge4", Table: table})
			return nil
		}},
		{"rule inserted", func(c *nftables.Conn) error {
			c.InsertRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "forward", Table: table},
				Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
			return nil
		}},
		{"pod taken out", func(c *nftables.Conn) error {
			s, err := c.GetSetByName(table, "ingress4")
			if err != nil {
				return err
			}
			return c.SetDeleteElements(s, []nftables.SetElement{{Key: server.AsSlice()}})
		}},
		{"generation replaced", func(c *nftables.Conn) error {
			s, err := c.GetSetByName(table, "verdicts")
			if err != nil {
				return err
			}
			c.FlushSet(s)
			return nil
		}},
		{"tuple admitted", func(c *nftables.Conn) error {
			s, err := c.GetSetByName(table, "allowed4")
			if err != nil {
				return err
			}
			key := append(append(client.AsSlice(), server.AsSlice()...), 6, 0, 0, 0, 0, 80, 0, 0)
			return c.SetAddElements(s, []nftables.SetElement{{Key: key}})
		}},
	} {
		before := b.status().Repairs
		c, err := nftables.New(nftables.WithNetNSFd(node.NS.FD()))
		b.must(err)
		b.must(harm.do(c))
		b.must(c.Flush())
		if harm.name == "tuple admitted" {
			eventually(t, "the foreign tuple is removed", func() bool {
				held, err := cache(t, b.Lab, "one").Allowed()
				b.must(err)
				for _, tuple := range held {
					if tuple.Src == client {
						return false
					}
				}
				return true
			})
		} else {
			eventually(t, harm.name+": repaired", func() bool { return b.status().Repairs > before })
		}
		if r := b.probe("client", "server", probe.TCP, 0); !r.Denied() {
			t.Errorf("%s: the forbidden connection: %v", harm.name, r)
		}
		b.reaches("friend", "server")
		if r := held.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("%s: established flow: %v", harm.name, r)
		}
	}
	if n := b.metrics().Sum("firstpacket_repairs_total"); n < 6 {
		t.Errorf("%v repairs counted", n)
	}
	if !told(b.agent(), "somebody changed table inet firstpacket") {
		t.Error("repairs are not logged")
	}
	// Policy goes on to be followed.
	b.apply(admitting("client"))
	b.reaches("client", "server")
	b.denied("friend", "server")
}

// flushConntrack has the node forget all flows.
func (b *bed) flushConntrack() {
	b.t.Helper()
	node, err := b.Place("node/one")
	b.must(err)
	h, err := netlink.NewHandleAt(netns.NsHandle(node.NS.FD()), unix.NETLINK_NETFILTER)
	b.must(err)
	defer h.Close()
	b.must(h.ConntrackTableFlush(netlink.ConntrackTable))
}

// TestConntrackFlush: established flows are picked up again, forbidden ones are not.
func TestConntrackFlush(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend"))
	held := b.flow("friend", "server", probe.TCP, false)
	udp := b.flow("friend", "server", probe.UDP, true)
	b.flushConntrack()
	for _, f := range []*probe.Flow{held, udp} {
		if r := f.Exchange(); r.Outcome != probe.Reached {
			t.Errorf("established flow: %v", r)
		}
	}
	b.denied("client", "server")
	b.reaches("friend", "server")
}
