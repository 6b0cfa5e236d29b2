package load

import (
	"math"
	"math/bits"
	"time"
)

// Buckets are exact up to 2^subBits nanoseconds; above, each power of two has 2^(subBits-1) of them, so that a value is
// known to better than two percent.
const subBits = 6

// Histogram counts durations in logarithmic buckets. The zero value is ready; it is not safe for concurrent use.
type Histogram struct {
	// Counts by bucket; buckets behind the last used one are left out.
	Counts []uint64 `json:"counts,omitempty"`
	// Max is the longest duration seen.
	Max time.Duration `json:"max,omitempty"`
}

func bucketOf(ns uint64) int {
	n := bits.Len64(ns)
	if n <= subBits {
		return int(ns)
	}
	shift := n - subBits
	return shift<<(subBits-1) + int(ns>>shift)
}

// valueOf is the middle of a bucket.
func valueOf(bucket int) uint64 {
	if bucket < 1<<subBits {
		return uint64(bucket)
	}
	shift := bucket>>(subBits-1) - 1
	low := uint64(bucket-shift<<(subBits-1)) << shift
	return low + 1<<shift/2
}

// Add counts one duration; a negative one counts as zero.
func (h *Histogram) Add(d time.Duration) {
	b := bucketOf(uint64(max(d, 0)))
	if b >= len(h.Counts) {
		h.Counts = append(h.Counts, make([]uint64, b+1-len(h.Counts))...)
	}
	h.Counts[b]++
	h.Max = max(h.Max, d)
}

// Merge adds what another histogram has counted.
func (h *Histogram) Merge(o Histogram) {
	if len(o.Counts) > len(h.Counts) {
		h.Counts = append(h.Counts, make([]uint64, len(o.Counts)-len(h.Counts))...)
	}
	for i, n := range o.Counts {
		h.Counts[i] += n
	}
	h.Max = max(h.Max, o.Max)
}

// Count is the number of durations.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Quantile is the duration that a share q of all did not exceed; zero for an empty histogram.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := max(1, uint64(math.Ceil(q*float64(h.Count()))))
	var upTo uint64
	for b, c := range h.Counts {
		if upTo += c; upTo >= rank {
			return min(time.Duration(valueOf(b)), h.Max)
		}
	}
	return h.Max
}

// Point is one step of a cumulative distribution.
type Point struct {
	Value time.Duration `json:"ns"`
	Share float64       `json:"share"`
}

// CDF is the cumulative distribution, one point for each bucket in use.
func (h *Histogram) CDF() []Point {
	total := float64(h.Count())
	var points []Point
	var below uint64
	for b, c := range h.Counts {
		if c > 0 {
			below += c
			points = append(points, Point{time.Duration(valueOf(b)), float64(below) / total})
		}
	}
	return points
}
