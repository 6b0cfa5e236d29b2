// Package report says what benchmarks found: as JSON, as a Markdown table and as one HTML page with plots.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/firstpacket/firstpacket/bench/load"
)

// Report is the outcome of one run.
type Report struct {
	Started time.Time     `json:"started"`
	Elapsed time.Duration `json:"elapsed"`
	Quick   bool          `json:"quick"`
	Machine Machine       `json:"machine"`
	Results []Result      `json:"results"`
	// Curves are for plots of one number against another.
	Curves []Curve `json:"curves,omitempty"`
}

// Result is one scenario's outcome.
type Result struct {
	// Name is stable, Title explains it.
	Name  string `json:"name"`
	Title string `json:"title"`
	Unit  string `json:"unit"`
	// Value is firstpacket's, Baseline that of Against.
	Value    float64 `json:"value"`
	Baseline float64 `json:"baseline"`
	Against  string  `json:"against"`
	// Ratio is Value/Baseline: where both were measured, the median of the turns' ratios, of which Low and High are the
	// quartiles.
	Ratio float64 `json:"ratio"`
	Low   float64 `json:"low,omitempty"`
	High  float64 `json:"high,omitempty"`
	// Target bounds the ratio, from below unless AtMost is true; 0 is no target.
	Target float64 `json:"target,omitempty"`
	AtMost bool    `json:"atMost,omitempty"`
	// Contenders are all that took part.
	Contenders []Contender `json:"contenders,omitempty"`
	// Checked is what was verified before the numbers were believed.
	Checked string `json:"checked,omitempty"`
	// Error is why there are no numbers.
	Error string `json:"error,omitempty"`
}

// Contender is what one of those compared did.
type Contender struct {
	Name string `json:"name"`
	// Median of the turns, and quartiles, in the Result's unit.
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	// Turns is how many there were.
	Turns int `json:"turns"`
	// Latency of single connections or flows, of all turns together; empty where there is none.
	Latency load.Histogram `json:"latency,omitzero"`
	// Lost connections got no answer in time.
	Lost int `json:"lost,omitempty"`
	// CPU is the processor time of the contender's own process, in seconds for a million packets it judged.
	CPU float64 `json:"cpuSecondsPerMillion,omitempty"`
}

// Curve is a line of a plot.
type Curve struct {
	Plot  string    `json:"plot"`
	Label string    `json:"label"`
	XName string    `json:"xName"`
	YName string    `json:"yName"`
	X     []float64 `json:"x"`
	Y     []float64 `json:"y"`
}

// Met tells whether the target is reached; true without one, false without numbers.
func (r *Result) Met() bool {
	switch {
	case r.Error != "":
		return false
	case r.AtMost:
		return r.Ratio <= r.Target
	}
	return r.Ratio >= r.Target
}

// HasTarget tells whether the design asks for a certain ratio.
func (r *Result) HasTarget() bool { return r.Target > 0 || r.AtMost }

// headline is the short form of a result.
type headline struct {
	Value    float64   `json:"value"`
	Baseline float64   `json:"baseline"`
	Ratio    float64   `json:"ratio"`
	Unit     string    `json:"unit"`
	Against  string    `json:"against"`
	Spread   []float64 `json:"spread,omitempty"`
	Target   *float64  `json:"target,omitempty"`
	Met      *bool     `json:"met,omitempty"`
	Error    string    `json:"error,omitempty"`
}

// WriteHeadlines writes the results as one JSON object:
// {"scenario": {"value":…, "baseline":…, "ratio":…, "unit":…}, …}.
func (r *Report) WriteHeadlines(w io.Writer) error {
	out := make(map[string]headline, len(r.Results))
	for i := range r.Results {
		s := &r.Results[i]
		h := headline{Value: round(s.Value), Baseline: round(s.Baseline), Ratio: round(s.Ratio), Unit: s.Unit,
			Against: s.Against, Error: s.Error}
		if s.High > 0 {
			h.Spread = []float64{round(s.Low), round(s.High)}
		}
		if s.HasTarget() {
			h.Target, h.Met = &s.Target, new(s.Met())
		}
		out[s.Name] = h
	}
	return encode(w, out)
}

// WriteJSON writes everything.
func (r *Report) WriteJSON(w io.Writer) error { return encode(w, r) }

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// round keeps four significant digits: no measurement here is better than that.
func round(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}
