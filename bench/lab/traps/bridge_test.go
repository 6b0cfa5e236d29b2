package traps

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/proxy/preflight"
)

// checkCluster is what must hold however pods are joined.
func checkCluster(b bed) {
	b.Helper()
	families(func(v6 bool) {
		for _, client := range []string{"client", "remote"} {
			b.reaches(client, b.place("server").At(v6, 80), probe.TCP)
			b.reaches(client, b.place("server").At(v6, 53), probe.UDP)
			b.denied(client, b.place("server").At(v6, 81), probe.TCP)
			b.denied(client, b.place("closed").At(v6, 80), probe.TCP)
		}
		for _, stranger := range []string{"stranger", "far", "closed"} {
			b.denied(stranger, b.place("server").At(v6, 80), probe.TCP)
			b.denied(stranger, b.place("server").At(v6, 53), probe.UDP)
		}
		b.reaches("stranger", b.place("far").At(v6, 80), probe.TCP)
		b.reaches("stranger", b.place("client").At(v6, 80), probe.TCP)
	})
}

// TestBridgedPods: packets between pods of one bridge come to the rules by br_netfilter.
func TestBridgedPods(t *testing.T) {
	for _, deny := range []string{"drop", "reject"} {
		t.Run(deny, func(t *testing.T) {
			checkCluster(newBed(t, lab.Options{Bridged: true, AgentArgs: []string{"--deny-with", deny}}))
		})
	}
}

// TestBridgeBesideNetfilter: without br_netfilter nothing between the pods of a bridge can be enforced, and the check
// before the start says so, and what to do.
func TestBridgeBesideNetfilter(t *testing.T) {
	b := newBed(t, lab.Options{Bridged: true})
	node := b.place("node/one").NS
	check := func(cidrs ...string) error {
		var prefixes []netip.Prefix
		for _, c := range cidrs {
			prefixes = append(prefixes, netip.MustParsePrefix(c))
		}
		return node.Do(func() error { return preflight.Bridges(prefixes) })
	}
	const v4, v6 = "10.244.0.0/24", "fd10:244::/64"
	if err := check(v4, v6); err != nil {
		t.Errorf("with br_netfilter: %v", err)
	}
	for key, cidr := range map[string]string{
		"bridge/bridge-nf-call-iptables": v4, "bridge/bridge-nf-call-ip6tables": v6,
	} {
		if err := node.Sysctl(map[string]string{key: "0"}); err != nil {
			t.Fatal(err)
		}
		err := check(v4, v6)
		sysctl := "net." + strings.ReplaceAll(key, "/", ".")
		want := "cni0 has pods of " + cidr + "; set " + sysctl + "=1"
		if !errors.Is(err, preflight.ErrBridge) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s off: %v", sysctl, err)
		}
		readiness(t, b.lab.Agent("one"), want)
		if err := check("192.0.2.0/24"); err != nil {
			t.Errorf("pods elsewhere: %v", err)
		}
		if err := node.Sysctl(map[string]string{key: "1"}); err != nil {
			t.Fatal(err)
		}
	}
	routed := newBed(t, lab.Options{})
	node = routed.place("node/one").NS
	if err := check(v4, v6); err != nil {
		t.Errorf("routed pods: %v", err)
	}
}

// readiness waits until the agent refuses to be ready and says why.
func readiness(t *testing.T, a *agents.Agent, why string) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if _, err = a.Get(t.Context(), "/readyz"); err != nil && strings.Contains(err.Error(), why) {
			return
		}
	}
	t.Errorf("the agent's readiness is %v; want it to say %q", err, why)
}

// TestNeighbourDiscovery: pods that may not speak to anyone still find their neighbours, and are found.
func TestNeighbourDiscovery(t *testing.T) {
	b := newBed(t, lab.Options{Bridged: true})
	for range 3 {
		for _, place := range []string{"server", "client", "closed", "node/one", "node/two"} {
			b.forgetNeighbours(place)
		}
		b.reaches("client", b.place("server").At(true, 80), probe.TCP)
		b.forgetNeighbours("client")
		b.reaches("remote", b.place("server").At(true, 53), probe.UDP)
		b.reaches("node/one", b.place("closed").At(true, 80), probe.TCP)
		b.denied("closed", b.place("server").At(true, 80), probe.TCP)
	}
}

// forgetNeighbours empties the neighbour tables of a place.
func (b bed) forgetNeighbours(place string) {
	b.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(b.place(place).NS.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		neighbours, err := h.NeighList(0, family)
		if err != nil {
			b.Fatal(err)
		}
		for _, n := range neighbours {
			if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 {
				if err := h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
					b.Fatal(err)
				}
			}
		}
	}
}
