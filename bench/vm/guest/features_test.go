//go:build vm

package guest

import (
	"testing"

	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

func TestProbe(t *testing.T) {
	f, err := ruleset.Probe(0)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.String(); got != "queue=native" {
		t.Errorf("features: %s", got)
	}
}
