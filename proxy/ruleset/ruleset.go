// Package ruleset keeps the kernel side of firstpacket: the nftables table `inet firstpacket`.
//
// The table sends the first packet of a connection from or to an isolated pod to NFQUEUE, commits the verdict that
// comes back as a packet mark, remembers verdicts per tuple, and lets established flows pass on one compare. What its
// chains do is written where they are built, in table.go; docs/ruleset.md shows a listing.
//
// Everything is written through netlink, in transactions that the kernel applies as a whole or not at all. Base chains
// are made once and stay for the life of the table: removing one would make the kernel drop the packets that wait in
// the NFQUEUEs of the network namespace. A new agent therefore adopts the table that an earlier one left.
//
// A Ruleset holds no copy of the kernel's state. Every operation may be repeated and reaches the same result.
package ruleset

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/firstpacket/firstpacket/proxy/mark"
)

// TableName is the name of the table, in family inet.
const TableName = "firstpacket"

// DenyWith says what becomes of refused packets.
type DenyWith uint8

const (
	// Drop refuses in silence. It is the default.
	Drop DenyWith = iota
	// Reject answers TCP with a reset and all else with ICMP "administratively prohibited".
	Reject
)

// String returns the word that the command line uses.
func (d DenyWith) String() string {
	if d == Reject {
		return "reject"
	}
	return "drop"
}

// ParseDenyWith is the reverse of String.
func ParseDenyWith(s string) (DenyWith, error) {
	for _, d := range []DenyWith{Drop, Reject} {
		if d.String() == s {
			return d, nil
		}
	}
	return Drop, fmt.Errorf("cannot deny with %q: use %s or %s", s, Drop, Reject)
}

// Defaults of the Config fields that are zero.
const (
	DefaultSetSize       = 65536
	DefaultDeniedTimeout = 5 * time.Second
	DefaultNoisyRate     = 1000
)

// Config is what the table's rules depend on. It stays the same for the life of a Ruleset.
type Config struct {
	// Mask is the part of the packet and conntrack marks that the rules own. Required.
	Mask mark.Layout
	// QueueFirst is the number of the first NFQUEUE. QueueCount queues (0 means 1) from there share the packets:
	// those that processor i handles go to the queue with number QueueFirst + i modulo QueueCount.
	QueueFirst, QueueCount uint16
	// NameQueue is the number of the NFQUEUE that is shown what pods and DNS servers say to each other; 0 is the one
	// behind the others.
	NameQueue uint16
	// DenyWith says what becomes of refused packets.
	DenyWith DenyWith
	// FailOpen accepts packets while no agent listens on the queues. Otherwise the kernel drops them.
	FailOpen bool
	// Audit refuses nothing, whatever userspace or an earlier agent's marks say: what would be refused is accepted.
	Audit bool
	// AllowedSize and DeniedSize bound the verdict cache, in tuples per address family; 0 means DefaultSetSize.
	AllowedSize, DeniedSize uint32
	// DeniedTimeout is how long a refused tuple is refused without asking again; 0 means DefaultDeniedTimeout. The
	// kernel counts milliseconds.
	DeniedTimeout time.Duration
	// Owner names the agent on whose behalf transactions are made, a number that no other agent has. Install makes it
	// the owner of the table; from then on the transactions of any other owner fail with ErrSuperseded. 0 neither takes
	// nor checks ownership.
	Owner uint32
	// NoisyRate is how many questions a second are asked about packets of a source that Limit names; 0 means
	// DefaultNoisyRate.
	NoisyRate uint64
	// Features are what an earlier Open found, in the same network namespace; the zero value has Open look.
	Features Features
	// NetNS is a file descriptor of the network namespace to work in; 0 means the one of the calling thread.
	NetNS int
	// Trace, if not nil, is called with each transaction before it is sent; its String method prints it.
	Trace func(fmt.Stringer)
}

func (c Config) withDefaults() (Config, error) {
	if !c.Mask.Valid() {
		return c, fmt.Errorf("ruleset: %w: none is set", mark.ErrMask)
	}
	c.QueueCount = max(c.QueueCount, 1)
	if int(c.QueueFirst)+int(c.QueueCount) > 1<<16 {
		return c, fmt.Errorf("ruleset: queues %d to %d do not exist; the last one is 65535", c.QueueFirst,
			int(c.QueueFirst)+int(c.QueueCount)-1)
	}
	if c.NameQueue == 0 {
		c.NameQueue = c.QueueFirst + c.QueueCount
	}
	if c.NameQueue >= c.QueueFirst && c.NameQueue-c.QueueFirst < c.QueueCount {
		return c, fmt.Errorf("ruleset: queue %d cannot be both for names and for verdicts", c.NameQueue)
	}
	if c.DenyWith > Reject {
		return c, fmt.Errorf("ruleset: unknown way to deny %d", c.DenyWith)
	}
	if c.AllowedSize == 0 {
		c.AllowedSize = DefaultSetSize
	}
	if c.DeniedSize == 0 {
		c.DeniedSize = DefaultSetSize
	}
	if c.NoisyRate == 0 {
		c.NoisyRate = DefaultNoisyRate
	}
	if c.DeniedTimeout == 0 {
		c.DeniedTimeout = DefaultDeniedTimeout
	}
	if c.DeniedTimeout < time.Millisecond {
		return c, fmt.Errorf("ruleset: denied timeout %v is below the kernel's millisecond", c.DeniedTimeout)
	}
	c.DeniedTimeout = c.DeniedTimeout.Truncate(time.Millisecond)
	return c, nil
}

