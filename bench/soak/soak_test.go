// Package soak churns a cluster for a chosen time: pods come, go and change their labels, policies come and go, agents
// are killed and tables deleted, while connections are compared with what the policies say. `make soak` runs it.
package soak

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/agents"
	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/expect"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
	"github.com/firstpacket/firstpacket/bench/lab/topology"
	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// durationEnv says how long to churn; the default is a taste of it.
const durationEnv = "FIRSTPACKET_SOAK"

const (
	taste    = 10 * time.Second
	patience = 30 * time.Second
	// mostPods and mostFlows bound the cluster.
	mostPods, leastPods = 14, 6
	mostFlows           = 24
	probesPerTurn       = 40
)

func TestMain(m *testing.M) {
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

// flow is a connection that lives across changes.
type flow struct {
	*probe.Flow
	from, to lab.Place
	at       probe.Probe
}

// soak is a run.
type soak struct {
	t      *testing.T
	rand   *rand.Rand
	lab    *lab.Lab
	pods   []string
	made   int
	flows  []flow
	counts struct {
		changes, restarts, tampers, probes, turns int
		wrong, lost, cut, lostFlows               int
	}
}

// TestSoak has wrong verdicts, lost connections, lost flows and leaks as its failures.
func TestSoak(t *testing.T) {
	duration := taste
	if text := os.Getenv(durationEnv); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := &soak{t: t, rand: rand.New(rand.NewPCG(seed, 0))}
	s.start()
	var first agents.Metrics
	for end, warm := time.Now().Add(duration), time.Now().Add(duration/4); time.Now().Before(end); {
		s.change()
		s.acknowledged()
		s.checkFlows()
		s.checkProbes()
		if first == nil && time.Now().After(warm) {
			first = s.metrics("two")
		}
	}
	s.checkLeaks(first)
	c := s.counts
	t.Logf("%d changes, %d restarts, %d tables deleted; %d connections and %d turns of established flows, %d flows cut",
		c.changes, c.restarts, c.tampers, c.probes, c.turns, c.cut)
	t.Logf("wrong verdicts: %d, lost connections: %d, lost flows: %d", c.wrong, c.lost, c.lostFlows)
	if c.wrong+c.lost+c.lostFlows > 0 {
		for _, a := range s.lab.Agents() {
			for _, line := range a.Output().Lines() {
				if !strings.Contains(line, "manifests read") {
					t.Log(line)
				}
			}
		}
	}
}

func (s *soak) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) start() {
	program, err := binary.Path()
	s.must(err)
	objects, err := topology.Parse("soak", []byte(`{apiVersion: v1, kind: Node, metadata: {name: one}}
---
{apiVersion: v1, kind: Node, metadata: {name: two}}`))
	s.must(err)
	s.lab, err = lab.New(s.t.Context(), objects, lab.Options{AgentBinary: program})
	s.must(err)
	s.t.Cleanup(func() {
		for _, f := range s.flows {
			_ = f.Close()
		}
		if err := s.lab.Close(); err != nil {
			s.t.Error(err)
		}
	})
	for range leastPods {
		s.addPod()
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	s.must(s.lab.WaitReady(ctx))
}

func (s *soak) apply(manifest string) {
	s.t.Helper()
	s.must(s.lab.ApplyYAML(s.t.Context(), manifest))
}

var apps = []string{"a", "b", "c"}

func (s *soak) app() string { return apps[s.rand.IntN(len(apps))] }

func (s *soak) pod(name string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: %s}}, spec: {nodeName: %s,
containers: [{name: c, ports: [{name: http, containerPort: 80}, {containerPort: 53, protocol: UDP}]}]}}`,
		name, s.app(), map[bool]string{false: "one", true: "two"}[name[len(name)-1]%2 == 0])
}

func (s *soak) addPod() {
	s.made++
	name := fmt.Sprint("p", s.made)
	s.pods = append(s.pods, name)
	s.apply(s.pod(name))
}

func (s *soak) removePod() {
	i := s.rand.IntN(len(s.pods))
	name := s.pods[i]
	s.pods = append(s.pods[:i], s.pods[i+1:]...)
	keep := s.flows[:0]
	for _, f := range s.flows {
		if f.from.Name == "default/"+name || f.to.Name == "default/"+name {
			_ = f.Close()
		} else {
			keep = append(keep, f)
		}
	}
	s.flows = keep
	s.must(s.lab.Delete(s.t.Context(), topology.Ref{Kind: "Pod", Namespace: "default", Name: name}))
}

// policy is a random one of few names, so that they replace each other.
func (s *soak) policy() string {
	peers := []string{
		"[]", "[{}]",
		fmt.Sprintf("[{PEERS: [{podSelector: {matchLabels: {app: %s}}}]}]", s.app()),
		fmt.Sprintf("[{PEERS: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [%s]}]}}]}]", s.app()),
		fmt.Sprintf("[{PEERS: [{podSelector: {matchLabels: {app: %s}}}], ports: [{port: http}]}, "+
			"{ports: [{port: 53, protocol: UDP}]}]", s.app()),
		"[{PEERS: [{ipBlock: {cidr: 10.244.0.0/24}}]}, {ports: [{port: 80, endPort: 90}]}]",
	}
	kind, field, to := "Ingress", "ingress", "from"
	if s.rand.IntN(3) == 0 {
		kind, field, to = "Egress", "egress", "to"
	}
	return fmt.Sprintf(`{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: n%d},
