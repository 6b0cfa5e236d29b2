package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
)

// shown is a command that a page or the help shows.
type shown struct {
	where, line string
	// mention is a command named in running text, which need not be complete.
	mention bool
}

// listings are pages whose indented blocks are no commands but files, rules and pictures.
var listings = []string{"benchmark.md", "dialects.md", "domains.md", "ruleset.md"}

var (
	// programs begin the commands between backquotes, and those in fenced blocks of commands.
	programs = `((?:UPDATE=1 )?(?:bin/firstpacket|firstpacket|make|go test|go run|kubectl|helm|crane|bash|curl) [^\x60]+)`
	inText   = regexp.MustCompile("`" + programs + "`")
	fenced   = regexp.MustCompile(`^` + programs)
	comment  = regexp.MustCompile(`\s+#\s.*$`)
)

// pages are the README, the documents and the chart's README.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(found, "../../README.md", "../../deploy/chart/firstpacket/README.md")
}

// shownOn are the commands of a page. Sessions (```console) are left out: TestDocs of cmd/firstpacket runs them and
// compares what they print.
func shownOn(t *testing.T, page string) []shown {
	t.Helper()
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	where := filepath.Base(page)
	var blocks []string
	var text strings.Builder
	fence := "" // what ends the block
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimRight(line, "\n")
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case strings.HasPrefix(line, "```"):
			if fence == "" {
				fence = line
			} else {
				fence = ""
			}
		case fence == "```" && fenced.MatchString(line):
			blocks = append(blocks, line)
		case fence != "":
		case indented && !slices.Contains(listings, where):
			blocks = append(blocks, strings.TrimSpace(code))
		default:
			text.WriteString(line + " ")
		}
	}
	all := commands(where, blocks)
	for _, m := range inText.FindAllStringSubmatch(text.String(), -1) {
		line := strings.Join(strings.Fields(m[1]), " ")
		all = append(all, shown{where, strings.TrimPrefix(line, "bin/"), true})
	}
	return all
}

// commands joins lines to commands: those that go on after a backslash or a pipe, and loops.
func commands(where string, lines []string) []shown {
	var all []shown
	open := ""
	for _, line := range lines {
		open += strings.TrimSuffix(comment.ReplaceAllString(line, ""), " &")
		rest, more := strings.CutSuffix(open, `\`)
		switch loop := strings.HasPrefix(open, "for "); {
		case more:
			open = rest
		case strings.HasSuffix(open, "|"), loop && strings.HasSuffix(open, "; do"):
			open += " "
		case loop && !strings.HasSuffix(open, "done"):
			open += "; "
		default:
			all = append(all, shown{where, strings.TrimPrefix(open, "bin/"), false})
			open = ""
		}
	}
	return all
}

// shownByHelp are the examples of a command of the program and of all below it.
func shownByHelp(t *testing.T, program string, path ...string) []shown {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, append(path, "--help")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []shown
	var lines []string
	section := ""
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		entry, indented := strings.CutPrefix(line, "  ")
		switch {
		case strings.HasSuffix(line, ":") && !indented:
			section = line
		case !indented:
		case section == "Available Commands:":
			if name := strings.Fields(entry)[0]; name != "help" && name != "completion" {
				all = append(all, shownByHelp(t, program, append(slices.Clone(path), name)...)...)
			}
		case section == "Examples:" && !strings.HasPrefix(entry, "#"):
			lines = append(lines, entry)
		}
	}
	return append(all, commands(strings.Join(append([]string{"firstpacket"}, append(path, "--help")...), " "), lines)...)
}

// allShown is everything that the pages and the help show.
func allShown(t *testing.T) []shown {
	t.Helper()
	program, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	all := shownByHelp(t, program)
	for _, page := range pages(t) {
		all = append(all, shownOn(t, page)...)
	}
	return all
}

// TestShownIsRun holds the pages and the help to the script: each command that they show is a step of it, or one
// of those that it says something else runs; and each step is shown.
func TestShownIsRun(t *testing.T) {
	script := readScript(t)
	used := map[string]bool{}
	all := allShown(t)
	for _, s := range all {
		found := false
		for _, step := range script.all() {
			if s.line == step.line || s.mention && mentions(s.line, step.line) {
				used[step.line], found = true, true
			}
		}
		if !found {
			t.Errorf("%s shows a command that testdata/shown.txt does not have: %s", s.where, s.line)
		}
	}
	if len(all) < 50 {
		t.Errorf("%d commands found", len(all))
	}
	for _, step := range script.all() {
		if !used[step.line] {
			t.Errorf("nothing shows the command of line %d of testdata/shown.txt: %s", step.number, step.line)
		}
	}
}

// mentions tells whether the words of a mention are among those of a command, in that order. A word may have
// alternatives: bash|zsh.
func mentions(mention, line string) bool {
	words := strings.Fields(line)
	for m := range strings.FieldsSeq(mention) {
		at := slices.IndexFunc(words, func(w string) bool { return slices.Contains(strings.Split(m, "|"), w) })
		if at < 0 {
			return false
		}
		words = words[at+1:]
	}
	return true
}

// TestShownElsewhere holds what the script says to run elsewhere to what there is: sections of .ci/run, targets, tests.
func TestShownElsewhere(t *testing.T) {
	contains := func(pattern string, files ...string) {
		t.Helper()
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if regexp.MustCompile(pattern).Match(raw) {
				return
			}
		}
		t.Errorf("%v: no match for %s", files, pattern)
	}
	for _, step := range readScript(t).elsewhere {
		words := strings.Fields(step.line)
		target := ""
		if words[0] == "make" {
			target = ".*make " + words[1] + `\b`
			contains("(?m)^"+words[1]+":", "../../Makefile")
		}
		contains("(?m)^section '"+step.where+"'"+target, "../../.ci/run")
		for i, word := range words {
			if !strings.HasPrefix(word, "./") || words[0] == "make" {
				continue
			}
			files, err := filepath.Glob("../../" + strings.TrimSuffix(word, "/...") + "/*.go")
			if err != nil || len(files) == 0 && !strings.HasSuffix(word, "/...") {
				t.Errorf("%s: no package %s: %v", step.line, word, err)
			}
			if i >= 2 && words[1] == "test" && words[i-2] == "-run" {
				contains(`(?m)^func `+words[i-1]+`\b`, files...)
			}
		}
	}
}
