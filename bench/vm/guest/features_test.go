//go:build vm

package guest

import (
	"encoding/json"
	"testing"

	"github.com/firstpacket/firstpacket/bench/lab"
)

// TestAgentTellsWhatItUses holds the agent to nftables' own queue expression, which this kernel has.
func TestAgentTellsWhatItUses(t *testing.T) {
	b := newBed(t, lab.Options{})
	for _, node := range []string{"one", "two"} {
		var features string
		for _, line := range b.Agent(node).Output().Lines() {
			var said struct{ Message, Features string }
			if json.Unmarshal([]byte(line), &said) == nil && said.Message == "starting" {
				features = said.Features
			}
		}
		if features != "queue=native limit=yes" {
			t.Errorf("the agent of %s uses %q, want queue=native limit=yes", node, features)
		}
	}
}