spec: {podSelector: {matchLabels: {app: %s}}, policyTypes: [%s], %s: %s}}`, s.rand.IntN(6), s.app(), kind, field,
		strings.ReplaceAll(peers[s.rand.IntN(len(peers))], "PEERS", to))
}

// change makes one to three changes, which the agents may see together.
func (s *soak) change() {
	for range 1 + s.rand.IntN(3) {
		s.counts.changes++
		switch n := s.rand.IntN(20); {
		case n < 9:
			s.apply(s.policy())
		case n < 11:
			s.must(s.lab.Delete(s.t.Context(), topology.Ref{Kind: "NetworkPolicy", Namespace: "default",
				Name: fmt.Sprint("n", s.rand.IntN(6))}))
		case n < 14:
			s.apply(s.relabelled(s.pods[s.rand.IntN(len(s.pods))]))
		case n < 16 && len(s.pods) < mostPods:
			s.addPod()
		case n < 18 && len(s.pods) > leastPods:
			s.removePod()
		case n == 18:
			s.restart()
		case n == 19:
			s.tamper()
		}
	}
}

// relabelled is the pod with another label and the addresses it has.
func (s *soak) relabelled(name string) string {
	p, err := s.lab.Place("default/" + name)
	s.must(err)
	var ips []string
	for _, a := range p.Addrs {
		ips = append(ips, fmt.Sprintf("{ip: %q}", a))
	}
	return strings.TrimSuffix(s.pod(name), "}") + fmt.Sprintf(", status: {phase: Running, podIP: %q, podIPs: [%s]}}",
		p.Addrs[0], strings.Join(ips, ", "))
}

// restart ends the agent of node one, softly or not, and starts it again. That of node two lives on, for its leaks.
func (s *soak) restart() {
	s.counts.restarts++
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if s.rand.IntN(2) == 0 {
		s.must(s.lab.Kill("one"))
	} else {
		s.must(s.lab.Stop(ctx, "one"))
	}
	s.must(s.lab.Start(ctx, "one"))
}

// tamper deletes the table of a node, and waits for it to be repaired.
func (s *soak) tamper() {
	s.counts.tampers++
	name := []string{"one", "two"}[s.rand.IntN(2)]
	node, err := s.lab.Place("node/" + name)
	s.must(err)
	repairs := func() float64 { return s.metrics(name).Sum("firstpacket_repairs_total") }
	before := repairs()
	c, err := nftables.New(nftables.WithNetNSFd(node.NS.FD()))
	s.must(err)
	c.DelTable(&nftables.Table{Name: ruleset.TableName, Family: nftables.TableFamilyINet})
	s.must(c.Flush())
	for deadline := time.Now().Add(patience); repairs() == before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the table of node %s was not repaired", name)
		}
	}
	time.Sleep(100 * time.Millisecond) // for the flows that passed meanwhile
}

func (s *soak) metrics(node string) agents.Metrics {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	m, err := s.lab.Agent(node).Metrics(ctx)
	s.must(err)
	return m
}

func (s *soak) acknowledged() {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	s.must(s.lab.WaitApplied(ctx))
}

func (s *soak) expected() *expect.Policy {
	p, err := expect.Load(s.lab.Dir())
	s.must(err)
	return p
}

func allowed(policy *expect.Policy, from lab.Place, p probe.Probe) bool {
	source, _ := from.Addr(p.To.Addr().Is6())
	return policy.Allows(source, p.To, uint8(p.Proto))
}

// checkFlows turns every established flow once, and takes out those that were cut.
func (s *soak) checkFlows() {
	policy := s.expected()
	keep := s.flows[:0]
	for _, f := range s.flows {
		want := allowed(policy, f.from, f.at)
		f.Wait = 200 * time.Millisecond
		if want {
			f.Wait = patience
		}
		r := f.Exchange()
		s.counts.turns++
		switch got := r.Outcome == probe.Reached; {
		case got && !want:
			s.counts.wrong++
			s.t.Errorf("established flow %s to %s goes on: %v", f.from.Name, f.at.To, r)
		case !got && want:
			s.counts.lostFlows++
			s.t.Errorf("established flow %s to %s: %v", f.from.Name, f.at.To, r)
		case !want:
			s.counts.cut++
		default:
			keep = append(keep, f)
			continue
		}
		_ = f.Close()
	}
	s.flows = keep
}

// random is a probe between two pods.
func (s *soak) random() (lab.Place, lab.Place, probe.Probe) {
	places := s.lab.Pods()
	from, to := places[s.rand.IntN(len(places))], places[s.rand.IntN(len(places))]
	p := probe.Probe{From: from.NS, Proto: probe.TCP}
	port := uint16(80)
	if s.rand.IntN(2) == 0 {
		p.Proto, port = probe.UDP, 53
	}
	p.To = to.At(s.rand.IntN(2) == 0, port)
	return from, to, p
}

// checkProbes tries new connections, and opens flows to keep.
func (s *soak) checkProbes() {
	policy := s.expected()
	var probes []probe.Probe
	var sources []lab.Place
	var want []bool
	for range probesPerTurn {
		from, _, p := s.random()
		ok := allowed(policy, from, p)
		if ok {
			p.Wait = 5 * time.Second
		}
		probes, sources, want = append(probes, p), append(sources, from), append(want, ok)
	}
	results, err := s.lab.Probe(s.t.Context(), probes...)
	s.must(err)
	for i, r := range results {
		s.counts.probes++
		switch got := r.Outcome == probe.Reached; {
		case (got || r.Connected) && !want[i]:
			s.counts.wrong++
			s.t.Errorf("%s reaches %s %v: %v", sources[i].Name, probes[i].To, probes[i].Proto, r)
		case !got && want[i]:
			s.counts.lost++
			s.t.Errorf("%s does not reach %s %v: %v", sources[i].Name, probes[i].To, probes[i].Proto, r)
		}
	}
	for range 4 {
		from, to, p := s.random()
		if len(s.flows) == mostFlows || from.Name == to.Name || !allowed(policy, from, p) {
			continue
		}
		p.Wait = 5 * time.Second
		f, r, err := probe.Open(s.t.Context(), p)
		s.must(err)
		if f == nil {
			s.counts.lost++
			s.t.Errorf("flow %s to %s: %v", from.Name, p.To, r)
			continue
		}
		s.flows = append(s.flows, flow{f, from, to, p})
	}
}

// checkLeaks compares what the agent of node two holds with what it held before, and the kernel's cache with policy.
func (s *soak) checkLeaks(first agents.Metrics) {
	last := s.metrics("two")
	for name, slack := range map[string]float64{
		"process_resident_memory_bytes": 48 << 20, "go_goroutines": 20, "process_open_fds": 20,
	} {
		before, now := first.Sum(name), last.Sum(name)
		s.t.Logf("%s: %.0f, then %.0f", name, before, now)
		if now > before+slack {
			s.t.Errorf("%s grew from %.0f to %.0f", name, before, now)
		}
	}
	layout, err := mark.New(mark.Default)
	s.must(err)
	for _, n := range s.lab.Nodes() {
		r, err := ruleset.Open(ruleset.Config{Mask: layout, NetNS: n.NS.FD()})
		s.must(err)
		held, err := r.Allowed()
		s.must(err)
		allows := s.onNode(n.Node)
		for _, tuple := range held {
			if !allows(tuple) {
				s.t.Errorf("%s: the cache admits %v", n.Name, tuple)
			}
		}
		s.t.Logf("%s: %d tuples cached", n.Name, len(held))
	}
}

// onNode tells what one node's agent allows; the other end of a connection is the other node's business.
func (s *soak) onNode(node string) func(ruleset.Tuple) bool {
	objects, problems := manifests.LoadKinds(state.ManifestKinds(), s.lab.Dir())
	s.must(problems.Err())
	changes, err := state.Of(objects)
	s.must(err)
	snapshot, _ := state.New(node).Apply(changes)
	evaluator := engine.NewEvaluator(1 << 10)
	return func(t ruleset.Tuple) bool {
		f := packet.Flow{Src: t.Src, Dst: t.Dst, DstPort: t.DstPort, Proto: t.Proto, Form: packet.Complete}
		if t.Proto == packet.ProtoTCP {
			f.TCPFlags = packet.FlagSYN
		}
		return evaluator.Judge(snapshot, &f, engine.Forward, true).Action == engine.Allow
	}
}
