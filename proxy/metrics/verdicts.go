package metrics

import (
	"sync/atomic"

	"github.com/firstpacket/firstpacket/policycache/engine"
)

// maxReason bounds engine.Reason; a test holds it.
const maxReason = 32

// Verdicts are the counters of one queue thread. The zero value is ready.
type Verdicts struct {
	// Latency is from the receipt of a packet to its verdict having been acted on.
	Latency Latency
	// Held counts packets put on hold, each time they are.
	Held atomic.Uint64

	byOutcome [engine.Hold + 1][engine.Egress + 1][maxReason]atomic.Uint64
}

// Count adds one verdict.
func (c *Verdicts) Count(v *engine.Verdict) {
	c.byOutcome[v.Action][v.Direction][v.Reason%maxReason].Add(1)
}
