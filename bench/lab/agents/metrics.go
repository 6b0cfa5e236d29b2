package agents

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Metrics are the samples of one /metrics answer by series, labels included, as they are written there.
type Metrics map[string]float64

// parseMetrics reads the text format, of which agents use neither timestamps nor spaces in label values.
func parseMetrics(text []byte) Metrics {
	m := make(Metrics)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		series, value, _ := cutLast(line, " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			m[series] = v
		}
	}
	return m
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Sum adds up the samples of the metric over all label values; has are label pairs such as `verdict="deny"` that a
// series must carry.
func (m Metrics) Sum(name string, has ...string) float64 {
	var sum float64
	for series, value := range m {
		metric, labels, _ := strings.Cut(series, "{")
		if metric == name && !slices.ContainsFunc(has, func(l string) bool { return !strings.Contains(labels, l) }) {
			sum += value
		}
	}
	return sum
}

// Plus adds another agent's metrics up with these.
func (m Metrics) Plus(other Metrics) Metrics {
	sum := make(Metrics, len(m))
	maps.Copy(sum, m)
	for series, value := range other {
		sum[series] += value
	}
	return sum
}

// Quantile reads a quantile off a histogram, as PromQL's histogram_quantile does: straight lines within buckets, all
// label values together. It is NaN for a histogram without observations, and the largest finite bound where the
// quantile lies above it.
func (m Metrics) Quantile(name string, q float64) float64 {
	counts := make(map[float64]float64)
	for series, value := range m {
		labels, ok := strings.CutPrefix(series, name+"_bucket{")
		if !ok {
			continue
		}
		_, bound, _ := strings.Cut(labels, `le="`)
		bound, _, _ = strings.Cut(bound, `"`)
		if le, err := strconv.ParseFloat(bound, 64); err == nil {
			counts[le] += value
		}
	}
	bounds := make([]float64, 0, len(counts))
	for le := range counts {
		bounds = append(bounds, le)
	}
	slices.Sort(bounds)
	if len(bounds) == 0 || counts[bounds[len(bounds)-1]] == 0 {
		return math.NaN()
	}
	rank := q * counts[bounds[len(bounds)-1]]
	lower, below := 0.0, 0.0
	for _, le := range bounds {
		if counts[le] >= rank && !math.IsInf(le, 1) {
			return lower + (le-lower)*(rank-below)/(counts[le]-below)
		}
		if !math.IsInf(le, 1) {
			lower, below = le, counts[le]
		}
	}
	return lower
}
