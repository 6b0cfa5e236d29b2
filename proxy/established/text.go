package established

import (
	"fmt"
	"io"
	"strings"

	"github.com/firstpacket/firstpacket/policycache/term"
)

// WriteText writes the changes in words; looked is the number of flows that were looked at.
func WriteText(w io.Writer, style term.Style, changes []Change, looked int) error {
	var b strings.Builder
	section := func(title string, mark func(string) string, cut bool) (n int) {
		for i := range changes {
			c := &changes[i]
			if c.Cut != cut {
				continue
			}
			if n++; n == 1 {
				fmt.Fprintf(&b, "\n%s\n", style.Bold(title))
			}
			why := c.Reason
			if len(c.Policies) > 0 {
				why += ", " + strings.Join(c.Policies, ", ")
			}
			fmt.Fprintf(&b, "  %s %s -> %s: %s\n", c.Proto, c.Src, c.Dst, mark(why))
		}
		return n
	}
	cut := section("Established flows that would be cut:", style.Bad, true)
	back := section("Flows that are cut and would go on:", style.Good, false)
	fmt.Fprintf(&b, "\nOf %d flows of this node %d would be cut and %d would go on again.\n", looked, cut, back)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("writing the flows: %w", err)
	}
	return nil
}
