package report

import (
	"bytes"
	_ "embed" // the page
	"fmt"
	"html/template"
	"image/color"
	"io"
	"math"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"number":    number,
	"latencies": func(c Contender) []string { return latencies(&c.Latency) },
	"timed":     func(r Result) bool { return len(r.Contenders) > 0 && r.Contenders[0].Latency.Count() > 0 },
}).Parse(pageText))

// WriteHTML writes one page that needs nothing else: the plots are SVG inside it.
func (r *Report) WriteHTML(w io.Writer) error {
	data := struct {
		*Report
		When  string
		Plots []template.HTML
	}{Report: r, When: r.Started.UTC().Format(time.RFC1123)}
	for i := range r.Results {
		s := &r.Results[i]
		if len(s.Contenders) == 0 || s.Contenders[0].Latency.Count() == 0 {
			continue
		}
		svg, err := distribution(s)
		if err != nil {
			return err
		}
		data.Plots = append(data.Plots, svg)
	}
	seen := make(map[string]bool)
	for _, c := range r.Curves {
		if seen[c.Plot] {
			continue
		}
		seen[c.Plot] = true
		svg, err := r.curves(c.Plot)
		if err != nil {
			return err
		}
		// What the project promises most comes first.
		data.Plots = append([]template.HTML{svg}, data.Plots...)
	}
	if err := page.Execute(w, data); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	return nil
}

// Bound and Verdict are for the page.
func (r Result) Bound() string { return r.bound() }

// Verdict says whether the target is met, in the words of the page.
func (r Result) Verdict() string {
	switch {
	case r.Error != "":
		return "failed"
	case !r.HasTarget():
		return ""
	case r.Met():
		return "met"
	}
	return "missed"
}

// newPlot is a plot with a grid and a legend.
func newPlot(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(6)
	p.BackgroundColor = color.Transparent
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.Padding = vg.Points(2)
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{220}, color.Gray{220}
	p.Add(grid)
	return p
}

// decimals are ticks at powers of ten, with numbers as people write them.
type decimals struct{ format func(float64) string }

// Ticks implements plot.Ticker.
func (d decimals) Ticks(low, high float64) []plot.Tick {
	ticks := plot.LogTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = d.format(ticks[i].Value)
		}
	}
	return ticks
}

// distribution draws how the latencies of a scenario are distributed: the share of connections that took longer.
func distribution(r *Result) (template.HTML, error) {
	p := newPlot(r.Name, "latency", "share of connections that took longer")
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker = decimals{func(v float64) string { return duration(time.Duration(v)) }}
	p.Y.Tick.Marker = decimals{func(v float64) string { return fmt.Sprintf("%g %%", v*100) }}
	p.Legend.Left = false
	for i := range r.Contenders {
		c := &r.Contenders[i]
		var points plotter.XYs
		for _, at := range c.Latency.CDF() {
			if left := 1 - at.Share; left > 1e-6 && at.Value > 0 {
				points = append(points, plotter.XY{X: float64(at.Value), Y: left})
			}
		}
		if len(points) == 0 {
			continue
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return "", fmt.Errorf("plot %s: %w", r.Name, err)
		}
		line.Color, line.Width = plotutil.Color(i), vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(c.Name, line)
	}
	return picture(p)
}

// curves draws all lines of a plot.
func (r *Report) curves(name string) (template.HTML, error) {
	var p *plot.Plot
	n := 0
	for _, c := range r.Curves {
		if c.Plot != name {
			continue
		}
		if p == nil {
			p = newPlot(name, c.XName, c.YName)
			p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decimals{number}
			p.Y.Min = 0
		}
		points := make(plotter.XYs, len(c.X))
		for i := range c.X {
			points[i] = plotter.XY{X: math.Max(c.X[i], 1), Y: c.Y[i]}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return "", fmt.Errorf("plot %s: %w", name, err)
		}
		line.Color, dots.Color, line.Width = plotutil.Color(n), plotutil.Color(n), vg.Points(1.5)
		dots.Shape = plotutil.Shape(n)
		p.Add(line, dots)
		p.Legend.Add(c.Label, line, dots)
		n++
	}
	p.Y.Max *= 1.35 // room for the legend
	return picture(p)
}

func picture(p *plot.Plot) (template.HTML, error) {
	const width, height = 15 * vg.Centimeter, 10 * vg.Centimeter
	// A single point would get an axis from one below to one above, and logarithms do not go through zero.
	for _, a := range []*plot.Axis{&p.X, &p.Y} {
		if _, log := a.Scale.(plot.LogScale); log && !(a.Min > 0 && a.Max > a.Min) {
			low := a.Min
			if !(low > 0) || math.IsInf(low, 0) {
				low = 1
			}
			a.Min, a.Max = low/2, low*2
		}
	}
	canvas := vgsvg.NewWith(vgsvg.UseWH(width, height))
	p.Draw(draw.New(canvas))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", fmt.Errorf("draw a plot: %w", err)
	}
	_, svg, ok := strings.Cut(b.String(), "<svg")
	if !ok {
		return "", fmt.Errorf("draw a plot: no picture came out")
	}
	return template.HTML("<svg" + svg), nil
}
