package overview

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/firstpacket/firstpacket/policycache/term"
)

// Answer is what came of asking one agent of several.
type Answer struct {
	// Name is how the agent is called where it was asked: its node, or its address.
	Name string
	// Overview is nil if Err is why there is none.
	Overview *Overview
	Err      error
}

// Table is how several agents are, in the order in which they are to be shown.
type Table []Answer

// Ready tells whether all agents answer and enforce.
func (t Table) Ready() bool {
	return !slices.ContainsFunc(t, func(a Answer) bool { return a.Err != nil || !a.Overview.Ready() })
}

// Err is nil if any agent answers, else the errors of all.
func (t Table) Err() error {
	var all []error
	for _, a := range t {
		if a.Err == nil {
			return nil
		}
		all = append(all, fmt.Errorf("%s: %w", a.Name, a.Err))
	}
	return errors.Join(all...)
}

// WriteText writes a line for each agent. Ages are counted up to now.
func (t Table) WriteText(w io.Writer, style term.Style, now time.Time) error {
	rows := [][]string{
		{"NODE", "VERSION", "UP", "GENERATION", "POLICIES", "PROBLEMS", "CACHED", "DENIED", "DROPPED", "STATE"},
	}
	for _, a := range t {
		rows = append(rows, a.row(now))
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for j, text := range row {
			widths[j] = max(widths[j], utf8.RuneCountInString(text))
		}
	}
	var b strings.Builder
	for i, row := range rows {
		for j, text := range row {
			padding := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(text))
			switch {
			case j == len(row)-1:
				b.WriteString(t.state(i-1, style, text) + "\n")
			case i == 0:
				b.WriteString(style.Bold(text) + padding + "  ")
			default:
				b.WriteString(text + padding + "  ")
			}
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	return nil
}

// row has the cells of an agent's line; the last is its state.
func (a Answer) row(now time.Time) []string {
	if a.Err != nil {
		return []string{a.Name, "-", "-", "-", "-", "-", "-", "-", "-", "NO ANSWER: " + a.Err.Error()}
	}
	o := a.Overview
	s := &o.Status
	state := "enforcing"
	switch {
	case !o.Ready():
		state = "NOT READY: " + s.NotReady
	case s.Audit:
		state = "only auditing"
	}
	if len(s.Warnings) > 0 {
		w := &s.Warnings[0]
		state += fmt.Sprintf("; %s ago: %s", since(w.Last, now), describe(w))
	}
	return []string{
		s.Node, s.Version, since(s.Started, now), fmt.Sprint(s.Generation), fmt.Sprint(s.Policies),
		fmt.Sprint(len(s.Problems)), fmt.Sprint(s.Tuples), fmt.Sprintf("%.0f", o.sum("verdicts_total", "verdict", "deny")),
		fmt.Sprintf("%.0f", o.sum("queue_dropped_packets_total")), state,
	}
}

// state styles the last cell of an agent's line, or of the heading.
func (t Table) state(i int, style term.Style, text string) string {
	switch {
	case i < 0:
		return style.Bold(text)
	case t[i].Err != nil || !t[i].Overview.Ready():
		return style.Bad(text)
	case len(t[i].Overview.Status.Warnings) > 0 || t[i].Overview.Status.Audit:
		return style.Mixed(text)
	}
	return style.Good(text)
}

// WriteJSON writes a list with the status and metrics of each agent, or the error.
func (t Table) WriteJSON(w io.Writer) error {
	type entry struct {
		Name  string `json:"name"`
		Error string `json:"error,omitempty"`
		*report
	}
	list := make([]entry, len(t))
	for i, a := range t {
		list[i].Name = a.Name
		if a.Err != nil {
			list[i].Error = a.Err.Error()
			continue
		}
		list[i].report = a.Overview.report()
	}
	return writeJSON(w, list)
}
