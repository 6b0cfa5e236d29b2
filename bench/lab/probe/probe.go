// Package probe finds out who reaches whom: thousands of probes at a time, from any namespace, over TCP and UDP.
package probe

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firstpacket/firstpacket/bench/lab/ns"
)

// DefaultWait is how long a probe waits for an answer unless told otherwise. Within a machine an answer takes well
// under a millisecond; a TCP connection whose first packet was lost takes a second more, and so counts as silent.
const DefaultWait = 300 * time.Millisecond

// Proto is an IP protocol number.
type Proto uint8

// The protocols that can be probed.
const (
	TCP Proto = unix.IPPROTO_TCP
	UDP Proto = unix.IPPROTO_UDP
)

// String is the protocol's name as the API writes it.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Probe is one attempt to reach a server of package serve.
type Probe struct {
	// From is the namespace to start from.
	From *ns.Namespace
	// Source is the address and port to start from; either may be left zero for the kernel to choose.
	Source netip.AddrPort
	To     netip.AddrPort
	Proto  Proto
	// Wait is how long to wait for the next sign of life, from the moment the probe was sent; 0 is DefaultWait. A
	// probe that ought to be answered may be given longer, so that a busy machine is not taken for a denial.
	Wait time.Duration
}

// Outcome is what became of a probe.
type Outcome uint8

// The outcomes.
const (
	// Failed: the probe could not be sent, or was answered by something else than a lab's server.
	Failed Outcome = iota
	// Reached: a server answered.
	Reached
	// Silent: nothing came back in time.
	Silent
	// Refused: a TCP reset or an ICMP error came back, or the sender's own kernel refused to send.
	Refused
)

// String is the outcome in one word.
func (o Outcome) String() string {
	return [...]string{"failed", "reached", "silent", "refused"}[o]
}

// Result is the answer to one Probe.
type Result struct {
	Outcome Outcome
	// By is the name of the server that answered; empty unless Reached.
	By string
	// Seen is the client's address as the server saw it; zero unless Reached.
	Seen netip.AddrPort
	// Connected says that a TCP connection came to be, even if no answer followed.
	Connected bool
	// Latency is the time from sending to the established connection (TCP) or to the answer (UDP). Above a second it
	// tells of a lost first packet.
	Latency time.Duration
	// Err is the errno that Refused and Failed come from: ECONNREFUSED for a reset or a closed UDP port, EHOSTUNREACH
	// and EACCES for prohibition by ICMP and ICMPv6, EPERM for a drop on the way out. Nil otherwise.
	Err error
}

// Denied says that the probe was sent and kept from reaching anyone.
func (r Result) Denied() bool { return r.Outcome == Silent || r.Outcome == Refused }

// String is for messages.
func (r Result) String() string {
	switch r.Outcome {
	case Reached:
		return fmt.Sprintf("reached %s, seen as %s, after %s", r.By, r.Seen, r.Latency.Round(time.Microsecond))
	case Silent:
		if r.Connected {
			return "silent once connected"
		}
		return "silent"
	default:
		return fmt.Sprintf("%s: %v", r.Outcome, r.Err)
	}
}

// workers is the number of threads that probe. The work is the kernel's; a few suffice.
var workers = min(runtime.GOMAXPROCS(0), 4)

// Run sends all probes and returns the results in the same order. It takes about as long as the longest Wait of a
// probe that stays silent. The error is that of ctx, or of a namespace that cannot be entered; results are then void.
func Run(ctx context.Context, probes []Probe) ([]Result, error) {
	results := make([]Result, len(probes))
	// Probes from one namespace are sent together, so that threads need not change namespaces for each.
	order := make([]int, len(probes))
	groups := make(map[*ns.Namespace]int)
	for i := range probes {
		order[i] = i
		if _, ok := groups[probes[i].From]; !ok {
			groups[probes[i].From] = len(groups)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return groups[probes[a].From] - groups[probes[b].From] })

	g, ctx := errgroup.WithContext(ctx)
	share := (len(order) + workers - 1) / workers
	for part := range slices.Chunk(order, max(share, 1)) {
		g.Go(func() error { return newLoop(ctx, probes, results).run(part) })
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	return results, nil
}
