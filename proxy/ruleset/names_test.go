package ruleset

import (
	"net/netip"
	"slices"
	"testing"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const dnsPort = 90

// naming is the state in which the pod may be told names by a server at dnsPort of these addresses.
func naming(servers ...[]netip.Addr) State {
	s := isolated(false, true)
	for i := range s.Subjects {
		s.Subjects[i].Names = s.Subjects[i].Egress
	}
	for _, a := range slices.Concat(servers...) {
		s.Resolvers = append(s.Resolvers, Resolver{a, unix.IPPROTO_UDP, dnsPort}, Resolver{a, unix.IPPROTO_TCP, dnsPort})
	}
	return s
}

func pass(queued) (verdict int, mark uint32) { return nfqueue.NfAccept, 0 }

// connections tells of a packet whether it belongs to a connection that one of those seen does: the end of a connection
// may come after whoever opened it has gone on.
func connections(seen []queued) (has func(queued) bool) {
	type end struct {
		addr netip.Addr
		port uint16
	}
	type connection struct {
		proto uint8
		ends  [2]end
	}
	of := func(q queued) connection {
		return connection{q.proto, [2]end{{q.src, q.srcPort}, {q.dst, q.dstPort}}}
	}
	known := map[connection]bool{}
	for _, q := range seen {
		c := of(q)
		known[c] = true
		c.ends[0], c.ends[1] = c.ends[1], c.ends[0]
		known[c] = true
	}
	return func(q queued) bool { return known[of(q)] }
}

// TestNamesAreFollowed: all packets between such a pod and a server are shown, in both directions and in the hook where
// they pass; the flow is judged before, once.
func TestNamesAreFollowed(t *testing.T) {
	b := newBed(t)
	b.serveIn(b.client, dnsPort)
	b.serveIn(b.node, dnsPort)
	r := b.install(naming(clientAddrs, gateways))
	j, names := b.judge(allow), b.judgeAt(queueNumber+1, pass)
	var before []queued
	for where, at := range map[string]struct {
		addrs    []netip.Addr
		query    uint8
		answered uint8
	}{
		"elsewhere": {clientAddrs, unix.NF_INET_FORWARD, unix.NF_INET_FORWARD},
		"node":      {gateways, unix.NF_INET_LOCAL_IN, unix.NF_INET_LOCAL_OUT},
	} {
		everywhere(t, func(t *testing.T, network string, proto uint8, i int) {
			before = append(before, names.take()...)
			b.reaches(b.pod, network, at.addrs[i], dnsPort)
			b.reaches(b.pod, network, at.addrs[i], dnsPort)
			seen := slices.DeleteFunc(names.take(), connections(before))
			before = append(before, seen...)
			if least := map[string]int{"udp": 4, "tcp": 12}[network]; len(seen) < least {
				t.Errorf("%s: %d packets were shown", where, len(seen))
			}
			for _, q := range seen {
				query := q.src == podAddrs[i] && q.dst == at.addrs[i] && q.dstPort == dnsPort && q.hook == at.query
				answer := q.dst == podAddrs[i] && q.src == at.addrs[i] && q.srcPort == dnsPort && q.hook == at.answered
				if !query && !answer || q.proto != proto || q.mark != 0 {
					t.Errorf("%s: shown %+v", where, q)
				}
			}
			if judged := j.take(); len(judged) != 1 {
				t.Errorf("%s: judged %+v", where, judged)
			}
			for _, m := range b.ctMarks(at.addrs[i], dnsPort) {
				if m != layoutOfMarks.Followed() {
					t.Errorf("conntrack mark %#x", m)
				}
			}
		})
	}
	if c, err := r.Counters(); err != nil || c.Followed == 0 {
		t.Errorf("counters %+v, %v", c, err)
	}
	if drifts, err := r.Check(naming(clientAddrs, gateways)); err != nil || len(drifts) != 0 {
		t.Errorf("%v, %v", drifts, err)
	}
}

// TestNamesConcernNobodyElse: other pods, other servers and other ports have nothing to do with that queue, and while
// nobody reads it, only who is followed waits.
func TestNamesConcernNobodyElse(t *testing.T) {
	b := newBed(t)
	b.serveIn(b.client, dnsPort)
	b.serveIn(b.client, dnsPort+1)
	b.serveIn(b.node, dnsPort)
	r := b.install(naming(clientAddrs))
	b.judge(allow)
	everywhere(t, func(_ *testing.T, network string, _ uint8, i int) {
		b.silent(b.pod, network, clientAddrs[i], dnsPort) // followed, and nobody is there
		b.reaches(b.pod, network, clientAddrs[i], dnsPort+1)
		b.reaches(b.pod, network, gateways[i], dnsPort)
		b.reaches(b.client, network, podAddrs[i], 80)
	})
	names := b.judgeAt(queueNumber+1, pass)
	everywhere(t, func(_ *testing.T, network string, _ uint8, i int) {
		b.reaches(b.pod, network, clientAddrs[i], dnsPort)
	})
	earlier := connections(names.take())
	// The pod is not followed any more, and then nobody is a server.
	b.must(r.Apply(Update{Generation: generation, Subjects: isolated(false, true).Subjects}))
	everywhere(t, func(_ *testing.T, network string, _ uint8, i int) {
		b.reaches(b.pod, network, clientAddrs[i], dnsPort)
	})
	b.must(r.Apply(Update{Generation: generation, Subjects: naming().Subjects, SetResolvers: true}))
	everywhere(t, func(_ *testing.T, network string, _ uint8, i int) {
		b.reaches(b.pod, network, clientAddrs[i], dnsPort)
	})
	if seen := slices.DeleteFunc(names.take(), earlier); len(seen) != 0 {
		t.Errorf("shown %+v", seen)
	}
	if drifts, err := r.Check(naming()); err != nil || len(drifts) != 0 {
		t.Errorf("%v, %v", drifts, err)
	}
}

// TestHeldAnswers arrive when they are let go, and not before.
func TestHeldAnswers(t *testing.T) {
	b := newBed(t)
	b.serveIn(b.client, dnsPort)
	b.install(naming(clientAddrs))
	b.judge(allow)
	names := b.judgeAt(queueNumber+1, func(q queued) (int, uint32) {
		if q.srcPort == dnsPort {
			return hold(q)
		}
		return pass(q)
	})
	for i := range podAddrs {
		done := make(chan error, 1)
		go func() {
			done <- probe(b.pod, "udp", netip.AddrPortFrom(clientAddrs[i], dnsPort), long)
		}()
		if q := names.sees(t); q.src != podAddrs[i] {
			t.Errorf("first came %+v", q)
		}
		q := names.sees(t)
		select {
		case err := <-done:
			t.Fatalf("the answer came before it was let go: %v", err)
		default:
		}
		names.release(q.id, nfqueue.NfAccept, 0)
		b.must(<-done)
	}
}

// TestUntrackedAnswersOfTheNode: node-local DNS caches keep their traffic out of conntrack.
func TestUntrackedAnswersOfTheNode(t *testing.T) {
	b := newBed(t)
	b.serveIn(b.node, dnsPort)
	b.install(naming(gateways))
	b.judge(allow)
	names := b.judgeAt(queueNumber+1, pass)
	b.notrack()
	b.side("raw_output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriority(-450))(
		join(compare(l4proto, expr.CmpOpEq, []byte{unix.IPPROTO_UDP}), []expr.Any{&expr.Notrack{}}))
	for i := range podAddrs {
		b.reaches(b.pod, "udp", gateways[i], dnsPort)
		if seen := names.take(); len(seen) != 2 || seen[0].src != podAddrs[i] || seen[1].dst != podAddrs[i] {
			t.Errorf("shown %+v", seen)
		}
	}
}

// TestRevokedNames: a followed flow is refused like any other once it is revoked.
func TestRevokedNames(t *testing.T) {
	b := newBed(t)
	b.serveIn(b.client, dnsPort)
	b.install(naming(clientAddrs))
	b.judge(allow)
	b.judgeAt(queueNumber+1, pass)
	c, err := dial(b.pod, "udp", netip.AddrPortFrom(clientAddrs[0], dnsPort), long)
	b.must(err)
	defer c.Close()
	b.must(talk(c, long))
	b.revoke(nftables.ChainHookForward, dnsPort)
	if err := talk(c, short); err == nil {
		t.Error("a revoked flow goes on")
	}
}
