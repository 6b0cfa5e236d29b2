package reach

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/firstpacket/firstpacket/policycache/term"
)

// extent is how far a cell reaches.
type extent uint8

const (
	// empty cells have no pairs.
	empty extent = iota
	// none of the pairs is allowed anything.
	none
	// part of the pairs, or of the ports, is allowed.
	part
	// whole cells are allowed everything that was asked for.
	whole
)

// extent tells what words and colours a cell gets.
func (m *Matrix) extent(c *Cell) extent {
	switch {
	case c.Pairs == 0:
		return empty
	case len(c.Reach) == 0:
		return none
	}
	want := len(m.Ports)
	if want == 0 {
		want = protocols
	}
	full := 0
	for _, r := range c.Reach {
		if r.Allowed == c.Pairs && (len(m.Ports) > 0 || r.Ports.all()) {
			full += r.Ports.width(m.Ports)
		}
	}
	if full == want {
		return whole
	}
	return part
}

// protocols is the number of spans of a cell that is open for everything: TCP, UDP, SCTP, and ICMP for the rest.
const protocols = 4

// all tells whether the span is a whole protocol.
func (s Span) all() bool {
	return s.Last == s.First && s.First == 0 || s.First == minPort && s.Last == maxPort
}

// width counts the asked ports that the span joins; 1 where all were asked for.
func (s Span) width(asked []Span) int {
	if len(asked) == 0 {
		return 1
	}
	return int(s.Last-s.First) + 1
}

