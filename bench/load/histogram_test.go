package load

import (
	"math"
	"testing"
	"time"
)

func TestBucketsAreNarrowAndInOrder(t *testing.T) {
	last := -1
	for v := uint64(0); v < 1<<40; v += 1 + v/97 {
		b := bucketOf(v)
		if b < last || b > last+1 && v > 1<<subBits {
			t.Fatalf("%d is in bucket %d after %d", v, b, last)
		}
		last = b
		if off := math.Abs(float64(valueOf(b)) - float64(v)); off > 0.02*float64(v) {
			t.Fatalf("%d is counted as %d", v, valueOf(b))
		}
	}
}

func TestQuantiles(t *testing.T) {
	var a, b Histogram
	for i := range 1000 {
		h := &a
		if i%3 == 0 {
			h = &b
		}
		h.Add(time.Duration(i+1) * time.Microsecond)
	}
	a.Merge(b)
	if a.Count() != 1000 || a.Max != time.Millisecond {
		t.Fatalf("count %d, max %v", a.Count(), a.Max)
	}
	for q, want := range map[float64]time.Duration{
		0: time.Microsecond, 0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond,
	} {
		if got := a.Quantile(q); math.Abs(float64(got-want)) > 0.02*float64(want) {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := (&Histogram{}).Quantile(0.5); got != 0 {
		t.Errorf("median of nothing is %v", got)
	}
	cdf := a.CDF()
	if last := cdf[len(cdf)-1]; last.Share != 1 {
		t.Errorf("the distribution ends at %v", last)
	}
}
