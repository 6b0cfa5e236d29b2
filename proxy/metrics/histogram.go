// Package metrics holds the counters that the packet path writes and Prometheus reads.
//
// A queue thread writes its own memory with plain atomic adds and never looks up a label; the sums over threads are
// made when somebody scrapes.
package metrics

import (
	"sync/atomic"
	"time"
)

// verdictBuckets are the upper bounds of the verdict latency histogram: 1 us to 2 s, about three to a decade. The
// work of a verdict is below the first few; a held packet is in the last ones.
var verdictBuckets = [...]time.Duration{
	1 * time.Microsecond, 2 * time.Microsecond, 5 * time.Microsecond,
	10 * time.Microsecond, 20 * time.Microsecond, 50 * time.Microsecond,
	100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond,
	1 * time.Millisecond, 2 * time.Millisecond, 5 * time.Millisecond,
	10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond,
	1 * time.Second, 2 * time.Second,
}

// Latency is a histogram with fixed buckets and one writer. The zero value is ready.
type Latency struct {
	buckets [len(verdictBuckets) + 1]atomic.Uint64
	sum     atomic.Uint64 // nanoseconds
}

// Observe adds one duration. It neither allocates nor locks.
func (l *Latency) Observe(d time.Duration) {
	i := 0
	for i < len(verdictBuckets) && d > verdictBuckets[i] {
		i++
	}
	l.buckets[i].Add(1)
	l.sum.Add(uint64(max(d, 0)))
}

// histogram sums what several writers observed, in the cumulative form Prometheus wants.
func histogram(parts []*Latency) (count uint64, seconds float64, cumulative map[float64]uint64) {
	cumulative = make(map[float64]uint64, len(verdictBuckets))
	for i, bound := range verdictBuckets {
		for _, l := range parts {
			count += l.buckets[i].Load()
		}
		cumulative[bound.Seconds()] = count
	}
	var ns uint64
	for _, l := range parts {
		count += l.buckets[len(verdictBuckets)].Load()
		ns += l.sum.Load()
	}
	return count, time.Duration(ns).Seconds(), cumulative
}
