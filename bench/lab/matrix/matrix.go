// Package matrix is the table of who reaches whom: what was observed beside what policy says.
package matrix

// Answer is whether a connection comes to be.
type Answer uint8

// The answers.
const (
	// Unknown: nobody was asked, or could tell. It is never different from anything.
	Unknown Answer = iota
	Yes
	No
	// Broken: the question could not be put, or the answer came from somebody else. It is different from everything.
	Broken
)

// Of turns a bool into an answer.
func Of(yes bool) Answer {
	if yes {
		return Yes
	}
	return No
}

// String is the answer in at most four letters.
func (a Answer) String() string { return [...]string{"?", "yes", "no", "err"}[a] }

// Cell is one pair at one port.
type Cell struct {
	Observed, Expected Answer
	// Note says more about the observation, for messages.
	Note string
	// Void cells have no meaning, such as a pod to itself where that is left out.
	Void bool
}

// Differs says that the observation is not what policy says.
func (c Cell) Differs() bool {
	if c.Void {
		return false
	}
	if c.Observed == Broken || c.Expected == Broken {
		return true
	}
	return c.Observed != Unknown && c.Expected != Unknown && c.Observed != c.Expected
}

// Column is one destination port.
type Column struct {
	// Name is the destination, as namespace/name.
	Name string
	// Port is the port as shown: "8080" or "53/UDP".
	Port string
}

// Table is a matrix for one address family: a row for each source, a column for each destination port.
type Table struct {
	Title   string
	Rows    []string
	Columns []Column
	Cells   Cells
}

// Cells are in the order of rows, then columns.
type Cells [][]Cell

// Asked is the number of cells that are not void.
func (c Cells) Asked() int { return c.count(func(c Cell) bool { return !c.Void }) }

// Count is the number of cells with that observation.
func (c Cells) Count(observed Answer) int {
	return c.count(func(c Cell) bool { return !c.Void && c.Observed == observed })
}

func (c Cells) count(match func(Cell) bool) int {
	n := 0
	for _, row := range c {
		for _, cell := range row {
			if match(cell) {
				n++
			}
		}
	}
	return n
}

// New makes a table of unknown cells.
func New(title string, rows []string, columns []Column) *Table {
	t := &Table{Title: title, Rows: rows, Columns: columns, Cells: make(Cells, len(rows))}
	for i := range t.Cells {
		t.Cells[i] = make([]Cell, len(columns))
	}
	return t
}

// Difference is a cell that differs, or one that is not what it was.
type Difference struct {
	Row    string
	Column Column
	Cell   Cell
}

// Differences are the cells in which observation and policy disagree, in reading order.
func (t *Table) Differences() []Difference {
	return t.find(func(_, _ int, c Cell) bool { return c.Differs() })
}

// Changes are the cells of t whose observation is another than in old. Rows and columns are matched by name; what old
// does not have is a change.
func (t *Table) Changes(old *Table) []Difference {
	type key struct {
		row    string
		column Column
	}
	before := make(map[key]Answer)
	for i, row := range old.Cells {
		for j, c := range row {
			before[key{old.Rows[i], old.Columns[j]}] = c.Observed
		}
	}
	return t.find(func(i, j int, c Cell) bool {
		was, ok := before[key{t.Rows[i], t.Columns[j]}]
		return !c.Void && (!ok || was != c.Observed)
	})
}

func (t *Table) find(match func(i, j int, c Cell) bool) []Difference {
	var found []Difference
	for i, row := range t.Cells {
		for j, c := range row {
			if match(i, j, c) {
				found = append(found, Difference{t.Rows[i], t.Columns[j], c})
			}
		}
	}
	return found
}
