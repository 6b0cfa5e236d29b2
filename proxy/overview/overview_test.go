package overview

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/firstpacket/firstpacket/policycache/term"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const status = `{
  "node": "n1", "version": "v1.2.3", "features": "queue expression", "generation": 9, "settled": 8,
  "appliedAt": "2026-01-02T11:59:00Z", "policies": 3, "tuples": 17, "revokedFlows": 2, "repairs": 1,
  "settleSeconds": 0.0123, "problems": {"NetworkPolicy/shop/db": ["spec.ingress[0]: is wrong"]},
  "errors": ["the last thing that failed"],
  "sources": [
    {"kind": "Pod", "objects": 40, "synced": true, "lastEvent": "2026-01-02T11:59:58Z"},
    {"kind": "Node", "objects": 2, "failing": 1, "synced": true, "lastEvent": "2026-01-02T11:59:58Z",
     "error": "is gone"},
    {"kind": "ClusterNetworkPolicy", "objects": 0}
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
firstpacket_kernel_packets_total{outcome="admitted"} 300
# TYPE firstpacket_queue_packets_total counter
firstpacket_queue_packets_total{queue="2016"} 105
# TYPE firstpacket_queue_dropped_packets_total counter
firstpacket_queue_dropped_packets_total{queue="2016",at="socket"} 1
# TYPE firstpacket_flow_log_lines_total counter
firstpacket_flow_log_lines_total 5
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 3.5651584e+07
# TYPE go_goroutines gauge
go_goroutines 10
`

// serve answers paths with texts.
func serve(t *testing.T, answers map[string]string) (*http.Client, string) {
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
	return srv.Client(), strings.TrimPrefix(srv.URL, "http://")
}

func TestScreen(t *testing.T) {
	client, address := serve(t, map[string]string{"/status": status, "/metrics": metrics})
	o, err := Fetch(t.Context(), client, address)
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
agent       version v1.2.3, 34 MiB resident
kernel      queue expression
generation  9 for 1m0s, what was admitted before is at 8 (took 12.3ms)
policies    3, 1 with problems
              NetworkPolicy/shop/db: spec.ingress[0]: is wrong
cache       17 tuples in the kernel; flows revoked 2, restored 0; table repaired 1 times
packets     admitted 300, queued 105
verdicts    allow 100, deny 5, hold 0; half within 50µs, 99% within 100µs
              deny egress no-rule-matches 1
              deny ingress no-rule-matches 4
flow log    5 lines, 0 packets not logged
queues      2016: 105 packets, 0 waiting, 0 held, 1 dropped, 0 errors
sources     Pod: 40, heard of 2s ago
            Node: 2, is gone, 1 not understood
            ClusterNetworkPolicy: 0, not there
errors      the last thing that failed
`
	if d := cmp.Diff(want, plain.String()); d != "" {
		t.Error(d)
	}
	if !strings.Contains(coloured.String(), "\x1b[31m1 dropped") || strings.Contains(plain.String(), "\x1b") {
		t.Errorf("%q", coloured.String())
	}
}

func TestJSON(t *testing.T) {
	client, address := serve(t, map[string]string{"/status": status, "/metrics": metrics})
	o, err := Fetch(t.Context(), client, address)
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
	client, address := serve(t, map[string]string{"/status": `{"node":"n1","notReady":"starting"}`, "/metrics": ""})
	o, err := Fetch(t.Context(), client, address)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := errors.Join(o.WriteText(&b, term.Style{}, time.Now()), o.WriteJSON(io.Discard)); err != nil {
		t.Fatal(err)
	}
	screen := b.String()
	if o.Ready() || !strings.Contains(screen, "NOT READY: starting") || !strings.Contains(screen, "errors      none") {
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
		client, address := serve(t, answers)
		_, err := Fetch(t.Context(), client, address)
		if err == nil || name != "strange metrics" && !errors.Is(err, ErrNoAgent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Fetch(t.Context(), http.DefaultClient, "127.0.0.1:1"); !errors.Is(err, ErrNoAgent) ||
		!strings.Contains(err.Error(), "--http-address") {
		t.Error(err)
	}
	if _, err := Fetch(t.Context(), http.DefaultClient, "a b"); err == nil {
		t.Error("an address with a space")
	}
}
