package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/domain"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/dnswatch"
	"github.com/firstpacket/firstpacket/proxy/mark"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

const (
	// heardRoom is how many answers may be on their way to the controller.
	heardRoom = 1024
	// lapseInterval is how often names are looked at whose time may be over.
	lapseInterval = 5 * time.Second
)

// names answers the queue that shows what pods and DNS servers say to each other. It belongs to that queue's thread.
// Unlike a judge it allocates: a message is taken apart, and that is for the few pods that have names for peers.
type names struct {
	publisher *publisher
	marks     mark.Layout
	// audit: nothing is held or dropped.
	audit   bool
	watcher *dnswatch.Watcher
	heard   chan hearing
	servers *servers
}

// hearing is an answer on its way to the controller.
type hearing struct {
	pod    netip.Addr
	answer domain.Answer
	until  time.Time
}

// servers are the DNS servers that names are learned from.
type servers struct {
	set atomic.Pointer[map[ruleset.Resolver]struct{}]
}

func (s *servers) has(r ruleset.Resolver) bool {
	set := s.set.Load()
	if set == nil {
		return false
	}
	_, ok := (*set)[r]
	return ok
}

func (s *servers) replace(list []ruleset.Resolver) {
	set := make(map[ruleset.Resolver]struct{}, len(list))
	for _, r := range list {
		set[r] = struct{}{}
	}
	s.set.Store(&set)
}

func newNames(p *publisher, marks mark.Layout, audit bool) *names {
	n := &names{
		publisher: p, marks: marks, audit: audit, heard: make(chan hearing, heardRoom), servers: &servers{},
	}
	n.watcher = dnswatch.New(dnswatch.Config{
		Server:  func(s dnswatch.Server) bool { return n.servers.has(ruleset.Resolver(s)) },
		InForce: n.inForce,
		Learn:   n.learn,
	})
	return n
}

// inForce tells whether new connections to the addresses are admitted: by the snapshot, and by the kernel.
func (n *names) inForce(pod netip.Addr, a *domain.Answer) bool {
	v := n.publisher.current.Load()
	return n.publisher.committed.Load() == v.generation && v.snapshot.Learned(pod, a)
}

func (n *names) learn(pod netip.Addr, a domain.Answer) bool {
	select {
	case n.heard <- hearing{pod, a, time.Now().Add(domain.Lifetime(a.TTL))}:
		return true
	default:
		return false
	}
}

// Begin implements queue.Handler.
func (n *names) Begin() {}

// End implements queue.Handler.
func (n *names) End() {}

// Handle implements queue.Handler. The packet was allowed before it came here.
func (n *names) Handle(p *queue.Packet) queue.Verdict {
	if n.publisher.passing.Load() {
		return queue.Verdict{Kind: queue.Repeat, Mark: n.marks.With(p.Mark, 0)}
	}
	switch out := n.watcher.Handle(p.Payload, queue.Now(), p.Expired || n.audit); {
	case out == dnswatch.Pass, n.audit:
		return queue.Verdict{Kind: queue.Accept}
	case out == dnswatch.Wait:
		return queue.Verdict{Kind: queue.Hold}
	}
	return queue.Verdict{Kind: queue.Drop}
}

// hear brings what pods are told into force until the context ends, several answers at a time if they come faster than
// the kernel takes them, and ends names whose time is over.
func (c *controller) hear(ctx context.Context, heard <-chan hearing) error {
	tick := time.NewTicker(lapseInterval)
	defer tick.Stop()
	var list []hearing
	for {
		list = list[:0]
		keep := false
		select {
		case <-ctx.Done():
			return nil
		case h := <-heard:
			list = append(list, h)
		case <-tick.C:
			keep = true
		}
	more:
		for len(list) < heardRoom {
			select {
			case h := <-heard:
				list = append(list, h)
			default:
				break more
			}
		}
		if err := c.learn(ctx, list, keep); err != nil {
			if ctx.Err() != nil {
				return nil // asked to stop
			}
			return err
		}
	}
}

// learn takes answers over. When it returns, their addresses are in force. With keep, it also has the kernel keep what
// changes no verdict: names that hold longer, and those that no policy has.
func (c *controller) learn(ctx context.Context, list []hearing, keep bool) error {
	c.turn.Lock()
	defer c.turn.Unlock()
	for _, h := range list {
		c.state.Learn(h.pod, h.answer, h.until)
	}
	snapshot, delta := c.state.Lapse(time.Now())
	if delta == nil {
		if len(list) > 0 {
			c.wake() // what waits for a pod that has gone, or takes part no more, waits for nothing
		}
		if keep {
			return c.keepTold(ctx, snapshot)
		}
		return nil
	}
	return c.enact(ctx, c.status().Versions, snapshot, delta)
}

// resolvers are the DNS servers of the cluster, and those that were configured; sorted.
func (c *controller) resolvers() []ruleset.Resolver {
	var list []ruleset.Resolver
	for _, proto := range []uint8{packet.ProtoUDP, packet.ProtoTCP} {
		for addr, ep := range c.prewarmer.servers {
			list = append(list, ruleset.Resolver{Addr: addr, Proto: proto, Port: portOfDNS(ep, proto)})
		}
		for _, s := range c.dnsServers {
			list = append(list, ruleset.Resolver{Addr: s.Addr().Unmap(), Proto: proto, Port: s.Port()})
		}
	}
	slices.SortFunc(list, compareResolvers)
	return slices.Compact(list)
}

func compareResolvers(a, b ruleset.Resolver) int {
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c
	}
	return int(a.Proto)<<16 + int(a.Port) - int(b.Proto)<<16 - int(b.Port)
}

// setResolvers has servers follow, and tells whether they are others than before.
func (c *controller) setResolvers() bool {
	list := c.resolvers()
	if slices.Equal(list, c.servers) {
		return false
	}
	c.servers = list
	c.names.servers.replace(list)
	return true
}

// admittedMark is what the conntrack mark of a flow should be that is allowed.
func (s *settler) admittedMark(snap *engine.Snapshot, f *packet.Flow) uint32 {
	if snap.Subject(f.Src).Names && s.servers.has(ruleset.Resolver{Addr: f.Dst, Proto: f.Proto, Port: f.DstPort}) {
		return s.marks.Followed()
	}
	return s.marks.Admitted()
}
