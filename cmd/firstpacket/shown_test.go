package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// listings are pages whose indented blocks are no commands but files, rules and pictures.
var listings = []string{"benchmark.md", "dialects.md", "domains.md", "ruleset.md"}

// elsewhere are the programs of commands that cannot run here, and why. What they name of ours is checked all the same.
var elsewhere = map[string]string{
	"kubectl": "needs a cluster with kubelets; what it is told is what bench/deploy does with the API server's own client",
	"kubelet": "is configured by whoever runs the node",
	"crane":   "needs a registry to push to; bench/deploy reads the layout that is pushed",
	"skopeo":  "needs a registry to push to; bench/deploy reads the layout that is pushed",
	"for":     "goes over the nodes of a cluster",
	"done":    "ends the loop",
	"ln":      "writes to the home folder; the names are those that the scripts run",
	"sed":     "", // is run
	"helm":    "", // its values are checked
	"make":    "", // its targets are checked
	"go":      "", // what it runs is checked
}

// shown is a command that a page shows.
type shown struct{ page, line string }

// commands are those of a page: in indented blocks, and between backquotes in the text if they are ours.
func commands(t *testing.T, page string) []shown {
	t.Helper()
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var all []shown
	add := func(line string) { all = append(all, shown{filepath.Base(page), line}) }
	fenced, open := false, ""
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimRight(line, "\n")
		switch text, indented := strings.CutPrefix(line, "    "); {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced:
		case indented && !slices.Contains(listings, filepath.Base(page)):
			open += strings.TrimSpace(text)
			if rest, more := strings.CutSuffix(open, `\`); more {
				open = rest
				continue
			}
			if strings.HasSuffix(open, "|") {
				open += " "
				continue
			}
			add(open)
			open = ""
		default:
			for _, m := range ours.FindAllStringSubmatch(line, -1) {
				add(m[1])
			}
		}
	}
	return all
}

// ours are commands in the text that begin with a program of ours and go on.
var ours = regexp.MustCompile("`((?:bin/firstpacket|firstpacket|make|go test|go run) [a-z./-][^`]*)`")

// words splits a command as a shell does, as far as the pages need it: comments, quotes, and the background.
func words(line string) []string {
	line, _, _ = strings.Cut(line, " # ")
	var all []string
	for _, m := range regexp.MustCompile(`'[^']*'|"[^"]*"|\S+`).FindAllString(line, -1) {
		if m != "&" {
			all = append(all, strings.Trim(m, `'"`))
		}
	}
	return all
}

// TestShownCommands holds the README and all pages to commands that exist: those of this program are parsed, and run
// where manifests are all they need; those of other programs name targets, tests, values and links that there are.
func TestShownCommands(t *testing.T) {
	root := filepath.Join("..", "..")
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	ran, seen := 0, map[string]bool{}
	for _, page := range append(pages, filepath.Join(root, "README.md")) {
		for _, c := range commands(t, page) {
			t.Run(c.page+": "+c.line, func(t *testing.T) {
				w := words(c.line)
				program := filepath.Base(w[0])
				seen[program] = true
				switch _, known := elsewhere[program]; {
				case program == "firstpacket":
					if parse(t, w[1:]) {
						ran++
					}
				case !known:
					t.Errorf("nothing checks %s", program)
				default:
					other(t, root, program, w)
				}
			})
		}
	}
	if ran < 2 {
		t.Errorf("%d commands ran", ran)
	}
	for program, reason := range elsewhere {
		if reason != "" && !seen[program] {
			t.Errorf("no page shows %s", program)
		}
	}
}

// parse parses the command line as the program does, and runs it if it asks about ./cluster.
func parse(t *testing.T, args []string) (ran bool) {
	t.Helper()
	root := newRoot()
	root.InitDefaultCompletionCmd() // which running adds
	for i, arg := range args {
		args[i], _, _ = strings.Cut(arg, "|") // one of several
	}
	cmd, rest, err := root.Find(args)
	if err == nil && !slices.Contains(rest, "--help") {
		err = cmd.ParseFlags(rest)
	}
	if err == nil && cmd.Args != nil {
		err = cmd.Args(cmd, cmd.Flags().Args())
	}
	if err == nil {
		err = cmd.ValidateFlagGroups()
	}
	if err != nil || cmd == cmd.Root() {
		t.Fatalf("%s is no such command: %v", cmd.CommandPath(), err)
	}
	if cmd.Name() == "agent" || cmd.Name() == "ui" || !slices.Contains(args, "./cluster") {
		return false
	}
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "cluster"), os.DirFS(filepath.Join("testdata", "shop"))); err != nil {
		t.Fatal(err)
	}
	run := exec.CommandContext(t.Context(), "firstpacket", args...) // testscript.Main puts it there
	run.Dir = dir
	out, err := run.CombinedOutput()
	if code := run.ProcessState.ExitCode(); code != exitOK && code != exitNo {
		t.Errorf("%v: %s", err, out)
	}
	return true
}

// other checks what a command of another program names of this project's.
func other(t *testing.T, root, program string, w []string) {
	t.Helper()
	contains := func(file, pattern string) {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(pattern).Match(raw) {
			t.Errorf("%s has no %s", file, pattern)
		}
	}
	switch program {
	case "make":
		for _, target := range w[1:] {
			if !strings.Contains(target, "=") {
				contains("Makefile", `(?m)^`+regexp.QuoteMeta(target)+`:`)
			}
		}
	case "go":
		tested(t, root, w)
	case "helm":
		values(t, root, w)
	case "ln":
		if name := filepath.Base(w[len(w)-1]); name != pluginName && name != pluginCompleteName {
			t.Errorf("%s is no name of the plugin", name)
		}
	case "sed":
		cmd := exec.CommandContext(t.Context(), w[0], w[1], filepath.Join(root, w[2]))
		if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), `image: "REGISTRY/firstpacket:`) {
			t.Errorf("the image's name is not put in: %v", err)
		}
	case "kubectl", "for", "done":
		if at := slices.Index(w, "/firstpacket"); at >= 0 {
			parse(t, w[at+1:])
		}
	}
}

// tested wants the package that go test or go run names, and the test.
func tested(t *testing.T, root string, w []string) {
	t.Helper()
	var dir, name string
	for i, word := range w {
		if strings.HasPrefix(word, "./") && dir == "" {
			dir = filepath.Join(root, strings.TrimSuffix(word, "..."))
		}
		if word == "-run" && w[1] == "test" {
			name = strings.Trim(w[i+1], "^$")
		}
	}
	if dir == "" {
		return // the way to do it with any package
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatal(err)
	}
	if name == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), "func "+name) {
			return
		}
	}
	t.Errorf("%s has no %s", dir, name)
}

// values wants the chart, and a value for each --set.
func values(t *testing.T, root string, w []string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "deploy", "chart", "firstpacket", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var chart map[string]any
	if err := yaml.Unmarshal(raw, &chart); err != nil {
		t.Fatal(err)
	}
	for i, word := range w {
		if strings.HasPrefix(word, "deploy/") {
			if _, err := os.Stat(filepath.Join(root, word, "Chart.yaml")); err != nil {
				t.Error(err)
			}
		}
		if word != "--set" {
			continue
		}
		key, _, _ := strings.Cut(w[i+1], "=")
		var at any = chart
		for part := range strings.SplitSeq(key, ".") {
			in, ok := at.(map[string]any)
			if at, ok = in[part], ok && in != nil; !ok || at == nil {
				t.Errorf("the chart has no value %s", key)
				break
			}
		}
	}
}
