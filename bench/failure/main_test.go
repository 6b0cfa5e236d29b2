package failure

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/proxy/agent"
)

func TestMain(m *testing.M) {
	if os.Getenv(leastRole) != "" {
		fmt.Fprintln(os.Stderr, becomeLeast(os.Args[1:]))
		os.Exit(1)
	}
	if err := ns.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := binary.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// cluster is one node with a server that policies are about, two clients, and a pod that no policy is about.
const cluster = `
apiVersion: v1
kind: Node
metadata: {name: one}
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: friend, labels: {app: friend}}
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bystander, labels: {app: bystander}}
spec: {nodeName: one, containers: [{name: c, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}
`

// bed is a lab with an agent on its one node.
type bed struct {
	*lab.Lab
	t      testing.TB
	binary string
}

func newBed(t testing.TB, args ...string) *bed {
	t.Helper()
	return newBedOf(t, cluster, lab.Options{AgentArgs: args})
}

func newBedOf(t testing.TB, manifest string, opts lab.Options) *bed {
	t.Helper()
	b := &bed{t: t}
	var err error
	b.binary, err = binary.Path()
	b.must(err)
	opts.AgentBinary = b.binary
	objects, err := topology.Parse("test", []byte(manifest))
	b.must(err)
	b.Lab, err = lab.New(context.Background(), objects, opts)
	b.must(err)
	t.Cleanup(func() {
		if t.Failed() {
			for _, a := range b.Agents() {
				for _, line := range a.Output().Lines() {
					t.Log(line)
				}
			}
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := b.ctx()
	defer cancel()
	b.must(b.WaitReady(ctx))
	return b
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// apply brings a manifest into force and returns when the agent acknowledges it.
func (b *bed) apply(manifest string) {
	b.t.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	b.must(b.ApplyYAML(ctx, manifest))
	b.must(b.WaitApplied(ctx))
}

// admitting is a policy that lets only pods of these apps reach the server.
func admitting(apps ...string) string {
	return policyFor("server", "server", apps...)
}

func policyFor(name, app string, apps ...string) string {
	from := "[]"
	if len(apps) > 0 {
		from = fmt.Sprintf("[{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [%s]}]}}]}]",
			strings.Join(apps, ", "))
	}
	return fmt.Sprintf(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: %s},
spec: {podSelector: {matchLabels: {app: %s}}, policyTypes: [Ingress], ingress: %s}}`, name, app, from)
}

func (b *bed) place(name string) lab.Place {
	b.t.Helper()
	p, err := b.Place("default/" + name)
	b.must(err)
	return p
}

func (b *bed) agent() *agents.Agent { return b.Agent("one") }

func (b *bed) status() agent.Status {
	b.t.Helper()
	s, err := statusOf(b.agent())
	b.must(err)
	return s
}

func statusOf(a *agents.Agent) (s agent.Status, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	body, err := a.Get(ctx, "/status")
	if err != nil {
		return s, err
	}
	err = json.Unmarshal(body, &s)
	return s, err
}

func (b *bed) metrics() agents.Metrics {
	b.t.Helper()
	ctx, cancel := b.ctx()
	defer cancel()
	m, err := b.Metrics(ctx)
	b.must(err)
	return m
}

// probes sends a probe from one pod to another.
func (b *bed) probe(from, to string, proto probe.Proto, wait time.Duration) probe.Result {
	b.t.Helper()
	port := uint16(80)
	if proto == probe.UDP {
		port = 53
	}
	r, err := b.Probe(context.Background(), probe.Probe{
		From: b.place(from).NS, To: b.place(to).At(false, port), Proto: proto, Wait: wait,
	})
	b.must(err)
	return r[0]
}

func (b *bed) reaches(from, to string) {
	b.t.Helper()
	if r := b.probe(from, to, probe.TCP, patience); r.Outcome != probe.Reached {
		b.t.Errorf("%s to %s: %v", from, to, r)
	}
}

func (b *bed) denied(from, to string) {
	b.t.Helper()
	if r := b.probe(from, to, probe.TCP, 0); !r.Denied() {
		b.t.Errorf("%s to %s: %v, want it denied", from, to, r)
	}
}

// flow opens a flow that must come to be.
func (b *bed) flow(from, to string, proto probe.Proto, v6 bool) *probe.Flow {
	b.t.Helper()
	port := uint16(80)
	if proto == probe.UDP {
		port = 53
	}
	f, r, err := probe.Open(context.Background(), probe.Probe{
		From: b.place(from).NS, To: b.place(to).At(v6, port), Proto: proto, Wait: patience,
	})
	b.must(err)
	if f == nil {
		b.t.Fatalf("%s to %s: %v", from, to, r)
	}
	if r := f.Exchange(); r.Outcome != probe.Reached {
		b.t.Fatalf("%s to %s: %v", from, to, r)
	}
	b.t.Cleanup(func() { _ = f.Close() })
	return f
}

// connection is both ends of a TCP connection between pods, for tests that send from either.
type connection struct{ near, far net.Conn }

func (b *bed) connect(from, to string, port uint16) (*connection, error) {
	b.t.Helper()
	return b.connectFrom(from, to, port, 0)
}

func (b *bed) connectFrom(from, to string, port, sourcePort uint16) (*connection, error) {
	b.t.Helper()
	target := b.place(to).At(false, port)
	var l *net.TCPListener
	b.must(b.place(to).NS.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(target))
		return err
	}))
	defer l.Close()
	c := &connection{}
	source, _ := b.place(from).Addr(false)
	err := b.place(from).NS.Do(func() (err error) {
		d := net.Dialer{Timeout: time.Second,
			LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, sourcePort))}
		c.near, err = d.Dial("tcp", target.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	b.must(l.SetDeadline(time.Now().Add(patience)))
	c.far, err = l.Accept()
	b.must(err)
	b.t.Cleanup(c.abort)
	return c, nil
}

// abort closes both ends with a reset.
func (c *connection) abort() {
	for _, end := range []net.Conn{c.near, c.far} {
		_ = end.(*net.TCPConn).SetLinger(0)
		_ = end.Close()
	}
}

// send writes at one end and reads at the other.
func send(from, to net.Conn, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	_, _ = from.SetDeadline(deadline), to.SetDeadline(deadline)
	if _, err := from.Write([]byte("x")); err != nil {
		return err
	}
	_, err := to.Read(make([]byte, 16))
	return err
}
