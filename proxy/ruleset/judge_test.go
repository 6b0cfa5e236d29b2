package ruleset

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	nfqueue "github.com/florianl/go-nfqueue/v2"
)

// queued is a packet as userspace sees it.
type queued struct {
	id               uint32
	hook             uint8
	mark             uint32
	src, dst         netip.Addr
	proto            uint8
	srcPort, dstPort uint16
}

func (q queued) tuple() Tuple {
	return Tuple{Src: q.src, Dst: q.dst, Proto: q.proto, DstPort: q.dstPort}
}

// Answers of a judge, for packets of the generation that the tests install.
func allow(q queued) (verdict int, mark uint32) {
	return nfqueue.NfRepeat, layoutOfMarks.With(q.mark, layoutOfMarks.Allow(generation))
}

func deny(q queued) (verdict int, mark uint32) {
	return nfqueue.NfRepeat, layoutOfMarks.With(q.mark, layoutOfMarks.Deny(generation))
}

func hold(queued) (verdict int, mark uint32) { return -1, 0 }

// judge is an agent of one function.
type judge struct {
	nf     *nfqueue.Nfqueue
	cancel context.CancelFunc

	mu     sync.Mutex
	seen   []queued
	answer func(queued) (verdict int, mark uint32)
}

// judge answers the packets in the node's queue until the test ends; an answer of verdict -1 leaves the packet there.
func (b *bed) judge(answer func(queued) (int, uint32)) *judge { return b.judgeAt(queueNumber, answer) }

// judgeAt is judge for a queue of another number.
func (b *bed) judgeAt(number uint16, answer func(queued) (int, uint32)) *judge {
	b.t.Helper()
	nf, err := nfqueue.Open(&nfqueue.Config{NetNS: int(b.node.Handle()), NfQueue: number, MaxPacketLen: 256,
		MaxQueueLen: 1024, Copymode: nfqueue.NfQnlCopyPacket})
	b.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	j := &judge{nf: nf, cancel: cancel, answer: answer}
	b.must(nf.RegisterWithErrorFunc(ctx, func(a nfqueue.Attribute) int {
		q := decode(a)
		j.mu.Lock()
		j.seen = append(j.seen, q)
		answer := j.answer
		j.mu.Unlock()
		if verdict, m := answer(q); verdict >= 0 {
			j.release(q.id, verdict, m)
		}
		return 0
	}, func(error) int {
		if ctx.Err() != nil {
			return 1
		}
		return 0
	}))
	b.t.Cleanup(j.stop)
	return j
}

func (j *judge) stop() {
	j.cancel()
	_ = j.nf.Close()
}

// turn changes the answers.
func (j *judge) turn(answer func(queued) (int, uint32)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.answer = answer
}

// release answers one packet.
func (j *judge) release(id uint32, verdict int, m uint32) {
	_ = j.nf.SetVerdictWithOption(id, verdict, nfqueue.WithMark(m))
}

// take returns the packets seen so far and forgets them.
func (j *judge) take() []queued {
	j.mu.Lock()
	defer j.mu.Unlock()
	seen := j.seen
	j.seen = nil
	return seen
}

// sees waits for a packet in the queue, returns it and forgets it.
func (j *judge) sees(t testing.TB) queued {
	t.Helper()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(time.Millisecond) {
		j.mu.Lock()
		if len(j.seen) > 0 {
			q := j.seen[0]
			j.seen = j.seen[1:]
			j.mu.Unlock()
			return q
		}
		j.mu.Unlock()
	}
	t.Fatal("no packet came to the queue")
	return queued{}
}

func decode(a nfqueue.Attribute) queued {
	q := queued{id: *a.PacketID, hook: *a.Hook}
	if a.Mark != nil {
		q.mark = *a.Mark
	}
	p := *a.Payload
	var rest []byte
	if p[0]>>4 == 4 {
		q.src, _ = netip.AddrFromSlice(p[12:16])
		q.dst, _ = netip.AddrFromSlice(p[16:20])
		q.proto, rest = p[9], p[int(p[0]&15)*4:]
		if binary.BigEndian.Uint16(p[6:])&0x1fff != 0 {
			return q
		}
	} else {
		q.src, _ = netip.AddrFromSlice(p[8:24])
		q.dst, _ = netip.AddrFromSlice(p[24:40])
		q.proto, rest = p[6], p[40:]
	}
	if hasPorts(q.proto) {
		q.srcPort, q.dstPort = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
	}
	return q
}
