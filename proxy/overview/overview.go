// Package overview asks a running agent how it is, and puts that on one screen.
package overview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/firstpacket/firstpacket/proxy/agent"
)

// Overview is what an agent said of itself.
type Overview struct {
	Status agent.Status
	// Metrics are those whose names begin with firstpacket_, without that, and process_resident_memory_bytes.
	Metrics map[string]*dto.MetricFamily
}

// Ready tells whether the agent enforces the newest state of its sources.
func (o *Overview) Ready() bool { return o.Status.NotReady == "" }

const (
	prefix = "firstpacket_"
	memory = "process_resident_memory_bytes"
	// maxAnswer bounds an answer in bytes.
	maxAnswer = 64 << 20
)

// ErrNoAgent is wrapped by errors that mean that nobody, or somebody else, answers.
var ErrNoAgent = errors.New("no agent answers")

// Fetch asks the agent whose paths are below base.
func Fetch(ctx context.Context, client *http.Client, base url.URL) (*Overview, error) {
	raw, err := get(ctx, client, base, "/status")
	if err != nil {
		return nil, err
	}
	o := new(Overview)
	if err := json.Unmarshal(raw, &o.Status); err != nil {
		return nil, fmt.Errorf("%w, but somebody else: %w", ErrNoAgent, err)
	}
	if o.Status.Node == "" {
		return nil, fmt.Errorf("%w, but somebody else", ErrNoAgent)
	}
	raw, err = get(ctx, client, base, "/metrics")
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("metrics of the agent: %w", err)
	}
	o.Metrics = map[string]*dto.MetricFamily{}
	for name, f := range families {
		if short, ok := strings.CutPrefix(name, prefix); ok {
			o.Metrics[short] = f
		} else if name == memory {
			o.Metrics[name] = f
		}
	}
	return o, nil
}

func get(ctx context.Context, client *http.Client, base url.URL, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath(path).String(), http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("asking the agent: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		var outer *url.Error // says the address once more
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w, but somebody else: %s is %s%s", ErrNoAgent, path, resp.Status, message(raw))
	}
	return raw, nil
}

// message is what an API server in between says.
func message(raw []byte) string {
	var status struct{ Message string }
	if json.Unmarshal(raw, &status) != nil || status.Message == "" {
		return ""
	}
	return ": " + status.Message
}

// report is what JSON has of an agent.
type report struct {
	Status agent.Status `json:"status"`
	// VerdictSeconds has bounds of quantiles, those that JSON can say.
	VerdictSeconds map[string]float64  `json:"verdictSeconds"`
	Metrics        map[string][]sample `json:"metrics"`
}

type sample struct {
	Labels map[string]string `json:"labels,omitempty"`
	Value  float64           `json:"value"`
}

func (o *Overview) report() *report {
	r := &report{Status: o.Status, VerdictSeconds: map[string]float64{}, Metrics: map[string][]sample{}}
	for name, family := range o.Metrics {
		for _, m := range family.GetMetric() {
			if m.GetHistogram() != nil {
				continue // told as quantiles
			}
			r.Metrics[name] = append(r.Metrics[name], sample{labelsOf(m), value(m)})
		}
	}
	for _, q := range []float64{0.5, 0.99} {
		if v, ok := o.quantile("verdict_seconds", q); ok && !math.IsInf(v, 1) {
			r.VerdictSeconds[fmt.Sprintf("p%g", 100*q)] = v
		}
	}
	return r
}

// WriteJSON writes the status, and the metrics as a list of samples by name.
func (o *Overview) WriteJSON(w io.Writer) error { return writeJSON(w, o.report()) }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	return nil
}

func labelsOf(m *dto.Metric) map[string]string {
	labels := map[string]string{}
	for _, l := range m.GetLabel() {
		labels[l.GetName()] = l.GetValue()
	}
	return labels
}

func value(m *dto.Metric) float64 {
	return m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue() // one of them is there
}

// sum adds the samples that carry all the labels, given as name and value in turn.
func (o *Overview) sum(name string, labels ...string) float64 {
	total := 0.0
	for _, m := range o.Metrics[name].GetMetric() {
		has := labelsOf(m)
		match := true
		for i := 0; i+1 < len(labels); i += 2 {
			match = match && has[labels[i]] == labels[i+1]
		}
		if match {
			total += value(m)
		}
	}
	return total
}

// values lists the values of a label, sorted.
func (o *Overview) values(name, label string) []string {
	seen := map[string]bool{}
	for _, m := range o.Metrics[name].GetMetric() {
		seen[labelsOf(m)[label]] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// quantile gives the upper bound of the bucket that the quantile lies in; false for an empty histogram.
func (o *Overview) quantile(name string, q float64) (float64, bool) {
	for _, m := range o.Metrics[name].GetMetric() {
		h := m.GetHistogram()
		if h.GetSampleCount() == 0 {
			continue
		}
		want := q * float64(h.GetSampleCount())
		for _, b := range h.GetBucket() {
			if float64(b.GetCumulativeCount()) >= want {
				return b.GetUpperBound(), true
			}
		}
	}
	return 0, false
}
