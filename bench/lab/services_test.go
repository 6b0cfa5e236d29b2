package lab_test

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/probe"
)

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
