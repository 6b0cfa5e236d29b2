package deploy_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/firstpacket/firstpacket/proxy/metrics"
)

// names are those of metrics of ours in a text, without what a histogram's parts append.
var names = regexp.MustCompile(`\bfirstpacket_[a-z_]+\b`)

func used(text string) []string {
	var found []string
	for _, name := range names.FindAllString(text, -1) {
		found = append(found, strings.TrimSuffix(name, "_bucket"))
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// known are all metrics; proxy/agent counts repairs itself.
var known = append(metrics.Names(), "firstpacket_repairs_total")

func TestAlertsNameMetrics(t *testing.T) {
	b, err := os.ReadFile("alerts/firstpacket.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := used(string(b))
	if len(found) == 0 {
		t.Error("no metric")
	}
	for _, name := range found {
		if !slices.Contains(known, name) {
			t.Errorf("there is no metric %s", name)
		}
	}
}

// TestDashboard: it shows every metric but one, and no other.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("dashboards/firstpacket.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	var queries strings.Builder
	ids := map[int]string{}
	for _, p := range dashboard.Panels {
		if other, ok := ids[p.ID]; ok {
			t.Errorf("panels %q and %q have the same id", p.Title, other)
		}
		ids[p.ID] = p.Title
		if g := p.GridPos; g.X+g.W > 24 || g.W <= 0 || g.H <= 0 {
			t.Errorf("panel %q is at %+v", p.Title, g)
		}
		for _, target := range p.Targets {
			queries.WriteString(target.Expr + "\n")
		}
	}
	shown := used(queries.String())
	for _, name := range shown {
		if !slices.Contains(known, name) {
			t.Errorf("there is no metric %s", name)
		}
	}
	// How often a thread sleeps, and which verdicts its queue gave, is for whoever works on the queue.
	unshown := []string{"firstpacket_queue_sleeps_total", "firstpacket_queue_verdicts_total"}
	for _, name := range known {
		if slices.Contains(shown, name) == slices.Contains(unshown, name) {
			t.Errorf("%s: shown %v", name, slices.Contains(shown, name))
		}
	}
}
