// Package dnswatch reads what pods and DNS servers say to each other, and says of each packet whether it may go on: an
// answer waits until the addresses in it are in force, so that the connection that follows it never comes too early.
//
// An answer counts if the pod has asked for it: the same addresses and ports on both sides, the same protocol, and the
// same id and question. All else that looks like an answer changes nothing, and over UDP it is dropped: the pod has no
// use for an answer that it has not asked for, and asks again if the question was lost on its way here.
//
// TCP streams are followed in their order only. A segment that comes ahead of its turn, or whose stream did not begin
// here, is dropped, as the network might: the first is sent again, and of the second the resolver opens another.
package dnswatch

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/domain"
)

// Outcome is what becomes of a packet.
type Outcome uint8

const (
	// Drop discards it.
	Drop Outcome = iota
	// Pass lets it go on.
	Pass
	// Wait keeps it, to be handled again when more is in force.
	Wait
)

// Server is where a DNS server answers.
type Server struct {
	Addr netip.Addr
	// Proto is an IP protocol number.
	Proto uint8
	Port  uint16
}

// Config connects a Watcher with the rest. All fields are required; the functions are called by Handle.
type Config struct {
	// Server tells whether a DNS server answers there.
	Server func(Server) bool
	// InForce tells whether the pod reaches everything that the answer makes reachable for it.
	InForce func(pod netip.Addr, a *domain.Answer) bool
	// Learn hands an answer over, to be brought into force or to hold longer. It does not wait, and returns false if
	// there is no room now.
	Learn func(pod netip.Addr, a domain.Answer) bool
}

// Bounds of what is kept. What goes first is what was not used for longest: the answer to a question that was forgotten
// is dropped, and the pod asks again.
const (
	maxPods      = 1024
	maxQuestions = 1024 // open ones of a pod
	maxStreams   = 32   // connections of a pod
	maxQuery     = 4 << 10
	// patience is how long after a question an answer counts. Resolvers give up before.
	patience = 10 * time.Second
)

// Stats are counted since the Watcher was made.
type Stats struct {
	// Queries and Answers are those for addresses, and of names that exist; Strangers are answers that nobody waits for.
	Queries, Answers, Strangers atomic.Uint64
	// Waited are answers that had to wait for their addresses, Late those that could not wait any longer.
	Waited, Late atomic.Uint64
	// Unfollowed are TCP segments dropped because they cannot be put in their place.
	Unfollowed atomic.Uint64
}

// Watcher follows the exchanges of all pods. Handle belongs to one goroutine.
type Watcher struct {
	Stats Stats

	cfg  Config
	pods *simplelru.LRU[netip.Addr, *pod]
	flow packet.Flow
}

// pod is what is known of one address that asks.
type pod struct {
	open    *simplelru.LRU[exchange, *question]
	streams *simplelru.LRU[ends, *connection]
}

// ends are the pod's port and the server, of a packet in either direction.
type ends struct {
	port   uint16
	server Server
}

type exchange struct {
	ends
	domain.Question
}

// question is an open one.
type question struct {
	asked int64 // on the clock of Handle
	reply reply
}

// reply is an answer on its way to the pod; the zero reply is none.
type reply struct {
	answer *domain.Answer
	// sent: it was handed over.
	sent bool
}

// New makes a Watcher.
func New(cfg Config) *Watcher { return &Watcher{cfg: cfg, pods: lru[netip.Addr, *pod](maxPods)} }

func lru[K comparable, V any](size int) *simplelru.LRU[K, V] {
	l, err := simplelru.NewLRU[K, V](size, nil)
	if err != nil {
		panic(err) // only for sizes below one
	}
	return l
}

func (w *Watcher) pod(a netip.Addr) *pod {
	p, ok := w.pods.Get(a)
	if !ok {
		p = &pod{open: lru[exchange, *question](maxQuestions), streams: lru[ends, *connection](maxStreams)}
		w.pods.Add(a, p)
	}
	return p
}

