package engine

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/firstpacket/firstpacket/classify/cluster"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func (w *world) wantDelta(t *testing.T, what string, affected []netip.Addr, subjects ...Subject) {
	t.Helper()
	generation := w.snap.Generation()
	d := w.commit()
	if d == nil {
		d = &Delta{}
	}
	if !slices.Equal(d.Affected, affected) {
		t.Errorf("%s: affected %v, want %v", what, d.Affected, affected)
	}
	if !slices.Equal(d.Subjects, subjects) {
		t.Errorf("%s: subjects %v, want %v", what, d.Subjects, subjects)
	}
	if grown := w.snap.Generation() > generation; grown != (len(affected) > 0) {
		t.Errorf("%s: generation went from %d to %d", what, generation, w.snap.Generation())
	}
}

func TestDeltaTellsWhoIsAffected(t *testing.T) {
	w := newWorld(t, "n1")
	one := netip.MustParseAddr("10.0.1.1")
	pod := func(app string, ports *cluster.Ports) {
		w.add(podEndpoint("n1", "a", "one", labels("app", app), ports, "10.0.1.1"))
	}
	pod("x", nil)
	w.add(podEndpoint("n2", "a", "far", labels("app", "x"), nil, "10.0.2.1"))
	w.wantDelta(t, "new pods", addrs("10.0.1.1", "10.0.2.1"), Subject{Addr: one, Present: true})
	w.wantDelta(t, "nothing", nil)

	w.SetPolicy(w.netpol("a", "np", rules(), nil))
	w.wantDelta(t, "isolated", addrs("10.0.1.1"), Subject{Addr: one, Present: true, Ingress: true})
	w.SetPolicy(w.netpol("a", "np", rules(), nil))
	w.wantDelta(t, "the same policy", nil)
	w.SetPolicy(w.netpol("a", "np", rules(rule.Rule{}), nil))
	w.wantDelta(t, "another rule", addrs("10.0.1.1"))
	w.SetPolicy(w.netpol("b", "np", rules(), rules()))
	w.wantDelta(t, "a policy elsewhere", nil)
	w.SetPolicy(w.netpol("a", "np2", nil, rules()))
	w.wantDelta(t, "the other direction", addrs("10.0.1.1"),
		Subject{Addr: one, Present: true, Ingress: true, Egress: true})

	pod("y", nil)
	w.wantDelta(t, "other labels", addrs("10.0.1.1"))
	pod("y", cluster.InternPorts([]cluster.NamedPort{{Name: "http", Proto: 6, Port: 80}}))
	w.wantDelta(t, "other named ports", addrs("10.0.1.1"))
	w.add(podEndpoint("n2", "a", "far", labels("app", "z"), nil, "10.0.2.1"))
	w.wantDelta(t, "a remote pod's labels", addrs("10.0.2.1"))

	w.DeletePolicy(rule.Ref{Dialect: rule.NetworkPolicy, Namespace: "a", Name: "np"})
	w.wantDelta(t, "a policy less", addrs("10.0.1.1"), Subject{Addr: one, Present: true, Egress: true})
	w.DeletePolicy(rule.Ref{Dialect: rule.NetworkPolicy, Namespace: "a", Name: "np2"})
	w.wantDelta(t, "no policy", addrs("10.0.1.1"), Subject{Addr: one, Present: true})
	w.drop(podEndpoint("n1", "a", "one", labels(), nil, "10.0.1.1"))
	w.wantDelta(t, "gone", addrs("10.0.1.1"), Subject{Addr: one})

	w.SetPodCIDRs(prefixes("10.0.0.0/16"), nil)
	if d := w.commit(); d == nil || !d.Ranges {
		t.Errorf("new pod CIDRs: %+v", d)
	}
	w.SetPodCIDRs(prefixes("10.0.0.0/16"), nil)
	if d := w.commit(); d != nil {
		t.Errorf("the same pod CIDRs: %+v", d)
	}
}

func TestARestartedTwinAffectsNobody(t *testing.T) {
	w := newWorld(t, "n1")
	w.SetPolicy(w.netpol("a", "np", rules(), nil))
	old := podEndpoint("n1", "a", "one", labels("app", "x"), nil, "10.0.1.1")
	w.add(old)
	w.commit()
	before := w.Work()
	w.drop(old)
	w.add(podEndpoint("n1", "a", "two", labels("app", "x"), nil, "10.0.1.1"))
	w.wantDelta(t, "twin", nil)
	if name := w.snap.Endpoint(netip.MustParseAddr("10.0.1.1")).Name; name != "two" {
		t.Errorf("the snapshot has %s", name)
	}
	if now := w.Work(); now.Matches != before.Matches || now.Programs != before.Programs {
		t.Errorf("work went from %+v to %+v", before, now)
	}
}

