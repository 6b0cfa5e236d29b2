package deploy

import (
	"os"
	"strings"
	"testing"
)

// script is testdata/shown.txt, where its form is told.
type script struct {
	steps []*step
	// elsewhere and nowhere are not run by this.
	elsewhere, nowhere []*step
}

// step is a command, or a function of the test's own.
type step struct {
	number int // of its line
	kind   string
	line   string
	want   string
	status string
	// where is the section of .ci/run, or the reason.
	where string
	// meanwhile are done before the command is ended.
	meanwhile []*step
}

// all are the script's commands.
func (s *script) all() []*step {
	var all []*step
	var walk func([]*step)
	walk = func(steps []*step) {
		for _, st := range steps {
			if st.kind != "!" {
				all = append(all, st)
			}
			walk(st.meanwhile)
		}
	}
	walk(s.steps)
	walk(s.elsewhere)
	walk(s.nowhere)
	return all
}

func readScript(t *testing.T) *script {
	t.Helper()
	raw, err := os.ReadFile("testdata/shown.txt")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{}
	levels := []*[]*step{&s.steps} // by indentation
	number := 0
	for line := range strings.Lines(string(raw)) {
		number++
		text := strings.TrimLeft(strings.TrimRight(line, "\n"), " ")
		depth := (len(strings.TrimRight(line, "\n")) - len(text)) / 2
		kind, rest, _ := strings.Cut(text, " ")
		if depth >= len(levels) {
			t.Fatalf("line %d: indented too far", number)
		}
		steps := levels[depth]
		st := &step{number: number, kind: kind, line: rest, status: "0"}
		switch kind {
		case "", "#":
		case ">", "=":
			if len(*steps) == 0 {
				t.Fatalf("line %d: of no command", number)
			}
			if last := (*steps)[len(*steps)-1]; kind == ">" {
				last.want = rest
			} else {
				last.status = rest
			}
		case "$", "&", "node$", "node&", "pod$", "!":
			*steps = append(*steps, st)
			levels = append(levels[:depth+1], &st.meanwhile)
		case "~", "-":
			st.line, st.where, _ = strings.Cut(rest, ": ")
			if st.where == "" {
				t.Fatalf("line %d: no reason", number)
			}
			if kind == "~" {
				s.elsewhere = append(s.elsewhere, st)
			} else {
				s.nowhere = append(s.nowhere, st)
			}
		default:
			t.Fatalf("line %d: %q", number, kind)
		}
	}
	return s
}