// Handle reads the packet whose IP header starts at b[0]; now is in nanoseconds on any clock. A packet that has to wait
// is to be handled again whenever something came into force. last says that it cannot wait any longer: then it passes,
// since without an answer the pod could not even fail in good order, and what comes too early is judged as ever.
//
// What is no DNS, and what asks for something else than addresses, passes.
func (w *Watcher) Handle(b []byte, now int64, last bool) Outcome {
	f := &w.flow
	f.Decode(b)
	if f.Form != packet.Complete || f.Proto != packet.ProtoUDP && f.Proto != packet.ProtoTCP {
		return Pass
	}
	from, to := Server{f.Src, f.Proto, f.SrcPort}, Server{f.Dst, f.Proto, f.DstPort}
	asks, answers := w.cfg.Server(to), w.cfg.Server(from)
	if asks == answers {
		return Pass // nobody's, or between two servers
	}
	client, e := f.Src, ends{f.SrcPort, to}
	if answers {
		client, e = f.Dst, ends{f.DstPort, from}
	}
	upper := upperLayer(b)
	if f.Proto == packet.ProtoTCP {
		return w.segment(client, e, upper, asks, now, last)
	}
	payload, ok := datagram(upper)
	switch {
	case !ok:
		return Drop
	case asks:
		w.ask(client, e, payload, now)
		return Pass
	}
	return w.answer(client, e, payload, now, last)
}

// ask opens a question, if the message is one for addresses.
func (w *Watcher) ask(client netip.Addr, e ends, message []byte, now int64) {
	q, err := domain.ParseQuery(message)
	if err != nil {
		return
	}
	w.Stats.Queries.Add(1)
	p, x := w.pod(client), exchange{e, q}
	if o, ok := p.open.Get(x); ok {
		o.asked = now // asked again
		return
	}
	p.open.Add(x, &question{asked: now})
}

// answer judges an answer that came as one datagram. The question stays open while its answer waits: a copy of it must
// not overtake it.
func (w *Watcher) answer(client netip.Addr, e ends, message []byte, now int64, last bool) Outcome {
	q, a, err := domain.ParseResponse(message)
	if q == (domain.Question{}) {
		return Pass
	}
	p, x := w.pod(client), exchange{e, q}
	o := p.find(x, now)
	if o == nil {
		w.Stats.Strangers.Add(1)
		return Drop
	}
	if o.reply.answer == nil && !w.learns(&o.reply, a, err) {
		p.open.Remove(x)
		return Pass
	}
	out := w.await(client, &o.reply, last)
	if out == Pass {
		p.open.Remove(x)
	}
	return out
}

func (p *pod) find(x exchange, now int64) *question {
	o, ok := p.open.Get(x)
	if !ok {
		return nil
	}
	if now-o.asked > int64(patience) && o.reply.answer == nil {
		p.open.Remove(x)
		return nil
	}
	return o
}

// learns keeps the answer if there is anything in it to learn.
func (w *Watcher) learns(r *reply, a domain.Answer, err error) bool {
	if err != nil || len(a.Addrs) == 0 {
		return false
	}
	w.Stats.Answers.Add(1)
	r.answer = &a
	return true
}

// await says whether the pod may have the answer.
func (w *Watcher) await(client netip.Addr, r *reply, last bool) Outcome {
	ready := w.cfg.InForce(client, r.answer)
	first := !r.sent
	if first {
		r.sent = w.cfg.Learn(client, *r.answer)
	}
	switch {
	case ready:
		return Pass
	case last:
		w.Stats.Late.Add(1)
		return Pass
	case first:
		w.Stats.Waited.Add(1)
	}
	return Wait
}

// upperLayer is the part of a packet, which Decode has found complete, from its UDP or TCP header on.
func upperLayer(b []byte) []byte {
	if b[0]>>4 == 4 {
		if total := int(binary.BigEndian.Uint16(b[2:])); total != 0 {
			b = b[:min(total, len(b))]
		}
		return b[int(b[0]&0x0f)*4:]
	}
	const headerLen = 40
	next, payload := b[6], int(binary.BigEndian.Uint16(b[4:]))
	b = b[headerLen:]
	if payload != 0 {
		b = b[:min(payload, len(b))]
	}
	for next != packet.ProtoUDP && next != packet.ProtoTCP {
		size := (int(b[1]) + 1) * 8
		switch next {
		case 44: // fragment header, RFC 8200, section 4.5
			size = 8
		case 51: // authentication header, RFC 4302, section 2.2
			size = (int(b[1]) + 2) * 4
		}
		next, b = b[0], b[size:]
	}
	return b
}

// datagram takes the UDP header off; false if it does not say the length that there is.
func datagram(upper []byte) ([]byte, bool) {
	const headerLen = 8
	length := int(binary.BigEndian.Uint16(upper[4:]))
	if length != 0 && (length < headerLen || length > len(upper)) {
		return nil, false
	}
	if length != 0 {
		upper = upper[:length]
	}
	return upper[headerLen:], true
}
