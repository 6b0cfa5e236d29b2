package report

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/firstpacket/firstpacket/bench/load"
)

// Summary is the result in one line.
func (r *Result) Summary() string {
	if r.Error != "" {
		return "failed: " + r.Error
	}
	s := fmt.Sprintf("%s %s, %s %s: ratio %s", number(r.Value), r.Unit, r.Against, number(r.Baseline), number(r.Ratio))
	if r.High > 0 {
		s += fmt.Sprintf(" (%s to %s)", number(r.Low), number(r.High))
	}
	if r.HasTarget() {
		s += "; " + r.verdict()
	}
	return s
}

// bound is the target as people write it.
func (r *Result) bound() string {
	switch {
	case !r.HasTarget():
		return ""
	case r.AtMost:
		return "≤ " + number(r.Target)
	}
	return "≥ " + number(r.Target)
}

func (r *Result) verdict() string {
	if r.Met() {
		return "met, " + r.bound()
	}
	return "MISSED, " + r.bound()
}

// number writes three significant digits, with thousands or millions as k and M.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1e9:
		return fmt.Sprintf("%.3gG", v/1e9)
	case a >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case a >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// WriteMarkdown writes the results as tables.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# firstpacket benchmarks\n\n%s, in %.0f s.\n%s.\n\n", r.Started.UTC().Format(time.RFC3339),
		r.Elapsed.Seconds(), &r.Machine)
	b.WriteString("| scenario | firstpacket | compared with | its figure | ratio (quartiles) | target | |\n")
	b.WriteString("|---|---|---|---|---|---|---|\n")
	for i := range r.Results {
		s := &r.Results[i]
		if s.Error != "" {
			fmt.Fprintf(&b, "| %s | | | | | | failed: %s |\n", s.Name, strings.ReplaceAll(s.Error, "\n", " "))
			continue
		}
		spread, outcome := "", ""
		if s.High > 0 {
			spread = fmt.Sprintf(" (%s to %s)", number(s.Low), number(s.High))
		}
		if s.HasTarget() {
			outcome = "missed"
			if s.Met() {
				outcome = "met"
			}
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s | %s | %s%s | %s | %s |\n", s.Name, number(s.Value), s.Unit, s.Against,
			number(s.Baseline), number(s.Ratio), spread, s.bound(), outcome)
	}
	for i := range r.Results {
		writeContenders(&b, &r.Results[i])
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// writeContenders writes the table of one scenario.
func writeContenders(b *strings.Builder, r *Result) {
	if len(r.Contenders) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## %s\n\n%s. %s\n\n", r.Name, strings.ToUpper(r.Title[:1])+r.Title[1:], r.Checked)
	fmt.Fprintf(b, "| | median %s (quartiles) | p50 | p90 | p99 | p99.9 | max | lost | CPU s per million |\n", r.Unit)
	b.WriteString("|---|---|---|---|---|---|---|---|---|\n")
	for i := range r.Contenders {
		c := &r.Contenders[i]
		fmt.Fprintf(b, "| %s | %s (%s to %s) |", c.Name, number(c.Median), number(c.Low), number(c.High))
		for _, v := range latencies(&c.Latency) {
			fmt.Fprintf(b, " %s |", v)
		}
		cpu := ""
		if c.CPU > 0 {
			cpu = number(c.CPU)
		}
		fmt.Fprintf(b, " %d | %s |\n", c.Lost, cpu)
	}
}

// latencies are the usual quantiles and the largest.
func latencies(h *load.Histogram) []string {
	out := make([]string, 5)
	if h.Count() == 0 {
		return out
	}
	for i, q := range []float64{0.5, 0.9, 0.99, 0.999} {
		out[i] = duration(h.Quantile(q))
	}
	out[4] = duration(h.Max)
	return out
}

// duration rounds to three significant digits.
func duration(d time.Duration) string {
	for unit := time.Duration(1); ; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit).String()
		}
	}
}
