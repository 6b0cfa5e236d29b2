package overview

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/policycache/term"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const status = `{
  "node": "n1", "version": "v1.2.3", "kernel": "6.18.5", "features": "queue=native limit=yes",
  "started": "2026-01-02T09:00:00Z", "denyWith": "reject", "failOpen": true, "markMask": "0x3f000000",
  "queueLimit": 4096, "generation": 9, "settled": 8, "applied": {"Pod": "1207", "Node": "1200"},
  "appliedAt": "2026-01-02T11:59:00Z", "policies": 3, "dialects": {"NetworkPolicy": 2, "ClusterNetworkPolicy": 1},
  "tuples": 17, "revokedFlows": 2, "repairs": 1,
  "settleSeconds": 0.0123, "problems": {"NetworkPolicy/shop/db": ["spec.ingress[0]: is wrong"]},
  "errors": ["the last thing that failed"],
  "warnings": [
    {"message": "the last good state stays in force", "about": {"kind": "Node"}, "error": "watch nodes: is gone",
     "count": 12, "first": "2026-01-02T11:58:00Z", "last": "2026-01-02T11:59:57Z"},
    {"message": "somebody changed the table", "count": 1, "first": "2026-01-02T11:00:00Z",
     "last": "2026-01-02T11:00:00Z"}
  ],
  "sources": [
    {"kind": "Pod", "objects": 40, "synced": true, "lastEvent": "2026-01-02T11:59:58Z"},
    {"kind": "Node", "objects": 2, "failing": 1, "synced": true, "lastEvent": "2026-01-02T11:59:58Z",
     "error": "is gone", "errorSince": "2026-01-02T11:58:00Z"},
    {"kind": "ClusterNetworkPolicy", "objects": 0, "absent": true},
    {"kind": "Namespace", "objects": 0}
  ]
}`

const metrics = `# TYPE firstpacket_verdicts_total counter
firstpacket_verdicts_total{verdict="allow",direction="",reason="allowed-by-rule"} 100
firstpacket_verdicts_total{verdict="deny",direction="ingress",reason="no-rule-matches"} 4
firstpacket_verdicts_total{verdict="deny",direction="egress",reason="no-rule-matches"} 1
# TYPE firstpacket_verdict_seconds histogram
firstpacket_verdict_seconds_bucket{le="0.00005"} 60
firstpacket_verdict_seconds_bucket{le="0.0001"} 104
firstpacket_verdict_seconds_bucket{le="+Inf"} 105
firstpacket_verdict_seconds_sum 0.01
firstpacket_verdict_seconds_count 105
# TYPE firstpacket_kernel_packets_total counter
firstpacket_kernel_packets_total{outcome="queued"} 105
firstpacket_kernel_packets_total{outcome="admitted"} 100
firstpacket_kernel_packets_total{outcome="cached"} 315
firstpacket_kernel_packets_total{outcome="unlearnt"} 2
# TYPE firstpacket_cached_tuples_limit gauge
firstpacket_cached_tuples_limit 65536
# TYPE firstpacket_queue_packets_total counter
firstpacket_queue_packets_total{queue="2016"} 105
# TYPE firstpacket_queue_dropped_packets_total counter
firstpacket_queue_dropped_packets_total{queue="2016",at="socket"} 1
# TYPE firstpacket_queue_waiting_packets gauge
firstpacket_queue_waiting_packets{queue="2016"} 3
# TYPE firstpacket_queue_held_packets gauge
firstpacket_queue_held_packets{queue="2016"} 2
# TYPE firstpacket_queue_holds_total counter
firstpacket_queue_holds_total{queue="2016"} 9
# TYPE firstpacket_queue_hold_expired_total counter
firstpacket_queue_hold_expired_total{queue="2016"} 1
# TYPE firstpacket_queue_hold_full_total counter
firstpacket_queue_hold_full_total{queue="2016"} 4
# TYPE firstpacket_flow_log_write_errors_total counter
firstpacket_flow_log_write_errors_total 6
# TYPE firstpacket_flow_log_lines_total counter
firstpacket_flow_log_lines_total 5
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 3.5651584e+07
# TYPE go_goroutines gauge
go_goroutines 10
`

// serve answers paths with texts.
func serve(t *testing.T, answers map[string]string) (*http.Client, url.URL) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, ok := answers[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	base, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return srv.Client(), *base
}

func TestScreen(t *testing.T) {
	client, base := serve(t, map[string]string{"/status": status, "/metrics": metrics})
	o, err := Fetch(t.Context(), client, base)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	var plain, coloured strings.Builder
	err = errors.Join(o.WriteText(&plain, term.Style{}, now), o.WriteText(&coloured, term.Style{Colour: true}, now))
	if err != nil {
		t.Fatal(err)
	}
	want := `node        n1, enforcing
agent       version v1.2.3, up 3h0m0s, 34 MiB resident
kernel      6.18.5, features queue=native limit=yes, marks 0x3f000000
mode        denied packets are rejected; while no agent runs, new connections of isolated pods pass
generation  9 for 1m0s, what was admitted before is at 8 (took 12.3ms)
policies    3, 1 with problems, ClusterNetworkPolicy 1, NetworkPolicy 2
              NetworkPolicy/shop/db: spec.ingress[0]: is wrong
cache       17 tuples in the kernel, of 65536 for each address family; it admitted 75% of new flows; no room for 2
flows       2 revoked, 0 restored by changes; table repaired 1 times
packets     admitted 100, cached 315, queued 105, unlearnt 2
verdicts    allow 100, deny 5, hold 0; half within 50µs, 99% within 100µs
              deny egress no-rule-matches 1
              deny ingress no-rule-matches 4
