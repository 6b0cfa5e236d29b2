package matrix

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample() *Table {
	t := New("IPv4", []string{"shop/front", "shop/db"}, []Column{{"shop/db", "5432"}, {"shop/db", "53/UDP"}})
	t.Cells[0][0] = Cell{Observed: Yes, Expected: No, Note: "reached shop/db"}
	t.Cells[0][1] = Cell{Observed: No, Expected: Unknown}
	t.Cells[1][0] = Cell{Void: true}
	t.Cells[1][1] = Cell{Observed: Broken, Expected: Yes}
	return t
}

func TestRender(t *testing.T) {
	for name, test := range map[string]struct {
		style Style
		want  string
	}{
		"beside each other": {Style{}, `
IPv4
            observed      | policy says
            shop          | shop
            db            | db
from \ to   5432 53/UDP   | 5432 53/UDP
shop/front  !yes no       | no   ?
shop/db     .    !err     | .    yes
`},
		"below each other": {Style{Width: 30}, `
IPv4
            observed
            shop
            db
from \ to   5432 53/UDP
shop/front  !yes no
shop/db     .    !err
            policy says
            shop
            db
from \ to   5432 53/UDP
shop/front  no   ?
shop/db     .    yes
`},
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			if err := sample().Render(&b, test.style); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimPrefix(test.want, "\n"), b.String()); diff != "" {
				t.Errorf("want(-) got(+):\n%s", diff)
			}
		})
	}
}

func TestColoursSayNothingMore(t *testing.T) {
	var plainText, colours strings.Builder
	if err := sample().Render(&plainText, Style{}); err != nil {
		t.Fatal(err)
	}
	if err := sample().Render(&colours, Style{Color: true}); err != nil {
		t.Fatal(err)
	}
	stripped := colours.String()
	for _, escape := range []string{bold, dim, red, green, yellow, plain} {
		stripped = strings.ReplaceAll(stripped, escape, "")
	}
	if stripped == colours.String() {
		t.Error("no colours")
	}
	if diff := cmp.Diff(plainText.String(), stripped); diff != "" {
		t.Errorf("want(-) got(+):\n%s", diff)
	}
}

func TestDifferences(t *testing.T) {
	table := sample()
	if got := table.Differences(); len(got) != 2 || got[0].Row != "shop/front" || got[1].Column.Port != "53/UDP" {
		t.Errorf("differences: %+v", got)
	}
	if got := table.Changes(sample()); len(got) != 0 {
		t.Errorf("changes to itself: %+v", got)
	}
	table.Cells[0][1].Observed = Yes
	if got := table.Changes(sample()); len(got) != 1 || got[0].Cell.Observed != Yes {
		t.Errorf("changes: %+v", got)
	}
	if table.Cells.Asked() != 3 || table.Cells.Count(Yes) != 2 {
		t.Errorf("asked %d, yes %d, want 3 and 2", table.Cells.Asked(), table.Cells.Count(Yes))
	}
}