// Subject is an address inside the node's reach and what the kernel must know of it.
type Subject struct {
	Addr netip.Addr
	// Pod is true for the address of a pod of this node, false for an address that is merely known to be none, such as
	// the gateway of the pod CIDR.
	Pod bool
	// Ingress and Egress send new connections to and from the address to judgement. Only pods have them.
	Ingress, Egress bool
	// Names has what the pod and the Resolvers say to each other shown to the agent. It needs Egress: only flows that are
	// judged are followed.
	Names bool
	// IngressAudit and EgressAudit say that nothing is refused in that direction: all policies that judge it are in
	// audit mode. They have a meaning beside Ingress and Egress only.
	IngressAudit, EgressAudit bool
}

// Resolver is where a DNS server answers, as packets show it behind the translation of Services.
type Resolver struct {
	Addr netip.Addr
	// Proto is an IP protocol number: 6 TCP or 17 UDP.
	Proto uint8
	// Port is in host order.
	Port uint16
}

// String prints the resolver as "udp 10.0.0.1:53".
func (r Resolver) String() string {
	return fmt.Sprintf("%s %v", protoName(r.Proto), netip.AddrPortFrom(r.Addr, r.Port))
}

// Tuple is the key of the verdict cache.
type Tuple struct {
	Src, Dst netip.Addr
	// Proto is an IP protocol number: 6 TCP, 17 UDP or 132 SCTP; no other is cached.
	Proto uint8
	// DstPort is in host order.
	DstPort uint16
}

// String prints the tuple as "tcp 10.0.0.1 > 10.0.0.2:80".
func (t Tuple) String() string {
	return fmt.Sprintf("%s %v > %v", protoName(t.Proto), t.Src, netip.AddrPortFrom(t.Dst, t.DstPort))
}

// Source is who sends packets: an address behind an interface, so that nobody is held to account for packets with a
// forged source that come from elsewhere.
type Source struct {
	// In is the index of the interface that the packets come in by.
	In   uint32
	Addr netip.Addr
}

// State is all that the table's sets should hold.
type State struct {
	// Generation is the number that verdicts must carry to be committed. It grows from state to state.
	Generation uint32
	// PodCIDRs are the ranges this node gives addresses from. An address in them that is no Subject is judged.
	PodCIDRs []netip.Prefix
	Subjects []Subject
	// Resolvers are the DNS servers that Subjects with Names are told names by.
	Resolvers []Resolver
	// Told is what is kept for the next agent. Install leaves to itself what is there.
	Told []Told
}

// Update is a change of the table's sets.
type Update struct {
	// Generation is the one that holds from this update on; always set.
	Generation uint32
	// PodCIDRs replace the former ones if SetPodCIDRs is true.
	PodCIDRs    []netip.Prefix
	SetPodCIDRs bool
	// Resolvers replace the former ones if SetResolvers is true.
	Resolvers    []Resolver
	SetResolvers bool
	// Subjects are added or changed, Removed addresses are subjects no more. An address is in one of them at most.
	Subjects []Subject
	Removed  []netip.Addr
	// Forget are tuples that the verdict cache must not answer any more, whichever the answer. Tuples it does not hold
	// are no error.
	Forget []Tuple
	// Learn are tuples that are allowed without asking. Should the set be full, none of them is learnt and the rest of
	// the update holds all the same.
	Learn []Tuple
	// Told is kept for the next agent, and Untold not any more; whether it was is no matter.
	Told, Untold []Told
	// FlushAllowed and FlushDenied empty the verdict cache of one kind of answer.
	FlushAllowed, FlushDenied bool
}

// Ruleset writes and reads the table. Its methods may be called from several goroutines; transactions do not mix, yet
// who calls last wins.
type Ruleset struct {
	cfg      Config
	features Features
	layout   *layout
	commits  atomic.Uint64
	// writes carries transactions, and reads what is looked up, which may take longer.
	writes, reads link
}

// Open probes the kernel and returns the ruleset that fits it. It changes nothing that remains. Its errors wrap
// ErrPermission, ErrNoTables or ErrNoQueue where one of them is the cause.
func Open(cfg Config) (*Ruleset, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Features == (Features{}) {
		if cfg.Features, err = Probe(cfg.NetNS); err != nil {
			return nil, err
		}
	}
	return &Ruleset{
		cfg: cfg, features: cfg.Features, layout: newLayout(cfg, cfg.Features),
		writes: link{netns: cfg.NetNS}, reads: link{netns: cfg.NetNS},
	}, nil
}

// Close gives the sockets back. The rules stay, and so does the Ruleset: its next use opens sockets anew.
func (r *Ruleset) Close() {
	r.writes.close()
	r.reads.close()
}

// Commits is the number of transactions made so far. A Watcher tells of each of them, and of those of others.
func (r *Ruleset) Commits() uint64 { return r.commits.Load() }

// Features returns what Open found.
func (r *Ruleset) Features() Features { return r.features }