flow log    5 lines, 0 packets not logged, 6 failed writes
queues      2016: 105 packets, 3 of 4096 waiting, 2 held (9 ever, 1 in vain, no room for 4), 1 dropped, 0 errors
sources     Pod: 40, version 1207, heard of 2s ago
            Node: 2, version 1200, heard of 2s ago, failing for 2m0s: is gone, 1 not understood
            ClusterNetworkPolicy: not served
            Namespace: not all known yet
errors      now: the last thing that failed
            3s ago, 12 times: the last good state stays in force (kind Node): watch nodes: is gone
            1h0m0s ago, once: somebody changed the table
`
	if d := cmp.Diff(want, plain.String()); d != "" {
		t.Error(d)
	}
	if !strings.Contains(coloured.String(), "\x1b[31m1 dropped") || strings.Contains(plain.String(), "\x1b") {
		t.Errorf("%q", coloured.String())
	}
}

func TestJSON(t *testing.T) {
	client, base := serve(t, map[string]string{"/status": status, "/metrics": metrics})
	o, err := Fetch(t.Context(), client, base)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := o.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Status         struct{ Generation int }
		VerdictSeconds map[string]float64
		Metrics        map[string][]struct {
			Labels map[string]string
			Value  float64
		}
	}
	if err := json.Unmarshal([]byte(b.String()), &got); err != nil {
		t.Fatal(err)
	}
	if got.Status.Generation != 9 || len(got.Metrics["verdicts_total"]) != 3 || got.Metrics["go_goroutines"] != nil {
		t.Errorf("%+v", got)
	}
	if d := cmp.Diff(map[string]float64{"p50": 0.00005, "p99": 0.0001}, got.VerdictSeconds); d != "" {
		t.Error(d)
	}
}

func TestQuietAgent(t *testing.T) {
	client, base := serve(t, map[string]string{"/status": `{"node":"n1","notReady":"starting"}`, "/metrics": ""})
	o, err := Fetch(t.Context(), client, base)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := errors.Join(o.WriteText(&b, term.Style{}, time.Now()), o.WriteJSON(io.Discard)); err != nil {
		t.Fatal(err)
	}
	screen := b.String()
	if o.Ready() || !strings.Contains(screen, "NOT READY: starting") ||
		!strings.Contains(screen, "errors      none since the start") {
		t.Error(screen)
	}
}

func TestNoAgent(t *testing.T) {
	for name, answers := range map[string]map[string]string{
		"nothing there":   {},
		"no JSON":         {"/status": "<html>"},
		"other JSON":      {"/status": `{"status":"UP"}`},
		"half of it":      {"/status": status},
		"strange metrics": {"/status": status, "/metrics": "{{{"},
	} {
		client, base := serve(t, answers)
		_, err := Fetch(t.Context(), client, base)
		if err == nil || name != "strange metrics" && !errors.Is(err, ErrNoAgent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	nobody := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	if _, err := Fetch(t.Context(), http.DefaultClient, nobody); !errors.Is(err, ErrNoAgent) {
		t.Error(err)
	}
	if _, err := Fetch(t.Context(), http.DefaultClient, url.URL{Scheme: "http", Host: "a b"}); err == nil {
		t.Error("an address with a space")
	}
}

// TestThroughProxy: what an API server in between says is told.
func TestThroughProxy(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/x/proxy/status" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		http.Error(w, `{"kind":"Status","message":"pods is forbidden"}`, http.StatusForbidden)
	}))
	defer srv.Close()
	base, err := url.Parse(srv.URL + "/api/v1/x/proxy/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = Fetch(t.Context(), srv.Client(), *base); !errors.Is(err, ErrNoAgent) ||
		!strings.HasSuffix(err.Error(), "403 Forbidden: pods is forbidden") {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	client, base := serve(t, map[string]string{"/status": status, "/metrics": metrics})
	troubled, err := Fetch(t.Context(), client, base)
	if err != nil {
		t.Fatal(err)
	}
	client, base = serve(t, map[string]string{"/status": `{"node":"n2","notReady":"starting"}`, "/metrics": ""})
	starting, err := Fetch(t.Context(), client, base)
	if err != nil {
		t.Fatal(err)
	}
	table := Table{{Name: "n1", Overview: troubled}, {Name: "n2", Overview: starting}, {Name: "n3", Err: ErrNoAgent}}
	now := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	var plain, coloured, asJSON strings.Builder
	if err := errors.Join(table.WriteText(&plain, term.Style{}, now),
		table.WriteText(&coloured, term.Style{Colour: true}, now), table.WriteJSON(&asJSON)); err != nil {
		t.Fatal(err)
	}
	want := `NODE  VERSION  UP            GENERATION  POLICIES  PROBLEMS  CACHED  DENIED  DROPPED  STATE
n1    v1.2.3   3h0m0s        9           3         1         17      5       1        enforcing; 3s ago: ` +
		`the last good state stays in force (kind Node): watch nodes: is gone
n2             unknown time  0           0         0         0       0       0        NOT READY: starting
n3    -        -             -           -         -         -       -       -        NO ANSWER: no agent answers
`
	if d := cmp.Diff(want, plain.String()); d != "" {
		t.Error(d)
	}
	if !strings.Contains(coloured.String(), "\x1b[31mNOT READY") || strings.Contains(plain.String(), "\x1b") {
		t.Errorf("%q", coloured.String())
	}
	var list []struct {
		Name, Error string
		Status      *struct{ Node string }
	}
	if err := json.Unmarshal([]byte(asJSON.String()), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 3 || list[0].Status.Node != "n1" || list[2].Error == "" || list[2].Status != nil {
		t.Errorf("%s", asJSON.String())
	}
	if table.Ready() || table.Err() != nil || !(table[:1]).Ready() || !errors.Is(table[2:].Err(), ErrNoAgent) {
		t.Error("the state of all")
	}
}
