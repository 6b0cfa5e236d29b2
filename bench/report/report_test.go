package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstpacket/firstpacket/bench/load"
)

func sample(t *testing.T) *Report {
	t.Helper()
	machine, err := ThisMachine()
	if err != nil {
		t.Fatal(err)
	}
	contender := func(name string, median float64) Contender {
		c := Contender{Name: name, Median: median, Low: median * 0.9, High: median * 1.1, Turns: 9, CPU: 12.3}
		for i := range 1000 {
			c.Latency.Add(time.Duration(20+i) * time.Microsecond)
		}
		return c
	}
	return &Report{
		Started: time.Unix(1_700_000_000, 0), Elapsed: time.Minute, Machine: machine,
		Results: []Result{
			{
				Name: "cached_tcp", Title: "new connections", Unit: "connections/s", Value: 19_876.5, Baseline: 20_000,
				Against: "static <nft> rules", Ratio: 0.99, Low: 0.97, High: 1.02, Target: 0.95,
				Contenders: []Contender{contender("firstpacket", 19_876.5), contender("static <nft> rules", 20_000)},
			},
			{Name: "once", Title: "a single connection", Unit: "1/s", Value: 1, Baseline: 1, Ratio: 1, Against: "itself",
				Contenders: []Contender{{Name: "itself", Median: 1, Latency: load.Histogram{Counts: []uint64{0, 1}, Max: 1}}}},
			{Name: "slow", Title: "a target that is missed", Unit: "ms", Value: 30, Baseline: 20, Against: "the target",
				Ratio: 1.5, Target: 1, AtMost: true},
			{Name: "verdict_allocs", Title: "nothing", Unit: "allocations", Against: "the target", AtMost: true},
			{Name: "broken", Title: "a group", Error: "it | failed"},
		},
		Curves: []Curve{
			{Plot: "rate", Label: "a", XName: "policies", YName: "1/s", X: []float64{1, 100, 10_000}, Y: []float64{3, 3, 2}},
			{Plot: "one point", Label: "a", XName: "policies", YName: "1/s", X: []float64{1}, Y: []float64{3}},
			{Plot: "rate", Label: "b", XName: "policies", YName: "1/s", X: []float64{1, 100}, Y: []float64{2, 1}},
		},
	}
}

func TestHeadlines(t *testing.T) {
	var b bytes.Buffer
	if err := sample(t).WriteHeadlines(&b); err != nil {
		t.Fatal(err)
	}
	var got map[string]struct {
		Value, Baseline, Ratio *float64
		Unit                   string
		Met                    *bool
	}
	d := json.NewDecoder(&b)
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		t.Error("more than one JSON value")
	}
	for name, met := range map[string]bool{"cached_tcp": true, "slow": false, "verdict_allocs": true} {
		h := got[name]
		if h.Value == nil || h.Baseline == nil || h.Ratio == nil || h.Unit == "" || h.Met == nil || *h.Met != met {
			t.Errorf("%s: %+v", name, h)
		}
	}
	if v := *got["cached_tcp"].Value; v != 19_880 {
		t.Errorf("the value is %v, not rounded to what was measured", v)
	}
}

func TestMarkdown(t *testing.T) {
	var b bytes.Buffer
	if err := sample(t).WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"| cached_tcp | 19.9k connections/s | static <nft> rules | 20k | 0.99 (0.97 to 1.02) | ≥ 0.95 | met |",
		"| slow | 30 ms | the target | 20 | 1.5 | ≤ 1 | missed |",
		"| 520µs |",
	} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no %q in:\n%s", line, b.String())
		}
	}
}

// TestPageNeedsNothingElse holds the page to be one file.
func TestPageNeedsNothingElse(t *testing.T) {
	var b bytes.Buffer
	if err := sample(t).WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, bad := range []string{"<script", "<link", "<img", "@import", "static <nft>", "NaN"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, url := range regexp.MustCompile(`https?://[^"<\s]+`).FindAllString(page, -1) {
		if !strings.HasPrefix(url, "http://www.w3.org/") { // XML namespaces
			t.Errorf("the page refers to %s", url)
		}
	}
	pictures := regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(page, -1)
	if len(pictures) != 4 {
		t.Fatalf("%d plots, want 4", len(pictures))
	}
	for _, svg := range pictures {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("a plot is no SVG: %v", err)
			}
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.98765: "0.988", 12.34: "12.3", 1234: "1234", 12345: "12.3k", 2.5e6: "2.5M", 7.25e9: "7.25G",
	} {
		if got := number(v); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		83: "83ns", 83_412: "83.4µs", 1_234_567: "1.23ms", 2 * time.Second: "2s",
	} {
		if got := duration(d); got != want {
			t.Errorf("%d ns is written %q, want %q", d, got, want)
		}
	}
	if l := latencies(&load.Histogram{}); strings.Join(l, "") != "" {
		t.Errorf("latencies of nothing: %q", l)
	}
}
