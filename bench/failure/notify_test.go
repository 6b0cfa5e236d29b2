package failure

import (
	"encoding/binary"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// TestNotificationsLost: so much is changed in the table while the agent stands still that the kernel has no room for
// what it would tell, the last harm included. The agent is told that it missed something, and looks.
func TestNotificationsLost(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	b.apply(admitting("friend"))
	held := b.flow("friend", "server", probe.TCP, false)
	node, err := b.Place("node/one")
	b.must(err)
	table := &nftables.Table{Name: ruleset.TableName, Family: nftables.TableFamilyINet}
	change := func(do func(c *nftables.Conn) error) {
		t.Helper()
		c, err := nftables.New(nftables.WithNetNSFd(node.NS.FD()))
		b.must(err)
		b.must(do(c))
		b.must(c.Flush())
	}
	before := b.status().Repairs
	b.must(unix.Kill(b.agent().PID(), unix.SIGSTOP))
	scratch := &nftables.Set{Table: table, Name: "scratch", KeyType: nftables.TypeInteger}
	change(func(c *nftables.Conn) error { return c.AddSet(scratch, nil) })
	const elements, some = 20_000, 400
	for first := uint32(0); first < elements; first += some {
		change(func(c *nftables.Conn) error {
			var list []nftables.SetElement
			for i := range uint32(some) {
				list = append(list, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, first+i)})
			}
			return c.SetAddElements(scratch, list)
		})
	}
	change(func(c *nftables.Conn) error { c.DelSet(scratch); return nil })
	change(func(c *nftables.Conn) error {
		c.FlushChain(&nftables.Chain{Name: "divert4", Table: table})
		return nil
	})
	b.must(unix.Kill(b.agent().PID(), unix.SIGCONT))
	eventually(t, "the table is repaired", func() bool { return b.status().Repairs > before })
	if n := b.metrics().Sum("firstpacket_table_watch_overruns_total"); n == 0 {
		t.Error("no notification was lost: the test proves nothing")
	}
	eventually(t, "the loss is logged", func() bool {
		return told(b.agent(), "notifications of changes to the ruleset were lost")
	})
	if r := held.Exchange(); r.Outcome != probe.Reached {
		t.Errorf("established flow: %v", r)
	}
	b.asBefore()
}
