package overview

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/firstpacket/firstpacket/policycache/term"
	"github.com/firstpacket/firstpacket/proxy/warnings"
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
	p.line("agent", "version %s, up %s, %s resident", s.Version, p.age(s.Started), bytes(p.sum(memory)))
	p.line("kernel", "%s, features %s, marks %s", s.Kernel, s.Features, s.MarkMask)
	without := "wait"
	if s.FailOpen {
		without = p.Mixed("pass")
	}
	denied := "dropped"
	if s.DenyWith == "reject" {
		denied = "rejected"
	}
	p.line("mode", "denied packets are %s; while no agent runs, new connections of isolated pods %s", denied, without)
}

func (p *page) enforcement() {
	s := &p.Status
	settled := "carried through for what was admitted before"
	if s.Settled != s.Generation {
		settled = p.Mixed(fmt.Sprintf("what was admitted before is at %d", s.Settled))
	}
	p.line("generation", "%d for %s, %s (took %s)", s.Generation, p.age(s.AppliedAt), settled, seconds(s.SettleSeconds))
	problems := len(s.Problems)
	counts := []string{
		fmt.Sprint(s.Policies), p.alarm(float64(problems), fmt.Sprintf("%d with problems", problems)),
	}
	for _, d := range slices.Sorted(maps.Keys(s.Dialects)) {
		counts = append(counts, fmt.Sprintf("%s %d", d, s.Dialects[d]))
	}
	p.line("policies", "%s", strings.Join(counts, ", "))
	for _, name := range slices.Sorted(maps.Keys(s.Problems)) {
		for _, problem := range s.Problems[name] {
			p.line("", "  %s: %s", name, problem)
		}
	}
	p.line("cache", "%d tuples in the kernel, of %.0f for each address family%s", s.Tuples, p.sum("cached_tuples_limit"),
		p.hits())
	p.line("flows", "%d revoked, %d restored by changes; table repaired %d times", s.Revoked, s.Restored, s.Repairs)
}

// hits is the part of new flows that the kernel judged by its cache, if there were any.
func (p *page) hits() string {
	cached := p.sum("kernel_packets_total", "outcome", "cached")
	asked := p.sum("kernel_packets_total", "outcome", "queued")
	if cached+asked == 0 {
		return ""
	}
	text := fmt.Sprintf("; it admitted %.0f%% of new flows", 100*cached/(cached+asked))
	if unlearnt := p.sum("kernel_packets_total", "outcome", "unlearnt"); unlearnt > 0 {
		text += "; " + p.Bad(fmt.Sprintf("no room for %.0f", unlearnt))
	}
	return text
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
	lost, failed := p.sum("flow_log_lost_total"), p.sum("flow_log_write_errors_total")
	p.line("flow log", "%.0f lines, %s, %s", p.sum("flow_log_lines_total"),
		p.alarm(lost, fmt.Sprintf("%.0f packets not logged", lost)),
		p.alarm(failed, fmt.Sprintf("%.0f failed writes", failed)))
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
		n := func(name string) float64 { return p.sum(name, "queue", q) }
		dropped, failed, full := n("queue_dropped_packets_total"), n("queue_errors_total"), n("queue_hold_full_total")
		held := fmt.Sprintf("%.0f held (%.0f ever, %.0f in vain", n("queue_held_packets"), n("queue_holds_total"),
			n("queue_hold_expired_total"))
		if full > 0 {
			held += p.Bad(fmt.Sprintf(", no room for %.0f", full))
		}
		p.line(subject, "%s: %.0f packets, %.0f of %d waiting, %s), %s, %s", q, n("queue_packets_total"),
			n("queue_waiting_packets"), p.Status.QueueLimit, held,
			p.alarm(dropped, fmt.Sprintf("%.0f dropped", dropped)), p.alarm(failed, fmt.Sprintf("%.0f errors", failed)))
	}
}

func (p *page) sources() {
	for i, s := range p.Status.Sources {
		subject := ""
		if i == 0 {
			subject = "sources"
		}
		text := fmt.Sprintf("%s: ", s.Kind)
		switch {
		case s.Absent:
			text += "not served"
		case !s.Synced:
			text += p.Mixed("not all known yet")
		default:
			text += fmt.Sprintf("%d, version %s, heard of %s ago", s.Objects, cmp.Or(p.Status.Applied[s.Kind], "none"),
				p.age(s.LastEvent))
		}
		if s.Error != "" {
			text += p.Bad(fmt.Sprintf(", failing for %s: %s", p.age(s.ErrorSince), s.Error))
		}
		if s.Failing > 0 {
			text += p.Bad(fmt.Sprintf(", %d not understood", s.Failing))
		}
		p.line(subject, "%s", text)
	}
}

// maxWarnings is how many warnings are shown; JSON has all.
const maxWarnings = 8

// errors shows what is wrong now, then what was.
func (p *page) errors() {
	subject := "errors"
	line := func(format string, args ...any) {
		p.line(subject, format, args...)
		subject = ""
	}
	for _, e := range p.Status.Errors {
		line("%s", p.Bad("now: "+e))
	}
	list := p.Status.Warnings
	for i := range list[:min(len(list), maxWarnings)] {
		w := &list[i]
		times := "once"
		if w.Count > 1 {
			times = fmt.Sprintf("%d times", w.Count)
		}
		line("%s ago, %s: %s", p.age(w.Last), times, describe(w))
	}
	if more := len(list) - maxWarnings; more > 0 {
		line("and %d older kinds", more)
	}
	if subject != "" {
		line("none since the start")
	}
}

// describe is a warning in one line.
func describe(w *warnings.Warning) string {
	text := w.Message
	if len(w.About) > 0 {
		var fields []string
		for _, field := range slices.Sorted(maps.Keys(w.About)) {
			fields = append(fields, field+" "+w.About[field])
		}
		text += " (" + strings.Join(fields, ", ") + ")"
	}
	if w.Error != "" {
		text += ": " + w.Error
	}
	return text
}

// age is how long ago something was.
func (p *page) age(t time.Time) string { return since(t, p.now) }

func since(t, now time.Time) string {
	if t.IsZero() {
		return "unknown time"
	}
	return max(now.Sub(t), 0).Round(time.Second).String()
}

// seconds prints a short time with its unit, infinity in words.
func seconds(s float64) string {
	if math.IsInf(s, 1) {
		return "longer than any bucket"
	}
	return time.Duration(s * float64(time.Second)).Round(time.Microsecond).String()
}

func bytes(n float64) string { return fmt.Sprintf("%.0f MiB", n/(1<<20)) }
