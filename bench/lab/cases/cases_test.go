package cases_test

import (
	"fmt"
	"os"
	"path"
	"slices"
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
