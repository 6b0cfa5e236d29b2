package lab_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/bench/lab/wire"
)

const patient = 5 * time.Second

const small = `
apiVersion: v1
kind: Node
metadata: {name: one}
---
apiVersion: v1
kind: Node
metadata: {name: two}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec:
  nodeName: one
  containers:
  - name: web
    ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, labels: {app: web}}
spec:
  nodeName: two
  containers:
  - name: web
    ports: [{name: http, containerPort: 8081}, {name: dns, containerPort: 53, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {app: solo}}
spec:
  nodeName: one
  containers:
  - name: solo
    ports: [{containerPort: 80}, {containerPort: 9, protocol: SCTP}]
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  nodeName: two
  hostNetwork: true
  containers:
  - name: host
    ports: [{containerPort: 7000}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: dns, port: 53, protocol: UDP, targetPort: dns}
---
apiVersion: v1
kind: Service
metadata: {name: solo}
spec:
  selector: {app: solo}
  ports: [{port: 80}]
`

var client = lab.Outside{
	Name: "client", Addrs: []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")},
	Ports: []corev1.ContainerPort{{ContainerPort: 443}},
}

func newLab(t *testing.T, manifest string, opts lab.Options) *lab.Lab {
	t.Helper()
	objects, err := topology.Parse("test", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	if opts.Logf == nil {
		opts.Logf = t.Logf
	}
	l, err := lab.New(t.Context(), objects, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func place(t *testing.T, l *lab.Lab, name string) lab.Place {
	t.Helper()
	p, err := l.Place(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// one sends one probe that may take its time.
func one(t *testing.T, l *lab.Lab, p probe.Probe) probe.Result {
	t.Helper()
	if p.Wait == 0 {
		p.Wait = patient
	}
	results, err := l.Probe(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return results[0]
}

func TestEveryoneReachesEveryone(t *testing.T) {
	for name, bridged := range map[string]bool{"routed": false, "bridged": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, small, lab.Options{Bridged: bridged, Outside: []lab.Outside{client}})
			everywhere := append(append(l.Pods(), l.Outside()...), l.Nodes()...)
			tables, connections, err := l.Matrix(t.Context(), lab.MatrixOptions{
				From: everywhere, To: append(l.Pods(), l.Outside()...), Self: true, PatientWait: patient,
			})
			if err != nil {
				t.Fatal(err)
			}
			// 7 places to probe from, 7 ports, 2 families.
			if connections != 7*7*2 {
				t.Errorf("%d connections, want %d", connections, 7*7*2)
			}
			for _, table := range tables {
				for _, d := range table.Differences() {
					t.Errorf("%s: %s to %s %s: %s", table.Title, d.Row, d.Column.Name, d.Column.Port, d.Cell.Note)
				}
			}
			for _, p := range everywhere {
				if n := retransmitted(t, p.NS); n != "0" {
					t.Errorf("%s: %s TCP segments were sent again, want every first packet to arrive", p.Name, n)
				}
			}
		})
	}
}

// retransmitted reads RetransSegs (RFC 4022, tcpRetransSegs) of the namespace.
func retransmitted(t *testing.T, n *ns.Namespace) string {
	t.Helper()
	var content []byte
	if err := n.Do(func() (err error) {
		content, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		if fields[0] != "Tcp:" {
			continue
		}
		if i := slices.Index(names, "RetransSegs"); i >= 0 {
			return fields[i]
		}
		names = fields
	}
	t.Fatalf("no RetransSegs in %s", content)
	return ""
}

func TestServersSeeWhoCalls(t *testing.T) {
	l := newLab(t, small, lab.Options{})
	from, to := place(t, l, "default/solo"), place(t, l, "default/web-2")
	for _, v6 := range []bool{false, true} {
		want, _ := from.Addr(v6)
		r := one(t, l, probe.Probe{From: from.NS, To: to.At(v6, 8081), Proto: probe.TCP})
		if r.Outcome != probe.Reached || r.Seen.Addr() != want {
			t.Errorf("%s, want it seen as %s", r, want)
		}
		source := netip.AddrPortFrom(want, 4444)
		r = one(t, l, probe.Probe{From: from.NS, Source: source, To: to.At(v6, 53), Proto: probe.UDP})
		if r.Outcome != probe.Reached || r.Seen != source {
			t.Errorf("%s, want it seen as %s", r, source)
		}
		r = one(t, l, probe.Probe{From: from.NS, To: to.At(v6, 1), Proto: probe.TCP})
		if r.Outcome != probe.Refused || !errors.Is(r.Err, unix.ECONNREFUSED) {
			t.Errorf("port without a server: %s, want connection refused", r)
		}
	}
}

func TestServices(t *testing.T) {
	for name, bridged := range map[string]bool{"routed": false, "bridged": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, small, lab.Options{Bridged: bridged, Outside: []lab.Outside{client}})
			for _, v6 := range []bool{false, true} {
				web, dns := l.Service("default", "web", v6, 80), l.Service("default", "web", v6, 53)
				for _, from := range []string{"default/solo", "default/web-1", "node/one", "node/two"} {
					reachesBoth(t, l, from, probe.Probe{To: web, Proto: probe.TCP})
					reachesBoth(t, l, from, probe.Probe{To: dns, Proto: probe.UDP})
				}
				two := place(t, l, "node/two")
				reachesBoth(t, l, "outside/client", probe.Probe{To: two.At(v6, 30000), Proto: probe.TCP})

				// A pod that reaches itself through its Service sees its node.
				solo, one1 := place(t, l, "default/solo"), place(t, l, "node/one")
				r := one(t, l, probe.Probe{From: solo.NS, To: l.Service("default", "solo", v6, 80), Proto: probe.TCP})
				self, _ := solo.Addr(v6)
				if r.Outcome != probe.Reached || r.By != "default/solo" || r.Seen.Addr() == self {
					t.Errorf("hairpin: %s, want it masqueraded", r)
				}
				// What a node port sends to another node must come back the same way.
				r = one(t, l, probe.Probe{
					From: place(t, l, "outside/client").NS, To: one1.At(v6, 30001), Proto: probe.UDP,
				})
				if node, _ := one1.Addr(v6); r.By == "default/web-2" && r.Seen.Addr() != node {
					t.Errorf("node port: %s, want it seen as %s", r, node)
				}
			}
		})
	}
}

func reachesBoth(t *testing.T, l *lab.Lab, from string, p probe.Probe) {
	t.Helper()
	p.From, p.Wait = place(t, l, from).NS, patient
	probes := make([]probe.Probe, 40)
	for i := range probes {
		probes[i] = p
	}
	results, err := l.Probe(t.Context(), probes...)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]int{}
	for _, r := range results {
		if r.Outcome != probe.Reached {
			t.Fatalf("from %s to %s: %s", from, p.To, r)
		}
		by[r.By]++
	}
	if by["default/web-1"] == 0 || by["default/web-2"] == 0 {
		t.Errorf("from %s to %s: backends %v, want both", from, p.To, by)
	}
}

func TestMasquerade(t *testing.T) {
	l := newLab(t, small, lab.Options{Masquerade: true, Outside: []lab.Outside{client}})
	solo, node := place(t, l, "default/solo"), place(t, l, "node/one")
	for _, v6 := range []bool{false, true} {
		r := one(t, l, probe.Probe{From: solo.NS, To: place(t, l, "outside/client").At(v6, 443), Proto: probe.TCP})
		if want, _ := node.Addr(v6); r.Seen.Addr() != want {
			t.Errorf("to the outside: %s, want it seen as %s", r, want)
		}
		r = one(t, l, probe.Probe{From: solo.NS, To: place(t, l, "default/web-2").At(v6, 8081), Proto: probe.TCP})
		if want, _ := solo.Addr(v6); r.Seen.Addr() != want {
			t.Errorf("to a pod: %s, want it seen as %s", r, want)
		}
	}
}

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

func TestChangesWhileRunning(t *testing.T) {
	l := newLab(t, small, lab.Options{})
	const extra = `{apiVersion: v1, kind: Pod, metadata: {name: extra, labels: {app: solo}},
spec: {nodeName: two, containers: [{name: c, ports: [{containerPort: 80}]}]}}`
	if err := l.ApplyYAML(t.Context(), extra); err != nil {
		t.Fatal(err)
	}
	from := place(t, l, "default/web-1").NS
	to := place(t, l, "default/extra").At(true, 80)
	if r := one(t, l, probe.Probe{From: from, To: to, Proto: probe.TCP}); r.By != "default/extra" {
		t.Errorf("new pod: %s", r)
	}
	content, err := os.ReadFile(filepath.Join(l.Dir(), "pod-default-extra.yaml"))
	if err != nil || !strings.Contains(string(content), to.Addr().String()) {
		t.Errorf("manifest of the new pod: %v, %s", err, content)
	}

	// Edited by hand: a document of two objects, and a removed file.
	if err := os.Remove(filepath.Join(l.Dir(), "pod-default-solo.yaml")); err != nil {
		t.Fatal(err)
	}
	edited := strings.ReplaceAll(extra, "extra", "by-hand") + "\n---\n" +
		`{apiVersion: example.com/v1, kind: Other, metadata: {name: x}}`
	if err := os.WriteFile(filepath.Join(l.Dir(), "mine.yaml"), []byte(edited), 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := l.Reload(t.Context()); err != nil || !changed {
		t.Fatal(changed, err)
	}
	r := one(t, l, probe.Probe{From: from, To: place(t, l, "default/by-hand").At(false, 80), Proto: probe.TCP})
	if r.By != "default/by-hand" {
		t.Errorf("pod made by hand: %s", r)
	}
	if _, err := l.Place("default/solo"); err == nil {
		t.Error("the removed pod is still there")
	}
	if changed, err := l.Reload(t.Context()); err != nil || changed {
		t.Errorf("without a change: %t, %v", changed, err)
	}
	if _, err := os.Stat(filepath.Join(l.Dir(), "pod-default-by-hand.yaml")); err == nil {
		t.Error("the object has a second file")
	}
	if err := os.WriteFile(filepath.Join(l.Dir(), "mine.yaml"), []byte("kind: [half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Reload(t.Context()); err == nil {
		t.Error("a broken file is no error")
	}
	if _, err := l.Place("default/by-hand"); err != nil {
		t.Error("a broken file took its pod away")
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

func TestBadManifestsAreNamed(t *testing.T) {
	for manifest, want := range map[string]string{
		`{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {nodeName: nowhere}}`: "pod default/p, spec.nodeName",
		`{apiVersion: v1, kind: Node, metadata: {name: bad}, spec: {podCIDRs: [x]}}`:  "node bad, spec.podCIDRs",
	} {
		objects, err := topology.Parse("test", []byte(manifest))
		if err != nil {
			t.Fatal(err)
		}
		if l, err := lab.New(t.Context(), objects, lab.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error about %s", err, want)
			if l != nil {
				_ = l.Close()
			}
		}
	}
	_, err := topology.Parse("f.yaml", []byte("kind: Pod\n---\nx: ["))
	if err == nil || !strings.Contains(err.Error(), "f.yaml, document 1") {
		t.Errorf("got %v, want the document named", err)
	}
}

func TestCanceled(t *testing.T) {
	l := newLab(t, small, lab.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.Matrix(ctx, lab.MatrixOptions{}); err == nil {
		t.Error("a canceled matrix is no error")
	}
}
