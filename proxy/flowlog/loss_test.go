package flowlog

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFailedWritesAreToldLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &output{full: true, take: 7}
		l := newLog(t, Config{Output: out})
		put(t, l.Ring(0), refused(40001, 5432))
		afterPoll()
		put(t, l.Ring(0), refused(40002, 5432))
		afterPoll()
		if s := l.Stats(); s != (Stats{WriteErrors: 1}) {
			t.Errorf("stats with a full disk: %+v", s)
		}
		out.fill(false)
		time.Sleep(defaultWindow)
		synctest.Wait()
		torn, rest, _ := strings.Cut(out.String(), "\n")
		if len(torn) != out.take {
			t.Errorf("torn line %q, want it on a line of its own", torn)
		}
		got := lines(t, rest)
		if len(got) != 1 || got[0].Count != 2 || got[0].Src.Port != 40001 {
			t.Errorf("with room again: %+v, want one line for both packets", got)
		}
		closeLog(t, l)
		if s := l.Stats(); s != (Stats{Lines: 1, WriteErrors: 1}) {
			t.Errorf("stats at the end: %+v", s)
		}
	})
}

func TestPacketsNeverWrittenAreLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog(t, Config{Output: &output{full: true}})
		put(t, l.Ring(0), refused(40001, 5432))
		put(t, l.Ring(0), refused(40002, 5432))
		closeLog(t, l)
		if s := l.Stats(); s != (Stats{WriteErrors: 2, Lost: 2}) {
			t.Errorf("stats %+v", s)
		}
	})
}

// stuck is an output whose writes wait until it is released.
type stuck struct{ release chan struct{} }

func (s *stuck) Write(b []byte) (int, error) {
	<-s.release
	return len(b), nil
}

func TestStuckOutputNeverBlocksAProducer(t *testing.T) {
	out := &stuck{make(chan struct{})}
	l := newLog(t, Config{Output: out, RingSize: 8})
	const n = 1000
	put0 := 0
	for i := range uint16(n) {
		rec := refused(40000, i)
		if l.Ring(0).Put(&rec) {
			put0++
		}
	}
	if put0 == n || put0 < 8 {
		t.Errorf("%d of %d records taken, want about a ring of 8", put0, n)
	}
	if s := l.Stats(); s.Lost != uint64(n-put0) {
		t.Errorf("%d lost, want %d", s.Lost, n-put0)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close with a stuck output: %v, want the deadline", err)
	}
	close(out.release)
	closeLog(t, l)
	if s := l.Stats(); s.Lines+s.Lost != n {
		t.Errorf("%d lines and %d lost, want %d together", s.Lines, s.Lost, n)
	}
}

func TestProducersSideBySide(t *testing.T) {
	var out output
	const producers, each = 4, 5000
	l := newLog(t, Config{Output: &out, Producers: producers, RingSize: 512})
	var wg sync.WaitGroup
	for i := range producers {
		wg.Go(func() {
			rec := refused(40000, uint16(i))
			for range each {
				for !l.Ring(i).Put(&rec) {
					runtime.Gosched()
				}
			}
		})
	}
	wg.Wait()
	closeLog(t, l)
	told := map[uint16]uint64{}
	for _, line := range lines(t, out.String()) {
		told[line.Dst.Port] += line.Count
	}
	want := map[uint16]uint64{0: each, 1: each, 2: each, 3: each}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("packets told by port (-want +got):\n%s", diff)
	}
}

func TestPutAllocatesNothing(t *testing.T) {
	l := newLog(t, Config{Output: io.Discard, RingSize: 16})
	defer closeLog(t, l)
	// A ring that nobody empties, full and not: both ways out of Put count, and no other goroutine allocates.
	r := newRing(1 << 16)
	model := refused(40000, 5432)
	reasons := []constant{deny, ingress, isolated}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range 1 << 17 {
		rec := model
		rec.Reason = reasons[i%len(reasons)] // made an interface here, as the caller does
		r.Put(&rec)
	}
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > 100 { // the runtime's own, now and then
		t.Errorf("%d allocations in %d calls", n, 1<<17)
	}
	if lost := r.lost.Load(); lost != 1<<16 {
		t.Errorf("%d lost, want %d", lost, 1<<16)
	}
}
