package lab_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
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
