package build

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// agents are those of the lab's shop.
var agents = []string{"node-a", "node-b"}

// live is a lab with real agents and real packets, and a Prometheus that has scraped them.
type live struct {
	*testing.T
	manifests, sockets string
	lines              <-chan string
	series             map[string]*promql.Series // what was scraped, by its labels
	engine             *promql.Engine
	now                time.Time
	lab                *exec.Cmd
}

// TestLive has Prometheus evaluate every query of the dashboard and every alert over what real agents say: connections
// were allowed, denied and known to the kernel, and policy changed. Each panel shows finite numbers, and the right ones
// where they are known. No alert fires while all is well, and one does when the agents are gone.
func TestLive(t *testing.T) {
	l := startLive(t)
	l.wait("Edit, add or remove manifests")
	l.scrape()
	l.write("nobody", `{podSelector: {}, policyTypes: [Ingress, Egress]}`)
	l.wait("IPv6: outside/customer -> kube-system/dns 53: now no")
	l.scrape()

	t.Run("panels", func(t *testing.T) { l.panels(t) })
	if firing := l.firing(); len(firing) > 0 {
		t.Errorf("alerts fire while all is well: %v", firing)
	}
	l.stop()
	l.scrape()
	if firing := l.firing(); !slices.Contains(firing, "FirstpacketDown") {
		t.Errorf("without agents, these alerts fire: %v", firing)
	}
}

// known are the numbers of panels that have one series, after the second scrape.
var known = map[string]float64{
	"Agents that enforce": 2, "Agents that do not": 0, "Policies": 7, "Policies with problems": 0,
	"Watches that fail": 0, "Packets dropped unseen (1 h)": 0, "Versions": 2,
}

// moving are panels in which something must be more than nothing.
var moving = []string{
	"New connections by outcome", "Denied, by reason", "Kernel cache hit rate", "Time to verdict",
	"Time from change to obedience", "Established connections cut and restored", "Packets judged", "Cached tuples",
	"Objects", "Silence of watches", "Processor time", "Memory", "Flow log",
}

// panels looks at what each panel shows.
func (l *live) panels(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range dashboard(t) {
		if p.Type == "row" {
			continue
		}
		seen[p.Title] = true
		most, series := math.Inf(-1), 0
		for _, target := range p.Targets {
			for _, s := range l.query(fill(target.Expr)) {
				series++
				if math.IsNaN(s.F) || math.IsInf(s.F, 0) || s.F < 0 {
					t.Errorf("%s: %s is %v", p.Title, s.Metric, s.F)
				}
				most = max(most, s.F)
			}
		}
		want, single := known[p.Title]
		switch {
		// What cannot be read has no series while there is none.
		case series == 0 && p.Title != "Objects that cannot be read":
			t.Errorf("%s shows nothing", p.Title)
		case single && (series != 1 || most != want):
			t.Errorf("%s shows %v in %d series, want %v", p.Title, most, series, want)
		case slices.Contains(moving, p.Title) && most <= 0:
			t.Errorf("%s shows %v at most", p.Title, most)
		case p.Title == "Kernel cache hit rate" && most > 1, p.Title == "Time to verdict" && most > 10,
			p.Title == "Silence of watches" && most > 600:
			t.Errorf("%s shows %v", p.Title, most)
		}
		t.Logf("%-45s %d series, at most %.4g", p.Title, series, most)
	}
	for _, title := range append(slices.Collect(maps.Keys(known)), moving...) {
		if !seen[title] {
			t.Errorf("no panel %q", title)
		}
	}
}

// fill fills in Grafana's variables as the dashboard does with all agents chosen.
func fill(expr string) string {
	return strings.NewReplacer("$__rate_interval", "2m", "$job", "firstpacket", "$instance", "(node-a|node-b)").
		Replace(expr)
}

// firing are the alerts whose expression has a result now.
func (l *live) firing() []string {
	l.Helper()
	raw, err := os.ReadFile("../alerts/firstpacket.yaml")
	if err != nil {
		l.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		l.Fatal(err)
	}
	var names []string
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			if len(l.query(r.Expr)) > 0 {
				names = append(names, r.Alert)
			}
		}
	}
	return names
}

func (l *live) query(expr string) promql.Vector {
	l.Helper()
	q, err := l.engine.NewInstantQuery(l.Context(), l, nil, expr, l.now)
	if err != nil {
		l.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	vector, err := q.Exec(l.Context()).Vector()
	if err != nil {
		l.Fatalf("%s: %v", expr, err)
	}
	return slices.Clone(vector)
}

// startLive starts the lab and an empty Prometheus.
func startLive(t *testing.T) *live {
	t.Helper()
	program := os.Getenv("FIRSTPACKET_BINARY")
	if program == "" {
		program = "../../bin/firstpacket"
	}
	l := &live{T: t, now: time.Now(), series: map[string]*promql.Series{}, manifests: filepath.Join(t.TempDir(), "shop")}
	var err error
	if l.sockets, err = os.MkdirTemp("", "live"); err != nil { //nolint:usetesting // paths of sockets are short
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(l.sockets) })
	l.engine = promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: promqlParser})
	t.Cleanup(func() {
		if err := l.engine.Close(); err != nil {
			t.Error(err)
		}
	})
	l.lab = exec.Command(program, "lab", "--watch", "--dir", l.manifests, "--sockets", l.sockets)
	l.lab.Stderr = os.Stderr
	out, err := l.lab.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.lab.Start(); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	t.Cleanup(l.stop)
	lines := make(chan string, 10000)
	l.lines = lines
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return l
}

