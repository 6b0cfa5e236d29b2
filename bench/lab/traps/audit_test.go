package traps

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
)

// TestAuditLosesNothing sends what an enforcing agent refuses without asking any policy, to pods of an agent that only
// audits.
func TestAuditLosesNothing(t *testing.T) {
	b := newBed(t, lab.Options{AgentArgs: []string{"--audit"}})
	b.everythingArrives("stranger", "server")
	b.everythingArrives("far", "server")
	b.everythingArrives("closed", "stranger") // which may not call anyone
	families(func(v6 bool) {
		// A source in the node's own range that no pod is known to have.
		c := b.crossing("stranger", "server")
		source, target := c.ports(v6, 4300, 80)
		bytes := source.Addr().AsSlice()
		bytes[len(bytes)-1] = 0xee
		unknown, _ := netip.AddrFromSlice(bytes)
		mark := "unknown " + familyName(v6)
		c.passes(mark, mark, tcp(t, netip.AddrPortFrom(unknown, 4300), target, mark, syn))
	})
}

// TestAuditedPodLosesNothing does the same to a pod whose only policy is in audit mode.
func TestAuditedPodLosesNothing(t *testing.T) {
	b := newBed(t, lab.Options{}, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: watched, annotations: {firstpacket.dev/mode: audit}}
spec: {podSelector: {matchLabels: {role: client}}, policyTypes: [Ingress, Egress]}`)
	b.everythingArrives("stranger", "client")
	b.everythingArrives("client", "stranger")
}

func (b bed) everythingArrives(from, to string) {
	b.Helper()
	families(func(v6 bool) {
		c := b.crossing(from, to)
		family := familyName(v6)
		for name, set := range map[string]func(*layers.TCP){
			"opening": syn, "SYN and FIN": func(h *layers.TCP) { h.SYN, h.FIN = true, true },
			"no flags": func(*layers.TCP) {}, "stray RST": func(h *layers.TCP) { h.RST, h.ACK = true, true },
			"mid-stream": func(h *layers.TCP) { h.ACK = true },
		} {
			mark := fmt.Sprintf("%s %s", name, family)
			source, target := c.ports(v6, 4200, 81)
			c.passes(mark, mark, tcp(b.T, source, target, mark, set))
		}
		if v6 {
			// The options go on beyond the packet's end, so that no port can be found.
			source, target := c.addrs(v6)
			mark := "malformed " + family
			c.passes(mark, mark, build(b.T, source, target, layers.IPProtocolIPv6Destination,
				gopacket.Payload(append([]byte{unix.IPPROTO_TCP, 200, 1, 4, 0, 0, 0, 0}, mark...))))
		}
	})
}
