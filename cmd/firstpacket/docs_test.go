package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/firstpacket/firstpacket/cmd/firstpacket/internal/man"
)

// TestDocs runs the commands of docs/cli.md and compares what they print with what the page says. With UPDATE=1 in the
// environment it writes the page anew. In the page, "shop" is the folder testdata/shop.
func TestDocs(t *testing.T) {
	page := filepath.Join("..", "..", "docs", "cli.md")
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	commands := 0
	inside := false // a block of console
	for line := range strings.Lines(string(raw)) {
		switch {
		case strings.HasPrefix(line, "```console"):
			inside = true
			got.WriteString(line)
		case strings.HasPrefix(line, "```"):
			inside = false
			got.WriteString(line)
		case !inside:
			got.WriteString(line)
		case strings.HasPrefix(line, "$ "):
			got.WriteString(line)
			got.WriteString(shell(t, strings.TrimPrefix(line, "$ ")))
			commands++
		}
	}
	if commands == 0 {
		t.Error("the page has no commands")
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(page, []byte(got.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(string(raw), got.String()); d != "" {
		t.Errorf("docs/cli.md is not what the commands print (run with UPDATE=1 if they are right): %s", d)
	}
}

// shell runs a line where the page's folders are; commands that end with another status than 0 say so, as a shell's
// user would see it who asks for it.
func shell(t *testing.T, line string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Dir = "testdata"
	cmd.Env = append(os.Environ(), "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState.ExitCode() != exitNo {
		t.Errorf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// TestEveryCommandIsDocumented holds commands to what help and man pages are made of.
func TestEveryCommandIsDocumented(t *testing.T) {
	root := newRoot()
	dir := t.TempDir()
	if err := man.Write(root, dir); err != nil {
		t.Fatal(err)
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if !cmd.IsAvailableCommand() || cmd.Name() == "help" || cmd.Name() == "completion" {
			return
		}
		if cmd.Short == "" || cmd.Runnable() && cmd.Example == "" && cmd.Name() != "version" {
			t.Errorf("%s has no summary or no example", cmd.CommandPath())
		}
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		want := strings.ToUpper(strings.TrimSuffix(name, ".1"))
		if !strings.Contains(strings.ReplaceAll(string(text), `\-`, "-"), want) {
			t.Errorf("%s lacks the title %s", name, want)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	for _, cmd := range root.Commands() {
		walk(cmd)
	}
}
