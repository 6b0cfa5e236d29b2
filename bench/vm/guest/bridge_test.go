//go:build vm

package guest

import (
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// TestBridgedPods enforces between pods of one bridge, whose packets pass netfilter because br_netfilter hands them on.
func TestBridgedPods(t *testing.T) {
	b := newBed(t, lab.Options{Bridged: true}, allowClient)
	client, other := b.place("default/client"), b.place("default/other")
	for _, name := range []string{"default/web-1", "default/web-2"} {
		web := b.place(name)
		everyWay(func(v6 bool, proto probe.Proto) {
			b.reaches(probe.Probe{From: client.NS, To: web.At(v6, 8080), Proto: proto}, name)
			b.fails(probe.Probe{From: other.NS, To: web.At(v6, 8080), Proto: proto})
		})
	}
}

// TestBridgeBesideNetfilter takes the bridge's packets away from netfilter: an agent that cannot enforce is not ready,
// and says why.
func TestBridgeBesideNetfilter(t *testing.T) {
	b := newBed(t, lab.Options{Bridged: true}, allowClient)
	node, agent := b.place("node/one").NS, b.Agent("one")
	for _, sysctl := range []string{"bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"} {
		b.must(node.Sysctl(map[string]string{sysctl: "0"}))
		advice := "set net." + strings.ReplaceAll(sysctl, "/", ".") + "=1"
		b.eventually("not ready: "+advice, func() bool {
			_, err := agent.Get(t.Context(), "/readyz")
			return err != nil && strings.Contains(err.Error(), advice)
		})
		b.must(node.Sysctl(map[string]string{sysctl: "1"}))
		b.settled(agent.WaitReady)
	}
}
