package flowlog

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/firstpacket/firstpacket/classify/endpoint"
)

// Record is one refused packet. Filling one in and putting it into a Ring copies words and pointers only; names,
// strings and lists are read from it by the log's own goroutine. Whatever it points to must be immutable.
type Record struct {
	// Time is when the verdict was given, in nanoseconds since the Unix epoch.
	Time int64
	// Src and Dst are as policy saw them: destinations after DNAT, sources before SNAT. The ports are zero for
	// protocols without ports and for fragments.
	Src, Dst netip.AddrPort
	// SrcEndpoint and DstEndpoint own the addresses; nil for addresses outside of the cluster.
	SrcEndpoint, DstEndpoint *endpoint.Endpoint
	// Verdict, Direction and Reason are printed by name; nil prints as the empty string. Constants of a type that is
	// one byte wide become an interface without an allocation, and are what these are meant for.
	Verdict, Direction, Reason fmt.Stringer
	// Policies has the policies that decided, or those that isolate the pod; nil for none. Its type must be comparable,
	// as pointers are.
	Policies Policies
	// Proto is the IP protocol number.
	Proto uint8
}

// Policies lists the names of policies. The names are asked for once in a while, never by the packet's thread.
type Policies interface {
	Policies() []string
}

// cacheLine keeps the fields of one side of a ring off the other side's cache line (64 bytes on amd64 and arm64; some
// arm64 cores fetch pairs).
type cacheLine [128]byte

// Ring carries the records of one thread to the log. One goroutine at a time may Put; nothing it does there waits,
// locks or allocates.
type Ring struct {
	slots []Record // a power of two
	mask  uint64

	_    cacheLine
	tail atomic.Uint64 // next slot to fill; written by the producer
	seen uint64        // the producer's last reading of head
	lost atomic.Uint64 // written by the producer
	_    cacheLine
	head atomic.Uint64 // next slot to read; written by the consumer
	_    cacheLine
}

func newRing(size int) *Ring {
	return &Ring{slots: make([]Record, size), mask: uint64(size - 1)}
}

// Put adds a copy of the record, or counts it as lost and returns false when the log has fallen behind by a whole ring.
func (r *Ring) Put(rec *Record) bool {
	tail := r.tail.Load()
	if tail-r.seen == uint64(len(r.slots)) {
		r.seen = r.head.Load()
		if tail-r.seen == uint64(len(r.slots)) {
			r.lost.Add(1)
			return false
		}
	}
	r.slots[tail&r.mask] = *rec
	r.tail.Store(tail + 1)
	return true
}

// drain hands all records that are there now to f. The slots are cleared, so that they keep nothing alive.
func (r *Ring) drain(f func(*Record)) {
	head, tail := r.head.Load(), r.tail.Load()
	for ; head != tail; head++ {
		slot := &r.slots[head&r.mask]
		f(slot)
		*slot = Record{}
		r.head.Store(head + 1)
	}
}
