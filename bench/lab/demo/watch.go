package demo

import (
	"context"
	"time"

	"github.com/firstpacket/firstpacket/bench/lab"
	"github.com/firstpacket/firstpacket/bench/lab/matrix"
	"github.com/firstpacket/firstpacket/classify/source/manifests"
)

// look is the time between two looks at the directory.
const look = 100 * time.Millisecond

// watch follows edits of the manifests and prints what they changed, until ctx ends. tables are brought up to date.
func watch(ctx context.Context, out *printer, l *lab.Lab, tables [2]*matrix.Table) error {
	out.printf("Edit, add or remove manifests in %s; Ctrl-C ends.\n", l.Dir())
	seen, err := manifests.Digest(l.Dir())
	if err != nil {
		return err
	}
	for {
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return nil
		}
		digest, err := manifests.Digest(l.Dir())
		if err != nil || digest == seen {
			continue // a file that went away while it was read is there, or not, at the next look
		}
		seen = digest
		if err := follow(ctx, out, l, &tables); err != nil && ctx.Err() == nil {
			out.printf("%s  not taken over: %v\n", now(), err)
			continue
		}
		// The lab may have completed what was written.
		if digest, err := manifests.Digest(l.Dir()); err == nil {
			seen = digest
		}
	}
}

// follow takes one edit over and prints the cells that it changed.
func follow(ctx context.Context, out *printer, l *lab.Lab, tables *[2]*matrix.Table) error {
	began := time.Now()
	// What agents do not take over, they say in their logs; whoever edits looks here.
	if _, problems := manifests.Load(l.Dir()); len(problems) > 0 {
		return problems.Err()
	}
	changed, err := l.Reload(ctx)
	if err != nil || !changed {
		return err
	}
	if err := inForce(ctx, l, applyPatience); err != nil {
		return err
	}
	out.printf("%s  the manifests changed; in force on all nodes after %s\n",
		now(), time.Since(began).Round(time.Millisecond))
	next, _, err := l.Matrix(ctx, options(l))
	if err != nil {
		return err
	}
	cells := 0
	for i, t := range next {
		for _, d := range t.Changes(tables[i]) {
			cells++
			mark := ""
			if d.Cell.Differs() {
				mark = ", policy says " + d.Cell.Expected.String() + "!"
			}
			out.printf("          %s: %s -> %s %s: now %s%s\n",
				t.Title, d.Row, d.Column.Name, d.Column.Port, d.Cell.Observed, mark)
		}
	}
	if cells == 0 {
		out.printf("          nobody reaches anything else than before\n")
	}
	*tables = next
	return nil
}

func now() string { return time.Now().Format(time.TimeOnly) }
