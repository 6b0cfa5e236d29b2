package agent

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/firstpacket/firstpacket/proxy/preflight"
)

// bridgeInterval is how long a look at the node's bridges counts: they come with the first pod, and sysctls change.
const bridgeInterval = 2 * time.Second

// bridges remembers whether packets between bridged pods come to our rules.
type bridges struct {
	mu   sync.Mutex
	seen time.Time
	err  error
}

// check returns preflight.ErrBridge, with what to do about it, if such packets pass beside the rules.
func (b *bridges) check(podCIDRs []netip.Prefix) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.seen) > bridgeInterval {
		b.seen, b.err = time.Now(), preflight.Bridges(podCIDRs)
		if !errors.Is(b.err, preflight.ErrBridge) {
			b.err = nil // not being able to look at the links says nothing about bridges
		}
	}
	return b.err
}
