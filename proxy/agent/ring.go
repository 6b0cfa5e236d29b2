package agent

import "sync/atomic"

// ring is a bounded queue from one queue thread to one reader. put neither blocks, locks nor allocates.
type ring[T any] struct {
	slots []T
	head  atomic.Uint64 // next slot to read; written by the reader
	_     [56]byte      // keeps the two sides off each other's cache line
	tail  atomic.Uint64 // next slot to write; written by the writer
	lost  atomic.Uint64
}

// newRing makes a ring of size entries, a power of two.
func newRing[T any](size int) *ring[T] { return &ring[T]{slots: make([]T, size)} }

// put adds one entry; a full ring counts it as lost.
func (r *ring[T]) put(v T) bool {
	tail := r.tail.Load()
	if tail-r.head.Load() == uint64(len(r.slots)) {
		r.lost.Add(1)
		return false
	}
	r.slots[tail&uint64(len(r.slots)-1)] = v
	r.tail.Store(tail + 1)
	return true
}

// drain calls f with everything put so far, oldest first.
func (r *ring[T]) drain(f func(T)) {
	var zero T
	for head, tail := r.head.Load(), r.tail.Load(); head != tail; head++ {
		slot := &r.slots[head&uint64(len(r.slots)-1)]
		f(*slot)
		*slot = zero
		r.head.Store(head + 1)
	}
}