// words print a cell.
func (m *Matrix) words(c *Cell) string {
	switch m.extent(c) {
	case empty:
		return "."
	case none:
		return "-"
	case whole:
		return "all"
	}
	var parts []string
	for _, r := range c.Reach {
		text := r.Ports.String()
		if r.Allowed < c.Pairs {
			text += fmt.Sprintf(" (%d of %d)", r.Allowed, c.Pairs)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// WriteText writes a table: sources down, destinations across.
func (m *Matrix) WriteText(w io.Writer, style term.Style) error {
	var b strings.Builder
	rows := [][]string{{"FROM \\ TO"}}
	for _, g := range m.Groups {
		rows[0] = append(rows[0], g.Name)
	}
	for i, g := range m.Groups {
		row := []string{g.Name}
		for j := range m.Groups {
			row = append(row, m.words(&m.Cells[i][j]))
		}
		rows = append(rows, row)
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for j, text := range row {
			widths[j] = max(widths[j], utf8.RuneCountInString(text))
		}
	}
	for i, row := range rows {
		for j, text := range row {
			padding := strings.Repeat(" ", widths[j]-utf8.RuneCountInString(text))
			if j == len(row)-1 {
				padding = ""
			} else {
				padding += "  "
			}
			b.WriteString(m.styled(style, i, j, text) + padding)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "\n%s\n", style.Dim(m.legend()))
	return write(w, b.String())
}

func (m *Matrix) styled(style term.Style, i, j int, text string) string {
	if i == 0 || j == 0 {
		return style.Bold(text)
	}
	switch m.extent(&m.Cells[i-1][j-1]) {
	case none:
		return style.Bad(text)
	case part:
		return style.Mixed(text)
	case whole:
		return style.Good(text)
	}
	return style.Dim(text)
}

// legend says what the words of the cells mean.
func (m *Matrix) legend() string {
	asked := "every port"
	if len(m.Ports) > 0 {
		names := make([]string, len(m.Ports))
		for i, p := range m.Ports {
			names[i] = p.String()
		}
		asked = strings.Join(names, ", ")
	}
	return fmt.Sprintf("Asked for %s. all: allowed; -: denied; ports: these are allowed, (n of m) for part of the pairs; "+
		".: no pair. ICMP stands for every protocol without ports.", asked)
}

// WriteCSV writes a line for each pair of groups and range of ports: source, destination, ports, allowed pairs, pairs.
// A pair of groups that is denied everything has one line, with no ports and 0 allowed.
func (m *Matrix) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	lines := [][]string{{"from", "to", "ports", "allowed", "pairs"}}
	for i := range m.Groups {
		for j := range m.Groups {
			c := &m.Cells[i][j]
			pairs := strconv.Itoa(c.Pairs)
			for _, r := range c.Reach {
				lines = append(lines, []string{
					plain(m.Groups[i].Name), plain(m.Groups[j].Name), r.Ports.String(), strconv.Itoa(r.Allowed), pairs,
				})
			}
			if c.Pairs > 0 && len(c.Reach) == 0 {
				lines = append(lines, []string{plain(m.Groups[i].Name), plain(m.Groups[j].Name), "", "0", pairs})
			}
		}
	}
	if err := out.WriteAll(lines); err != nil {
		return fmt.Errorf("writing the matrix: %w", err)
	}
	return nil
}

// plain keeps spreadsheets from taking a name for a formula.
func plain(name string) string {
	if name != "" && strings.ContainsRune("=+-@", rune(name[0])) {
		return "'" + name
	}
	return name
}

// WriteJSON writes the matrix as indented JSON.
func (m *Matrix) WriteJSON(w io.Writer) error { return writeJSON(w, m) }

// WriteJSON writes the difference as indented JSON.
func (d *Difference) WriteJSON(w io.Writer) error { return writeJSON(w, d) }

// WriteText writes the difference in words.
func (d *Difference) WriteText(w io.Writer, style term.Style) error {
	var b strings.Builder
	section := func(title string, mark func(string) string, ports func(*Change) []Span) {
		lines := d.lines(mark, ports)
		if len(lines) > 0 {
			fmt.Fprintf(&b, "%s\n%s\n\n", style.Bold(title), strings.Join(lines, "\n"))
		}
	}
	section("Would be allowed:", style.Good, func(c *Change) []Span { return c.Allowed })
	section("Would be denied:", style.Bad, func(c *Change) []Span { return c.Denied })
	for _, s := range []struct {
		what string
		pods []string
	}{{"New", d.Appeared}, {"Gone", d.Vanished}} {
		if len(s.pods) > 0 {
			fmt.Fprintf(&b, "%s, so not compared: %s\n\n", s.what, strings.Join(s.pods, ", "))
		}
	}
	if len(d.Changes) == 0 {
		fmt.Fprintln(&b, "No verdict would change.")
	} else {
		fmt.Fprintf(&b, "%d pairs of addresses would reach each other at more ports, %d at fewer.\n", d.Gained, d.Lost)
	}
	return write(w, b.String())
}

// lines prints a line for each change that has such ports. What is the same over IPv6 as over IPv4 is told once.
func (d *Difference) lines(mark func(string) string, ports func(*Change) []Span) []string {
	var lines []string
	told := map[string]bool{}
	for _, family := range []string{"IPv4", "IPv6"} {
		for i := range d.Changes {
			c := &d.Changes[i]
			if c.Family != family || len(ports(c)) == 0 {
				continue
			}
			line := fmt.Sprintf("  %s -> %s: %s", c.From, c.To, mark(join(ports(c))))
			if told[line] {
				continue
			}
			if family == "IPv4" {
				told[line] = true
			} else {
				line += " over IPv6"
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// String names the party in a line.
func (p Party) String() string {
	if len(p.Members) == 0 {
		return p.Name
	}
	return fmt.Sprintf("%s (+%d)", p.Name, len(p.Members)-1)
}

// join prints spans; every protocol and port is everything.
func join(spans []Span) string {
	if len(spans) == protocols && !slices.ContainsFunc(spans, func(s Span) bool { return !s.all() }) {
		return "everything"
	}
	names := make([]string, len(spans))
	for i, s := range spans {
		names[i] = s.String()
	}
	return strings.Join(names, ", ")
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

func write(w io.Writer, text string) error {
	if _, err := io.WriteString(w, text); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}
