package matrix

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Style says how a table is drawn.
type Style struct {
	// Color marks cells with terminal colours besides the letters, which say everything without.
	Color bool
	// Width is how many columns of text fit on a line; 0 is any number. Where both sides do not fit beside each other
	// the second goes below the first.
	Width int
}

// StyleFor suits what is written to: colours only on a terminal that wants them (no-color.org).
func StyleFor(w io.Writer) Style {
	f, ok := w.(*os.File)
	if !ok {
		return Style{}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return Style{}
	}
	return Style{Color: os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb", Width: int(size.Col)}
}

// The escapes of ECMA-48, section 8.3.117.
const (
	bold, dim, red, green, yellow, plain = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
)

func (s Style) paint(escape, text string) string {
	if !s.Color || text == "" {
		return text
	}
	return escape + text + plain
}

// Render draws the table: observed on the left, policy on the right. A cell that differs is marked on the left by an
// exclamation mark.
func (t *Table) Render(w io.Writer, s Style) error {
	observed := t.side(s, "observed", func(c Cell) (string, string) {
		if c.Differs() {
			return "!" + c.Observed.String(), bold + red
		}
		return c.Observed.String(), colour(c.Observed)
	})
	expected := t.side(s, "policy says", func(c Cell) (string, string) { return c.Expected.String(), colour(c.Expected) })
	rows := t.rowHeads()

	var b strings.Builder
	if t.Title != "" {
		fmt.Fprintf(&b, "%s\n", s.paint(bold, t.Title))
	}
	if s.Width == 0 || width(rows)+width(observed)+width(expected)+4 <= s.Width {
		for i := range rows {
			b.WriteString(strings.TrimRight(rows[i].text+observed[i].text+"  | "+expected[i].text, " ") + "\n")
		}
	} else {
		for _, side := range [][]line{observed, expected} {
			for i := range rows {
				b.WriteString(strings.TrimRight(rows[i].text+side[i].text, " ") + "\n")
			}
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write matrix: %w", err)
	}
	return nil
}

func colour(a Answer) string {
	switch a {
	case Yes:
		return green
	case No:
		return dim
	default:
		return yellow
	}
}

// line is one line of one side; its width does not count escapes.
type line struct {
	text  string
	width int
}

func width(lines []line) int {
	most := 0
	for _, l := range lines {
		most = max(most, l.width)
	}
	return most
}

// headLines are the lines above the cells: the side's title, the destination's namespace and name, the port.
const headLines = 4

// rowHeads is the leftmost column, padded to one width.
func (t *Table) rowHeads() []line {
	most := len("from \\ to")
	for _, r := range t.Rows {
		most = max(most, utf8.RuneCountInString(r))
	}
	lines := make([]line, 0, headLines+len(t.Rows))
	add := func(text string) { lines = append(lines, line{pad(text, most+2), most + 2}) }
	for range headLines - 1 {
		add("")
	}
	add("from \\ to")
	for _, r := range t.Rows {
		add(r)
	}
	return lines
}

// side draws the columns of one side.
func (t *Table) side(s Style, title string, show func(Cell) (text, escape string)) []line {
	lines := make([]line, headLines+len(t.Rows))
	put := func(i int, text, escape string, w int) {
		lines[i].text += s.paint(escape, text) + strings.Repeat(" ", max(0, w-utf8.RuneCountInString(text)))
		lines[i].width += w
	}
	for j, c := range t.Columns {
		namespace, name, ok := strings.Cut(c.Name, "/")
		if !ok {
			namespace, name = "", c.Name
		}
		// Ports of one destination stand below one name.
		if j > 0 && t.Columns[j-1].Name == c.Name {
			namespace, name = "", ""
		}
		w := max(len(namespace), len(name), len(c.Port), len("!yes")) + 1
		put(1, namespace, dim, w)
		put(2, name, bold, w)
		put(3, c.Port, dim, w)
		for i := range t.Rows {
			text, escape := show(t.Cells[i][j])
			if t.Cells[i][j].Void {
				text, escape = ".", dim
			}
			put(headLines+i, text, escape, w)
		}
	}
	whole := max(width(lines), len(title))
	for i := range lines {
		if i == 0 {
			lines[0] = line{s.paint(bold, title), len(title)}
		}
		lines[i].text += strings.Repeat(" ", whole-lines[i].width)
		lines[i].width = whole
	}
	return lines
}

func pad(text string, w int) string {
	return text + strings.Repeat(" ", max(0, w-utf8.RuneCountInString(text)))
}
