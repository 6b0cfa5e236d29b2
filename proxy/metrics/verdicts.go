package metrics

import (
	"sync/atomic"

	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/policycache/rule"
)

const (
	// maxReason bounds engine.Reason; a test holds it.
	maxReason = 32
	// maxTier bounds rule.Tier, 0 for none included.
	maxTier = rule.Baseline + 1
)

// Verdicts are the counters of one queue thread. The zero value is ready.
type Verdicts struct {
	// Latency is from the receipt of a packet to its verdict having been acted on.
	Latency Latency
	// Held counts packets put on hold, each time they are.
	Held atomic.Uint64

	byOutcome [engine.Hold + 1][engine.Egress + 1][maxReason][maxTier]atomic.Uint64
}

// Count adds one verdict.
func (c *Verdicts) Count(v *engine.Verdict) {
	c.byOutcome[v.Action][v.Direction][v.Reason%maxReason][tierOf(v)].Add(1)
}

// tierOf is the tier that decided: in the direction that denied, or else for the destination if a policy was about it.
func tierOf(v *engine.Verdict) rule.Tier {
	if d := v.Ingress; d != nil && d.Tier != 0 && v.Direction != engine.Egress {
		return d.Tier
	}
	if d := v.Egress; d != nil && v.Direction != engine.Ingress {
		return d.Tier
	}
	return 0
}