// TestWorkIsInProportionToTheChange counts, in clusters of any size.
func TestWorkIsInProportionToTheChange(t *testing.T) {
	for _, size := range []struct{ policies, pods int }{{100, 1000}, {2000, 10_000}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			w, _, _ := big(t, size.policies, size.pods)
			spent := func(change func()) Work {
				before := w.Work()
				change()
				w.commit()
				now := w.Work()
				return Work{now.Matches - before.Matches, now.Programs - before.Programs, now.Entries - before.Entries}
			}
			// Node n0 has the 100 pods of namespace ns0, in ten identities.
			inside := w.netpol("ns0", "new", rules(), nil, "app", "app3")
			if got, want := spent(func() { w.SetPolicy(inside) }), (Work{10, 1, 10}); got != want {
				t.Errorf("a policy for ten local pods: %+v, want %+v", got, want)
			}
			if got, want := spent(func() { w.DeletePolicy(inside.Ref) }), (Work{0, 1, 10}); got != want {
				t.Errorf("removing it: %+v, want %+v", got, want)
			}
			outside := w.netpol("ns5", "new", rules(), rules())
			if got, want := spent(func() { w.SetPolicy(outside) }), (Work{}); got != want {
				t.Errorf("a policy for pods of other nodes: %+v, want %+v", got, want)
			}
			far := podEndpoint("n5", "ns5", "new", labels("app", "new"), nil, "10.200.0.1")
			if got, want := spent(func() { w.add(far) }), (Work{Entries: 1}); got != want {
				t.Errorf("a remote pod: %+v, want %+v", got, want)
			}
			twin := podEndpoint("n0", "ns0", "new", labels("app", "app3"), nil, "10.200.0.2")
			if got, want := spent(func() { w.add(twin) }), (Work{Entries: 1}); got != want {
				t.Errorf("a local pod like others: %+v, want %+v", got, want)
			}
		})
	}
}

func TestPodsUnderTheSamePoliciesShareAProgram(t *testing.T) {
	w := newWorld(t, "n1")
	w.add(podEndpoint("n1", "a", "one", labels("app", "x"), nil, "10.0.1.1"),
		podEndpoint("n1", "a", "two", labels("app", "y"), nil, "10.0.1.2"))
	w.SetPolicy(w.netpol("a", "np", rules(), nil))
	w.commit()
	a, _ := w.snap.table.Lookup(netip.MustParseAddr("10.0.1.1"))
	b, _ := w.snap.table.Lookup(netip.MustParseAddr("10.0.1.2"))
	if a.ingress == nil || a.ingress != b.ingress || a.egress != nil {
		t.Errorf("%+v, %+v", a, b)
	}
	w.DeletePolicy(rule.Ref{Dialect: rule.NetworkPolicy, Namespace: "a", Name: "np"})
	w.commit()
	if len(w.programs) != 0 {
		t.Errorf("%d programs are kept that nobody uses", len(w.programs))
	}
	w.drop(podEndpoint("n1", "a", "one", labels(), nil, "10.0.1.1", "10.0.1.2"))
	w.commit()
	if len(w.groups)+len(w.namespaces) > 0 {
		t.Errorf("%d groups and %d namespaces are kept without pods", len(w.groups), len(w.namespaces))
	}
}

func TestSnapshotsDoNotChange(t *testing.T) {
	w := newWorld(t, "n1")
	w.add(podEndpoint("n1", "a", "one", labels("app", "x"), nil, "10.0.1.1"))
	w.SetPolicy(w.netpol("a", "np", rules(), nil))
	w.commit()
	old, f := w.snap, syn("8.8.8.8", "10.0.1.1", 80)
	want := w.ev.Judge(old, &f, Forward, false)
	w.DeletePolicy(rule.Ref{Dialect: rule.NetworkPolicy, Namespace: "a", Name: "np"})
	w.add(podEndpoint("n1", "a", "two", labels(), nil, "10.0.1.2"))
	for i := range 200 {
		w.add(podEndpoint("n2", "a", fmt.Sprint(i), labels(), nil, fmt.Sprintf("10.0.2.%d", i)))
		w.commit()
	}
	if got := w.ev.Judge(old, &f, Forward, false); !reflect.DeepEqual(got, want) {
		t.Errorf("the old snapshot now says %+v, not %+v", got, want)
	}
	if v := w.judge(f, Forward, false); v.Action != Allow {
		t.Errorf("the new one says %+v", v)
	}
	if n := len(slices.Collect(old.Subjects())); n != 1 {
		t.Errorf("the old snapshot has %d subjects", n)
	}
}

// TestSnapshotsServeManyThreads is for the race detector: one Model commits while evaluators judge.
func TestSnapshotsServeManyThreads(t *testing.T) {
	w := allocWorld(t)
	snaps := make(chan *Snapshot, 64)
	done := make(chan uint64)
	for range 4 {
		go func() {
			ev := NewEvaluator(8)
			for s := range snaps {
				for _, c := range warmFlows() {
					ev.Judge(s, &c.flow, c.hook, c.held)
				}
			}
			done <- ev.Stats().Verdicts
		}()
	}
	for i := range 200 {
		port := uint16(i)
		w.SetPolicy(w.netpol("a", "np", rules(rule.Rule{Ports: tcpPorts(port, port)}), rules()))
		snaps <- w.snap
		w.commit()
	}
	close(snaps)
	var total uint64
	for range 4 {
		total += <-done
	}
	if want := uint64(200 * len(warmFlows())); total != want {
		t.Errorf("%d verdicts, want %d", total, want)
	}
}