// stop ends the lab. Its exit status is its own verdict on what was observed, policy being changed meanwhile.
func (l *live) stop() {
	if l.lab.ProcessState != nil {
		return
	}
	_ = l.lab.Process.Signal(unix.SIGTERM) // it may have ended
	for range l.lines {                    // to the end
	}
	if err := l.lab.Wait(); err != nil {
		l.Errorf("the lab ends with %v", err)
	}
}

// wait waits until the lab prints a line with the text.
func (l *live) wait(text string) {
	l.Helper()
	tooLong := time.After(time.Minute)
	for {
		select {
		case line, more := <-l.lines:
			if !more {
				l.Fatalf("the lab has ended without %q", text)
			}
			if strings.Contains(line, text) {
				return
			}
		case <-tooLong:
			l.Fatalf("the lab does not print %q", text)
		}
	}
}

// write adds a policy to the cluster.
func (l *live) write(name, spec string) {
	l.Helper()
	text := fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, "+
		"metadata: {name: %s, namespace: kube-system}, spec: %s}\n", name, spec)
	if err := os.WriteFile(filepath.Join(l.manifests, name+".yaml"), []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
}

// scrape takes the metrics of all agents, a minute after the time before as far as Prometheus knows.
func (l *live) scrape() {
	l.Helper()
	l.now = l.now.Add(time.Minute)
	for _, agent := range agents {
		families, err := l.metrics(agent)
		up := 1.0
		if err != nil {
			up = 0
		}
		l.add(agent, model.MetricNameLabel, "up", nil, up)
		for name, f := range families {
			for _, m := range f.GetMetric() {
				l.addMetric(agent, name, m)
			}
		}
	}
}

func (l *live) metrics(agent string) (map[string]*dto.MetricFamily, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(l.sockets, agent+".sock"))
		},
	}}
	req, err := http.NewRequestWithContext(l.Context(), http.MethodGet, "http://localhost/metrics", http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		l.Fatalf("%s: %s", resp.Status, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(resp.Body)
}

func (l *live) addMetric(agent, name string, m *dto.Metric) {
	l.Helper()
	own := map[string]string{}
	for _, p := range m.GetLabel() {
		own[p.GetName()] = p.GetValue()
	}
	switch h := m.GetHistogram(); {
	case h != nil:
		for _, b := range h.GetBucket() {
			le := strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64)
			l.add(agent, model.BucketLabel, le, with(own, name+"_bucket"), float64(b.GetCumulativeCount()))
		}
		l.add(agent, model.MetricNameLabel, name+"_count", own, float64(h.GetSampleCount()))
		l.add(agent, model.MetricNameLabel, name+"_sum", own, h.GetSampleSum())
	case m.GetCounter() != nil:
		l.add(agent, model.MetricNameLabel, name, own, m.GetCounter().GetValue())
	case m.GetGauge() != nil:
		l.add(agent, model.MetricNameLabel, name, own, m.GetGauge().GetValue())
	}
}

func with(own map[string]string, name string) map[string]string {
	all := maps.Clone(own)
	all[model.MetricNameLabel] = name
	return all
}

// add adds a sample, with one more label.
func (l *live) add(agent, label, value string, own map[string]string, sample float64) {
	all := map[string]string{"job": "firstpacket", "instance": agent}
	maps.Copy(all, own)
	all[label] = value
	metric := labels.FromMap(all)
	s := l.series[metric.String()]
	if s == nil {
		s = &promql.Series{Metric: metric}
		l.series[metric.String()] = s
	}
	s.Floats = append(s.Floats, promql.FPoint{T: l.now.UnixMilli(), F: sample})
}

// Querier is the storage that the engine asks: Prometheus' own brings half of the world's clouds.
func (l *live) Querier(_, _ int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: l.choose}, nil
}

func (l *live) choose(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	set := &seriesSet{}
	for _, name := range slices.Sorted(maps.Keys(l.series)) {
		s := l.series[name]
		other := func(m *labels.Matcher) bool { return !m.Matches(s.Metric.Get(m.Name)) }
		if !slices.ContainsFunc(matchers, other) {
			set.rest = append(set.rest, promql.NewStorageSeries(*s))
		}
	}
	return set
}

// seriesSet iterates over series.
type seriesSet struct {
	now  storage.Series
	rest []storage.Series
}

func (s *seriesSet) Next() bool {
	if len(s.rest) == 0 {
		return false
	}
	s.now, s.rest = s.rest[0], s.rest[1:]
	return true
}

func (s *seriesSet) At() storage.Series                { return s.now }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }
