package cases_test

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/cases"
	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

func TestMain(m *testing.M) {
	if err := ns.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := binary.Remove(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// TestCases runs every case on one node and on two, with drop and with reject. Those of one variant share a lab.
func TestCases(t *testing.T) {
	agent, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	all, err := cases.All()
	if err != nil {
		t.Fatal(err)
	}
	runner := cases.NewRunner(agent)
	t.Cleanup(func() {
		if err := runner.Close(); err != nil {
			t.Error(err)
		}
	})
	var topics []string
	for _, c := range all {
		topics = append(topics, c.Topic())
	}
	for _, topic := range slices.Compact(topics) {
		t.Run(topic, func(t *testing.T) {
			t.Parallel()
			for _, c := range all {
				if c.Topic() == topic {
					t.Run(path.Base(c.Name), func(t *testing.T) {
						t.Parallel()
						run(t, runner, c)
					})
				}
			}
		})
	}
}

func run(t *testing.T, runner *cases.Runner, c *cases.Case) {
	var group errgroup.Group
	reports := make([]cases.Report, len(cases.Variants))
	for i, v := range cases.Variants {
		group.Go(func() (err error) {
			reports[i], err = runner.Run(t.Context(), c, v)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	for i, r := range reports {
		for _, f := range r.Failures {
			t.Errorf("%s: %s", cases.Variants[i], f)
		}
	}
}

// TestDifferencesAreReported gives the runner cases that are wrong in known cells: everything else here would pass if
// it saw nothing.
func TestDifferencesAreReported(t *testing.T) {
	agent, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	runner := cases.NewRunner(agent)
	t.Cleanup(func() {
		if err := runner.Close(); err != nil {
			t.Error(err)
		}
	})
	const isolated = `Wrong on purpose.

-- apply --
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: x, name: deny}
spec: {podSelector: {matchLabels: {pod: a}}}
-- expect --
deny * -> x/a
`
	for _, test := range []struct{ claims, want string }{
		{"allow v6 w/a -> x/a 80", "w/a -> x/a 80/TCP IPv6: refused: connection refused, want reached " +
			"(line 10: allow v6 w/a -> x/a 80)"},
		{"deny v4 w/a -> x/b 53/UDP", "w/a -> x/b 53/UDP IPv4: reached x/b, "},
		{"deny node/one -> x/b 81\nallow v4 node/one -> x/b", "node/one -> x/b 81/TCP IPv6: reached x/b, "},
	} {
		c, err := cases.Parse("topic/wrong", isolated+test.claims+"\n")
		if err != nil {
			t.Fatal(err)
		}
		report, err := runner.Run(t.Context(), c, cases.Variant{Nodes: 1, DenyWith: "reject"})
		if err != nil || len(report.Failures) != 1 || !strings.HasPrefix(report.Failures[0], test.want) {
			t.Errorf("%s: %v, %q, want %q", test.claims, err, report.Failures, test.want)
		}
		if report.Probes < 300 {
			t.Errorf("%d probes", report.Probes)
		}
	}
	c, err := cases.Parse("topic/mistaken", isolated+"deny x/nobody -> x/a\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runner.Run(t.Context(), c, cases.Variant{Nodes: 1, DenyWith: "reject"}); err == nil ||
		!strings.Contains(err.Error(), `line 10: "deny x/nobody -> x/a" is about nothing`) {
		t.Errorf("a claim about nothing: %v", err)
	}
}
