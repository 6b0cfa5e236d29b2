//go:build vm

package guest

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// offload adds what a router's administrator would: a flow table over all of the node's interfaces that takes every
// established flow. The function that it returns removes it.
func (b *bed) offload(n *ns.Namespace) (remove func()) {
	b.Helper()
	var devices []string
	b.must(n.Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			if l.Flags&net.FlagLoopback == 0 {
				devices = append(devices, l.Name)
			}
		}
		return err
	}))
	c, err := nftables.New(nftables.WithNetNSFd(n.FD()))
	b.must(err)
	table := c.AddTable(&nftables.Table{Name: "router", Family: nftables.TableFamilyINet})
	c.AddFlowtable(&nftables.Flowtable{Table: table, Name: "fast", Devices: devices,
		Hooknum: nftables.FlowtableHookIngress, Priority: nftables.FlowtablePriorityFilter})
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.FlowOffload{Name: "fast"}}})
	b.must(c.Flush())
	return func() {
		b.Helper()
		c, err := nftables.New(nftables.WithNetNSFd(n.FD()))
		b.must(err)
		c.DelTable(table)
		b.must(c.Flush())
	}
}

// offloaded says whether conntrack has a flow to the port that a flow table took over.
func (b *bed) offloaded(n *ns.Namespace, port string) bool {
	b.Helper()
	var list []byte
	b.must(n.Do(func() (err error) {
		list, err = os.ReadFile("/proc/thread-self/net/nf_conntrack")
		return err
	}))
	for line := range strings.Lines(string(list)) {
		if strings.Contains(line, "[OFFLOAD]") && strings.Contains(line, "dport="+port+" ") {
			return true
		}
	}
	return false
}

// TestFlowTableOfSomebodyElse shows what a flow table does to the agent's work. The first packet of a flow is judged as
// ever. A flow that the table took over passes no rule any more, so that a change of policy does not end it: only when
// it leaves the table (30 s without a packet, or the table goes) the rules see it again and refuse.
func TestFlowTableOfSomebodyElse(t *testing.T) {
	b := newBed(t, lab.Options{}, allowClient)
	node, client, other, web := b.place("node/one"), b.place("default/client"), b.place("default/other"),
		b.place("default/web-1")
	remove := b.offload(node.NS)

	p := probe.Probe{From: client.NS, To: web.At(false, 8080), Proto: probe.TCP, Wait: patience}
	b.fails(probe.Probe{From: other.NS, To: p.To, Proto: p.Proto})
	flow, r, err := probe.Open(t.Context(), p)
	b.must(err)
	if flow == nil {
		t.Fatalf("open a flow: %s", r)
	}
	defer flow.Close()
	exchange := func(want probe.Outcome, when string) {
		t.Helper()
		if r := flow.Exchange(); r.Outcome != want {
			t.Errorf("%s: %s, want %s", when, r, want)
		}
	}
	exchange(probe.Reached, "at first")
	b.eventually("the flow is in the flow table", func() bool {
		exchange(probe.Reached, "on the way into the flow table")
		return b.offloaded(node.NS, "8080")
	})

	b.apply(strings.ReplaceAll(allowClient, "app: client", "app: nobody"))
	b.fails(probe.Probe{From: client.NS, To: p.To, Proto: p.Proto})
	exchange(probe.Reached, "after it was forbidden, while in the flow table")

	remove()
	flow.Wait = probe.DefaultWait
	exchange(probe.Silent, "out of the flow table")
}
