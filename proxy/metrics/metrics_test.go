package metrics

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/firstpacket/firstpacket/classify/source"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
	"github.com/firstpacket/firstpacket/policycache/state"
	"github.com/firstpacket/firstpacket/proxy/flowlog"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// everything are sources that have something to say for every metric.
func everything() Sources {
	var a, b Verdicts
	denied := engine.Verdict{
		Action: engine.Deny, Reason: engine.NoRuleMatches, Direction: engine.Ingress,
		Egress:  &engine.Decision{Allow: true, Tier: rule.Admin},
		Ingress: &engine.Decision{Tier: rule.Namespaced},
	}
	a.Count(&denied)
	b.Count(&denied)
	b.Count(&engine.Verdict{
		Action: engine.Allow, Reason: engine.AllowedByRule, Egress: &engine.Decision{Allow: true, Tier: rule.Baseline},
		Ingress: &engine.Decision{Allow: true},
	})
	b.Count(&engine.Verdict{Action: engine.Deny, Reason: engine.Malformed})
	a.Held.Add(3)
	a.Latency.Observe(30 * time.Microsecond)
	b.Latency.Observe(3 * time.Second)
	var changes Latency
	changes.Observe(4 * time.Millisecond)
	return Sources{
		Version: "v1", Features: "queue=native", Verdicts: []*Verdicts{&a, &b}, Changes: &changes,
		Queues: func() map[uint16]queue.Stats { return map[uint16]queue.Stats{7: {Packets: 9, Held: 2, HeldNow: 1}} },
		KernelQueues: func() ([]queue.KernelStats, error) {
			return []queue.KernelStats{{Number: 7, Waiting: 4, QueueDropped: 1}, {Number: 8, Waiting: 100}}, nil
		},
		Counters: func() (ruleset.Counters, error) { return ruleset.Counters{Queued: 5}, nil },
		State: func() State {
			return State{
				Generation: 3, Settled: 2, Tuples: 11, Ready: true,
				Policies: state.Census{
					{Dialect: rule.AlphaNetworkPolicy, Standing: state.Failing}: 1,
					{Dialect: rule.NetworkPolicy, Standing: state.Enforced}:     7,
				},
				Objects: map[string]int{"Pod": 6}, Failing: map[string]int{"Pod": 1},
			}
		},
		FlowLog: func() flowlog.Stats { return flowlog.Stats{Lines: 1} },
		Watches: func() []source.Health {
			return []source.Health{
				{Kind: "Pod", Synced: true, LastEvent: time.Unix(1000, 5e8)},
				{Kind: "Node", Synced: true, Err: errors.New("gone"), LastEvent: time.Unix(900, 0)},
				{Kind: "AdminNetworkPolicy", Absent: true, Synced: true},
			}
		},
	}
}

// scrape is the text that Prometheus reads, from a registry that checks every sample.
func scrape(t *testing.T, s Sources) string {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(NewCollector(s))
	w := httptest.NewRecorder()
	promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}).
		ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestConventions(t *testing.T) {
	problems, err := promlint.New(strings.NewReader(scrape(t, everything()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestEveryMetric holds the table of metrics to what is collected.
func TestEveryMetric(t *testing.T) {
	var got []string
	for line := range strings.Lines(scrape(t, everything())) {
		if f := strings.Fields(line); f[1] == "TYPE" {
			got = append(got, f[2])
		}
	}
	want := slices.Sorted(slices.Values(Names()))
	if !slices.Equal(got, want) {
		t.Errorf("collected %q\nwant %q", got, want)
	}
}

func TestValues(t *testing.T) {
	text := scrape(t, everything())
	for name, want := range map[string][]string{
		"cached_tuples": {"firstpacket_cached_tuples 11"},
		"policies": {
			`firstpacket_policies{dialect="NetworkPolicy",state="enforced"} 7`,
			`firstpacket_policies{dialect="NetworkPolicy.v1alpha1",state="failing"} 1`,
		},
		"queue_waiting_packets": {`firstpacket_queue_waiting_packets{queue="7"} 4`},
		"verdicts_total": {
			`firstpacket_verdicts_total{direction="",reason="allowed-by-rule",tier="baseline",verdict="allow"} 1`,
			`firstpacket_verdicts_total{direction="",reason="awaiting-endpoint",tier="",verdict="hold"} 3`,
			`firstpacket_verdicts_total{direction="",reason="malformed",tier="",verdict="deny"} 1`,
			`firstpacket_verdicts_total{direction="ingress",reason="no-rule-matches",tier="networkpolicy",verdict="deny"} 2`,
		},
		"watch_last_event_timestamp_seconds": {
			`firstpacket_watch_last_event_timestamp_seconds{kind="Node"} 900`,
			`firstpacket_watch_last_event_timestamp_seconds{kind="Pod"} 1000.5`,
		},
		"watch_up": {`firstpacket_watch_up{kind="Node"} 0`, `firstpacket_watch_up{kind="Pod"} 1`},
	} {
		if got := samples(text, prefix+name); !slices.Equal(got, want) {
			t.Errorf("%q\nwant %q", got, want)
		}
	}
}

// samples are the lines of a metric.
func samples(text, name string) []string {
	var found []string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok && strings.ContainsAny(rest[:1], " {") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// TestKernelOutOfReach: what cannot be read is left out of a scrape, and takes nothing else with it.
func TestKernelOutOfReach(t *testing.T) {
	s := everything()
	s.KernelQueues = func() ([]queue.KernelStats, error) { return nil, errors.New("no") }
	s.Counters = func() (ruleset.Counters, error) { return ruleset.Counters{}, ruleset.ErrNotInstalled }
	text := scrape(t, s)
	for name, want := range map[string]int{
		"firstpacket_queue_waiting_packets": 0, "firstpacket_kernel_packets_total": 0, "firstpacket_queue_packets_total": 1,
	} {
		if n := len(samples(text, name)); n != want {
			t.Errorf("%d samples of %s, want %d", n, name, want)
		}
	}
}

func TestHistogram(t *testing.T) {
	var a, b Latency
	a.Observe(-time.Second) // a clock that went back
	a.Observe(time.Microsecond)
	a.Observe(1500 * time.Microsecond)
	b.Observe(time.Minute)
	count, sum, buckets := histogram([]*Latency{&a, &b})
	if count != 4 || sum < 60.0015 || sum > 60.0016 {
		t.Errorf("count %d, sum %v", count, sum)
	}
	for bound, want := range map[float64]uint64{1e-6: 2, 1e-3: 2, 2e-3: 3, 2: 3} {
		if buckets[bound] != want {
			t.Errorf("%d up to %v s, want %d", buckets[bound], bound, want)
		}
	}
}

func TestReasonsFit(t *testing.T) {
	for r := range engine.Reasons {
		if r >= maxReason {
			t.Errorf("reason %s is beyond the counters", r)
		}
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	var c Verdicts
	v := engine.Verdict{Action: engine.Deny, Direction: engine.Egress, Egress: &engine.Decision{Tier: rule.Admin}}
	if n := testing.AllocsPerRun(1000, func() {
		c.Count(&v)
		c.Latency.Observe(time.Millisecond)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
