//go:build vm

package guest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
)

func TestMain(m *testing.M) {
	if err := ns.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// patience is how long tests wait for something that has to happen: the machine's processor is an emulated one, and the
// host may be busy.
const patience = time.Minute

// cluster has a client that may speak to web pods, another that may not, and a web pod on each of two nodes.
const cluster = `
{apiVersion: v1, kind: Node, metadata: {name: one}}
---
{apiVersion: v1, kind: Node, metadata: {name: two}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {nodeName: one, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, labels: {app: other}}
spec: {nodeName: one, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec:
  nodeName: one
  containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 8080, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, labels: {app: web}}
spec:
  nodeName: two
  containers: [{name: c, ports: [{containerPort: 8080}, {containerPort: 8080, protocol: UDP}]}]
`

// allowClient isolates the web pods for all but the client at port 8080.
const allowClient = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 8080}, {port: 8080, protocol: UDP}]
`

// bed is a lab with an agent on each node.
type bed struct {
	*testing.T
	*lab.Lab
}

// newBed makes the cluster with more objects and waits until the agents enforce.
func newBed(t *testing.T, opts lab.Options, more ...string) *bed {
	t.Helper()
	b := startBed(t, opts, more...)
	b.settled(b.WaitReady)
	return b
}

// startBed is newBed without the wait.
func startBed(t *testing.T, opts lab.Options, more ...string) *bed {
	t.Helper()
	objects, err := topology.Parse("guest", []byte(strings.Join(append([]string{cluster}, more...), "\n---\n")))
	if err != nil {
		t.Fatal(err)
	}
	if opts.AgentBinary, err = binary.Path(); err != nil {
		t.Fatal(err)
	}
	opts.Logf = t.Logf
	l, err := lab.New(t.Context(), objects, opts)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t, l}
	t.Cleanup(func() {
		if t.Failed() {
			for _, a := range l.Agents() {
				t.Log(strings.Join(a.Output().Lines(), "\n"))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// settled waits for the agents.
func (b *bed) settled(wait func(context.Context) error) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	b.must(wait(ctx))
}

// apply changes the cluster and waits until that is in force.
func (b *bed) apply(manifest string) {
	b.Helper()
	b.must(b.ApplyYAML(b.Context(), manifest))
	b.settled(b.WaitApplied)
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bed) place(name string) lab.Place {
	b.Helper()
	p, err := b.Place(name)
	b.must(err)
	return p
}

// reaches sends the probe and wants that server to answer.
func (b *bed) reaches(p probe.Probe, server string) probe.Result {
	b.Helper()
	p.Wait = patience
	results, err := b.Probe(b.Context(), p)
	b.must(err)
	if r := results[0]; r.Outcome != probe.Reached || r.By != server {
		b.Errorf("%s %s to %s: %s, want %s reached", p.From.Name(), p.Proto, p.To, r, server)
	}
	return results[0]
}

// fails sends the probe and wants nobody to answer.
func (b *bed) fails(p probe.Probe) {
	b.Helper()
	results, err := b.Probe(b.Context(), p)
	b.must(err)
	if r := results[0]; r.Outcome != probe.Silent {
		b.Errorf("%s %s to %s: %s, want silence", p.From.Name(), p.Proto, p.To, r)
	}
}

// recorded waits for a record of a denied flow.
func (b *bed) recorded(what string, match func(agents.Record) bool) {
	b.Helper()
	b.eventually("a record of "+what, func() bool { return slices.ContainsFunc(b.Denied(), match) })
}

func (b *bed) eventually(what string, done func() bool) {
	b.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("never: %s", what)
		}
	}
}

// family names the two versions of IP.
func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}
