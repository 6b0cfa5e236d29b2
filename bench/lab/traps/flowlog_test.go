package traps

import (
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

// watched are policies by whose dialects and modes lines differ: a rule that denies, one with names, and two in audit
// mode, one that would deny what is allowed and one that would allow what is denied.
const watched = `
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: ruled}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: client}}}}
  egress:
  - {action: Accept, to: [{domainNames: [example.org]}]}
  - {action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: stranger}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: would-deny, annotations: {firstpacket.dev/mode: audit}}
spec: {podSelector: {matchLabels: {role: stranger}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: would-allow, annotations: {firstpacket.dev/mode: audit}}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{ports: [{port: 81}]}]
`

// TestFlowLog has agents write lines of every kind. What they write, and what 'firstpacket flows' makes of it, is held
// to the schema.
func TestFlowLog(t *testing.T) {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	schema, err := compiler.Compile(filepath.Join("..", "..", "..", "docs", "flow-log.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"drop", "reject"} {
		t.Run(how, func(t *testing.T) {
			sockets := t.TempDir()
			b := newBed(t, lab.Options{Sockets: sockets, AgentArgs: []string{"--deny-with", how}}, watched)
			b.refuseEverything()
			b.expectKinds(how)
			written := map[string]bool{}
			for _, line := range b.logged() {
				written[line] = true
				if err := validLine(schema, line); err != nil {
					t.Errorf("%s: %v", line, err)
				}
			}
			for _, line := range b.flows(sockets) {
				if !written[line] {
					t.Errorf("flows prints what no agent wrote: %s", line)
				}
				delete(written, line)
			}
			if len(written) > 0 {
				t.Errorf("flows does not print %d lines", len(written))
			}
		})
	}
}

func validLine(schema *jsonschema.Schema, line string) error {
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}

// refuseEverything sends what is refused, for every reason and of every protocol.
func (b bed) refuseEverything() {
	b.Helper()
	var refused []probe.Probe
	families(func(v6 bool) {
		at := func(name string, port uint16) netip.AddrPort { return b.place(name).At(v6, port) }
		b.reaches("client", at("server", 80), probe.TCP)
		b.reaches("server", at("far", 80), probe.TCP) // would be denied
		for _, p := range []struct {
			from, to string
			port     uint16
			proto    probe.Proto
		}{
			{"stranger", "server", 80, probe.TCP}, {"stranger", "server", 53, probe.UDP},
			{"stranger", "server", 81, probe.TCP}, // would be allowed
			{"closed", "stranger", 80, probe.TCP}, {"client", "far", 80, probe.TCP},
		} {
			refused = append(refused, probe.Probe{From: b.place(p.from).NS, To: at(p.to, p.port), Proto: p.proto})
		}
		c := b.crossing("stranger", "server")
		from, to := c.addrs(v6)
		bytes := from.AsSlice()
		bytes[len(bytes)-1] = 0xee
		unknown, _ := netip.AddrFromSlice(bytes)
		c.send(
			echo(b.T, from, to, "ping"),
			build(b.T, from, to, layers.IPProtocolGRE, gopacket.Payload("tunnel")),
			build(b.T, from, to, layers.IPProtocolSCTP, &layers.SCTP{SrcPort: 5000, DstPort: 9},
				&layers.SCTPInit{SCTPChunk: layers.SCTPChunk{Type: layers.SCTPChunkTypeInit}, InitiateTag: 7,
					AdvertisedReceiverWindowCredit: 1500, OutboundStreams: 1, InboundStreams: 1}),
			tcp(b.T, netip.AddrPortFrom(unknown, 4300), at("server", 80), "unknown", syn), // held until its time is over
		)
	})
	results, err := b.lab.Probe(b.Context(), refused...)
	if err != nil {
		b.Fatal(err)
	}
	for i, r := range results {
		if !r.Denied() {
			b.Errorf("%s: %s, want denied", refused[i].To, r)
		}
	}
	var cut []*probe.Flow
	families(func(v6 bool) {
		f, r, err := probe.Open(b.Context(), probe.Probe{
			From: b.place("client").NS, To: b.place("server").At(v6, 80), Proto: probe.TCP, Wait: patience,
		})
		if err != nil || r.Outcome != probe.Reached {
			b.Fatal(r, err)
		}
		cut = append(cut, f)
	})
	b.apply(`
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server}
spec: {podSelector: {matchLabels: {app: server}}}`)
	for _, f := range cut {
		f.Wait = silence
		if r := f.Exchange(); r.Outcome == probe.Reached {
			b.Errorf("an established flow goes on: %s", r)
		}
		f.Close()
	}
}

// kinds are verdict, direction, reason and protocol of the lines that refuseEverything leads to, for each family. What
// would be allowed has no direction: both sides have to allow it.
var kinds = []string{
	"deny ingress no-rule-matches tcp", "deny ingress no-rule-matches udp", "deny ingress no-rule-matches icmp",
	"deny ingress no-rule-matches sctp", "deny ingress no-rule-matches 47", "deny egress no-rule-matches tcp",
	"deny egress denied-by-rule tcp", "deny egress unknown-endpoint tcp", "deny ingress revoked tcp",
	"would-deny ingress no-rule-matches tcp", "would-allow  allowed-by-rule tcp",
}

// expectKinds waits for lines of all kinds.
func (b bed) expectKinds(how string) {
	b.Helper()
	missing := map[string]bool{}
	deadline := time.Now().Add(patience)
	for {
		seen := map[string]bool{}
		clear(missing)
		for _, a := range b.lab.Agents() {
			for _, r := range a.Output().Records() {
				family := familyName(strings.Contains(r.Src.IP, ":"))
				proto := strings.TrimSuffix(r.Proto, "v6")
				seen[fmt.Sprintf("%s %s %s %s %s", r.Verdict, r.Direction, r.Reason, proto, family)] = true
			}
		}
		for _, kind := range kinds {
			families(func(v6 bool) {
				if k := kind + " " + familyName(v6); !seen[k] {
					missing[k] = true
				}
			})
		}
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Errorf("%s: no lines of %q, but of %q", how, slices.Sorted(maps.Keys(missing)), slices.Sorted(maps.Keys(seen)))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// logged are the lines of all agents.
func (b bed) logged() (all []string) {
	for _, a := range b.lab.Agents() {
		for _, r := range a.Output().Records() {
			all = append(all, r.Line)
		}
	}
	return all
}

// flows is what 'firstpacket flows -o json' prints, asked of the running agents.
func (b bed) flows(sockets string) []string {
	b.Helper()
	program, err := binary.Path()
	if err != nil {
		b.Fatal(err)
	}
	args := []string{"flows", "-o", "json"}
	for _, node := range []string{"one", "two"} {
		args = append(args, "--agent", "unix:"+filepath.Join(sockets, node+".sock"))
	}
	out, err := exec.CommandContext(b.Context(), program, args...).Output()
	if err != nil {
		b.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
