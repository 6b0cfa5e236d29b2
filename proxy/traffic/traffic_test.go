package traffic

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestWorkload(t *testing.T) {
	for pod, want := range map[string]string{
		"web-7d9f8c6b5d-x7k2p": "web", "agent-x7k2p": "agent", "db-0": "db", "frontend-2": "frontend",
		"plain": "plain", "my-table": "my-table", "web-1-2": "web-1", "-1": "-1", "shop-front": "shop-front",
	} {
		if got := Workload("shop", pod); got != (Party{"shop", want}) {
			t.Errorf("%s: %v, want %s", pod, got, want)
		}
	}
}

func TestDenials(t *testing.T) {
	line := func(sec int, verdict, pod string, count int) []byte {
		return fmt.Appendf(nil, `{"time":"2026-01-02T12:00:%02dZ","node":"n1","verdict":"%s","direction":"ingress",`+
			`"reason":"no-rule-matches","proto":"tcp","src":{"ip":"10.0.1.1","port":40000,"namespace":"shop","pod":"%s"},`+
			`"dst":{"ip":"203.0.113.1","port":80,"namespace":"","pod":""},"policies":["NetworkPolicy/shop/db"],"count":%d}`,
			sec, verdict, pod, count)
	}
	var d Denials
	d.Line(line(1, "deny", "web-0", 2))
	d.Line(line(3, "deny", "web-1", 3))
	d.Line(line(2, "would-deny", "web-1", 1))
	d.Line([]byte("torn"))
	at := func(sec int) time.Time { return time.Date(2026, 1, 2, 12, 0, sec, 0, time.UTC) }
	web, outside := Party{"shop", "web"}, Party{Name: "203.0.113.1"}
	want := Graph{
		Edges: []Edge{
			{From: web, To: outside, Port: "80/TCP", Verdict: "deny", Count: 5, Last: at(3)},
			{From: web, To: outside, Port: "80/TCP", Verdict: "would-deny", Count: 1, Last: at(2)},
		},
		Policies: []Policy{{Name: "NetworkPolicy/shop/db", Denied: 5, Would: 1}},
	}
	if diff := cmp.Diff(want, d.Graph()); diff != "" {
		t.Error(diff)
	}

	// What other agents saw adds up, and what they admit.
	var s Sum
	s.Admitted(web, outside, "443/TCP", []string{"NetworkPolicy/shop/db"})
	s.Add(d.Graph())
	s.Add(d.Graph())
	g := s.Graph()
	if len(g.Edges) != 3 || g.Edges[0].Verdict != Allow || g.Edges[1].Count != 10 {
		t.Errorf("%+v", g.Edges)
	}
	policies := []Policy{{Name: "NetworkPolicy/shop/db", Admits: 1, Denied: 10, Would: 2}}
	if diff := cmp.Diff(policies, g.Policies); diff != "" {
		t.Error(diff)
	}
}

// TestBound: whoever sends packets to many addresses must not make the graph grow without end.
func TestBound(t *testing.T) {
	var s Sum
	for i := range MaxEdges + 10 {
		s.Admitted(Party{Name: "a"}, Party{Name: fmt.Sprint(i)}, "80/TCP", nil)
	}
	if g := s.Graph(); len(g.Edges) != MaxEdges || g.LeftOut != 10 {
		t.Errorf("%d edges, %d left out", len(g.Edges), g.LeftOut)
	}
}
