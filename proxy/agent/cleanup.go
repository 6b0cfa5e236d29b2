package agent

import (
	"github.com/firstpacket/firstpacket/proxy/conntrack"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

// Cleanup removes what agents with the mark mask left in the kernel: the table, and the marks of flows, whose number it
// returns.
func Cleanup(mask uint32) (flows int, err error) {
	layout, err := mark.New(mask)
	if err != nil {
		return 0, err
	}
	rules, err := ruleset.Open(ruleset.Config{Mask: layout})
	if err != nil {
		return 0, err
	}
	defer rules.Close()
	// First the table: it would mark new flows.
	if err := rules.Cleanup(); err != nil {
		return 0, err
	}
	table, err := conntrack.Open(0)
	if err != nil {
		return 0, err
	}
	defer table.Close()
	var marked []conntrack.Flow
	err = table.Dump(conntrack.Filter{}, func(f *conntrack.Flow) bool {
		if f.Mark&layout.Mask() != 0 {
			marked = append(marked, *f)
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	return table.SetMarks(marked, 0, layout.Mask())
}
