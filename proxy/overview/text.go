package overview

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/firstpacket/firstpacket/policycache/term"
)

// WriteText writes one screen. Ages are counted up to now.
func (o *Overview) WriteText(w io.Writer, style term.Style, now time.Time) error {
	p := page{Overview: o, Style: style, now: now}
	p.heading()
	p.enforcement()
	p.names()
	p.packets()
	p.queues()
	p.sources()
	p.errors()
	if _, err := io.WriteString(w, p.String()); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	return nil
}

type page struct {
	strings.Builder
	*Overview
	term.Style
	now time.Time
}

// line writes a line with its subject in the margin.
func (p *page) line(subject, format string, args ...any) {
	fmt.Fprintf(p, "%s%s\n", p.Bold(fmt.Sprintf("%-12s", subject)), fmt.Sprintf(format, args...))
}

// alarm marks counts that should be zero.
func (p *page) alarm(n float64, text string) string {
	if n == 0 {
		return text
	}
	return p.Bad(text)
}

func (p *page) heading() {
	s := &p.Status
	state := p.Good("enforcing")
	if s.Audit {
		state = p.Mixed("only auditing: nothing is enforced")
	}
	if !p.Ready() {
		state = p.Bad("NOT READY: " + s.NotReady)
	}
	p.line("node", "%s, %s", s.Node, state)
	p.line("agent", "version %s, %s resident", s.Version, bytes(p.sum(memory)))
	p.line("kernel", "%s", s.Features)
}

func (p *page) enforcement() {
	s := &p.Status
	settled := "carried through for what was admitted before"
	if s.Settled != s.Generation {
		settled = p.Mixed(fmt.Sprintf("what was admitted before is at %d", s.Settled))
	}
	p.line("generation", "%d for %s, %s (took %s)", s.Generation, p.age(s.AppliedAt), settled, seconds(s.SettleSeconds))
	problems := len(s.Problems)
	p.line("policies", "%d, %s", s.Policies, p.alarm(float64(problems), fmt.Sprintf("%d with problems", problems)))
	for _, name := range slices.Sorted(maps.Keys(s.Problems)) {
		for _, problem := range s.Problems[name] {
			p.line("", "  %s: %s", name, problem)
		}
	}
	p.line("cache", "%d tuples in the kernel; flows revoked %d, restored %d; table repaired %d times",
		s.Tuples, s.Revoked, s.Restored, s.Repairs)
}

// names shows what pods have learned under domain names, where there are such pods.
func (p *page) names() {
	if len(p.Status.Names) == 0 {
		return
	}
	total := 0
	for _, n := range p.Status.Names {
		total += n
	}
	p.line("names", "%d addresses under domain names", total)
	for _, pod := range slices.Sorted(maps.Keys(p.Status.Names)) {
		p.line("", "  %s %d", pod, p.Status.Names[pod])
	}
}

func (p *page) packets() {
	var kernel []string
	for _, outcome := range p.values("kernel_packets_total", "outcome") {
		kernel = append(kernel, fmt.Sprintf("%s %.0f", outcome, p.sum("kernel_packets_total", "outcome", outcome)))
	}
	if kernel != nil {
		p.line("packets", "%s", strings.Join(kernel, ", "))
	}
	p.line("verdicts", "allow %.0f, deny %.0f, hold %.0f%s",
		p.sum("verdicts_total", "verdict", "allow"), p.sum("verdicts_total", "verdict", "deny"),
		p.sum("verdicts_total", "verdict", "hold"), p.latency())
	for _, reason := range p.values("verdicts_total", "reason") {
		for _, direction := range p.values("verdicts_total", "direction") {
			n := p.sum("verdicts_total", "verdict", "deny", "reason", reason, "direction", direction)
			if n > 0 {
				p.line("", "  deny %s %s %.0f", direction, reason, n)
			}
		}
	}
	lost := p.sum("flow_log_lost_total")
	p.line("flow log", "%.0f lines, %s", p.sum("flow_log_lines_total"),
		p.alarm(lost, fmt.Sprintf("%.0f packets not logged", lost)))
}

func (p *page) latency() string {
	half, ok := p.quantile("verdict_seconds", 0.5)
	if !ok {
		return ""
	}
	most, _ := p.quantile("verdict_seconds", 0.99)
	return fmt.Sprintf("; half within %s, 99%% within %s", seconds(half), seconds(most))
}

func (p *page) queues() {
	for i, q := range p.values("queue_packets_total", "queue") {
		subject := ""
		if i == 0 {
			subject = "queues"
		}
		dropped, failed := p.sum("queue_dropped_packets_total", "queue", q), p.sum("queue_errors_total", "queue", q)
		p.line(subject, "%s: %.0f packets, %.0f waiting, %.0f held, %s, %s", q,
			p.sum("queue_packets_total", "queue", q), p.sum("queue_waiting_packets", "queue", q),
			p.sum("queue_held_packets", "queue", q), p.alarm(dropped, fmt.Sprintf("%.0f dropped", dropped)),
			p.alarm(failed, fmt.Sprintf("%.0f errors", failed)))
	}
}

func (p *page) sources() {
	for i, s := range p.Status.Sources {
		subject := ""
		if i == 0 {
			subject = "sources"
		}
		text := fmt.Sprintf("%s: %d", s.Kind, s.Objects)
		switch {
		case s.Error != "":
			text += p.Bad(", " + s.Error)
		case !s.Synced:
			text += ", not there"
		default:
			text += ", heard of " + p.age(s.LastEvent) + " ago"
		}
		if s.Failing > 0 {
			text += p.Bad(fmt.Sprintf(", %d not understood", s.Failing))
		}
		p.line(subject, "%s", text)
	}
}

func (p *page) errors() {
	if len(p.Status.Errors) == 0 {
		p.line("errors", "none")
	}
	for _, e := range p.Status.Errors {
		p.line("errors", "%s", p.Bad(e))
	}
}

// age is how long ago something was.
func (p *page) age(t time.Time) string {
	if t.IsZero() {
		return "ever"
	}
	return max(p.now.Sub(t), 0).Round(time.Second).String()
}

// seconds prints a short time with its unit, infinity in words.
func seconds(s float64) string {
	if math.IsInf(s, 1) {
		return "longer than any bucket"
	}
	return time.Duration(s * float64(time.Second)).Round(time.Microsecond).String()
}

func bytes(n float64) string { return fmt.Sprintf("%.0f MiB", n/(1<<20)) }
