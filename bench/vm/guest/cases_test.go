//go:build vm

package guest

import (
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab/binary"
	"github.com/firstpacket/firstpacket/bench/lab/cases"
)

// chosen are the cases that run here. All of them, in all variants, take an emulated processor half an hour; these are
// the ones that differ in what they ask of the kernel: direction, protocol, ports, families and the answer to what is
// denied. How policies are read is the same on every kernel.
var chosen = []string{
	"default/deny-ingress", "default/deny-egress", "default/answers", "ports/udp", "ports/end-port", "ports/named",
	"ipblock/nested", "ipblock/ipv6",
}

func TestCases(t *testing.T) {
	agent, err := binary.Path()
	if err != nil {
		t.Fatal(err)
	}
	list, err := cases.Find(chosen...)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != len(chosen) {
		t.Errorf("%d cases, want %d", len(list), len(chosen))
	}
	for _, v := range []cases.Variant{{Nodes: 1, DenyWith: "reject"}, {Nodes: 2, DenyWith: "drop"}} {
		t.Run(v.String(), func(t *testing.T) {
			runner := cases.NewRunner(agent)
			defer func() {
				if err := runner.Close(); err != nil {
					t.Error(err)
				}
			}()
			for _, c := range list {
				t.Run(c.Name, func(t *testing.T) {
					report, err := runner.Run(t.Context(), c, v)
					if err != nil {
						t.Error(err)
					}
					for _, f := range report.Failures {
						t.Error(f)
					}
				})
			}
		})
	}
}
