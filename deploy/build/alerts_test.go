package build

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// promqlParser reads expressions as Prometheus does by default.
var promqlParser = parser.NewParser(parser.Options{})

// TestAlerts checks the rules as `promtool check rules` does, and that each says what to do.
func TestAlerts(t *testing.T) {
	groups, errs := rulefmt.ParseFile("../alerts/firstpacket.yaml", false, model.UTF8Validation, promqlParser,
		slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil {
		t.Fatal("no rules")
	}
	seen := map[string]bool{}
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			if seen[r.Alert] || !strings.HasPrefix(r.Alert, "Firstpacket") {
				t.Errorf("alert %q: twice, or not named after firstpacket", r.Alert)
			}
			seen[r.Alert] = true
			switch r.Labels["severity"] {
			case "critical", "warning", "info":
			default:
				t.Errorf("%s has severity %q", r.Alert, r.Labels["severity"])
			}
			for _, a := range []string{"summary", "runbook"} {
				if len(r.Annotations[a]) < 40 {
					t.Errorf("%s: the %s says little: %q", r.Alert, a, r.Annotations[a])
				}
			}
		}
	}
	if len(seen) == 0 {
		t.Error("no alert")
	}
}

// panel is a part of the dashboard.
type panel struct {
	Type, Title, Description string
	Targets                  []struct{ Expr string }
}

func dashboard(t *testing.T) []panel {
	t.Helper()
	b, err := os.ReadFile("../dashboards/firstpacket.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct{ Panels []panel }
	if err := json.Unmarshal(b, &board); err != nil {
		t.Fatal(err)
	}
	return board.Panels
}

// TestDashboardQueries parses every query of the dashboard, with Grafana's variables filled in.
func TestDashboardQueries(t *testing.T) {
	queries := 0
	for _, p := range dashboard(t) {
		if p.Type == "row" {
			continue
		}
		if p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q has no description or no query", p.Title)
		}
		for _, target := range p.Targets {
			queries++
			if _, err := promqlParser.ParseExpr(fill(target.Expr)); err != nil {
				t.Error(fmt.Errorf("panel %q: %s: %w", p.Title, fill(target.Expr), err))
			}
		}
	}
	if queries == 0 {
		t.Error("no query")
	}
}
