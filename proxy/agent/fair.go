package agent

import (
	"sync/atomic"
	"time"

	"github.com/firstpacket/firstpacket/classify/packet"
	"github.com/firstpacket/firstpacket/policycache/engine"
	"github.com/firstpacket/firstpacket/proxy/queue"
	"github.com/firstpacket/firstpacket/proxy/ruleset"
)

const (
	// shareRate is how many packets a second of one source a queue thread judges while more come than it can keep up
	// with, and shareBurst how many at once. A verdict costs some ten microseconds, most of them for the packet's way
	// on, so a noisy source gets about a tenth of a thread.
	shareRate  = 2000
	shareBurst = 256
	// crowded is how many packets in a batch show that the thread does not keep up: clients that wait for their
	// connections have one packet each on the way. calm is how long it must not be seen before all are judged again.
	crowded = queue.DefaultBatch / 2
	calm    = 100 * time.Millisecond
	// shares is the number of token buckets; sources that fall together share one.
	shares = 1 << 12
	// noisyAfter is how many packets over its share make a source noisy: from then on the kernel drops most of them.
	noisyAfter = 128
)

// fairness keeps one source of packets from using a queue thread up. While the thread keeps up, nobody is limited. When
// it does not, each source has a share, and what exceeds it is dropped at once: that is so much cheaper than a verdict
// that the queue empties, and the others find it as if nothing were. It belongs to one queue thread.
type fairness struct {
	// until is when the limits end, in the time of queue.Now; batch counts the packets of this one.
	until  int64
	batch  int
	bucket [shares]share
	shed   atomic.Uint64
	// noisy takes the sources that the kernel shall hold back; nil for none.
	noisy *noisyRing
}

// share is a token bucket.
type share struct {
	tokens int32
	filled int64 // queue.Now of the last filling
	// over is who exceeded it last, and times how often in a row, since it was told.
	over  ruleset.Source
	times int32
}

// begin starts a batch.
func (f *fairness) begin() { f.batch = 0 }

// admits tells whether a packet that came in by an interface and was received now may be judged.
func (f *fairness) admits(s *engine.Snapshot, flow *packet.Flow, in uint32, now int64) bool {
	if f.batch++; f.batch >= crowded {
		f.until = now + int64(calm)
	}
	if now >= f.until {
		return true
	}
	// Addresses from outside are easily forged, so there the share belongs to the pod that is spoken to. Who forges that
	// of another pod comes in by another interface than that pod.
	who := ruleset.Source{In: in, Addr: flow.Src}
	known := s.Endpoint(flow.Src) != nil
	if !known {
		who.Addr = flow.Dst
	}
	b := &f.bucket[hash(who)%shares]
	if gained := (now - b.filled) * shareRate / int64(time.Second); gained > 0 {
		b.tokens = int32(min(int64(b.tokens)+gained, shareBurst))
		b.filled = now
	}
	if b.tokens <= 0 {
		f.shed.Add(1)
		if known && in != 0 {
			f.tell(b, who)
		}
		return false
	}
	b.tokens--
	return true
}

// tell has the kernel hold a source back that keeps on exceeding its share.
func (f *fairness) tell(b *share, who ruleset.Source) {
	if b.over != who { // another one of the bucket: neither is told of for the other's sake
		b.over, b.times = who, 0
	}
	if b.times++; b.times >= noisyAfter && f.noisy != nil {
		b.times = 0
		f.noisy.tell(who)
	}
}

// hash is FNV-1a.
func hash(s ruleset.Source) uint32 {
	h := uint32(2166136261) ^ s.In*2654435761
	for _, b := range s.Addr.As16() {
		h = (h ^ uint32(b)) * 16777619
	}
	return h
}
